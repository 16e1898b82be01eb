//! `lory persona list`, `show` and `history`.

use std::time::{Duration, UNIX_EPOCH};

use registry::{Personas, RegistryError};
use serde_json::Value;

use crate::cli::personas::PersonasArgs;
use crate::cli::registry::RegistryArgs;
use crate::cli::table::Table;
use crate::cli::{Verdict, print};
use service::catalog::shown;

/// List personas: the published ones and those of the folder
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lory persona list")]
pub(in crate::cli) struct List {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Show a published version: its settings, its adapter, who leads to it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lory persona show customer\n  lory persona show customer@3 --json"
)]
pub(in crate::cli) struct Show {
    /// The persona, or a version of it
    #[arg(value_name = "NAME[@VERSION]")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Show what happened to a persona, or to all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lory persona history\n  lory persona history customer")]
pub(in crate::cli) struct History {
    /// The persona [default: everything]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn list(args: &List) -> anyhow::Result<Verdict> {
    // Without anything anywhere the list is empty, which is an answer.
    let catalog = match (&args.personas.dir, args.personas.find()) {
        (None, Err(_)) => {
            service::catalog::Catalog::open(Personas::default(), args.registry.open()?)?
        }
        _ => args.registry.catalog(&args.personas)?,
    };
    let list = shown::list(&catalog);
    if args.json {
        print(&format!("{list}\n"))?;
        return Ok(Verdict::Good);
    }
    let mut table = Table::new(&[
        "persona",
        "version",
        "versions",
        "from",
        "published",
        "adapter",
        "description",
    ]);
    for one in list["data"].as_array().into_iter().flatten() {
        table.row([
            text(&one["name"]),
            one["version"].to_string(),
            one["versions"].as_array().map_or(0, Vec::len).to_string(),
            text(&one["source"]),
            one["published"].as_u64().map_or("-".to_owned(), date),
            short(&one["adapter"]["sha256"]),
            text(&one["description"]),
        ]);
    }
    let mut out = table.render();
    for (alias, target) in list["aliases"].as_object().into_iter().flatten() {
        out += &format!("{alias} stands for {}\n", text(target));
    }
    print(&out)?;
    Ok(Verdict::Good)
}

pub(super) fn show(args: &Show) -> anyhow::Result<Verdict> {
    let state = args.registry.open()?.refresh()?;
    let (name, version) = super::named(&args.name)?;
    let shown = shown::version(&state, &name, version)?;
    if args.json {
        print(&format!("{shown}\n"))?;
        return Ok(Verdict::Good);
    }
    let yes = |value: &Value| if value == true { "yes" } else { "no" };
    let mut lines = vec![
        ("version", format!("{}@{}", name, shown["version"])),
        ("current", yes(&shown["current"]).to_owned()),
        (
            "published",
            shown["published"].as_u64().map_or("-".to_owned(), date),
        ),
        ("adapter", text(&shown["adapter"]["sha256"])),
        ("bytes", shown["adapter"]["bytes"].to_string()),
        ("base", text(&shown["adapter"]["base_sha256"])),
    ];
    for (key, value) in shown["settings"].as_object().into_iter().flatten() {
        lines.push((
            key,
            if value.is_string() {
                text(value)
            } else {
                value.to_string()
            },
        ));
    }
    for what in ["canary", "shadow"] {
        if let Some(percent) = shown[what]["percent"].as_f64() {
            lines.push((what, format!("{percent} %")));
        }
    }
    for alias in shown["aliases"].as_array().into_iter().flatten() {
        lines.push(("alias", text(alias)));
    }
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = lines.iter().filter(|(_, value)| value != "null");
    let out: String = lines
        .map(|(key, value)| format!("{key:width$}  {value}\n"))
        .collect();
    print(&out)?;
    Ok(Verdict::Good)
}

pub(super) fn history(args: &History) -> anyhow::Result<Verdict> {
    let state = args.registry.open()?.refresh()?;
    let history = shown::history(&state, args.name.as_deref());
    let entries = history["data"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(name) = args.name.as_ref().filter(|_| entries.is_empty()) {
        let name = name.clone();
        return Err(RegistryError::Unknown { name, alias: None }.into());
    }
    if args.json {
        print(&format!("{history}\n"))?;
        return Ok(Verdict::Good);
    }
    let mut table = Table::new(&["entry", "time", "change"]);
    for entry in entries {
        table.row([
            entry["sequence"].to_string(),
            entry["time"].as_u64().map_or("-".to_owned(), date),
            text(&entry["summary"]),
        ]);
    }
    print(&table.render())?;
    Ok(Verdict::Good)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Enough of a hash to tell it from others.
fn short(value: &Value) -> String {
    value
        .as_str()
        .map_or("-", |hash| hash.get(..12).unwrap_or(hash))
        .to_owned()
}

fn date(seconds: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        // What no calendar holds is shown as it is.
        Some(time) if seconds < 253_402_300_800 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => seconds.to_string(),
    }
}
