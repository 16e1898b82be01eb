//! `lory persona verify` and `gc`: maintenance of the stored adapters.

use std::time::Duration;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::table::Table;
use crate::cli::output::{print, print_json};
use server::persona_responses::{Garbage, VerifiedList};

/// Check every published adapter against its hash; the exit code is 1 if one is broken
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory persona verify")]
pub(crate) struct Verify {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Remove stored adapters that no version uses any more
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lory persona gc --dry-run
  lory persona gc --older-than 7d")]
pub(crate) struct Gc {
    /// Keep adapters that were written or used more recently than this; someone may be about to publish one
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn verify(args: &Verify) -> anyhow::Result<ExitStatus> {
    let verified = args.registry.open()?.verify()?;
    let broken = verified.iter().filter(|one| one.problem.is_some()).count();
    if args.json {
        print_json(&VerifiedList::new(&verified))?;
    } else {
        let mut table = Table::new(&["adapter", "used by", "state"]);
        for one in &verified {
            let used_by: Vec<String> = one.used_by.iter().map(ToString::to_string).collect();
            let state = one.problem.clone().unwrap_or_else(|| "ok".to_owned());
            table.row([one.sha256[..12].to_owned(), used_by.join(", "), state]);
        }
        print(&format!(
            "{}{} adapters, {broken} broken\n",
            table.render(),
            verified.len()
        ))?;
    }
    Ok(if broken == 0 {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

pub(crate) fn gc(args: &Gc) -> anyhow::Result<ExitStatus> {
    let registry = args.registry.open()?;
    let collected = registry.collect_garbage(args.older_than, args.dry_run)?;
    if args.json {
        print_json(&Garbage::new(collected, args.dry_run))?;
        return Ok(ExitStatus::Success);
    }
    let mut out = String::new();
    for sha256 in &collected.removed {
        let action = if args.dry_run {
            "would be removed"
        } else {
            "removed"
        };
        out += &format!("{action}  {sha256}\n");
    }
    let young = collected.too_young.len();
    out += &format!("{} in use", collected.used);
    if young > 0 {
        let age = humantime::format_duration(args.older_than);
        out += &format!(", {young} not in use but younger than {age}");
    }
    print(&format!("{out}\n"))?;
    Ok(ExitStatus::Success)
}
