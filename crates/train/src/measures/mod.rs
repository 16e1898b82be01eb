//! Evaluation measures of a trained adapter, one a file.
//!
//! | file         | measure                                                          | from                     |
//! |--------------|------------------------------------------------------------------|--------------------------|
//! | `loss_table`     | loss and perplexity of each persona's rows under each adapter     | rows, a [`Learner`]      |
//! | `tone_markers`       | whether an answer has a tone's markers                            | an answer                |
//! | `identifiers`     | identifiers copied                                                | question and answer      |
//! | `answer_score`      | both of them, counted                                             | question and answer      |
//! | `distinctness`   | how different two tones answer the same question                  | two answers              |
//! | `drift`      | how far the adapter moves the base on neutral text                | the model                |
//! | `repetition` | repeated word n-grams                                             | an answer                |
//! | `answer_length`     | words of the answers, and of the reference answers                | answers                  |
//!
//! Except for losses and drift, the measures are pure functions of texts. Does not know personas or thresholds.
//!
//! [`Learner`]: crate::Learner

mod answer_length;
mod answer_score;
mod distinctness;
mod drift;
mod identifiers;
mod loss_table;
mod repetition;
mod tone_markers;

pub use answer_length::AnswerLengths;
pub use answer_score::AnswerScore;
pub use distinctness::{chrf, distinctness};
pub use drift::{Drift, drift, neutral};
pub use identifiers::{complete, copied, identifiers};
pub use loss_table::{LossTable, loss_table};
pub use repetition::{repetition, repetition_of};
pub use tone_markers::ToneMarkers;

pub(crate) use identifiers::tokens_with_digit;
