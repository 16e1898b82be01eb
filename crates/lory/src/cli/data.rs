//! `lory data`: looks over data files.

use std::path::PathBuf;

use serde_json::json;
use train::dataset::{Dataset, Row};
use train::lint::{self, Options, Problem};

use super::{Verdict, print};

/// Look over data files
#[derive(Debug, clap::Subcommand)]
pub(super) enum Data {
    Lint(LintArgs),
}

/// Find rows that say the same, that leak into evaluation, or whose numbers come from nowhere
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 1 where something is found.

Examples:
  lory data lint personas/customer/train.jsonl --against personas/customer/eval.jsonl
  lory data lint mine.jsonl --json")]
pub(super) struct LintArgs {
    /// JSONL files, looked over together
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Evaluation files whose questions must not stand in FILE
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Share of words in common, 0 to 1, that makes two rows near-duplicates
    #[arg(long, default_value_t = Options::default().near, value_parser = share)]
    near: f64,
    /// Share of words in common, 0 to 1, that makes a question the same as one of the evaluation
    #[arg(long, default_value_t = Options::default().leak, value_parser = share)]
    leak: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

pub(super) fn run(data: Data) -> anyhow::Result<Verdict> {
    match data {
        Data::Lint(args) => run_lint(&args),
    }
}

fn run_lint(args: &LintArgs) -> anyhow::Result<Verdict> {
    let rows = |files: &[PathBuf]| -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for file in files {
            rows.extend(Dataset::read(file)?.rows);
        }
        Ok(rows)
    };
    let options = Options {
        near: args.near,
        leak: args.leak,
        ..Options::default()
    };
    let report = lint::lint(&rows(&args.files)?, &rows(&args.against)?, &options);
    if args.json {
        print(&format!("{}\n", json!(report)))?;
    } else {
        let mut out = String::new();
        for finding in &report.findings {
            out += &format!("{finding}\n");
        }
        let kinds: Vec<String> = Problem::ALL
            .into_iter()
            .map(|problem| (json!(problem), report.count(problem)))
            .filter(|(_, count)| *count > 0)
            .map(|(problem, count)| format!("{count} {}", problem.as_str().unwrap_or_default()))
            .collect();
        let found = if kinds.is_empty() {
            "nothing found".to_owned()
        } else {
            kinds.join(", ")
        };
        out += &format!(
            "{} rows, {} intents: {found}\n",
            report.rows,
            report.intents.len()
        );
        print(&out)?;
    }
    Ok(if report.findings.is_empty() {
        Verdict::Good
    } else {
        Verdict::Bad
    })
}
