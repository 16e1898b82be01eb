//! `lory persona history`.

use registry::RegistryError;
use server::persona_responses::History;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::table::Table;
use crate::cli::output::{print, print_json};
use crate::cli::persona::format::date;

/// Show the changes of a persona, or of all personas
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona history
  lory persona history customer")]
pub(crate) struct Args {
    /// The persona [default: all]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let state = args.registry.open()?.refresh()?;
    let history = History::new(&state, args.name.as_deref());
    if let Some(name) = args.name.as_ref().filter(|_| history.data.is_empty()) {
        let name = name.clone();
        return Err(RegistryError::Unknown { name, alias: None }.into());
    }
    if args.json {
        print_json(&history)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["entry", "time", "change"]);
    for entry in history.data {
        table.row([entry.sequence.to_string(), date(entry.time), entry.summary]);
    }
    print(&table.render())?;
    Ok(ExitStatus::Success)
}
