//! `lory persona`: publishes and changes personas, and writes adapters as files for other programs.
//!
//! - `name`: names of personas on the command line; `adapter`: the adapter that `export` and `merge` write

mod adapter;
mod change;
mod export;
mod format;
mod history;
mod list;
mod maintenance;
mod merge;
mod name;
mod publish;
mod show;

use crate::cli::exit::ExitStatus;

/// Publish, change and check personas; export adapters for other programs
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  lory persona list
  lory persona publish customer
  lory persona rollback customer")]
pub(crate) enum Command {
    Publish(publish::Args),
    List(list::Args),
    Show(show::Args),
    History(history::Args),
    Rollback(change::Rollback),
    Alias(change::Alias),
    Canary(change::Canary),
    Shadow(change::Shadow),
    Remove(change::Remove),
    Verify(maintenance::Verify),
    Gc(maintenance::Gc),
    Export(export::Args),
    Merge(merge::Args),
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Publish(args) => publish::run(&args),
        Command::List(args) => list::run(&args),
        Command::Show(args) => show::run(&args),
        Command::History(args) => history::run(&args),
        Command::Rollback(args) => change::rollback(&args),
        Command::Alias(args) => change::alias(&args),
        Command::Canary(args) => change::canary(&args),
        Command::Shadow(args) => change::shadow(&args),
        Command::Remove(args) => change::remove(&args),
        Command::Verify(args) => maintenance::verify(&args),
        Command::Gc(args) => maintenance::gc(&args),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
    }
}
