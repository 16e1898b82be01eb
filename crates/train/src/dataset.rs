//! Data files: JSONL rows of the four shapes, read with a clear word for every broken line.
//!
//! Knows text and JSON; knows no token and no chat template (see `example`).
//!
//! | shape      | fields                                     | becomes                                        |
//! |------------|--------------------------------------------|------------------------------------------------|
//! | alpaca     | `instruction`, `input` (optional), `output` | one user turn, one assistant turn              |
//! | messages   | `messages`: list of `role`, `content`       | the turns as they are, the last an assistant's |
//! | completion | `prompt`, `completion`                      | one user turn, one assistant turn              |
//! | text       | `text`                                      | plain text, all of it trained, no template     |
//!
//! A row that is complete in several shapes is read as the first of them in this table. Other columns are ignored.

mod row;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use formats::chat_template::Message;
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use row::parse_row;

/// Longest line of a data file, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// Most rows of a data file.
pub const MAX_ROWS: usize = 1_000_000;

/// Where a row was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The data file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An instruction, what it is about, and the answer.
    Alpaca {
        /// What is asked.
        instruction: String,
        /// What it is about; may be empty.
        input: String,
        /// The answer.
        output: String,
    },
    /// A conversation of the roles system, user and assistant, which ends with an assistant's turn.
    Messages(Vec<Message>),
    /// A prompt and its answer.
    Completion {
        /// What is asked.
        prompt: String,
        /// The answer.
        completion: String,
    },
    /// Plain text.
    Text(String),
}

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it was written.
    pub place: Place,
    /// What it says.
    pub content: Content,
    /// The optional column `intent`: what kind of question it is.
    pub intent: Option<String>,
}

impl Row {
    /// What the model is given: the user's side, without the persona's system prompt. Empty for plain text.
    #[must_use]
    pub fn input(&self) -> String {
        match &self.content {
            Content::Alpaca {
                instruction, input, ..
            } => alpaca_prompt(instruction, input),
            Content::Completion { prompt, .. } => prompt.clone(),
            Content::Messages(messages) => {
                let given = &messages[..messages.len().saturating_sub(1)];
                given
                    .iter()
                    .map(|m| m.content.as_str())
                    .collect::<Vec<_>>()
                    .join("\n\n")
            }
            Content::Text(_) => String::new(),
        }
    }

    /// What the model shall answer: the last assistant's turn; all of a plain text.
    #[must_use]
    pub fn output(&self) -> &str {
        match &self.content {
            Content::Alpaca { output, .. } => output,
            Content::Completion { completion, .. } => completion,
            Content::Messages(messages) => messages.last().map_or("", |m| &m.content),
            Content::Text(text) => text,
        }
    }
}

/// A data file as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Its rows in the file's order.
    pub rows: Vec<Row>,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
}

/// The user's turn of an alpaca row: the instruction, and after an empty line the input, where there is one.
#[must_use]
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        instruction.to_owned()
    } else {
        format!("{instruction}\n\n{input}")
    }
}

