//! Plans where a base runs, in which precision, and how much memory it needs, before anything is loaded.
//!
//! [`plan`], [`plan_on`] and [`plan_auto`] are pure functions of a machine's profile and a model's sizes. [`plan`] is for the CPU, and
//! also plans for the machine's other devices, to show what they could do; [`plan_on`] is for a GPU that the user named, and
//! [`plan_auto`] compares estimates of their speed.
//!
//! The precision that `auto` chooses on a device depends on the memory that the machine has, never on what is free at the moment or on a
//! measurement: the same command on the same machine always computes the same, and a training run can resume.

mod auto;
mod device_plan;
mod display;
mod hardware;
mod request;
mod rules;
mod speed;
mod synthetic;

use model::ModelSizes;

pub use auto::plan_auto;
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

/// Decides how a model runs on the CPU.
#[must_use]
pub fn plan(hardware: &HardwareProfile, sizes: &ModelSizes, request: &PlanRequest) -> Plan {
    let on_gpu = |gpu| rules::on_gpu(gpu, hardware, sizes, request);
    Plan {
        chosen: rules::on_cpu(hardware, sizes, request),
        others: hardware.gpus.iter().map(on_gpu).collect(),
        why: None,
    }
}

/// Decides how a model runs on the GPU that the user named.
#[must_use]
pub fn plan_on(
    gpu: &Gpu,
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    request: &PlanRequest,
) -> Plan {
    Plan {
        chosen: rules::on_gpu(gpu, hardware, sizes, request),
        others: vec![rules::on_cpu(hardware, sizes, request)],
        why: None,
    }
}

impl Plan {
    /// Refuses a plan that does not fit, before anything is allocated: into the memory that is free now, and on a GPU also into
    /// the share of its memory that Lory may use.
    ///
    /// # Errors
    /// [`InsufficientMemory`], with the numbers and what to change.
    pub fn check(
        &self,
        hardware: &HardwareProfile,
        sizes: &ModelSizes,
        request: &PlanRequest,
    ) -> Result<(), InsufficientMemory> {
        let (bytes, whose) = match (&self.chosen.device, hardware.available) {
            (DeviceKind::Gpu(_), _) => match self.chosen.free {
                Some(free) if free < self.chosen.capacity => (free, "free on this GPU now"),
                _ => (self.chosen.capacity, "usable on this GPU"),
            },
            (DeviceKind::Cpu, Some(free)) => (free.bytes, free.limit.description()),
            (DeviceKind::Cpu, None) => return Ok(()),
        };
        let memory = MemoryPlan {
            // What the planner chose is an upper limit: each run is checked when it starts.
            training: request.train_memory.unwrap_or(0),
            ..self.chosen.memory
        };
        let needs = memory.peak();
        if needs <= bytes {
            return Ok(());
        }
        Err(InsufficientMemory {
            needs: format_size(needs),
            has: format_size(bytes),
            whose,
            detail: display::parts(&self.chosen),
            advice: rules::advice(
                &self.chosen.device,
                sizes,
                request,
                self.chosen.precision,
                bytes,
            ),
        })
    }
}

#[cfg(test)]
mod tests;
