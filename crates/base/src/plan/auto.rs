//! The device that `--device auto` chooses.

use model::ModelSizes;

use super::device_plan::{DevicePlan, Plan};
use super::hardware::{Gpu, HardwareProfile, Vendor};
use super::request::PlanRequest;

/// Decides how a model runs if the user names no device: on the GPU that answers fastest, if that is faster than the CPU. `speed`
/// gives the tokens per second of one answer on a device, or why there are none; it is called only if the machine has a GPU to
/// choose.
#[must_use]
pub fn plan_auto(
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    request: &PlanRequest,
    mut speed: impl FnMut(&DevicePlan) -> Result<f64, String>,
) -> Plan {
    let mut plan = super::plan(hardware, sizes, request);
    // Why each GPU was not chosen.
    let mut refused = Vec::new();
    let mut usable = Vec::new();
    for (i, (gpu, other)) in hardware.gpus.iter().zip(&plan.others).enumerate() {
        match objection(gpu, other, request) {
            // A software GPU is there for tests: nobody expects that it is chosen.
            Some(_) if gpu.software => {}
            Some(objection) => refused.push(format!("not {}: {objection}", other.device)),
            None => usable.push(i),
        }
    }
    let mut fastest: Option<(usize, f64)> = None;
    for i in usable {
        match speed(&plan.others[i]) {
            Ok(speed) if fastest.is_none_or(|(_, other)| speed > other) => {
                fastest = Some((i, speed));
            }
            Ok(_) => {}
            Err(reason) => refused.push(format!("not {}: {reason}", plan.others[i].device)),
        }
    }
    if let Some((i, on_gpu)) = fastest {
        let gpu = plan.others[i].device.to_string();
        let on_cpu = match plan.chosen.fits {
            true => speed(&plan.chosen),
            false => Err("does not fit".to_owned()),
        };
        let is_faster = on_cpu.as_ref().map_or(true, |on_cpu| on_gpu > *on_cpu);
        let on_cpu = match on_cpu {
            Ok(speed) => format!("cpu at {speed:.1}"),
            Err(reason) => format!("cpu: {reason}"),
        };
        let measured = format!("{gpu} answers at about {on_gpu:.1} tokens/s, {on_cpu}");
        if is_faster {
            std::mem::swap(&mut plan.chosen, &mut plan.others[i]);
            plan.why = Some(format!("{measured}; training needs --device cpu"));
            return plan;
        }
        refused.push(measured);
    }
    plan.why = (!refused.is_empty()).then(|| refused.join("; "));
    plan
}

/// Why a GPU cannot be chosen.
fn objection(gpu: &Gpu, plan: &DevicePlan, request: &PlanRequest) -> Option<&'static str> {
    if gpu.software {
        return Some("it is software");
    }
    if !plan.runnable {
        return Some("no Vulkan or Metal driver offers it");
    }
    if gpu.unified && gpu.vendor != Vendor::Apple {
        return Some("it shares the CPU's memory, whose bandwidth limits both");
    }
    if request.trains {
        return Some("it cannot train");
    }
    let room = plan.free.unwrap_or(u64::MAX).min(plan.capacity);
    // As the check of the plan: what training may take is an upper limit.
    let needs = super::MemoryPlan {
        training: 0,
        ..plan.memory
    };
    (needs.peak() > room).then_some("its free memory is too small")
}
