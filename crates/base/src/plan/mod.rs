//! Plans where a base runs, in which precision, and how much memory it needs, before anything is loaded.
//!
//! [`plan`] is a pure function of a machine's profile and a model's sizes. It also plans for devices that Lory cannot use yet, to show
//! what the machine could do. It only chooses one that it can use.
//!
//! The precision that `auto` chooses depends on the memory that the machine has, never on what is free at the moment or on a
//! measurement: the same command on the same machine always computes the same, and a training run can resume.

mod device_plan;
mod display;
mod hardware;
mod request;
mod rules;
mod speed;

use model::ModelSizes;

pub use device_plan::{DeviceKind, DevicePlan, MemoryPlan, Plan};
pub use display::format_size;
pub use hardware::{Gpu, HardwareProfile, Vendor};
pub use request::PlanRequest;
pub use speed::{MeasuredSpeed, measure_speed};

/// A base that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{needs} needed and {has} {whose}: {detail}; {advice}")]
pub struct InsufficientMemory {
    needs: String,
    has: String,
    whose: &'static str,
    detail: String,
    advice: String,
}

/// Decides where and how a model runs.
#[must_use]
pub fn plan(hardware: &HardwareProfile, sizes: &ModelSizes, request: &PlanRequest) -> Plan {
    let cpu = rules::on_cpu(hardware, sizes, request);
    let mut others: Vec<DevicePlan> = hardware
        .gpus
        .iter()
        .map(|gpu| rules::on_gpu(gpu, hardware, sizes, request))
        .collect();
    // A GPU that Lory runs on, and on which the model fits, comes before the CPU.
    let best = others.iter().position(|gpu| gpu.runnable && gpu.fits);
    let chosen = match best {
        Some(at) => std::mem::replace(&mut others[at], cpu),
        None => cpu,
    };
    Plan { chosen, others }
}

impl Plan {
    /// Refuses a plan that does not fit into the memory that is free now, before any of it is allocated.
    ///
    /// # Errors
    /// [`InsufficientMemory`], with the numbers and what to change.
    pub fn check(
        &self,
        hardware: &HardwareProfile,
        sizes: &ModelSizes,
        request: &PlanRequest,
    ) -> Result<(), InsufficientMemory> {
        let Some(available) = hardware.available else {
            return Ok(());
        };
        let memory = MemoryPlan {
            // What the planner chose is an upper limit: each run is checked when it starts.
            training: request.train_memory.unwrap_or(0),
            ..self.chosen.memory
        };
        let needs = memory.peak();
        if needs <= available.bytes {
            return Ok(());
        }
        Err(InsufficientMemory {
            needs: format_size(needs),
            has: format_size(available.bytes),
            whose: available.limit.description(),
            detail: display::parts(&self.chosen),
            advice: rules::advice(
                &self.chosen.device,
                sizes,
                request,
                self.chosen.precision,
                available.bytes,
            ),
        })
    }
}

#[cfg(test)]
mod tests;
