//! `lory completions` and `lory man`: shell completions and manual pages, generated from the definition of the command line.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::exit::ExitStatus;
use crate::cli::output::print;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory completions bash > ~/.local/share/bash-completion/completions/lory
  lory completions zsh > ~/.zfunc/_lory
  lory completions fish > ~/.config/fish/completions/lory.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Write a manual page for each command
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Example:
  lory man --out /usr/local/share/man/man1"
)]
pub(crate) struct ManArgs {
    /// The folder to write them to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<ExitStatus> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut command, "lory", &mut out);
    print(&String::from_utf8_lossy(&out))?;
    Ok(ExitStatus::Success)
}

pub(crate) fn man(args: &ManArgs, command: clap::Command) -> anyhow::Result<ExitStatus> {
    let to = args.out.display().to_string();
    formats::disk::create_folders(&args.out).with_context(|| to.clone())?;
    clap_mangen::generate_to(command, &args.out).context(to)?;
    Ok(ExitStatus::Success)
}
