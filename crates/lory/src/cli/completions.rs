//! `lory completions` and `lory man`: what shells and manual readers want, made from the command line's own definition.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Verdict, config, print};

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory completions bash > ~/.local/share/bash-completion/completions/lory
  lory completions zsh > ~/.zfunc/_lory
  lory completions fish > ~/.config/fish/completions/lory.fish")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Write the manual pages, one for each command
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Example:
  lory man --out /usr/local/share/man/man1"
)]
pub(super) struct Man {
    /// The folder that they are written to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn completions(args: &Completions) -> anyhow::Result<Verdict> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut config::command(), "lory", &mut out);
    print(&String::from_utf8_lossy(&out))?;
    Ok(Verdict::Good)
}

pub(super) fn man(args: &Man) -> anyhow::Result<Verdict> {
    let to = args.out.display().to_string();
    std::fs::create_dir_all(&args.out).with_context(|| to.clone())?;
    clap_mangen::generate_to(config::command(), &args.out).context(to)?;
    Ok(Verdict::Good)
}
