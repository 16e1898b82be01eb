//! `lory data show`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use console::Style;
use formats::tokenizer::Tokenizer;
use serde_json::{Value, json};
use train::Example;
use train::dataset::{DataRow, held_out};
use train::example::{Encoder, Fitted};

use super::{ReaderArgs, scan};
use crate::cli::{Usage, Verdict, print};

/// What stands around the trained part where there is no colour.
const MARKS: [&str; 2] = ["⟦", "⟧"];

/// Show rows as the base will see them, with the part that is trained
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The trained part is green on a terminal, and stands in ⟦ ⟧ elsewhere or with NO_COLOR set. Exit code 1 where a row that is
to be shown is broken, or would not be trained.

Examples:
  lory data show --persona customer --limit 2
  lory data show mine.jsonl --line 37 --mask assistant
  lory data show mine.jsonl --row 1 --json")]
pub(in crate::cli) struct Args {
    /// The JSONL file [default: the persona's]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The first row to show, counted from 1
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "line")]
    row: Option<usize>,
    /// The row of this line of the file
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "limit")]
    line: Option<usize>,
    /// The most rows to show [default: 3, or 1 with --row]
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

/// A row as training sees it.
struct Shown<'r> {
    row: &'r DataRow,
    /// Counted from 1.
    number: usize,
    held_out: bool,
    /// The answer, or the one to prefer.
    answer: Answer,
    /// The answer to reject, where the row is a pair.
    rejected: Option<Answer>,
}

/// An answer behind its question, as training sees it.
struct Answer {
    /// What is trained on; all of it where it is left out.
    example: Example,
    /// Its tokens before it was cut.
    length: usize,
    fate: &'static str,
}

/// What may become of an answer, the worst last.
const FATES: [&str; 5] = ["whole", "cut", "left out", "refused", "not trained"];

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let reader = args.reader.reader()?;
    let named: Vec<PathBuf> = args.file.iter().cloned().collect();
    let file = reader.files_or(&named)?.remove(0);
    let mut rejected = BTreeMap::new();
    let scan = scan(&file, &reader.settings.columns, &mut rejected)?;
    if let Some(line) = args.line {
        let at = |error: &&train::TrainError| matches!(error, train::TrainError::Row { line: at, .. } if *at == line);
        if let Some(error) = scan.broken.iter().find(at) {
            anyhow::bail!("{error}");
        }
    }
    if scan.broken_lines > 0 {
        eprintln!(
            "{}: {} lines are broken and not counted as rows; lory data lint names them",
            file.display(),
            scan.broken_lines
        );
    }
    let rows = &scan.data.rows;
    let (first, most) = match (args.line, args.row) {
        (Some(line), _) => {
            let found = rows.iter().position(|row| row.location.line == line);
            let found = found.ok_or_else(|| {
                Usage(format!(
                    "--line {line}: no row stands there in {}",
                    file.display()
                ))
            })?;
            (found, 1)
        }
        (None, Some(row)) if row > rows.len() => {
            let message = format!("--row {row}: {} has {} rows", file.display(), rows.len());
            return Err(Usage(message).into());
        }
        (None, Some(row)) => (row - 1, args.limit.unwrap_or(1)),
        (None, None) => (0, args.limit.unwrap_or(3)),
    };
    // Only where training would split the file itself.
    let sides = match &reader.eval {
        Some(_) => vec![false; rows.len()],
        None => held_out(rows, reader.settings.validation_fraction),
    };
    let wording = args.reader.wording()?;
    let encoder = reader.encoder(&wording);
    let mut shown = Vec::new();
    let mut refused = Vec::new();
    for (i, row) in rows.iter().enumerate().skip(first).take(most) {
        let other = rejected.get(&row.location);
        let answers = (
            look(&encoder, row),
            other.map(|row| look(&encoder, row)).transpose(),
        );
        match answers {
            (Ok(answer), Ok(rejected)) => shown.push(Shown {
                row,
                number: i + 1,
                held_out: sides[i],
                answer,
                rejected,
            }),
            (Err(error), _) | (_, Err(error)) => refused.push(error.to_string()),
        }
    }
    let tokenizer = encoder.tokenizer;
    print(&if args.json {
        let rows: Vec<Value> = shown.iter().map(|row| row.json(tokenizer)).collect();
        format!("{}\n", json!({"rows": rows, "errors": refused}))
    } else {
        let paint = Paint::new();
        let blocks = shown.iter().map(|row| row.text(tokenizer, &paint));
        blocks.collect::<Vec<_>>().join("\n")
    })?;
    for error in &refused {
        eprintln!("{error}");
    }
    let trains = |row: &Shown<'_>| row.answers().all(|a| a.example.trained_tokens() > 0);
    Ok(if refused.is_empty() && shown.iter().all(trains) {
        Verdict::Good
    } else {
        Verdict::Bad
    })
}

/// The example of `row`, and what becomes of it.
fn look(encoder: &Encoder<'_>, row: &DataRow) -> Result<Answer, train::TrainError> {
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
        let Example { tokens, trained } = &self.example;
        json!({
            "fate": self.fate,
            "row_tokens": self.length,
            "trained_tokens": self.example.trained_tokens(),
            "tokens": tokens,
            "trained": trained,
            "text": tokenizer.decode(tokens, false),
        })
    }

    /// How long it is, and what becomes of it where that is not what one would think.
    fn head(&self) -> String {
        let (tokens, trained) = (self.example.tokens.len(), self.example.trained_tokens());
        let said = format!("{tokens} tokens, {trained} of them trained");
        match self.fate {
            "whole" => said,
            "cut" => format!("{said}  cut from {} tokens", self.length),
            fate => format!("{said}  {fate}"),
        }
    }

    /// Its text, in a line of its own at least.
    fn text(&self, tokenizer: &Tokenizer, paint: &Paint) -> String {
        let Example { tokens, trained } = &self.example;
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

    /// What becomes of the row: a pair stays or goes as a whole.
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

/// Colours, or marks where there are none.
struct Paint {
    colours: bool,
}

impl Paint {
    fn new() -> Self {
        // The console crate heeds NO_COLOR, CLICOLOR and CLICOLOR_FORCE, and whether this is a terminal.
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

/// `text` with control characters made visible, so that a data file cannot command the terminal; line ends stay.
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
    fn a_text_cannot_command_the_terminal() {
        assert_eq!(
            visible("a\u{1b}[2J\r\n\tb\u{9b}"),
            "a\\u{1b}[2J\\r\n\tb\\u{9b}"
        );
    }
}
