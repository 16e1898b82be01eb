//! The identity of a client in the engine.

/// A client's id; requests without a client share `None`.
pub(crate) type ClientId = Option<u64>;
