//! `lory data lint`: reports problems of dataset files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dataset::stop::NEVER;
use dataset::{Columns, DataRow, held_out};
use serde_json::json;
use train::lint::{self, LintOptions, LintProblem, LintReport, MAX_FINDINGS, TokenLengths};

use crate::cli::data::reader::{Reader, ReaderArgs, scan};
use crate::cli::exit::ExitStatus;
use crate::cli::output::print;

/// Width of the histogram's longest bar, in characters.
const BAR_WIDTH: usize = 40;

/// Find broken lines, duplicate rows, rows that leak into evaluation, cut-off answers, and rows that would not be trained
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 1 if a problem is found.

Examples:
  lory data lint --persona customer
  lory data lint mine.jsonl --against held-out.jsonl --base my-base.gguf
  lory data lint mine.jsonl --column instruction=question --column output=answer --json
  lory data lint mine.jsonl --text-only")]
pub(crate) struct Args {
    /// Data files, checked together [default: the persona's]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Evaluation files whose questions must not be in FILE [default: the persona's]
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Share of words in common, 0 to 1, that makes two rows near-duplicates
    #[arg(long, default_value_t = LintOptions::default().near, value_parser = share)]
    near: f64,
    /// Share of words in common, 0 to 1, that makes a question a leak of an evaluation question
    #[arg(long, default_value_t = LintOptions::default().leak, value_parser = share)]
    leak: f64,
    /// Skip the checks that need the base's template and tokenizer: lengths, masks, control tokens
    #[arg(long)]
    text_only: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

/// Parses a number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let reader = args.reader.reader()?;
    let files = reader.files_or(&args.files)?;
    let mut against = args.against.clone();
    if against.is_empty() && args.files.is_empty() {
        against.extend(reader.eval.clone());
    }
    let report = report(args, &reader, &files, &against)?;
    print(&if args.json {
        format!("{}\n", json!(report))
    } else {
        text(&report)
    })?;
    Ok(if report.findings.is_empty() {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

fn report(
    args: &Args,
    reader: &Reader,
    files: &[PathBuf],
    against: &[PathBuf],
) -> anyhow::Result<LintReport> {
    let mut broken = Vec::new();
    let mut rejected = BTreeMap::new();
    let mut read = |files: &[PathBuf], columns: &Columns| -> anyhow::Result<Vec<DataRow>> {
        let mut rows = Vec::new();
        for file in files {
            let mut scan = scan(file, columns, &mut rejected)?;
            if scan.data.rows.is_empty() && scan.broken_lines == 0 {
                scan.whole()?;
                continue;
            }
            rows.append(&mut scan.data.rows);
            broken.push(scan);
        }
        Ok(rows)
    };
    let rows = read(files, &reader.settings.columns)?;
    let others = read(against, &reader.settings.columns)?;
    let options = LintOptions {
        near: args.near,
        leak: args.leak,
        ..LintOptions::default()
    };
    let mut report = lint::lint(&rows, &others, &options, &NEVER)?;
    for scan in &broken {
        report.add_scan(scan);
    }
    report.add_rejected(&rows, &rejected);
    if !args.text_only {
        let wording = args.reader.wording()?;
        report.add_tokens(&rows, &rejected, &reader.encoder(&wording), &NEVER)?;
    }
    if against.is_empty() {
        let sides = held_out(&rows, reader.settings.validation_fraction);
        report.held_out = Some(sides.into_iter().filter(|held_out| *held_out).count());
    }
    Ok(report)
}

fn text(report: &LintReport) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        out += &format!("{finding}\n");
    }
    let named = report.count(LintProblem::Broken) + report.count(LintProblem::EmptyOutput);
    if report.broken_lines > named {
        out += &format!("{} more lines are broken\n", report.broken_lines - named);
    }
    let more: usize = report.more_findings.values().sum();
    if more > 0 {
        out +=
            &format!("{more} more findings; at most {MAX_FINDINGS} of each problem are listed\n");
    }
    if let Some(lengths) = &report.lengths {
        out += &histogram(lengths);
    }
    if let Some(held_out) = report.held_out.filter(|count| *count > 0) {
        out += &format!("no evaluation file: training holds out {held_out} rows for validation\n");
    }
    for line in report.fields.lines() {
        out += &format!("{line}\n");
    }
    let kinds: Vec<String> = LintProblem::ALL
        .into_iter()
        .map(|problem| (json!(problem), report.count(problem)))
        .filter(|(_, count)| *count > 0)
        .map(|(problem, count)| format!("{count} {}", problem.as_str().unwrap_or_default()))
        .collect();
    let found = if kinds.is_empty() {
        "no problems".to_owned()
    } else {
        kinds.join(", ")
    };
    let (rows, intents) = (report.rows, report.intents.len());
    out + &format!("{rows} rows, {intents} intents: {found}\n")
}

fn histogram(lengths: &TokenLengths) -> String {
    let most = lengths.histogram.iter().map(|bucket| bucket.rows).max();
    let most = most.unwrap_or(0).max(1);
    let digits = lengths.longest.max(1).to_string().len() + 1;
    let counts = most.to_string().len();
    let mut out = "tokens per row\n".to_owned();
    for bucket in &lengths.histogram {
        let bar = (bucket.rows * BAR_WIDTH).div_ceil(most);
        let line = format!(
            "{:>digits$}-{:<digits$} {:>counts$} {}",
            bucket.from,
            bucket.to,
            bucket.rows,
            "█".repeat(bar)
        );
        out += line.trim_end();
        out.push('\n');
    }
    out += &format!(
        "{} tokens, {} of them trained; {} to {} per row, median {}, p95 {}\n",
        lengths.tokens,
        lengths.trained_tokens,
        lengths.shortest,
        lengths.longest,
        lengths.median,
        lengths.p95,
    );
    if lengths.left_out + lengths.cut > 0 {
        out += &format!(
            "longer than max_length = {}: {} rows would be left out, {} cut\n",
            lengths.max_length, lengths.left_out, lengths.cut
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use train::lint::LengthBucket;

    #[test]
    fn bars_are_proportional_to_their_counts() {
        let lengths = TokenLengths {
            rows: 5,
            tokens: 400,
            trained_tokens: 100,
            shortest: 70,
            median: 80,
            p95: 140,
            longest: 140,
            max_length: 128,
            left_out: 1,
            cut: 0,
            histogram: [(64, 95, 4), (96, 127, 0), (128, 159, 1)]
                .map(|(from, to, rows)| LengthBucket { from, to, rows })
                .to_vec(),
        };
        let expected = format!(
            "tokens per row\n  64-95   4 {}\n  96-127  0\n 128-159  1 {}\n400 tokens, 100 of them trained; 70 to 140 per row, \
             median 80, p95 140\nlonger than max_length = 128: 1 rows would be left out, 0 \
             cut\n",
            "█".repeat(40),
            "█".repeat(10)
        );
        assert_eq!(histogram(&lengths), expected);
    }
}
