//! What a run will do and need, as a table for people.

use std::time::Duration;

use crate::cli::table::Table;
use jobs::training::plan::Plan;

/// For people: what is trained, and what memory it takes.
pub(super) fn table(plan: &Plan) -> String {
    let mut adapters = Table::new(&[
        "adapter",
        "rows",
        "to validate",
        "tokens",
        "trained",
        "longest",
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
        ("best state", needed.best),
        ("activations", needed.activations),
        ("layers kept for the backward", needed.activation_cache),
        ("keys and values", needed.cache),
        ("logits", needed.logits),
        ("reference of the pairs", needed.reference),
        ("needed by the run", plan.memory_needed),
    ] {
        // Only where preferences are trained.
        if bytes == 0 && what.starts_with("reference") {
            continue;
        }
        memory.row([what.to_owned(), size(bytes)]);
    }
    if let Some(available) = plan.memory_available {
        memory.row([available.limit.words().to_owned(), size(available.bytes)]);
    }
    if let Some(in_use) = plan.memory_in_use {
        memory.row(["in use already (base and rows)".to_owned(), size(in_use)]);
    }
    format!("{}\n{}", adapters.render(), memory.render())
}

/// For people: how long it will take, once a step was measured.
pub(super) fn time(plan: &Plan) -> Option<String> {
    let (step, seconds) = (plan.measured?, plan.seconds?);
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Some(format!(
        "about {} for {} steps over {} tokens and {} of validation: a step of {} tokens took {:.2} s, {:.0} tokens/s",
        indicatif::HumanDuration(time),
        grouped(plan.forecast.plan.steps),
        grouped(plan.forecast.tokens),
        grouped(plan.forecast.validation_tokens),
        grouped(step.tokens as u64),
        step.seconds,
        step.tokens_per_s(),
    ))
}

/// Digits in groups of three.
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
    fn digits_stand_in_groups_of_three() {
        let all = [0, 12, 123, 1234, 123_456, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
        assert_eq!(size(3 << 19), "1.5 MiB");
    }
}
