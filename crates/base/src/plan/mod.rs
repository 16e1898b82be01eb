//! Where a base will run, in which precision, and what memory it takes there: decided before anything is loaded.
//!
//! [`plan`] is a pure function from a machine's profile and a model's sizes. It weighs every device that the machine has, those
//! that Lory does not run on yet among them, so that a plan says what the machine could do; what is chosen runs today.
//!
//! The precision that `auto` takes depends on the memory that the machine has, never on what is free at the moment or on a
//! measurement: the same command on the same machine computes the same, today and tomorrow, and a training run can resume.

mod hardware;
mod probe;
mod rules;
mod words;

use model::{ModelSizes, Precision};
use serde::{Serialize, Serializer};

pub use hardware::{Gpu, HardwareProfile, Vendor};
pub use probe::{Probe, probe};
pub use words::size;

/// What is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The precision that is asked for; without, the planner chooses.
    pub precision: Option<Precision>,
    /// Bytes for keys and values.
    pub kv_memory: u64,
    /// Bytes for resident adapters.
    pub adapter_memory: u64,
    /// Most rows of a step.
    pub rows: usize,
    /// Most rows of a step that need logits.
    pub logit_rows: usize,
}

impl Default for Demand {
    /// As `lory serve` runs where nobody says otherwise.
    fn default() -> Self {
        Demand {
            precision: None,
            kv_memory: 512 << 20,
            adapter_memory: 256 << 20,
            rows: 256,
            logit_rows: 32,
        }
    }
}

/// A kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A graphics card, by its name.
    Gpu(String),
}

/// What memory a base takes on a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// The weights.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// Adapters.
    pub adapters: u64,
    /// What a step writes, the rotary table, and the program itself.
    pub working: u64,
    /// What loading holds beside the weights; keys, values and adapters come after it, so they do not add up.
    pub loading: u64,
}

impl Memory {
    /// The most that is held at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let running = self.kv + self.adapters;
        self.weights + self.working + running.max(self.loading)
    }
}

/// How a base would run on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePlan {
    /// The device.
    pub device: DeviceKind,
    /// Whether Lory runs on it today.
    pub runnable: bool,
    /// In what float weights are held; none where the file's types are kept.
    #[serde(serialize_with = "named")]
    pub precision: Option<Precision>,
    /// What it takes.
    pub memory: Memory,
    /// What the device has for it, in bytes: the same at every start.
    pub capacity: u64,
    /// Whether it fits into that.
    pub fits: bool,
    /// Blocks of 16 tokens whose keys and values fit into their memory.
    pub kv_blocks: u64,
    /// Why it is so, a sentence each.
    pub reasons: Vec<String>,
}

fn named<S: Serializer>(precision: &Option<Precision>, to: S) -> Result<S::Ok, S::Error> {
    match precision {
        Some(precision) => to.serialize_str(precision.name()),
        None => to.serialize_str("as in the file"),
    }
}

/// What will run, and what could.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What runs.
    pub chosen: DevicePlan,
    /// The machine's other devices.
    pub others: Vec<DevicePlan>,
}

/// A base that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{needs} needed and {has} {whose}: {detail}; {advice}")]
pub struct TooLarge {
    needs: String,
    has: String,
    whose: &'static str,
    detail: String,
    advice: String,
}

/// Decides where and how a model runs.
#[must_use]
pub fn plan(hardware: &HardwareProfile, sizes: &ModelSizes, demand: &Demand) -> Plan {
    let cpu = rules::on_cpu(hardware, sizes, demand);
    let mut others: Vec<DevicePlan> = hardware
        .gpus
        .iter()
        .map(|gpu| rules::on_gpu(gpu, hardware, sizes, demand))
        .collect();
    // A device that it fits on comes before one where it does not.
    let best = others.iter().position(|gpu| gpu.runnable && gpu.fits);
    let chosen = match best {
        Some(at) => std::mem::replace(&mut others[at], cpu),
        None => cpu,
    };
    Plan { chosen, others }
}

impl Plan {
    /// Refuses what does not fit into the memory that is there now, before any of it is taken.
    ///
    /// # Errors
    /// [`TooLarge`], with the numbers and what to change.
    pub fn check(
        &self,
        hardware: &HardwareProfile,
        sizes: &ModelSizes,
        demand: &Demand,
    ) -> Result<(), TooLarge> {
        let Some(available) = hardware.available else {
            return Ok(());
        };
        let needs = self.chosen.memory.peak();
        if needs <= available.bytes {
            return Ok(());
        }
        Err(TooLarge {
            needs: size(needs),
            has: size(available.bytes),
            whose: available.limit.words(),
            detail: words::parts(&self.chosen),
            advice: rules::advice(sizes, demand, self.chosen.precision, available.bytes),
        })
    }
}

#[cfg(test)]
mod tests;
