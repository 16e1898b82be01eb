//! Preference tuning: of two answers to the same question, one is to become more likely and the other less.
//!
//! Direct preference optimization (Rafailov et al. 2023) on the loop, the backward and the checkpoints of [`crate::sft`]:
//! a pair is two sequences whose losses count with weights of their own. [`load`] reads the pairs, `loss` is the objective,
//! `reference` keeps what the run started from. Knows no model and no persona.

mod load;
mod loss;
mod pairs;
pub(crate) mod reference;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::TrainError;
use crate::example::Example;
use crate::settings::within;

pub use load::load;
pub use loss::{DpoLoss, DpoTotals, dpo_loss};
pub use pairs::{PairCounts, PairScan, RejectedPersona, holds_pairs, scan_pairs};

/// Most personas whose answers are rejected.
const MAX_SIBLINGS: usize = 16;

/// The table `[train.preference]` of `persona.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// How much a difference in log-probability counts. Small: the adapter may move far from where it started.
    pub beta: f64,
    /// The weight of the chosen answer's own loss, in nats a token, beside the preference; 0 leaves it out.
    pub sft_weight: f64,
    /// The personas whose answers to the same questions are rejected; empty where the rows bring rejected answers. In a
    /// file it may be one name without a list.
    #[serde(deserialize_with = "one_or_more")]
    pub against: Vec<String>,
}

impl Default for PreferenceSettings {
    fn default() -> Self {
        Self {
            beta: 0.1,
            sft_weight: 1.0,
            against: Vec::new(),
        }
    }
}

impl PreferenceSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first one out of its range.
    pub fn check(&self) -> Result<(), TrainError> {
        within("preference.beta", self.beta, 1e-4..=100.0)?;
        within("preference.sft_weight", self.sft_weight, 0.0..=1000.0)?;
        let refuse = |message| TrainError::Setting {
            name: "preference.against",
            message,
        };
        if self.against.len() > MAX_SIBLINGS {
            return Err(refuse(format!(
                "names {} personas; at most {MAX_SIBLINGS} are taken",
                self.against.len()
            )));
        }
        for (i, name) in self.against.iter().enumerate() {
            if name.is_empty() {
                return Err(refuse("holds an empty name; write a persona's".to_owned()));
            }
            if self.against[..i].contains(name) {
                return Err(refuse(format!("names `{name}` twice")));
            }
        }
        Ok(())
    }
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a persona's name, or a list of names")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(from)? {
        OneOrMore::One(name) => vec![name],
        OneOrMore::More(names) => names,
    })
}

/// What makes a job one of preferences: the rejected answers to its rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PreferenceData {
    /// Beside `Job::train`.
    pub train: RejectedExamples,
    /// Beside `Job::validation`.
    pub validation: RejectedExamples,
    /// Rows that found a rejected answer, and those that did not.
    pub matched: PairCounts,
}

/// The rejected answers beside a list of chosen ones, one each, to the same questions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RejectedExamples {
    /// The rejected answers behind their questions.
    pub examples: Vec<Example>,
    /// Log-probabilities of the chosen and the rejected answer where the run starts, summed over their trained tokens,
    /// in nats. The run fills them in.
    pub reference: Vec<[f64; 2]>,
}

/// What a pass over pairs says of the preference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PreferenceStats {
    /// Pairs.
    pub pairs: usize,
    /// Share of the pairs whose chosen answer has gained on the rejected one since the start.
    pub accuracy: f64,
    /// Mean of beta * (gain of the chosen answer's log-probability - gain of the rejected one's).
    pub margin: f64,
    /// Mean loss of a chosen answer's token, in nats: what supervised training reports as its loss.
    pub chosen_loss: f64,
    /// Mean loss of a rejected answer's token, in nats.
    pub rejected_loss: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_what_is_out_of_range_is_named() {
        let read = |text: &str| serde_json::from_str::<PreferenceSettings>(text);
        let one = read(r#"{"against":"partner","beta":0.3}"#).unwrap();
        assert_eq!(
            (one.against.as_slice(), one.beta, one.sft_weight),
            (&["partner".to_owned()][..], 0.3, 1.0)
        );
        assert_eq!(read(r#"{"against":["a","b"]}"#).unwrap().against.len(), 2);
        let said = read(r#"{"against":7}"#).unwrap_err().to_string();
        assert!(said.contains("a persona's name, or a list"), "{said}");
        assert!(read(r#"{"betas":1}"#).is_err());
        let check = |change: fn(&mut PreferenceSettings)| {
            let mut settings = PreferenceSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert_eq!(
            check(|s| s.beta = 0.0),
            "setting `preference.beta`: is 0; it must lie between 0.0001 and 100"
        );
        assert!(check(|s| s.sft_weight = f64::NAN).contains("`preference.sft_weight`: is NaN"));
        assert!(check(|s| s.against = vec!["a".into(), "a".into()]).contains("`a` twice"));
        assert!(check(|s| s.against = vec![String::new()]).contains("an empty name"));
        assert!(
            check(|s| s.against = (0..17).map(|i| i.to_string()).collect())
                .contains("names 17 personas; at most 16")
        );
    }
}
