//! What can be wrong with a model or an adapter.

/// What can be wrong with a model or an adapter.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file's metadata.
    #[error(transparent)]
    Config(#[from] formats::config::ConfigError),
    /// A tensor that the architecture needs is not there.
    #[error(
        "{origin}: tensor {name:?} is missing; is this file whole, and of architecture {architecture}?"
    )]
    Missing {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// `general.architecture`.
        architecture: String,
    },
    /// A tensor has another shape than the configuration announces.
    #[error(
        "{origin}: tensor {name:?} has shape {found:?} (the inner dimension first), the configuration says {expected:?}"
    )]
    Shape {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// Dimensions in the file.
        found: Vec<u64>,
        /// Dimensions from the metadata.
        expected: Vec<u64>,
    },
    /// A tensor's encoding is parsed, but not run.
    #[error(
        "{origin}: tensor {name:?} is {dtype}, which is not run; requantize the file to one of {runs}"
    )]
    Type {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: &'static str,
        /// What is run.
        runs: String,
    },
    /// A tensor cannot be held in the precision that is asked for.
    #[error("{origin}: tensor {name:?}: {problem}")]
    Convert {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// Why.
        problem: String,
    },
    /// The kernels do not take it.
    #[error("{origin}: tensor {name:?}: {source}")]
    Kernel {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// Why.
        source: kernels::KernelError,
    },
    /// A context whose rotary table would not fit.
    #[error(
        "{origin}: a context of {context_length} positions is past the limit of {limit}; is the file's context_length right?"
    )]
    Context {
        /// The file.
        origin: String,
        /// Found.
        context_length: usize,
        /// The most.
        limit: usize,
    },
    /// A dimension that the kernels cannot run.
    #[error("{origin}: head_dim {head_dim} is not a multiple of 16, which attention needs")]
    HeadDim {
        /// The file.
        origin: String,
        /// Found.
        head_dim: usize,
    },
    /// An adapter of another model.
    #[error(transparent)]
    Adapter(#[from] formats::peft::PeftError),
    /// A merged tensor cannot be written in the type that is asked for.
    #[error("{origin}: tensor {name:?}: {source}; merge into another type")]
    Merge {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// Why.
        source: Box<formats::gguf::GgufError>,
    },
}
