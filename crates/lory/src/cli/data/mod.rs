//! `lory data`: checks dataset files, and shows the examples that training makes of them.

mod lint;
mod reader;
mod show;

use crate::cli::exit::ExitStatus;

/// Check dataset files, and show what training makes of them
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  lory data lint mine.jsonl
  lory data show mine.jsonl --row 1")]
pub(crate) enum Command {
    Lint(lint::Args),
    Show(show::Args),
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Lint(args) => lint::run(&args),
        Command::Show(args) => show::run(&args),
    }
}
