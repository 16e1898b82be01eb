//! The files of an adapter folder, and limits on what they hold.

/// The file of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The largest rank.
pub const MAX_RANK: usize = 512;

/// Largest configuration read, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest weights read, in bytes.
pub(super) const MAX_WEIGHTS_BYTES: u64 = 4 << 30;
/// Highest layer number accepted, plus one.
pub(super) const MAX_LAYERS: usize = 4096;
/// Largest number of inputs or outputs of a linear.
pub(super) const MAX_WIDTH: usize = 1 << 18;
