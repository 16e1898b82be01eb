//! What a trained adapter is worth, one measure a file.
//!
//! | file         | measure                                                          | from                     |
//! |--------------|------------------------------------------------------------------|--------------------------|
//! | `losses`     | loss and perplexity of each persona's rows under each adapter     | rows, a [`Learner`]      |
//! | `tone`       | whether an answer has a tone's markers                            | an answer                |
//! | `copied`     | identifiers copied                                                | question and answer      |
//! | `score`      | both of them, counted                                             | question and answer      |
//! | `distinct`   | how different two tones answer the same question                  | two answers              |
//! | `drift`      | how far the adapter moves the base on neutral text                | the model                |
//! | `repetition` | repeated word n-grams                                             | an answer                |
//! | `length`     | words of the answers beside those of the references               | answers                  |
//!
//! Except for losses and drift, the measures are pure functions of texts. Knows no persona and no threshold.
//!
//! [`Learner`]: crate::Learner

mod copied;
mod distinct;
mod drift;
mod length;
mod losses;
mod repetition;
mod score;
mod tone;

pub use copied::{complete, copied, identifiers};
pub use distinct::{chrf, distinctness};
pub use drift::{Drift, drift, neutral};
pub use length::AnswerLengths;
pub use losses::{LossTable, loss_table};
pub use repetition::{repetition, repetition_of};
pub use score::AnswerScore;
pub use tone::ToneMarkers;

pub(crate) use copied::tokens_with_digit;
