//! `lory persona verify` and `gc`: looking after what is stored.

use std::time::Duration;

use crate::cli::registry::RegistryArgs;
use crate::cli::table::Table;
use crate::cli::{Verdict, print, print_json};
use server::persona_responses::{Garbage, VerifiedList};

/// Read every published adapter and compare it with its hash; exit code 1 if one is broken
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lory persona verify")]
pub(in crate::cli) struct Verify {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Remove stored adapters that no version uses any more
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lory persona gc --dry-run\n  lory persona gc --older-than 7d")]
pub(in crate::cli) struct Gc {
    /// Leave what was written, or last used, less long ago: somebody may be about to publish it
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn verify(args: &Verify) -> anyhow::Result<Verdict> {
    let verified = args.registry.open()?.verify()?;
    let broken = verified.iter().filter(|one| one.problem.is_some()).count();
    if args.json {
        print_json(&VerifiedList::new(&verified))?;
    } else {
        let mut table = Table::new(&["adapter", "used by", "state"]);
        for one in &verified {
            let used_by: Vec<String> = one.used_by.iter().map(ToString::to_string).collect();
            let state = one.problem.clone().unwrap_or_else(|| "whole".to_owned());
            table.row([one.sha256[..12].to_owned(), used_by.join(", "), state]);
        }
        print(&format!(
            "{}{} adapters, {broken} broken\n",
            table.render(),
            verified.len()
        ))?;
    }
    Ok(if broken == 0 {
        Verdict::Good
    } else {
        Verdict::Bad
    })
}

pub(super) fn gc(args: &Gc) -> anyhow::Result<Verdict> {
    let registry = args.registry.open()?;
    let collected = registry.collect_garbage(args.older_than, args.dry_run)?;
    if args.json {
        print_json(&Garbage::new(collected, args.dry_run))?;
        return Ok(Verdict::Good);
    }
    let mut out = String::new();
    for sha256 in &collected.removed {
        let said = if args.dry_run {
            "would be removed"
        } else {
            "removed"
        };
        out += &format!("{said}  {sha256}\n");
    }
    let young = collected.too_young.len();
    out += &format!("{} in use", collected.used);
    if young > 0 {
        let age = humantime::format_duration(args.older_than);
        out += &format!(", {young} in no use and younger than {age}");
    }
    print(&format!("{out}\n"))?;
    Ok(Verdict::Good)
}
