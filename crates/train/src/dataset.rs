//! Data files: JSONL rows of five shapes. Every broken line gets an error that names line and field.
//!
//! Knows text and JSON; does not know tokens or chat templates (see `example`).
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
mod conversation;
mod fields;
mod read;
mod row;
mod split;

use std::sync::Arc;

use formats::chat_template::{Message, alpaca_prompt};

pub use crate::location::RowLocation;
pub use columns::Columns;
pub use conversation::MAX_TURNS;
pub(crate) use fields::EMPTY_ANSWER;
pub use read::{
    CheckedFile, DatasetScan, MAX_BROKEN, MAX_BYTES, MAX_LINE, MAX_ROWS, RowRange, read_first,
    read_range,
};
pub(crate) use read::{each_row, parse_range};
pub(crate) use row::object;
pub use split::{HoldOut, held_out};

/// The content of a row, by its shape.
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
    /// Its location in the data file.
    pub location: RowLocation,
    /// Its content.
    pub content: RowContent,
    /// The optional column `intent`: the kind of question.
    pub intent: Option<String>,
}

impl DataRow {
    /// The model's input: the user's messages, without the persona's system prompt. Empty for plain text.
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

    /// The expected output: the last assistant message, or all of a plain text.
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

/// A data file that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Path of the file, as the caller gave it.
    pub file: Arc<str>,
    /// Its rows in the file's order.
    pub rows: Vec<DataRow>,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
}