impl Dataset {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, holds no row, or a line breaks the rules of [`Dataset::parse`].
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let file = File::open(path).map_err(TrainError::read(path))?;
        Self::parse(
            BufReader::with_capacity(1 << 16, file),
            &path.display().to_string(),
        )
    }

    /// Reads rows from `reader`; `name` stands for the file in messages.
    ///
    /// # Errors
    /// A line longer than [`MAX_LINE`], more rows than [`MAX_ROWS`], a line that is not UTF-8 or not a JSON object, a
    /// shape that is none of the four, a field of the wrong type, an empty question or answer; each names its line.
    pub fn parse(reader: impl BufRead, name: &str) -> Result<Self, TrainError> {
        Self::parse_with(reader, name, &mut parse_row)
    }

    /// [`Dataset::parse`] for rows of another shape: `row` reads one line, without its end.
    pub(crate) fn parse_with(
        mut reader: impl BufRead,
        name: &str,
        row: &mut dyn FnMut(&str, Place) -> Result<Row, TrainError>,
    ) -> Result<Self, TrainError> {
        let file: Arc<str> = name.into();
        let mut hasher = Sha256::new();
        let mut rows = Vec::new();
        let mut bytes = Vec::new();
        for line in 1.. {
            let place = Place {
                file: file.clone(),
                line,
            };
            if read_line(&mut reader, &mut bytes).map_err(|source| TrainError::Read {
                path: name.into(),
                source,
            })? == 0
            {
                break;
            }
            hasher.update(&bytes);
            if bytes.len() > MAX_LINE {
                let message = format!(
                    "the line is longer than {MAX_LINE} bytes; split the row or shorten it"
                );
                return Err(TrainError::row(&place, message));
            }
            let text = std::str::from_utf8(&bytes).map_err(|error| {
                let message = format!(
                    "not UTF-8 text at byte {} of the line",
                    error.valid_up_to() + 1
                );
                TrainError::row(&place, message)
            })?;
            let text = if line == 1 {
                text.trim_start_matches('\u{feff}')
            } else {
                text
            };
            let text = text.trim_end();
            if text.is_empty() {
                continue;
            }
            if rows.len() == MAX_ROWS {
                return Err(TrainError::row(
                    &place,
                    format!("more than {MAX_ROWS} rows; split the file"),
                ));
            }
            rows.push(row(text, place)?);
        }
        if rows.is_empty() {
            return Err(TrainError::Data {
                file: name.to_owned(),
                message: "the file holds no rows; write one JSON object a line".to_owned(),
            });
        }
        Ok(Self {
            file,
            rows,
            hash: hex(&hasher.finalize()),
        })
    }

    /// Parts the rows in two by a hash of what they say: (training, validation), about `fraction` in the second.
    ///
    /// A row falls on the same side whatever its neighbours are, and equal rows fall together. When there are at least
    /// two different rows, both sides get at least one.
    #[must_use]
    pub fn split(self, fraction: f64) -> (Vec<Row>, Vec<Row>) {
        let keys: Vec<u64> = self.rows.iter().map(row_key).collect();
        let lowest = keys.iter().copied().min().unwrap_or(0);
        let highest = keys.iter().copied().max().unwrap_or(0);
        let limit = (fraction.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        let mut parts = (Vec::new(), Vec::new());
        for (row, key) in self.rows.into_iter().zip(keys) {
            let held_out = fraction > 0.0 && (key < limit || key == lowest) && key != highest;
            if held_out {
                parts.1.push(row)
            } else {
                parts.0.push(row)
            }
        }
        parts
    }
}

/// Reads one line with its end into `bytes`; of an over-long one only the first `MAX_LINE + 1` bytes. 0 at the end.
fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<usize> {
    bytes.clear();
    reader.take(MAX_LINE as u64 + 1).read_until(b'\n', bytes)
}

