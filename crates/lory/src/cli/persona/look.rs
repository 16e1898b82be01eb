//! `lory persona list`, `show` and `history`.

use std::time::{Duration, UNIX_EPOCH};

use registry::{Personas, RegistryError};
use serde_json::json;

use crate::cli::personas::PersonasArgs;
use crate::cli::registry::RegistryArgs;
use crate::cli::table::Table;
use crate::cli::{Verdict, print, print_json};
use server::persona_responses::{self as responses, PersonaList, PersonaVersion};

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
    let list = PersonaList::new(&catalog);
    if args.json {
        print_json(&list)?;
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
    for one in list.data {
        table.row([
            one.name,
            one.version.to_string(),
            one.versions.len().to_string(),
            one.source.to_owned(),
            one.published.map_or("-".to_owned(), date),
            one.adapter
                .map_or("-".to_owned(), |adapter| short(&adapter.sha256)),
            one.description,
        ]);
    }
    let mut out = table.render();
    for (alias, target) in list.aliases {
        out += &format!("{alias} stands for {target}\n");
    }
    print(&out)?;
    Ok(Verdict::Good)
}

pub(super) fn show(args: &Show) -> anyhow::Result<Verdict> {
    let state = args.registry.open()?.refresh()?;
    let (name, version) = super::named(&args.name)?;
    let shown = PersonaVersion::published(&state, &name, version)?;
    if args.json {
        print_json(&shown)?;
        return Ok(Verdict::Good);
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
        ("adapter", or_none(adapter.map(|adapter| &adapter.sha256))),
    ];
    if let Some(adapter) = adapter {
        lines.push(("bytes", adapter.bytes.to_string()));
    }
    let base = adapter.and_then(|adapter| adapter.base_sha256.as_ref());
    lines.push(("base", or_none(base)));
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
    Ok(Verdict::Good)
}

pub(super) fn history(args: &History) -> anyhow::Result<Verdict> {
    let state = args.registry.open()?.refresh()?;
    let history = responses::History::new(&state, args.name.as_deref());
    if let Some(name) = args.name.as_ref().filter(|_| history.data.is_empty()) {
        let name = name.clone();
        return Err(RegistryError::Unknown { name, alias: None }.into());
    }
    if args.json {
        print_json(&history)?;
        return Ok(Verdict::Good);
    }
    let mut table = Table::new(&["entry", "time", "change"]);
    for entry in history.data {
        table.row([entry.sequence.to_string(), date(entry.time), entry.summary]);
    }
    print(&table.render())?;
    Ok(Verdict::Good)
}

/// Enough of a hash to tell it from others.
fn short(hash: &str) -> String {
    hash.get(..12).unwrap_or(hash).to_owned()
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
