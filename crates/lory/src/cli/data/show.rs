//! `lory data show`: prints rows as the base sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use console::Style;
use dataset::{DataRow, DatasetError, held_out};
use formats::tokenizer::Tokenizer;
use serde_json::{Value, json};
use train::Example;
use train::example::{Encoder, Fitted};

use crate::cli::data::reader::{Reader, ReaderArgs, scan};
use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::output::print;

/// Marks around the trained part if colours are off.
const MARKS: [&str; 2] = ["⟦", "⟧"];

/// Show rows as the base sees them, with the trained part marked
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The trained part is green on a terminal; elsewhere, or if NO_COLOR is set, it is between ⟦ and ⟧. The exit code is 1 if one of
the rows is broken or would not be trained.

Examples:
  lory data show --persona customer --limit 2
  lory data show mine.jsonl --line 37 --mask assistant
  lory data show mine.jsonl --row 1 --json")]
pub(crate) struct Args {
    /// The data file [default: the persona's]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The first row to show, counted from 1
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "line")]
    row: Option<usize>,
    /// Show the row on this line of the file
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "limit")]
    line: Option<usize>,
    /// Maximum number of rows to show [default: 3, or 1 with --row]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Print one JSON object, with token ids and the mask
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("must be a whole number from 1".to_owned()),
    }
}

/// A row to show.
struct Shown<'r> {
    row: &'r DataRow,
    /// Counted from 1.
    number: usize,
    held_out: bool,
    /// The answer, or the chosen answer of a pair.
    answer: Answer,
    /// The rejected answer, if the row is a pair.
    rejected: Option<Answer>,
}

/// A question with one answer, as training sees it.
struct Answer {
    /// The example as it is trained; the full one if it is left out.
    example: Example,
    /// Its length in tokens before it was cut.
    length: usize,
    fate: &'static str,
}

