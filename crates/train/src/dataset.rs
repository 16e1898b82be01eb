//! Data files: JSONL rows of five shapes, read with a clear word for every broken line.
//!
//! Knows text and JSON; knows no token and no chat template (see `example`).
//!
//! | shape         | fields                                      | becomes                                        |
//! |---------------|---------------------------------------------|------------------------------------------------|
//! | messages      | `messages`: list of `role`, `content`       | the turns as they are, the last an assistant's |
//! | conversations | `conversations`: list of `from`, `value`    | the same                                       |
//! | alpaca        | `instruction`, `input` (optional), `output` | one user turn, one assistant turn              |
//! | completion    | `prompt`, `completion`                      | one user turn, one assistant turn              |
//! | text          | `text`                                      | plain text, all of it trained, no template     |
//!
//! A row that is complete in several shapes is read as the first of them in this table. Other columns are ignored; a file
//! that calls its columns otherwise is read through [`Columns`].

mod columns;
mod read;
mod row;
mod split;
mod turns;

use std::fmt;
use std::sync::Arc;

use formats::chat_template::{Message, alpaca_prompt};

pub use columns::Columns;
pub use read::{DatasetScan, MAX_BROKEN, MAX_BYTES, MAX_LINE, MAX_ROWS};
pub(crate) use row::{EMPTY_ANSWER, object};
pub use split::held_out;
pub use turns::MAX_TURNS;

/// Where a row was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowLocation {
    /// The data file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for RowLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum RowContent {
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
pub struct DataRow {
    /// Where it was written.
    pub location: RowLocation,
    /// What it says.
    pub content: RowContent,
    /// The optional column `intent`: what kind of question it is.
    pub intent: Option<String>,
}

impl DataRow {
    /// What the model is given: the user's side, without the persona's system prompt. Empty for plain text.
    #[must_use]
    pub fn input(&self) -> String {
        match &self.content {
            RowContent::Alpaca {
                instruction, input, ..
            } => alpaca_prompt(instruction, input),
            RowContent::Completion { prompt, .. } => prompt.clone(),
            RowContent::Messages(messages) => {
                let given = &messages[..messages.len().saturating_sub(1)];
                given
                    .iter()
                    .map(|m| m.content.as_str())
                    .collect::<Vec<_>>()
                    .join("\n\n")
            }
            RowContent::Text(_) => String::new(),
        }
    }

    /// What the model shall answer: the last assistant's turn; all of a plain text.
    #[must_use]
    pub fn output(&self) -> &str {
        match &self.content {
            RowContent::Alpaca { output, .. } => output,
            RowContent::Completion { completion, .. } => completion,
            RowContent::Messages(messages) => messages.last().map_or("", |m| &m.content),
            RowContent::Text(text) => text,
        }
    }
}

/// A data file as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Its rows in the file's order.
    pub rows: Vec<DataRow>,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
}
