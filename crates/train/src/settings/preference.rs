//! The settings of preference tuning (DPO): the table `[train.preference]` of `persona.toml`.

use serde::{Deserialize, Deserializer, Serialize};

use super::range::check_range;
use crate::error::TrainError;

/// Maximum number of personas whose answers are rejected.
const MAX_SIBLINGS: usize = 16;

/// The table `[train.preference]` of `persona.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// How much a difference in log-probability counts. Small: the adapter may move far from where it started.
    pub beta: f64,
    /// The weight of the chosen answer's own loss, in nats per token, added to the preference objective; 0 for none.
    pub sft_weight: f64,
    /// The personas whose answers to the same questions are rejected; empty if the rows have rejected answers. In a
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
        check_range("preference.beta", self.beta, 1e-4..=100.0)?;
        check_range("preference.sft_weight", self.sft_weight, 0.0..=1000.0)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_rejected_by_name() {
        let read = |text: &str| serde_json::from_str::<PreferenceSettings>(text);
        let one = read(r#"{"against":"partner","beta":0.3}"#).unwrap();
        assert_eq!(
            (one.against.as_slice(), one.beta, one.sft_weight),
            (&["partner".to_owned()][..], 0.3, 1.0)
        );
        assert_eq!(read(r#"{"against":["a","b"]}"#).unwrap().against.len(), 2);
        let error = read(r#"{"against":7}"#).unwrap_err().to_string();
        assert!(error.contains("a persona's name, or a list"), "{error}");
        assert!(read(r#"{"betas":1}"#).is_err());
        let check = |change: fn(&mut PreferenceSettings)| {
            let mut settings = PreferenceSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert_eq!(
            check(|s| s.beta = 0.0),
            "setting `preference.beta`: is 0; it must be between 0.0001 and 100"
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