/// The outcomes of an answer in training, the worst last; they are the values of `fate` in JSON.
const FATES: [&str; 5] = ["whole", "cut", "left out", "refused", "not trained"];

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let reader = args.reader.reader()?;
    let named: Vec<PathBuf> = args.file.iter().cloned().collect();
    let file = reader.files_or(&named)?.remove(0);
    let mut rejected = BTreeMap::new();
    let scan = scan(&file, &reader.settings.columns, &mut rejected)?;
    if let Some(line) = args.line {
        let at = |error: &&DatasetError| matches!(error, DatasetError::Row { line: at, .. } if *at == line);
        if let Some(error) = scan.broken.iter().find(at) {
            anyhow::bail!("{error}");
        }
    }
    if scan.broken_lines > 0 {
        eprintln!(
            "{}: {} lines are broken and not counted as rows; `lory data lint` lists them",
            file.display(),
            scan.broken_lines
        );
    }
    let rows = &scan.data.rows;
    let (first, count) = selection(args, rows, &file)?;
    let wording = args.reader.wording()?;
    let encoder = reader.encoder(&wording);
    let held_out = held_out_rows(&reader, rows);
    let mut shown = Vec::new();
    let mut errors = Vec::new();
    for (i, row) in rows.iter().enumerate().skip(first).take(count) {
        let other = rejected.get(&row.location);
        let other = other.map(|row| encode(&encoder, row)).transpose();
        match (encode(&encoder, row), other) {
            (Ok(answer), Ok(rejected)) => shown.push(Shown {
                row,
                number: i + 1,
                held_out: held_out[i],
                answer,
                rejected,
            }),
            (Err(error), _) | (_, Err(error)) => errors.push(error.to_string()),
        }
    }
    print(&render(&shown, &errors, encoder.tokenizer, args.json))?;
    for error in &errors {
        eprintln!("{error}");
    }
    let trains = |row: &Shown<'_>| row.answers().all(|a| a.example.trained_tokens() > 0);
    Ok(if errors.is_empty() && shown.iter().all(trains) {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

/// The index of the first row to show, and the maximum number of rows.
fn selection(args: &Args, rows: &[DataRow], file: &Path) -> Result<(usize, usize), UsageError> {
    match (args.line, args.row) {
        (Some(line), _) => {
            let found = rows.iter().position(|row| row.location.line == line);
            found.map(|index| (index, 1)).ok_or_else(|| {
                UsageError(format!(
                    "--line {line}: there is no row on this line of {}",
                    file.display()
                ))
            })
        }
        (None, Some(row)) if row > rows.len() => Err(UsageError(format!(
            "--row {row}: {} has {} rows",
            file.display(),
            rows.len()
        ))),
        (None, Some(row)) => Ok((row - 1, args.limit.unwrap_or(1))),
        (None, None) => Ok((0, args.limit.unwrap_or(3))),
    }
}

/// Whether training holds each row out for validation, which it does if there is no evaluation file.
fn held_out_rows(reader: &Reader, rows: &[DataRow]) -> Vec<bool> {
    match &reader.eval {
        Some(_) => vec![false; rows.len()],
        None => held_out(rows, reader.settings.validation_fraction),
    }
}

fn render(shown: &[Shown<'_>], errors: &[String], tokenizer: &Tokenizer, as_json: bool) -> String {
    if as_json {
        let rows: Vec<Value> = shown.iter().map(|row| row.json(tokenizer)).collect();
        return format!("{}\n", json!({"rows": rows, "errors": errors}));
    }
    let paint = Paint::new();
    let blocks = shown.iter().map(|row| row.text(tokenizer, &paint));
    blocks.collect::<Vec<_>>().join("\n")
}

/// Encodes a row and fits it into the maximum length.
fn encode(encoder: &Encoder<'_>, row: &DataRow) -> Result<Answer, train::TrainError> {
    let whole = encoder.render(row)?;
    let length = whole.tokens.len();
    if whole.trained_tokens() == 0 {
        return Ok(Answer {
            example: whole,
            length,
            fate: "not trained",
        });
    }
    let (example, fate) = match encoder.fit(whole.clone(), row) {
        Ok(Fitted::Whole(example)) => (example, "whole"),
        Ok(Fitted::Truncated(example)) => (example, "cut"),
        Ok(Fitted::Dropped) => (whole, "left out"),
        Err(_) => (whole, "refused"),
    };
    Ok(Answer {
        example,
        length,
        fate,
    })
}

impl Answer {
    fn json(&self, tokenizer: &Tokenizer) -> Value {
        let Example {
            tokens,
            loss_mask: trained,
        } = &self.example;
        json!({
            "fate": self.fate,
            "row_tokens": self.length,
            "trained_tokens": self.example.trained_tokens(),
            "tokens": tokens,
            "trained": trained,
            "text": tokenizer.decode(tokens, false),
        })
    }

    /// Its length, and its fate if it is not trained whole.
    fn head(&self) -> String {
        let (tokens, trained) = (self.example.tokens.len(), self.example.trained_tokens());
        let length = format!("{tokens} tokens, {trained} of them trained");
        match self.fate {
            "whole" => length,
            "cut" => format!("{length}  cut from {} tokens", self.length),
            fate => format!("{length}  {fate}"),
        }
    }

    /// Its text, which ends with a newline.
    fn text(&self, tokenizer: &Tokenizer, paint: &Paint) -> String {
        let Example {
            tokens,
            loss_mask: trained,
        } = &self.example;
        let (mut out, mut start) = (String::new(), 0);
        for run in trained.chunk_by(|a, b| a == b) {
            let part = tokenizer.decode(&tokens[start..start + run.len()], false);
            start += run.len();
            out += &if run[0] {
                paint.trained(&part)
            } else {
                paint.given(&part)
            };
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
        out
    }
}

impl Shown<'_> {
    fn answers(&self) -> impl Iterator<Item = &Answer> {
        std::iter::once(&self.answer).chain(&self.rejected)
    }

    /// The fate of the row; for a pair, the worse of its two.
    fn fate(&self) -> &'static str {
        let worst = |fate: &&str| FATES.iter().position(|known| known == fate);
        let fates = self.answers().map(|answer| answer.fate);
        fates.max_by_key(worst).unwrap_or(FATES[0])
    }

    fn json(&self, tokenizer: &Tokenizer) -> Value {
        let mut row = self.answer.json(tokenizer);
        row["file"] = json!(self.row.location.file.as_ref());
        row["line"] = json!(self.row.location.line);
        row["row"] = json!(self.number);
        row["held_out"] = json!(self.held_out);
        row["fate"] = json!(self.fate());
        if let Some(rejected) = &self.rejected {
            row["rejected"] = rejected.json(tokenizer);
        }
        row
    }

    fn text(&self, tokenizer: &Tokenizer, paint: &Paint) -> String {
        let answer = self.answer.head();
        let mut head = format!("{}  row {}  {answer}", self.row.location, self.number);
        if self.held_out {
            head += "  held out for validation";
        }
        let mut out = paint.head(&head) + "\n" + &self.answer.text(tokenizer, paint);
        if let Some(rejected) = &self.rejected {
            let head = format!("rejected  {}", rejected.head());
            out += &(paint.head(&head) + "\n" + &rejected.text(tokenizer, paint));
        }
        out
    }
}

/// Styles text with colours, or with marks if colours are off.
struct Paint {
    colours: bool,
}

impl Paint {
    fn new() -> Self {
        // `console` respects NO_COLOR, CLICOLOR and CLICOLOR_FORCE, and checks for a terminal.
        Self {
            colours: console::colors_enabled(),
        }
    }

    fn head(&self, text: &str) -> String {
        self.styled(Style::new().bold(), &visible(text))
    }

    fn given(&self, text: &str) -> String {
        self.styled(Style::new().dim(), &visible(text))
    }

    fn trained(&self, text: &str) -> String {
        if self.colours {
            return self.styled(Style::new().green(), &visible(text));
        }
        let [open, close] = MARKS;
        format!("{open}{}{close}", visible(text))
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.colours {
            style.force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }
}

/// `text` with control characters escaped, so that a dataset file cannot send commands to the terminal. Newlines and tabs stay.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trained_part_is_coloured_or_marked() {
        let (coloured, plain) = (Paint { colours: true }, Paint { colours: false });
        assert_eq!(coloured.trained("a"), "\u{1b}[32ma\u{1b}[0m");
        assert_eq!(plain.trained("a"), "⟦a⟧");
        assert_eq!(plain.given("a"), "a");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            visible("a\u{1b}[2J\r\n\tb\u{9b}"),
            "a\\u{1b}[2J\\r\n\tb\\u{9b}"
        );
    }
}
