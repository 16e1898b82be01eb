//! Personas: what a request names. A folder of them, each with its settings and its adapter's content hash, and the
//! language that names one, a version of one, or a blend of several.
//!
//! Knows no engine, no trainer and no HTTP: an adapter is a path and a hash here, training settings a table.
//!
//! - [`personas`]: the folder, and looking one up
//! - [`persona`]: one persona, as plain data
//! - [`file`](mod@file): `persona.toml`, read with a line for every complaint
//! - [`spec`], such as `customer@3*0.7+partner*0.3`

pub mod error;
pub mod file;
pub mod persona;
pub mod personas;
pub mod spec;

pub use error::{LookupError, PersonaError};
pub use persona::{AdapterRef, EvalSpec, Persona, SamplingDefaults, TrainSpec};
pub use personas::{Chosen, Personas};
pub use spec::{Part, SpecError};
