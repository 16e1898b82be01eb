//! The schema of [`registry::PersonaSettings`], which requests and responses contain. It is separate because the registry does not know
//! HTTP. A test compares it with real responses.
#![allow(dead_code, reason = "only the derived schemas are used")]

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

/// The settings of a persona: everything except its adapter, by the keys of `persona.toml`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettingsShape {
    /// One line for people.
    #[schema(max_length = 4096)]
    description: Option<String>,
    /// The system prompt of every conversation that does not bring one; at most 64 KiB.
    system_prompt: Option<String>,
    /// The value of `{{name}}` in the system prompt: a text, or `{"required": true}`. At most 32.
    variables: Option<BTreeMap<String, VariableShape>>,
    sampling: Option<SamplingShape>,
    #[schema(minimum = 1, maximum = 1048576)]
    max_new_tokens: Option<u64>,
    /// Texts that end an answer and are not part of it.
    #[schema(max_items = 16)]
    stop: Option<Vec<String>>,
    /// Multiplies the adapter.
    #[schema(minimum = -4, maximum = 4)]
    scale: Option<f64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum VariableShape {
    /// The default value.
    Default(String),
    /// Every request must set it.
    Required(RequiredShape),
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RequiredShape {
    /// True.
    required: bool,
}

// The sampling parameters, which `with_sampling` adds.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SamplingShape {}
