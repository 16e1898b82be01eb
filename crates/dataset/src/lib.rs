//! Data files: rows in JSON or in tables, of five shapes, and pairs of answers. Every broken line gets an error that names line and field.
//!
//! Synchronous. Knows text and JSON; must not know tokens, chat templates or training. [`data_file`] opens and decompresses files and splits
//! them into records, `record` reads their objects, `row` and `pair` recognise the shape of a record, `conversation` reads turns and their marks, `context` the columns next to
//! a question. `read` and `pair_rows` put them together, for every command, upload and job, `ranges` for some rows of a file that was checked;
//! `record_reader` is under both. [`stop`] ends what nobody waits for. `usual_names` knows
//! columns of published data sets, `tool_nulls` leaves out nulls that Arrow adds. `location` names a line, `split` holds rows out, [`error`] is what can fail.
//!
//! | shape         | fields                                           | becomes                                        |
//! |---------------|--------------------------------------------------|------------------------------------------------|
//! | messages      | `messages`: list of `role`, `content`            | the turns as they are, the last an assistant's |
//! | conversations | `conversations`: list of `from`, `value`         | the same                                       |
//! | alpaca        | `instruction`, `input` (optional), `output`      | one user turn, one assistant turn              |
//! | completion    | `prompt`, `completion`: texts, or lists of turns | one user turn, one assistant turn; the turns   |
//! | text          | `text`                                           | plain text, all of it trained, no template     |
//! | pair          | a question, `chosen`, `rejected`                 | two conversations                              |
//!
//! A row that is complete in several shapes is read as the first of them in this table. A column that is null counts as absent. Columns that
//! are not used are counted ([`FieldReport`]); a file that calls its columns otherwise is read through [`Columns`].

mod columns;
mod context;
mod conversation;
pub mod data_file;
pub mod error;
mod field_report;
mod fields;
mod location;
mod pair;
mod pair_rows;
mod ranges;
mod read;
mod record;
mod record_reader;
mod row;
mod split;
pub mod stop;
mod tool_nulls;
mod usual_names;

use std::sync::Arc;

use formats::chat_template::{Message, add_tool_instructions, alpaca_prompt};

pub use columns::Columns;
pub use conversation::MAX_TURNS;
pub use data_file::{MAX_COLUMNS, MAX_LINE};
pub use error::DatasetError;
pub use field_report::{FieldReport, MAX_REPORTED_FIELDS};
pub use fields::{EMPTY_ANSWER, MAX_ROW_TOOLS};
pub use location::RowLocation;
pub use pair_rows::{
    PairScan, PreferencePair, check_pairs, each_pair, holds_pairs, read_first_chosen,
    read_pair_range, scan_pairs,
};
pub use ranges::{RowRange, each_row, read_first, read_range};
pub use read::{CheckedFile, DatasetScan, MAX_BROKEN, MAX_BYTES, MAX_ROWS};
pub use record_reader::MAX_SKIPPED;
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
    /// For each answer of a conversation, in order, whether a mark says that it is trained or not. Empty if there are no marks.
    pub marks: Vec<Option<bool>>,
    /// The instructions for the tools of a conversation, which follow its system prompt.
    pub tools: Option<Arc<str>>,
}

impl DataRow {
    /// A row without marks and tools.
    #[must_use]
    pub fn new(location: RowLocation, content: RowContent) -> DataRow {
        DataRow {
            location,
            content,
            intent: None,
            marks: Vec::new(),
            tools: None,
        }
    }

    /// The turns of its conversation, the answer last, with `system` as the system prompt if it has none; `None` for plain text.
    #[must_use]
    pub fn turns(&self, system: Option<&str>) -> Option<Vec<Message>> {
        let mut turns = match &self.content {
            RowContent::Alpaca { output, .. } => {
                vec![
                    Message::new("user", self.input()),
                    Message::new("assistant", output),
                ]
            }
            RowContent::Completion { prompt, completion } => {
                vec![
                    Message::new("user", prompt),
                    Message::new("assistant", completion),
                ]
            }
            RowContent::Messages(messages) => messages.clone(),
            RowContent::Text(_) => return None,
        };
        if let Some(system) = system
            && turns.first().is_none_or(|turn| turn.role != "system")
        {
            turns.insert(0, Message::new("system", system));
        }
        if let Some(tools) = &self.tools {
            add_tool_instructions(&mut turns, tools);
        }
        Some(turns)
    }

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
    /// SHA-256 of the file's content after decompression, in hex; of a folder, of the hashes of its files.
    pub hash: String,
}
