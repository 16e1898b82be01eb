//! `lory data lint`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use train::dataset::{Columns, DataRow, held_out};
use train::lint::{self, LintOptions, LintProblem, LintReport, TokenLengths};

use super::{Reader, ReaderArgs, scan};
use crate::cli::{Verdict, print};

/// Widest bar of the histogram, in characters.
const BAR: usize = 40;

/// Find broken lines, rows that say the same or leak into evaluation, answers cut off, rows that would not be trained
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 1 where something is found.

Examples:
  lory data lint --persona customer
  lory data lint mine.jsonl --against held-out.jsonl --base my-base.gguf
  lory data lint mine.jsonl --column instruction=question --column output=answer --json
  lory data lint mine.jsonl --text-only")]
pub(in crate::cli) struct Args {
    /// JSONL files, looked over together [default: the persona's]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Evaluation files whose questions must not stand in FILE [default: the persona's]
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Share of words in common, 0 to 1, that makes two rows near-duplicates
    #[arg(long, default_value_t = LintOptions::default().near, value_parser = share)]
    near: f64,
    /// Share of words in common, 0 to 1, that makes a question the same as one of the evaluation
    #[arg(long, default_value_t = LintOptions::default().leak, value_parser = share)]
    leak: f64,
    /// Leave out what needs the base's template and tokenizer: lengths, masks, control tokens
    #[arg(long)]
    text_only: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
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
        Verdict::Good
    } else {
        Verdict::Bad
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
    let mut report = lint::lint(&rows, &others, &options);
    for scan in &broken {
        report.add_broken(scan);
    }
    report.add_rejected(&rows, &rejected);
    if !args.text_only {
        let wording = args.reader.wording()?;
        report.add_tokens(&rows, &rejected, &reader.encoder(&wording));
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
    if let Some(lengths) = &report.lengths {
        out += &histogram(lengths);
    }
    if let Some(held_out) = report.held_out.filter(|count| *count > 0) {
        out += &format!(
            "without an evaluation file, training holds {held_out} rows out for validation\n"
        );
    }
    let kinds: Vec<String> = LintProblem::ALL
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
    let (rows, intents) = (report.rows, report.intents.len());
    out + &format!("{rows} rows, {intents} intents: {found}\n")
}

fn histogram(lengths: &TokenLengths) -> String {
    let most = lengths.histogram.iter().map(|bucket| bucket.rows).max();
    let most = most.unwrap_or(0).max(1);
    let digits = lengths.longest.max(1).to_string().len() + 1;
    let counts = most.to_string().len();
    let mut out = "tokens of a row\n".to_owned();
    for bucket in &lengths.histogram {
        let bar = (bucket.rows * BAR).div_ceil(most);
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
        "{} tokens, {} of them trained; a row has {} to {}, half of them at most {}, 19 of 20 at most {}\n",
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
    fn a_bar_is_as_long_as_its_bucket_is_full() {
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
            "tokens of a row\n  64-95   4 {}\n  96-127  0\n 128-159  1 {}\n400 tokens, 100 of them trained; a row has 70 to \
             140, half of them at most 80, 19 of 20 at most 140\nlonger than max_length = 128: 1 rows would be left out, 0 \
             cut\n",
            "█".repeat(40),
            "█".repeat(10)
        );
        assert_eq!(histogram(&lengths), expected);
    }
}
