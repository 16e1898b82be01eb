//! The errors of reading and writing GGUF files.

/// A GGUF file that could not be read, parsed or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened, read or written.
    #[error("{origin}: {source}")]
    Io {
        /// The file.
        origin: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file does not start with the four letters GGUF.
    #[error("{origin}: not a GGUF file: it starts with {found:?}, not with \"GGUF\"")]
    Magic {
        /// The file.
        origin: String,
        /// Its first bytes, as text.
        found: String,
    },
    /// A version this reader does not know, or a big-endian file.
    #[error("{origin}: GGUF version {version}{hint}; versions 2 and 3, little endian, are read")]
    Version {
        /// The file.
        origin: String,
        /// The version it claims.
        version: u32,
        /// A guess at what it is.
        hint: &'static str,
    },
    /// The file ends too early.
    #[error("{origin}: {what}: truncated: needs {needs} bytes, has {has}")]
    Truncated {
        /// The file.
        origin: String,
        /// What was being read: a tensor or a metadata key by name.
        what: String,
        /// The length that the file would need for it.
        needs: u64,
        /// The length that the file has.
        has: u64,
    },
    /// A count or length beyond what this reader takes.
    #[error("{origin}: {what} is {found}; at most {limit} is read")]
    Limit {
        /// The file.
        origin: String,
        /// What was counted.
        what: String,
        /// How much there was.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A metadata entry that breaks the format.
    #[error("{origin}: metadata {key:?}: {problem}")]
    Metadata {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A metadata entry of another type than the caller needs.
    #[error("{origin}: metadata {key:?} is {found}, but {expected} is needed")]
    WrongType {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The type (and value, for a number that does not fit) found.
        found: String,
        /// What is needed.
        expected: &'static str,
    },
    /// A tensor that breaks the format.
    #[error("{origin}: tensor {name:?}: {problem}")]
    Tensor {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The parts of a split file that are not complete, or not named as parts.
    #[error("{origin}: {problem}")]
    Part {
        /// The file.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor type that cannot be dequantized or quantized here.
    #[error("{dtype} tensors are not {verb} here (those of {supported} are)")]
    Unsupported {
        /// The type.
        dtype: &'static str,
        /// "dequantized" or "quantized".
        verb: &'static str,
        /// The types that are.
        supported: &'static str,
    },
    /// Slices whose lengths do not match.
    #[error("{dtype}: {elements} elements need {needs} bytes, but {has} bytes were given")]
    Length {
        /// The type.
        dtype: &'static str,
        /// Number of elements.
        elements: usize,
        /// Bytes that they take.
        needs: u64,
        /// Bytes given.
        has: u64,
    },
}
