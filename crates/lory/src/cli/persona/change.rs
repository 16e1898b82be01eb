//! `lory persona rollback`, `remove`, `alias`, `canary` and `shadow`: changes of what is published.

use registry::{PersonaRef, Registry, RegistryError};
use serde_json::json;

use super::named;
use crate::cli::registry::RegistryArgs;
use crate::cli::{Usage, Verdict, print};

/// Make another version the current one: the one before, or the one that is named
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lory persona rollback customer\n  lory persona rollback customer --to 4"
)]
pub(in crate::cli) struct Rollback {
    /// The persona
    #[arg(value_name = "NAME")]
    name: String,
    /// The version [default: the one that was current before]
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
#[command(
    after_help = "Examples:\n  lory persona remove customer@2\n  lory persona remove customer"
)]
pub(in crate::cli) struct Remove {
    /// The persona, or a version of it
    #[arg(value_name = "NAME[@VERSION]")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Give a persona, or a version of it, another name; or take the name away
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona alias support customer
  lory persona alias support customer@3
  lory persona alias support --remove")]
pub(in crate::cli) struct Alias {
    /// The other name
    #[arg(value_name = "ALIAS")]
    alias: String,
    /// What it stands for
    #[arg(
        value_name = "NAME[@VERSION]",
        required_unless_present = "remove",
        conflicts_with = "remove"
    )]
    target: Option<String>,
    /// Take the name away
    #[arg(long)]
    remove: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// A part of a persona's requests for another version.
#[derive(Debug, clap::Args)]
struct SplitArgs {
    /// The persona, with the version that is tried
    #[arg(value_name = "NAME@VERSION")]
    name: String,
    /// How many of a hundred requests for the name alone: above 0, to 100
    #[arg(long, value_name = "P", required_unless_present = "off")]
    percent: Option<f64>,
    /// End it; the name is given without a version then
    #[arg(long, conflicts_with = "percent")]
    off: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Send a part of a persona's requests to another version
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same question always goes the same way, on every server. `lory persona rollback NAME --to VERSION` makes it everyone's.

Examples:
  lory persona canary customer@4 --percent 10
  lory persona canary customer --off")]
pub(in crate::cli) struct Canary {
    #[command(flatten)]
    split: SplitArgs,
}

/// Let another version answer a part of a persona's requests too, and compare
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The client gets the current version's answer; /metrics and the log say how often the other one's was the same.

Examples:
  lory persona shadow customer@4 --percent 25
  lory persona shadow customer --off")]
pub(in crate::cli) struct Shadow {
    #[command(flatten)]
    split: SplitArgs,
}

/// Says what was done.
fn done(json: bool, report: &serde_json::Value, text: &str) -> anyhow::Result<Verdict> {
    print(&if json {
        format!("{report}\n")
    } else {
        format!("{text}\n")
    })?;
    Ok(Verdict::Good)
}

/// A persona as a whole.
fn whole(text: &str) -> anyhow::Result<String> {
    match named(text)? {
        (name, None) => Ok(name),
        (name, Some(_)) => Err(Usage(format!(
            "{text}: this is about {name} as a whole; leave the version out"
        ))
        .into()),
    }
}

pub(super) fn rollback(args: &Rollback) -> anyhow::Result<Verdict> {
    let name = whole(&args.name)?;
    let version = args.registry.open()?.rollback(&name, args.to)?;
    let report = json!({"name": name, "version": version});
    done(
        args.json,
        &report,
        &format!("{name} is version {version} now"),
    )
}

pub(super) fn remove(args: &Remove) -> anyhow::Result<Verdict> {
    let (name, version) = named(&args.name)?;
    args.registry.open()?.remove(&name, version)?;
    let report = json!({"name": name, "version": version, "removed": true});
    done(args.json, &report, &format!("{} is removed", args.name))
}

pub(super) fn alias(args: &Alias) -> anyhow::Result<Verdict> {
    let registry = args.registry.open()?;
    let alias = whole(&args.alias)?;
    let Some(target) = &args.target else {
        registry.remove_alias(&alias)?;
        let report = json!({"alias": alias, "removed": true});
        return done(args.json, &report, &format!("alias {alias} is removed"));
    };
    let (name, version) = named(target)?;
    let target = PersonaRef { name, version };
    registry.alias(&alias, &target)?;
    let report = json!({"alias": alias, "target": target.to_string()});
    done(args.json, &report, &format!("{alias} stands for {target}"))
}

pub(super) fn canary(args: &Canary) -> anyhow::Result<Verdict> {
    split("canary", &args.split, Registry::canary)
}

pub(super) fn shadow(args: &Shadow) -> anyhow::Result<Verdict> {
    split("shadow", &args.split, Registry::shadow)
}

type Splitting = fn(&Registry, &str, Option<(u32, f64)>) -> Result<(), RegistryError>;

fn split(what: &str, args: &SplitArgs, change: Splitting) -> anyhow::Result<Verdict> {
    let registry = args.registry.open()?;
    let Some(percent) = args.percent else {
        let name = whole(&args.name)?;
        change(&registry, &name, None)?;
        let report = json!({"name": name, what: null});
        return done(args.json, &report, &format!("the {what} of {name} is over"));
    };
    let (name, Some(version)) = named(&args.name)? else {
        let message = format!("{}: say which version, as in {0}@4", args.name);
        return Err(Usage(message).into());
    };
    change(&registry, &name, Some((version, percent)))?;
    let report = json!({"name": name, what: {"version": version, "percent": percent}});
    let text = match what {
        "canary" => format!("{percent} % of the requests for {name} get version {version}"),
        _ => format!(
            "version {version} answers {percent} % of the requests for {name} too, for comparison"
        ),
    };
    done(args.json, &report, &text)
}