fn row_key(row: &Row) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(row.input().as_bytes());
    hasher.update([0]);
    hasher.update(row.output().as_bytes());
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Dataset, TrainError> {
        Dataset::parse(text.as_bytes(), "rows.jsonl")
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn reads_the_four_shapes_and_ignores_other_columns() {
        let data = parse(concat!(
            "\u{feff}{\"instruction\":\"Track\",\"input\":\"#12\",\"output\":\"On its way\",\"intent\":\"track\",\"text\":\"x\"}\r\n",
            "\n",
            "{\"instruction\":\"Hi\",\"input\":null,\"output\":\"Hello\"}\n",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"name\":\"x\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n",
            "{\"prompt\":\"p\",\"completion\":\"c\",\"source\":7}\n",
            "{\"text\":\"plain\"}",
        ))
        .unwrap();
        let said: Vec<(usize, String, &str)> = data
            .rows
            .iter()
            .map(|row| (row.place.line, row.input(), row.output()))
            .collect();
        assert_eq!(
            said,
            [
                (1, "Track\n\n#12".to_owned(), "On its way"),
                (3, "Hi".to_owned(), "Hello"),
                (4, "q".to_owned(), "a"),
                (5, "p".to_owned(), "c"),
                (6, String::new(), "plain"),
            ]
        );
        assert_eq!(data.rows[0].intent.as_deref(), Some("track"));
        assert_eq!(data.hash.len(), 64);
    }

    #[test]
    fn a_broken_row_is_named_by_file_line_and_field() {
        let good = "{\"prompt\":\"p\",\"completion\":\"c\"}\n";
        let cases = [
            (
                "{\"instruction\":\"a\",\"output\":\"  \"}",
                "field `output`: the answer is empty",
            ),
            ("{\"instruction\":\"a\"}", "field `output`: is missing"),
            (
                "{\"instruction\":\"a\",\"output\":3}",
                "field `output`: must be a string, this is a number",
            ),
            (
                "{\"instruction\":\"a\",\"input\":[],\"output\":\"b\"}",
                "field `input`: must be a string or null",
            ),
            ("{\"prompt\":\"a\"}", "field `completion`: is missing"),
            ("{\"text\":\"\"}", "field `text`: is empty"),
            ("{\"messages\":[]}", "field `messages`: the list is empty"),
            ("{\"messages\":{}}", "field `messages`: must be a list"),
            (
                "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}",
                "field `messages[0].role`: role `tool`",
            ),
            (
                "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}",
                "field `messages[0].content`: must be a string",
            ),
            (
                "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
                "the last message must be the assistant's",
            ),
            (
                "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\"}]}",
                "field `messages[0].content`: the answer",
            ),
            ("{\"q\":1}", "found `q`"),
            ("[1,2]", "a row must be a JSON object, this is a list"),
            ("{\"prompt\":", "not valid JSON at column 10"),
        ];
        for (row, expected) in cases {
            let said = error(&format!("{good}{row}\n"));
            assert!(said.starts_with("rows.jsonl:2: "), "{said}");
            assert!(said.contains(expected), "{said} lacks {expected}");
        }
    }

    #[test]
    fn limits_and_hostile_bytes_are_refused_by_line() {
        let long = format!("{{\"text\":\"{}\"}}\n", "x".repeat(MAX_LINE));
        assert!(error(&long).starts_with("rows.jsonl:1: the line is longer than 1048576 bytes"));
        let bytes = b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n";
        let said = Dataset::parse(&bytes[..], "rows.jsonl")
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with("rows.jsonl:2: not UTF-8 text at byte 10"),
            "{said}"
        );
        assert!(error(&"[".repeat(10_000)).contains("not valid JSON"));
        assert!(error("\n \n").contains("holds no rows"));
    }

    #[test]
    fn the_split_is_by_content_and_leaves_both_sides_something() {
        let lines: Vec<String> = (0..500)
            .map(|i| format!("{{\"prompt\":\"p{}\",\"completion\":\"c\"}}", i % 400))
            .collect();
        let (train, held) = parse(&lines.join("\n")).unwrap().split(0.2);
        assert_eq!(train.len() + held.len(), 500);
        assert!((60..140).contains(&held.len()), "{}", held.len());
        assert!(
            held.iter()
                .all(|row| train.iter().all(|other| other.input() != row.input()))
        );
        let (train, held) = parse(&lines[..2].join("\n")).unwrap().split(0.01);
        assert_eq!((train.len(), held.len()), (1, 1));
        let (train, held) = parse(&lines[..1].join("\n")).unwrap().split(0.5);
        assert_eq!((train.len(), held.len()), (1, 0));
        let (train, held) = parse(&lines.join("\n")).unwrap().split(0.0);
        assert_eq!((train.len(), held.len()), (500, 0));
    }
}
