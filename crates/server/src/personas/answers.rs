//! The shapes of answers about personas, for the document alone; `catalog::shown` makes them. `tests/serving/openapi.rs` holds
//! them against real answers.
#![allow(dead_code, reason = "read by the derive macros, never made")]

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

/// Everyone, and the aliases.
#[derive(ToSchema)]
pub(crate) struct PersonaList {
    /// `list`.
    object: String,
    data: Vec<PersonaCard>,
    /// What each alias stands for: a name, or `name@version`.
    aliases: BTreeMap<String, String>,
}

/// A persona as it is now.
#[derive(ToSchema)]
struct PersonaCard {
    /// `persona`.
    object: String,
    name: String,
    /// `registry` or `folder`.
    source: String,
    /// The version that the name alone means.
    version: u32,
    versions: Vec<u32>,
    description: String,
    #[schema(required)]
    adapter: Option<AdapterShown>,
    /// A Unix time; none for one of the folder.
    #[schema(required)]
    published: Option<u64>,
    #[schema(required)]
    canary: Option<SplitShown>,
    #[schema(required)]
    shadow: Option<SplitShown>,
}

/// An adapter as the registry knows it.
#[derive(ToSchema)]
struct AdapterShown {
    /// The content hash.
    sha256: String,
    /// Bytes of its weights' file.
    bytes: u64,
    /// The base that it was trained on, where it says so.
    #[schema(required)]
    base_sha256: Option<String>,
}

/// A part of the requests that goes to a version.
#[derive(ToSchema)]
struct SplitShown {
    version: u32,
    /// Of a hundred requests.
    percent: f64,
}

/// One version of a persona.
#[derive(ToSchema)]
pub(crate) struct PersonaVersion {
    /// `persona.version`.
    object: String,
    name: String,
    /// `registry` or `folder`.
    source: String,
    version: u32,
    /// Whether the name alone means it.
    current: bool,
    /// A Unix time; none for one of the folder.
    #[schema(required)]
    published: Option<u64>,
    #[schema(required)]
    adapter: Option<AdapterShown>,
    settings: SettingsShape,
    #[schema(required)]
    canary: Option<SplitShown>,
    #[schema(required)]
    shadow: Option<SplitShown>,
    /// The aliases that lead to it.
    aliases: Vec<String>,
}

/// What a persona is beside its adapter: the keys of `persona.toml`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettingsShape {
    /// A line for people.
    #[schema(max_length = 4096)]
    description: Option<String>,
    /// Stands in front of every conversation that brings none of its own; at most 64 KiB.
    system_prompt: Option<String>,
    /// What `{{name}}` in the system prompt stands for: a text, or `{"required": true}`. At most 32.
    variables: Option<BTreeMap<String, VariableShape>>,
    sampling: Option<SamplingShape>,
    #[schema(minimum = 1, maximum = 1048576)]
    max_new_tokens: Option<u64>,
    /// Texts that end an answer and are not shown.
    #[schema(max_items = 16)]
    stop: Option<Vec<String>>,
    /// Multiplies the adapter.
    #[schema(minimum = -4, maximum = 4)]
    scale: Option<f64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum VariableShape {
    /// Its default.
    Default(String),
    /// Every request must give it.
    Required(RequiredShape),
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RequiredShape {
    /// True.
    required: bool,
}

/// The sampling parameters; `with_sampling` adds them.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SamplingShape {}

/// Entries of the log, the oldest first.
#[derive(ToSchema)]
pub(crate) struct History {
    /// `list`.
    object: String,
    data: Vec<HistoryEntry>,
}

#[derive(ToSchema)]
struct HistoryEntry {
    /// Its place in the log, from 1.
    sequence: u64,
    /// A Unix time.
    time: u64,
    /// In words.
    summary: String,
    /// As it lies in the log: `op` says what it is.
    change: serde_json::Value,
}

/// What was removed.
#[derive(ToSchema)]
pub(crate) struct PersonaRemoved {
    /// `persona.removed`.
    object: String,
    name: String,
    /// None where all of them were.
    #[schema(required)]
    version: Option<u32>,
    /// True.
    removed: bool,
}

/// Another name.
#[derive(ToSchema)]
pub(crate) struct AliasShown {
    /// `persona.alias`.
    object: String,
    alias: String,
    /// `name`, or `name@version`.
    target: String,
}

/// A name that is gone.
#[derive(ToSchema)]
pub(crate) struct AliasRemoved {
    /// `persona.alias.removed`.
    object: String,
    alias: String,
    /// True.
    removed: bool,
}

/// What a verification found.
#[derive(ToSchema)]
pub(crate) struct VerifiedList {
    /// `list`.
    object: String,
    data: Vec<VerifiedAdapter>,
    /// How many are not whole.
    broken: u64,
}

#[derive(ToSchema)]
struct VerifiedAdapter {
    sha256: String,
    /// `name@version` of each that uses it.
    used_by: Vec<String>,
    ok: bool,
    /// What is wrong with it.
    #[schema(required)]
    problem: Option<String>,
}

/// What a collection of garbage removed, or would.
#[derive(ToSchema)]
pub(crate) struct Garbage {
    /// `registry.gc`.
    object: String,
    dry_run: bool,
    /// Hashes of adapters that are gone, or would be.
    removed: Vec<String>,
    /// Hashes of those that nothing uses and that are too young.
    too_young: Vec<String>,
    /// How many are in use.
    used: u64,
}

/// The versions of a persona, the newest first.
#[derive(ToSchema)]
pub(crate) struct VersionList {
    /// `list`.
    object: String,
    data: Vec<PersonaVersion>,
}

/// An adapter that was sent and waits to be published.
#[derive(ToSchema)]
pub(crate) struct UploadShown {
    /// `adapter.upload`.
    object: String,
    /// Its content hash, by which it is published.
    sha256: String,
    /// Bytes of its weights' file.
    bytes: u64,
    /// How its weights are stored: `f32`, `f16` or `bf16`.
    dtype: String,
    /// The largest rank of its pairs.
    rank: u64,
    alpha: f64,
    /// The linears that it changes.
    modules: Vec<String>,
    /// How many layers it changes.
    layers: u64,
    /// Pairs of A and B.
    pairs: u64,
    /// Numbers in them.
    parameters: u64,
    /// The base that its configuration names.
    #[schema(required)]
    base_name: Option<String>,
    /// The sha256 of the base's file that it was trained on, if it records one.
    #[schema(required)]
    base_sha256: Option<String>,
    /// Whether this server's base can run it.
    fits: bool,
    /// Why not.
    #[schema(required)]
    problem: Option<String>,
    /// Files of the archive that were passed over.
    passed_over: Vec<String>,
}

/// An upload that is gone.
#[derive(ToSchema)]
pub(crate) struct UploadForgotten {
    /// `adapter.upload.forgotten`.
    object: String,
    sha256: String,
    /// True.
    forgotten: bool,
}
