//! Encodes rows as tokens and a loss mask.
//!
//! A conversation goes through the same chat template and tokenizer as a request. Its prompt is tokenized by itself, as it
//! will be when it is served, and the answer by itself after it: no token spans the boundary. Does not know batches.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use formats::chat_template::{ChatTemplate, Hidden, Message};
use formats::tokenizer::{Special, Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use dataset::stop::{NEVER, check_stop};
use dataset::{DataRow, RowContent, RowLocation};

/// One training sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Example {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// `loss_mask[i]`: whether the loss of predicting `tokens[i]` from the tokens before it counts. `loss_mask[0]` is false.
    pub loss_mask: Vec<bool>,
}

/// Bytes of memory of a token in an [`Example`]: its id and its mask.
pub const TOKEN_BYTES: usize = 5;
/// Bytes of memory of an [`Example`] without its tokens: two vectors in a list that grows, and their allocations.
pub const EXAMPLE_BYTES: usize = 128;

/// The memory that examples may still take, which is known only once they are tokenized.
#[derive(Debug, Clone, Copy)]
pub struct ExampleBudget {
    limit: usize,
    left: usize,
}

impl ExampleBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> ExampleBudget {
        ExampleBudget { limit, left: limit }
    }

    /// A budget for any number of examples.
    #[must_use]
    pub fn unlimited() -> ExampleBudget {
        ExampleBudget::new(usize::MAX)
    }

    /// Takes the memory of `example`, which `row` became, and frees what it does not need.
    ///
    /// # Errors
    /// [`TrainError::Dataset`] if there is not enough left.
    pub(crate) fn take(&mut self, example: &mut Example, row: &DataRow) -> Result<(), TrainError> {
        let bytes = EXAMPLE_BYTES + TOKEN_BYTES * example.tokens.len();
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| TrainError::data(
            row.location.file.to_string(),
            format!(
                "line {}: the rows up to here take more than {} bytes of memory ({TOKEN_BYTES} for a token and {EXAMPLE_BYTES} for a \
                 row, with copies and rejected answers); train on fewer rows, or lower `vary_identifiers` or `max_length`",
                row.location.line, self.limit
            ),
        ))?;
        example.tokens.shrink_to_fit();
        example.loss_mask.shrink_to_fit();
        Ok(())
    }
}

impl Example {
    /// How many tokens have a loss that counts.
    #[must_use]
    pub fn trained_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|trained| **trained).count()
    }
}

/// Selects the tokens of a conversation whose loss counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossMask {
    /// The last answer and its end-of-turn token.
    #[default]
    Completion,
    /// Every answer of the assistant, each with its end-of-turn token.
    Assistant,
}

impl FromStr for LossMask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(
            text,
            &[
                ("completion", LossMask::Completion),
                ("assistant", LossMask::Assistant),
            ],
        )
    }
}

/// What happens to a row of more than `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// The row is dropped and counted.
    #[default]
    Drop,
    /// Its end is cut off and it is counted; it is dropped if no trained token would remain.
    Truncate,
    /// Its beginning is cut off and it is counted. An answer that loses its own beginning or all of its prompt has no loss. The row
    /// is dropped if no trained token would remain.
    TruncateStart,
    /// An error names its line.
    Refuse,
}

impl TooLong {
    const NAMES: [(&str, TooLong); 4] = [
        ("drop", TooLong::Drop),
        ("truncate", TooLong::Truncate),
        ("truncate_start", TooLong::TruncateStart),
        ("refuse", TooLong::Refuse),
    ];
}

impl FromStr for TooLong {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, &Self::NAMES)
    }
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, value)| value == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

/// The value named `text`. The error lists the names.
fn named<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, String> {
    let value = names.iter().find(|(name, _)| *name == text);
    value.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("must be one of {}", names.join(", "))
    })
}

