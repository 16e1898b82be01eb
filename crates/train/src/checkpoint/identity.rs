//! The parts of a run that must be equal when it resumes, and their differences in words.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The parts of a run that must be equal when it resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The base, by fingerprint.
    pub base: String,
    /// Most tokens of one call of the learner.
    pub batch_tokens: usize,
    /// Each adapter's, in the order of the tasks.
    pub adapters: Vec<AdapterIdentity>,
}

/// The parts of one adapter that must be equal when the run resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterIdentity {
    /// Its name.
    pub name: String,
    /// Its settings, as JSON.
    pub settings: Value,
    /// Hash of its training examples.
    pub train_hash: String,
    /// Hash of its validation examples.
    pub validation_hash: String,
    /// Layer, module, rank, inputs and outputs of every pair.
    pub shapes: Vec<String>,
    /// Hash of the adapter that it started from; `None` for freshly drawn parameters.
    #[serde(rename = "start", default, skip_serializing_if = "Option::is_none")]
    pub initial_adapter: Option<String>,
}

impl RunIdentity {
    /// Describes what differs between this run, which wrote a checkpoint, and `now`, which wants to resume it. Empty if nothing does.
    pub(super) fn differences(&self, now: &RunIdentity) -> Vec<String> {
        let mut differences = Vec::new();
        let names = |identity: &RunIdentity| {
            identity
                .adapters
                .iter()
                .map(|adapter| format!("`{}`", adapter.name))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if names(self) != names(now) {
            return vec![format!(
                "it trains {}, this run trains {}",
                names(self),
                names(now)
            )];
        }
        if self.base != now.base {
            differences.push(format!(
                "the base was {}, now it is {}",
                self.base, now.base
            ));
        }
        if self.batch_tokens != now.batch_tokens {
            differences.push(format!(
                "batch_tokens was {}, now it is {}",
                self.batch_tokens, now.batch_tokens
            ));
        }
        for (was, now) in self.adapters.iter().zip(&now.adapters) {
            was.add_differences(now, &mut differences);
        }
        differences
    }
}

impl AdapterIdentity {
    fn add_differences(&self, now: &AdapterIdentity, differences: &mut Vec<String>) {
        let name = &now.name;
        let empty = serde_json::Map::new();
        let fields = |value: &Value| value.as_object().unwrap_or(&empty).clone();
        let (was_settings, now_settings) = (fields(&self.settings), fields(&now.settings));
        let mut keys: Vec<&String> = was_settings.keys().chain(now_settings.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let shown = |settings: &serde_json::Map<String, Value>| {
                settings
                    .get(key)
                    .map_or_else(|| "not set".to_owned(), Value::to_string)
            };
            if was_settings.get(key) != now_settings.get(key) {
                let (was, now) = (shown(&was_settings), shown(&now_settings));
                differences.push(format!(
                    "`{name}`: setting `{key}` was {was}, now it is {now}"
                ));
            }
        }
        let encoded =
            "changed (or the tokenizer, chat template or system prompt that encodes them)";
        if self.train_hash != now.train_hash {
            differences.push(format!("`{name}`: the training rows have {encoded}"));
        }
        if self.validation_hash != now.validation_hash {
            differences.push(format!("`{name}`: the validation rows have {encoded}"));
        }
        if self.shapes != now.shapes {
            differences.push(format!("`{name}`: the shapes of its tensors have changed"));
        }
        if self.initial_adapter != now.initial_adapter {
            let from = |start: &Option<String>| match start {
                None => "freshly drawn parameters".to_owned(),
                Some(hash) => format!("the adapter {hash}"),
            };
            let (was, now) = (from(&self.initial_adapter), from(&now.initial_adapter));
            differences.push(format!(
                "`{name}`: it started from {was}, now it would from {now}"
            ));
        }
    }
}
