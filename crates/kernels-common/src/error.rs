//! What can go wrong when a device is opened or memory is asked for.

/// What can go wrong when a device is opened or weights are packed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The system has no memory left.
    #[error(
        "no memory for {bytes} more bytes: {source}; take a smaller base, or give back other memory"
    )]
    Memory {
        /// Bytes that were requested.
        bytes: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// `LORY_ISA` names an instruction set that this machine lacks.
    #[error(
        "LORY_ISA={name}: not an instruction set of this machine; known: scalar, neon, avx2, avx512"
    )]
    Isa {
        /// The requested name.
        name: String,
    },
    /// A tensor's shape does not fit its bytes or its neighbours.
    #[error("shape mismatch: {what}")]
    Shape {
        /// The shape and the bytes that were found.
        what: String,
    },
    /// There is no graphics card of that name.
    #[error("--device {name}: not a graphics card of this machine; known: {known}")]
    NoCard {
        /// The requested name.
        name: String,
        /// The names of those that were found.
        known: String,
    },
    /// A graphics card cannot be used.
    #[error("the graphics card {name} cannot be used: {reason}")]
    Card {
        /// Its name.
        name: String,
        /// The driver's reason, or what the card lacks.
        reason: String,
    },
    /// A graphics card has no memory left.
    #[error(
        "no memory on the graphics card for {bytes} more bytes: {reason}; take a smaller base, or set --kv-memory lower"
    )]
    DeviceMemory {
        /// Bytes that were requested.
        bytes: u64,
        /// The driver's reason, or the limit.
        reason: String,
    },
}
