//! `lory persona show`.

use serde_json::json;
use server::persona_responses::PersonaVersion;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::{print, print_json};
use crate::cli::persona::format::date;
use crate::cli::persona::name::parse_ref;

/// Show a published version: its settings, its adapter, its aliases and its share of the requests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona show customer
  lory persona show customer@3 --json")]
pub(crate) struct Args {
    /// The persona, or a version of it
    #[arg(value_name = "NAME[@VERSION]")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let state = args.registry.open()?.refresh()?;
    let (name, version) = parse_ref(&args.name)?;
    let shown = PersonaVersion::published(&state, &name, version)?;
    if args.json {
        print_json(&shown)?;
        return Ok(ExitStatus::Success);
    }
    let adapter = shown.adapter.as_ref();
    let or_none = |text: Option<&String>| text.map_or("-", String::as_str).to_owned();
    let mut lines = vec![
        ("version", format!("{}@{}", name, shown.version)),
        (
            "current",
            if shown.current { "yes" } else { "no" }.to_owned(),
        ),
        ("published", shown.published.map_or("-".to_owned(), date)),
        (
            "adapter sha256",
            or_none(adapter.map(|adapter| &adapter.sha256)),
        ),
    ];
    if let Some(adapter) = adapter {
        lines.push(("adapter bytes", adapter.bytes.to_string()));
    }
    let base = adapter.and_then(|adapter| adapter.base_sha256.as_ref());
    lines.push(("base sha256", or_none(base)));
    let settings = json!(shown.settings);
    for (key, value) in settings.as_object().into_iter().flatten() {
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        lines.push((key, value));
    }
    for (what, split) in [("canary", &shown.canary), ("shadow", &shown.shadow)] {
        if let Some(split) = split {
            lines.push((what, format!("{} %", split.percent)));
        }
    }
    for alias in &shown.aliases {
        lines.push(("alias", alias.clone()));
    }
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let out: String = lines
        .iter()
        .map(|(key, value)| format!("{key:width$}  {value}\n"))
        .collect();
    print(&out)?;
    Ok(ExitStatus::Success)
}
