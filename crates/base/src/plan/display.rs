//! A plan as text.

use super::device_plan::{DeviceKind, DevicePlan, Plan};

/// A number of bytes in GiB or MiB.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    const MIB: f64 = (1u64 << 20) as f64;
    let bytes = bytes as f64;
    if bytes >= GIB {
        format!("{:.1} GiB", bytes / GIB)
    } else {
        format!("{:.0} MiB", bytes / MIB)
    }
}

/// The parts of the memory.
pub(super) fn parts(plan: &DevicePlan) -> String {
    let memory = &plan.memory;
    let training = match memory.training {
        0 => String::new(),
        bytes => format!(", training up to {}", format_size(bytes)),
    };
    format!(
        "weights {} ({}), keys and values {}, adapters {}, working memory {}{training}",
        format_size(memory.weights),
        precision(plan),
        format_size(memory.kv),
        format_size(memory.adapters),
        format_size(memory.working),
    )
}

fn precision(plan: &DevicePlan) -> &'static str {
    plan.precision.map_or("as in the file", |p| p.name())
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::Gpu(name) => f.write_str(name),
        }
    }
}

impl Plan {
    /// The plan in one line, for the log at the start.
    #[must_use]
    pub fn line(&self) -> String {
        let chosen = &self.chosen;
        let why = self
            .why
            .as_ref()
            .map_or(String::new(), |why| format!("; {why}"));
        format!(
            "plan: {}: {}; {} at the peak{why}",
            chosen.device,
            parts(chosen),
            format_size(chosen.memory.peak())
        )
    }
}

impl DevicePlan {
    /// The plan in several lines, with its reasons.
    #[must_use]
    pub fn lines(&self) -> String {
        let verdict = match (self.runnable, self.fits) {
            (true, true) => "",
            (true, false) => " (does not fit)",
            (false, true) => " (no driver)",
            (false, false) => " (no driver, and does not fit)",
        };
        let mut text = format!(
            "{}{verdict}\n  precision  {}\n  memory     {}\n             {} at the peak",
            self.device,
            precision(self),
            parts(self),
            format_size(self.memory.peak())
        );
        if self.capacity != u64::MAX {
            text += &format!(", of {} for it", format_size(self.capacity));
        }
        text += &format!("\n  kv blocks  {} of 16 tokens\n", self.kv_blocks);
        for reason in &self.reasons {
            text += &format!("  because    {reason}\n");
        }
        text
    }
}
