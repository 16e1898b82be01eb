//! A plan: the device, the precision and the memory that it takes.

use kernels::Backend;
use model::Precision;
use serde::{Serialize, Serializer};

/// A kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// A GPU, by its name.
    Gpu(String),
}

impl DeviceKind {
    /// The backend that packs the weights.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self {
            DeviceKind::Cpu => Backend::Cpu,
            DeviceKind::Gpu(_) => Backend::Gpu,
        }
    }
}

/// How much memory a base takes on a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryPlan {
    /// The weights.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// Adapters.
    pub adapters: u64,
    /// What a step writes, the rotary table, and the program itself.
    pub working: u64,
    /// Training: the most that a job, or the step that a plan measures, may take.
    pub training: u64,
    /// Extra bytes during loading. Keys, values, adapters and training are allocated later, so this does not add to
    /// them.
    pub loading: u64,
}

impl MemoryPlan {
    /// The most bytes that are allocated at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let running = self.kv + self.adapters + self.training;
        self.weights + self.working + running.max(self.loading)
    }
}

/// How a base would run on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePlan {
    /// The device.
    pub device: DeviceKind,
    /// Whether Lory can run on it: a GPU needs a driver.
    pub runnable: bool,
    /// The type of float weights in memory; `None` keeps the file's types.
    #[serde(serialize_with = "named")]
    pub precision: Option<Precision>,
    /// Its memory.
    pub memory: MemoryPlan,
    /// Bytes of the device's memory that the base may use: the same at every start.
    pub capacity: u64,
    /// Bytes of a GPU's memory that are free now, as far as its driver or the system reports them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Whether the peak fits into `capacity`.
    pub fits: bool,
    /// Blocks of 16 tokens whose keys and values fit into their memory.
    pub kv_blocks: u64,
    /// The reasons for this plan, a sentence each.
    pub reasons: Vec<String>,
}

fn named<S: Serializer>(precision: &Option<Precision>, to: S) -> Result<S::Ok, S::Error> {
    match precision {
        Some(precision) => to.serialize_str(precision.name()),
        None => to.serialize_str("as in the file"),
    }
}

/// The device that will run, and the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The device that runs.
    pub chosen: DevicePlan,
    /// The machine's other devices.
    pub others: Vec<DevicePlan>,
    /// Why `auto` chose this device, if the machine has others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
