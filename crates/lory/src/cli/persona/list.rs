//! `lory persona list`.

use registry::Personas;
use server::persona_responses::PersonaList;
use service::catalog::Catalog;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::personas::PersonasArgs;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::table::Table;
use crate::cli::output::{print, print_json};
use crate::cli::persona::format::{date, short_hash};

/// List the published personas and those in the folder
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory persona list")]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    // If there are no personas at all, the list is empty.
    let catalog = match (&args.personas.dir, args.personas.find()) {
        (None, Err(_)) => Catalog::open(Personas::default(), args.registry.open()?)?,
        _ => args.registry.catalog(&args.personas)?,
    };
    let list = PersonaList::new(&catalog);
    if args.json {
        print_json(&list)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&[
        "persona",
        "version",
        "versions",
        "source",
        "published",
        "adapter",
        "description",
    ]);
    let empty = list.data.is_empty();
    for one in list.data {
        table.row([
            one.name,
            one.version.to_string(),
            one.versions.len().to_string(),
            one.source.to_owned(),
            one.published.map_or("-".to_owned(), date),
            one.adapter
                .map_or("-".to_owned(), |adapter| short_hash(&adapter.sha256)),
            one.description,
        ]);
    }
    let mut out = table.render();
    for (alias, target) in list.aliases {
        out += &format!("{alias} is an alias of {target}\n");
    }
    print(&out)?;
    if empty {
        eprintln!("no personas yet; lory train --data FILE.jsonl --out personas/NAME makes one");
    }
    Ok(ExitStatus::Success)
}
