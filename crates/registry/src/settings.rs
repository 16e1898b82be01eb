//! The settings of a persona that are published with its adapter: system prompt, sampling, limits.

use std::path::PathBuf;

use sampling::SamplingParams;
use serde::{Deserialize, Serialize};

use crate::persona::{AdapterRef, Persona};
use crate::spec::MAX_SCALE;
use crate::variables::{self, Variables};

/// The longest system prompt, in bytes.
pub const MAX_SYSTEM_PROMPT: usize = 64 << 10;
/// The longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 4 << 10;
/// The largest `max_new_tokens`.
pub const MAX_NEW_TOKENS: usize = 1 << 20;
/// The most stop strings.
pub const MAX_STOPS: usize = 16;

/// The settings of one version of a persona. A missing setting is left to the request or the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersonaSettings {
    /// One line for people; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The system prompt of every conversation that does not bring one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The variables of the system prompt.
    #[serde(skip_serializing_if = "Variables::is_empty")]
    pub variables: Variables,
    /// Sampling settings.
    #[serde(
        skip_serializing_if = "SamplingParams::is_empty",
        with = "crate::sampling_settings"
    )]
    pub sampling: SamplingParams,
    /// The most tokens of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Texts that end an answer and are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Multiplies the adapter, in addition to the weight in a request.
    #[serde(serialize_with = "formats::decimal::serialize")]
    pub scale: f32,
}

impl Default for PersonaSettings {
    fn default() -> Self {
        PersonaSettings {
            description: String::new(),
            system_prompt: None,
            variables: Variables::new(),
            sampling: SamplingParams::default(),
            max_new_tokens: None,
            stop: Vec::new(),
            scale: 1.0,
        }
    }
}

impl PersonaSettings {
    /// The settings of a persona.
    #[must_use]
    pub fn of(persona: &Persona) -> Self {
        PersonaSettings {
            description: persona.description.clone(),
            system_prompt: persona.system_prompt.clone(),
            variables: persona.variables.clone(),
            sampling: persona.sampling,
            max_new_tokens: persona.max_new_tokens,
            stop: persona.stop.clone(),
            scale: persona.scale,
        }
    }

    /// A persona with these settings, without training and evaluation; `dir` is where it comes from.
    #[must_use]
    pub fn into_persona(
        self,
        name: &str,
        version: u32,
        adapter: Option<AdapterRef>,
        dir: PathBuf,
    ) -> Persona {
        Persona {
            name: name.to_owned(),
            version,
            description: self.description,
            system_prompt: self.system_prompt,
            variables: self.variables,
            sampling: self.sampling,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop,
            scale: self.scale,
            adapter,
            train: None,
            eval: None,
            dir,
            published: None,
        }
    }

    /// Checks every setting against its range, the same as in `persona.toml`.
    ///
    /// # Errors
    /// The first setting that is out of range, by name, with its range.
    pub fn check(&self) -> Result<(), String> {
        if self.description.len() > MAX_DESCRIPTION {
            return Err(format!(
                "description is longer than {MAX_DESCRIPTION} bytes"
            ));
        }
        let prompt = self.system_prompt.as_ref().map_or(0, String::len);
        if prompt > MAX_SYSTEM_PROMPT {
            return Err(format!(
                "system_prompt is longer than {MAX_SYSTEM_PROMPT} bytes"
            ));
        }
        variables::check(self.system_prompt.as_deref(), &self.variables)?;
        if let Some(most) = self
            .max_new_tokens
            .filter(|n| !(1..=MAX_NEW_TOKENS).contains(n))
        {
            return Err(format!(
                "max_new_tokens must be from 1 to {MAX_NEW_TOKENS}, not {most}"
            ));
        }
        if self.stop.len() > MAX_STOPS {
            return Err(format!("stop has more than {MAX_STOPS} texts"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err("stop: an empty text would end every answer".to_owned());
        }
        self.sampling.check().map_err(|error| error.to_string())?;
        if !(-MAX_SCALE..=MAX_SCALE).contains(&self.scale) {
            return Err(format!(
                "scale must be from -{MAX_SCALE} to {MAX_SCALE}, not {}",
                self.scale
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serialization_is_stable_and_numbers_keep_their_decimals() {
        let settings = PersonaSettings {
            sampling: SamplingParams {
                temperature: Some(0.2),
                repetition_penalty: Some(0.01),
                ..SamplingParams::default()
            },
            scale: 0.7,
            ..PersonaSettings::default()
        };
        let sampling = serde_json::json!({"temperature": 0.2, "repetition_penalty": 0.01});
        assert_eq!(
            serde_json::to_value(&settings).unwrap(),
            serde_json::json!({"sampling": sampling, "scale": 0.7})
        );
        let json = serde_json::to_string(&settings).unwrap();
        let wanted = r#"{"sampling":{"temperature":0.2,"repetition_penalty":0.01},"scale":0.7}"#;
        assert_eq!(json, wanted);
        let read: PersonaSettings = serde_json::from_str(&json).unwrap();
        assert_eq!(read, settings);
    }
}
