//! The plan of a run as tables: what is trained, the memory and the time.

use std::time::Duration;

use crate::cli::output::table::Table;
use jobs::training::plan::Plan;

/// The tables of adapters and of memory.
pub(crate) fn table(plan: &Plan) -> String {
    let mut adapters = Table::new(&[
        "adapter",
        "rows",
        "validation",
        "tokens",
        "trained tokens",
        "longest row",
        "parameters",
        "steps",
        "epochs",
        "learning rate",
    ]);
    for adapter in &plan.forecast.plan.adapters {
        adapters.row([
            adapter.name.clone(),
            grouped(adapter.rows as u64),
            grouped(adapter.validation_rows as u64),
            grouped(adapter.tokens as u64),
            grouped(adapter.trained_tokens as u64),
            grouped(adapter.longest as u64),
            grouped(adapter.parameters as u64),
            grouped(adapter.steps),
            grouped(adapter.epochs),
            format!("{:.2e}", adapter.lr),
        ]);
    }
    let mut memory = Table::new(&["memory", "size"]);
    let needed = &plan.forecast.memory;
    for (what, bytes) in [
        ("adapters", needed.adapters),
        ("gradients", needed.gradients),
        ("optimizer", needed.optimizer),
        ("best weights", needed.best),
        ("activations", needed.activations),
        ("activation cache", needed.activation_cache),
        ("KV cache", needed.cache),
        ("logits", needed.logits),
        ("reference log-probabilities", needed.reference),
        ("total", plan.memory_needed),
    ] {
        // Only preference runs have a reference.
        if bytes == 0 && what.starts_with("reference") {
            continue;
        }
        memory.row([what.to_owned(), size(bytes)]);
    }
    if let Some(available) = plan.memory_available {
        memory.row([
            available.limit.description().to_owned(),
            size(available.bytes),
        ]);
    }
    if let Some(in_use) = plan.memory_in_use {
        memory.row(["already in use (base and rows)".to_owned(), size(in_use)]);
    }
    format!("{}\n{}", adapters.render(), memory.render())
}

/// The expected duration, after a step was measured.
pub(crate) fn time(plan: &Plan) -> Option<String> {
    let (step, seconds) = (plan.measured?, plan.seconds?);
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Some(format!(
        "about {} for {} steps over {} training and {} validation tokens: a step of {} tokens took {:.2} s, {:.0} tokens/s",
        indicatif::HumanDuration(time),
        grouped(plan.forecast.plan.steps),
        grouped(plan.forecast.tokens),
        grouped(plan.forecast.validation_tokens),
        grouped(step.tokens as u64),
        step.seconds,
        step.tokens_per_s(),
    ))
}

/// A number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let all = [0, 12, 123, 1234, 123_456, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
        assert_eq!(size(3 << 19), "1.5 MiB");
    }
}