/// Encodes rows as examples.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// The base's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The base's chat template.
    pub template: &'a ChatTemplate,
    /// The persona's system prompt, for conversations without one.
    pub system: Option<&'a str>,
    /// Which tokens are trained.
    pub mask: LossMask,
    /// Most tokens of an example.
    pub max_length: usize,
    /// What happens to a longer row.
    pub too_long: TooLong,
}

/// A row after `max_length` was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitted {
    /// It is short enough.
    Whole(Example),
    /// It was truncated.
    Truncated(Example),
    /// It is too long and was dropped.
    Dropped,
}

/// The examples of a data set, and the number of overlong rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Examples {
    /// In the order of the rows.
    pub examples: Vec<Example>,
    /// Rows dropped for their length.
    pub dropped: usize,
    /// Rows that were cut.
    pub truncated: usize,
}

impl Encoder<'_> {
    /// Encodes all `rows`.
    ///
    /// # Errors
    /// As [`Encoder::encode`]. Also if all rows are too long.
    pub fn encode_all(&self, rows: &[DataRow]) -> Result<Examples, TrainError> {
        self.encode_until(rows, &mut ExampleBudget::unlimited(), &NEVER)
    }

    /// As [`Encoder::encode_all`], until `stop` is set, and within a budget of memory. A row that is given by value is freed as soon as it is
    /// encoded.
    ///
    /// # Errors
    /// As [`Encoder::encode_all`], [`TrainError::Stopped`], and [`TrainError::Dataset`] if the budget is too small.
    pub fn encode_until(
        &self,
        rows: impl IntoIterator<Item = impl Borrow<DataRow>>,
        budget: &mut ExampleBudget,
        stop: &AtomicBool,
    ) -> Result<Examples, TrainError> {
        let mut encoding = Encoding::new(self, budget);
        for row in rows {
            check_stop(stop)?;
            encoding.add(row.borrow())?;
        }
        encoding.finish()
    }

    /// Encodes one row at its full length.
    ///
    /// # Errors
    /// The template or the tokenizer refuses it, the template does not render answers after their prompts, or no token
    /// of it would be trained.
    pub fn encode(&self, row: &DataRow) -> Result<Example, TrainError> {
        let example = self.render(row)?;
        if example.trained_tokens() == 0 {
            let message =
                "no token of this row would be trained: its answer is empty once it is tokenized";
            return Err(TrainError::row(&row.location, message));
        }
        Ok(example)
    }

    /// As [`Encoder::encode`], but accepts a row without trained tokens.
    ///
    /// # Errors
    /// The template or the tokenizer refuses the row, or the template does not render answers after their prompts.
    pub fn render(&self, row: &DataRow) -> Result<Example, TrainError> {
        let Some(mut messages) = row.turns(self.system) else {
            return self.encode_text(row);
        };
        let opening = messages.iter().take_while(|turn| turn.role != "user");
        let opening = opening.filter(|turn| turn.role == "assistant").count();
        let encoded = self.encode_turns(messages.clone(), &row.marks, &row.location);
        let answers = messages.iter().filter(|turn| turn.role == "assistant");
        if encoded.is_ok() || opening == 0 || opening == answers.count() {
            return encoded;
        }
        // The template wants the user to begin: what the assistant said before that is left out.
        let first = messages.iter().position(|turn| turn.role == "assistant");
        let first = first.unwrap_or(0);
        messages.drain(first..first + opening);
        let marks = row.marks.get(opening..).unwrap_or(&[]);
        self.encode_turns(messages, marks, &row.location)
    }

    fn encode_turns(
        &self,
        mut messages: Vec<Message>,
        marks: &[Option<bool>],
        location: &RowLocation,
    ) -> Result<Example, TrainError> {
        let hidden = Hidden::hide(self.tokenizer, &mut messages);
        let tokens = |text: &str| refused(hidden.encode(self.tokenizer, text), location);
        let render = |messages: &[Message], answer_next: bool| {
            let rendered = self.template.render(messages, answer_next);
            rendered.map_err(|error| {
                TrainError::row(location, format!("the chat template refuses it: {error}"))
            })
        };
        let mut builder = Builder::default();
        let mut done = String::new();
        let mut answers = 0;
        for (i, turn) in messages.iter().enumerate() {
            let last = i + 1 == messages.len();
            if turn.role != "assistant" {
                continue;
            }
            let mark = marks.get(answers).copied().flatten();
            answers += 1;
            let by_mask = last || self.mask == LossMask::Assistant;
            // Nothing comes before an answer that opens the conversation.
            if !mark.unwrap_or(by_mask) || i == 0 && !last {
                continue;
            }
            let prompt = render(&messages[..i], true)?;
            let whole = render(&messages[..=i], false)?;
            let (Some(before), Some(answer)) =
                (prompt.strip_prefix(&done), whole.strip_prefix(&prompt))
            else {
                return Err(TrainError::row(
                    location,
                    format!(
                        "the chat template does not put the answer (message {i}) after the prompt as it renders it for \
                         generation, so the trained tokens are unknown; use a template that only appends"
                    ),
                ));
            };
            if answer.trim().is_empty() {
                let message = format!("the chat template leaves the answer (message {i}) out");
                return Err(TrainError::row(location, message));
            }
            let before = tokens(before)?;
            builder.push(&self.with_bos(before, builder.is_empty()), false);
            let answer = tokens(answer)?;
            // The model never generates what the template writes after the end of the turn, so that is not part of the answer.
            match answer
                .iter()
                .rposition(|token| self.tokenizer.end_ids().contains(token))
            {
                Some(end) => {
                    builder.push(&answer[..=end], true);
                    if !last {
                        builder.push(&answer[end + 1..], false);
                    }
                }
                None => {
                    builder.push(&answer, true);
                    // The template ends no turn, so a conversation that continues has no end token here when it is served.
                    if last {
                        builder.push(&self.end(), true);
                    }
                }
            }
            done = whole;
        }
        Ok(builder.finish())
    }

    fn encode_text(&self, row: &DataRow) -> Result<Example, TrainError> {
        let tokens = self.tokenizer.encode(row.output(), Special::Parse);
        let tokens = refused(tokens, &row.location)?;
        let ended = tokens
            .last()
            .is_some_and(|token| self.tokenizer.end_ids().contains(token));
        let mut builder = Builder::default();
        builder.push(&self.with_bos(tokens, true), true);
        if !ended {
            builder.push(&self.end(), true);
        }
        Ok(builder.finish())
    }

    /// The example of `row` at its allowed length.
    ///
    /// # Errors
    /// It is longer and the setting is [`TooLong::Refuse`].
    pub fn fit(&self, mut example: Example, row: &DataRow) -> Result<Fitted, TrainError> {
        let (length, limit) = (example.tokens.len(), self.max_length);
        if length <= limit {
            return Ok(Fitted::Whole(example));
        }
        match self.too_long {
            TooLong::Drop => return Ok(Fitted::Dropped),
            TooLong::Truncate => {
                example.tokens.truncate(limit);
                example.loss_mask.truncate(limit);
            }
            TooLong::TruncateStart => self.cut_start(&mut example, row),
            TooLong::Refuse => {
                let message =
                    format!("the row has {length} tokens, more than `max_length` = {limit}");
                return Err(TrainError::row(&row.location, message));
            }
        }
        Ok(if example.trained_tokens() > 0 {
            Fitted::Truncated(example)
        } else {
            Fitted::Dropped
        })
    }

    /// Cuts the beginning off, after the begin-of-text token.
    fn cut_start(&self, example: &mut Example, row: &DataRow) {
        let first = example.tokens.first().copied();
        let begun = self.tokenizer.add_bos() && first.is_some() && first == self.tokenizer.bos();
        let start = usize::from(begun);
        let end = start + example.tokens.len() - self.max_length;
        example.tokens.drain(start..end);
        example.loss_mask.drain(start..end);
        if matches!(row.content, RowContent::Text(_)) {
            example.loss_mask[0] = false;
        } else {
            // The rest of an answer without its question does not teach how to answer.
            let rest = example.loss_mask[start..].iter_mut();
            rest.take_while(|trained| **trained)
                .for_each(|trained| *trained = false);
        }
    }

    /// `tokens`, with the begin-of-text token in front if the model wants one and `tokens` has none.
    fn with_bos(&self, mut tokens: Vec<u32>, first: bool) -> Vec<u32> {
        if let Some(bos) = self.tokenizer.bos()
            && first
            && self.tokenizer.add_bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// The end-of-text token, if the model has one.
    fn end(&self) -> Vec<u32> {
        self.tokenizer.eos().into_iter().collect()
    }
}

