//! `lory persona rollback`, `remove`, `alias`, `canary` and `shadow`: change what is published.

use registry::{PersonaRef, Registry, RegistryError};
use serde_json::json;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::print;
use crate::cli::persona::name::{parse_name, parse_ref};

/// Make another version the current one: the previous one, or the one given by --to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona rollback customer
  lory persona rollback customer --to 4")]
pub(crate) struct Rollback {
    /// The persona
    #[arg(value_name = "NAME")]
    name: String,
    /// The version [default: the previous current one]
    #[arg(long, value_name = "VERSION")]
    to: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Remove a published persona, or one version of it; its adapter stays until `lory persona gc`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona remove customer@2
  lory persona remove customer")]
pub(crate) struct Remove {
    /// The persona, or a version of it
    #[arg(value_name = "NAME[@VERSION]")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Give a persona, or a version of it, a second name; or remove that name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona alias support customer
  lory persona alias support customer@3
  lory persona alias support --remove")]
pub(crate) struct Alias {
    /// The second name
    #[arg(value_name = "ALIAS")]
    alias: String,
    /// The persona that it refers to
    #[arg(
        value_name = "NAME[@VERSION]",
        required_unless_present = "remove",
        conflicts_with = "remove"
    )]
    target: Option<String>,
    /// Remove the alias
    #[arg(long)]
    remove: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// The share of requests that another version gets.
#[derive(Debug, clap::Args)]
struct SplitArgs {
    /// The persona and the version to try
    #[arg(value_name = "NAME@VERSION")]
    name: String,
    /// Percentage of the requests that name no version: above 0, at most 100
    #[arg(long, value_name = "P", required_unless_present = "off")]
    percent: Option<f64>,
    /// End it; give the name without a version
    #[arg(long, conflicts_with = "percent")]
    off: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Send a share of a persona's requests to another version
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same question always goes to the same version, on every server. `lory persona rollback NAME --to VERSION` makes the version
current for all requests.

Examples:
  lory persona canary customer@4 --percent 10
  lory persona canary customer --off")]
pub(crate) struct Canary {
    #[command(flatten)]
    split: SplitArgs,
}

/// Let another version also answer a share of a persona's requests, and compare the answers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The client gets the answer of the current version. /metrics and the log count how often the other version's answer is the same.

Examples:
  lory persona shadow customer@4 --percent 25
  lory persona shadow customer --off")]
pub(crate) struct Shadow {
    #[command(flatten)]
    split: SplitArgs,
}

/// Prints the result of a change.
fn report_change(json: bool, report: &serde_json::Value, text: &str) -> anyhow::Result<ExitStatus> {
    print(&if json {
        format!("{report}\n")
    } else {
        format!("{text}\n")
    })?;
    Ok(ExitStatus::Success)
}

pub(crate) fn rollback(args: &Rollback) -> anyhow::Result<ExitStatus> {
    let name = parse_name(&args.name)?;
    let version = args.registry.open()?.rollback(&name, args.to)?;
    let report = json!({"name": name, "version": version});
    report_change(
        args.json,
        &report,
        &format!("{name} is now version {version}"),
    )
}

pub(crate) fn remove(args: &Remove) -> anyhow::Result<ExitStatus> {
    let (name, version) = parse_ref(&args.name)?;
    args.registry.open()?.remove(&name, version)?;
    let report = json!({"name": name, "version": version, "removed": true});
    report_change(args.json, &report, &format!("{} is removed", args.name))
}

pub(crate) fn alias(args: &Alias) -> anyhow::Result<ExitStatus> {
    let registry = args.registry.open()?;
    let alias = parse_name(&args.alias)?;
    let Some(target) = &args.target else {
        registry.remove_alias(&alias)?;
        let report = json!({"alias": alias, "removed": true});
        return report_change(args.json, &report, &format!("alias {alias} is removed"));
    };
    let (name, version) = parse_ref(target)?;
    let target = PersonaRef { name, version };
    registry.alias(&alias, &target)?;
    let report = json!({"alias": alias, "target": target.to_string()});
    report_change(
        args.json,
        &report,
        &format!("{alias} is an alias of {target}"),
    )
}

pub(crate) fn canary(args: &Canary) -> anyhow::Result<ExitStatus> {
    split("canary", &args.split, Registry::canary)
}

pub(crate) fn shadow(args: &Shadow) -> anyhow::Result<ExitStatus> {
    split("shadow", &args.split, Registry::shadow)
}

type Splitting = fn(&Registry, &str, Option<(u32, f64)>) -> Result<(), RegistryError>;

fn split(what: &str, args: &SplitArgs, change: Splitting) -> anyhow::Result<ExitStatus> {
    let registry = args.registry.open()?;
    let Some(percent) = args.percent else {
        let name = parse_name(&args.name)?;
        change(&registry, &name, None)?;
        let report = json!({"name": name, what: null});
        return report_change(
            args.json,
            &report,
            &format!("the {what} of {name} has ended"),
        );
    };
    let (name, Some(version)) = parse_ref(&args.name)? else {
        let message = format!("{}: name a version, such as {0}@4", args.name);
        return Err(UsageError(message).into());
    };
    change(&registry, &name, Some((version, percent)))?;
    let report = json!({"name": name, what: {"version": version, "percent": percent}});
    let text = match what {
        "canary" => format!("{percent} % of the requests for {name} go to version {version}"),
        _ => format!(
            "version {version} also answers {percent} % of the requests for {name}, for comparison"
        ),
    };
    report_change(args.json, &report, &text)
}
