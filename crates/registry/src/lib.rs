//! Personas: what a request names. A folder of them, each with its settings and its adapter's content hash; the registry
//! of those that were published; and the language that names one, a version of one, or a blend of several.
//!
//! Knows no engine, no trainer and no HTTP: an adapter is a path and a hash here, training settings a table. Every call
//! blocks; what is asynchronous beneath stays in `store`.
//!
//! - [`personas`]: everyone who can be asked, and looking one up
//! - [`persona`]: one persona, as plain data
//! - [`file`](mod@file): `persona.toml`, read with a line for every complaint
//! - [`spec`], such as `customer@3*0.7+partner*0.3`
//! - [`registry`]: publishing, and all other changes; [`entry`]: the log, [`state`]: what it adds up to, [`blob`]: adapters, `copies`: those that were fetched,
//!   [`store`]: where all of it lies; [`settings`]: what is published beside an adapter; [`variables`] of its system prompt

pub mod blob;
mod copies;
pub mod entry;
pub mod error;
pub mod file;
pub mod persona;
pub mod personas;
pub mod registry;
pub mod settings;
pub mod spec;
pub mod state;
pub mod store;
pub mod variables;

pub use blob::Content;
pub use entry::{Change, Entry};
pub use error::{LookupError, PersonaError, ReadError, RegistryError};
pub use persona::{AdapterRef, EvalSpec, Persona, SamplingDefaults, TrainSpec};
pub use personas::{Chosen, Personas};
pub use registry::{Collected, Publication, Published, Registry, Verified};
pub use settings::PersonaSettings;
pub use spec::{Part, SpecError};
pub use state::{Record, Release, Split, State, Target};
pub use store::Location;
pub use variables::{Variable, VariableError, Variables};
