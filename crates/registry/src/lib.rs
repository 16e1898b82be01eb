//! Personas: what a request names. Reads a folder of personas, publishes them to a registry of immutable versions, and looks
//! up the spec that names one, one version, or a blend of several.
//!
//! It must not know the engine, the trainer or HTTP: an adapter is a path and a hash here, and training settings are a TOML
//! table. Every call blocks; asynchronous code is in [`store`] only.
//!
//! Read [`persona`] first: one persona as plain data. Then:
//!
//! - [`personas`]: a set of personas, and the lookup of a [`spec`] such as `customer@3*0.7+partner*0.3`
//! - [`persona_folder`]: reads personas from folders; [`persona_file`]: `persona.toml`, read with the line of every error (`toml_source`); [`variables`] of its system prompt
//! - [`registry`]: publishing and all other changes; [`settings`]: what is published with an adapter, with its
//!   `sampling_settings`; [`maintenance`]:
//!   verification and garbage collection
//! - [`log_entry`]: one entry of the registry's log; [`state`]: what the entries add up to
//! - [`blob`]: adapters as immutable blobs; `blob_cache`: copies of remote ones; [`store`]: the object store of both; `leftovers`: what
//!   killed writers left
//! - [`error`]: what can fail

pub mod blob;
mod blob_cache;
pub mod error;
mod leftovers;
pub mod log_entry;
pub mod maintenance;
pub mod persona;
pub mod persona_file;
pub mod persona_folder;
pub mod personas;
pub mod registry;
mod sampling_settings;
pub mod settings;
pub mod spec;
pub mod state;
pub mod store;
mod toml_source;
pub mod variables;

pub use blob::{AdapterContent, AdapterRecord};
pub use error::{LookupError, PersonaError, ReadError, RegistryError};
pub use log_entry::{LogEntry, RegistryChange};
pub use maintenance::{CollectedGarbage, VerifiedAdapter};
pub use persona::{AdapterRef, EvalSpec, Persona, TrainSpec};
pub use personas::{Personas, ScaledPersona};
pub use registry::{Publication, PublishedVersion, Registry};
pub use settings::PersonaSettings;
pub use spec::{BlendPart, PersonaRef, SpecError};
pub use state::{PersonaRecord, RegistryState, Release, TrafficSplit};
pub use store::RegistryLocation;
pub use variables::{Variable, VariableError, Variables};