/// The ids, or an error that names the row.
fn refused(
    encoded: Result<Vec<u32>, TokenizerError>,
    location: &RowLocation,
) -> Result<Vec<u32>, TrainError> {
    encoded.map_err(|error| TrainError::row(location, format!("the tokenizer refuses it: {error}")))
}

/// An example under construction.
#[derive(Default)]
struct Builder(Example);

impl Builder {
    fn is_empty(&self) -> bool {
        self.0.tokens.is_empty()
    }

    fn push(&mut self, tokens: &[u32], trained: bool) {
        self.0.tokens.extend_from_slice(tokens);
        self.0.loss_mask.resize(self.0.tokens.len(), trained);
    }

    fn finish(mut self) -> Example {
        // No token comes before the first one, so nothing predicts it.
        if let Some(first) = self.0.loss_mask.first_mut() {
            *first = false;
        }
        self.0
    }
}

/// Examples that are encoded row by row.
pub(crate) struct Encoding<'a> {
    encoder: &'a Encoder<'a>,
    budget: &'a mut ExampleBudget,
    all: Examples,
    /// The file of the first row.
    file: Option<Arc<str>>,
    rows: usize,
}

impl<'a> Encoding<'a> {
    pub fn new(encoder: &'a Encoder<'a>, budget: &'a mut ExampleBudget) -> Encoding<'a> {
        Encoding {
            encoder,
            budget,
            all: Examples::default(),
            file: None,
            rows: 0,
        }
    }

    /// Encodes one row, within the budget.
    pub fn add(&mut self, row: &DataRow) -> Result<(), TrainError> {
        self.rows += 1;
        self.file.get_or_insert_with(|| row.location.file.clone());
        let (mut example, truncated) = match self.encoder.fit(self.encoder.encode(row)?, row)? {
            Fitted::Whole(example) => (example, 0),
            Fitted::Truncated(example) => (example, 1),
            Fitted::Dropped => {
                self.all.dropped += 1;
                return Ok(());
            }
        };
        self.budget.take(&mut example, row)?;
        self.all.truncated += truncated;
        self.all.examples.push(example);
        Ok(())
    }

    /// The examples; an error if all rows were too long.
    pub fn finish(self) -> Result<Examples, TrainError> {
        match self.file {
            Some(file) if self.all.examples.is_empty() => Err(TrainError::data(
                file.to_string(),
                format!(
                    "every one of the {} rows is longer than `max_length` = {} tokens, and nothing to train is left of \
                     it; raise `max_length`, or set `too_long` otherwise",
                    self.rows, self.encoder.max_length
                ),
            )),
            _ => Ok(self.all),
        }
    }
}

/// SHA-256, in hex, of the tokens and masks of `examples`. It depends on the tokenizer, template and system prompt, too.
#[must_use]
pub fn examples_hash(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for example in examples {
        hasher.update((example.tokens.len() as u64).to_le_bytes());
        for (token, trained) in example.tokens.iter().zip(&example.loss_mask) {
            hasher.update(token.to_le_bytes());
            hasher.update([u8::from(*trained)]);
        }
    }
    base16ct::lower::encode_string(&hasher.finalize())
}
