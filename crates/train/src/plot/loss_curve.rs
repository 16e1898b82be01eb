//! The loss curve: training loss, raw and smoothed, and validation loss of one adapter or several.

use std::fmt::Write as _;

use super::chart::{
    COLOURS, Frame, MAX_LEGEND, RIGHT, TOP, WIDTH, axes, escape_xml, head, labelled, line, ticks,
};
use crate::metrics::MetricsRecord;

/// The curve of one adapter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossCurve {
    /// The adapter's name, for the legend.
    pub name: String,
    /// (optimizer step, mean loss of its tokens).
    pub train: Vec<(f64, f64)>,
    /// (optimizer step, validation loss).
    pub validation: Vec<(f64, f64)>,
}

impl LossCurve {
    /// The curve of one adapter's records.
    #[must_use]
    pub fn new(name: &str, records: &[MetricsRecord]) -> Self {
        let mut curve = LossCurve {
            name: name.to_owned(),
            ..LossCurve::default()
        };
        for record in records {
            match *record {
                MetricsRecord::Step { step, loss, .. } => curve.train.push((step as f64, loss)),
                MetricsRecord::Validation { step, loss, .. } => {
                    curve.validation.push((step as f64, loss))
                }
            }
        }
        curve
    }
}

/// Draws the curves under `title`.
#[must_use]
pub fn loss_curve(title: &str, curves: &[LossCurve]) -> String {
    let finite = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points = || {
        curves
            .iter()
            .flat_map(|curve| curve.train.iter().chain(&curve.validation))
            .filter(finite)
    };
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let x_ticks = ticks(0.0, last, 8);
    let y_ticks = ticks(low, high.max(low + 1e-3), 6);
    let (bottom, top) = (y_ticks[0].min(low), y_ticks[y_ticks.len() - 1].max(high));
    let frame = Frame { last, bottom, top };

    let mut svg = String::new();
    head(&mut svg, title, curves.len());
    let words = ["optimizer step", "loss (nats per token)"];
    axes(
        &mut svg,
        &frame,
        &labelled(&x_ticks),
        &labelled(&y_ticks),
        words,
    );
    for (i, curve) in curves.iter().enumerate() {
        let class = format!("c{}", i % COLOURS.len());
        let train: Vec<(f64, f64)> = curve.train.iter().filter(finite).copied().collect();
        let validation: Vec<(f64, f64)> = curve.validation.iter().filter(finite).copied().collect();
        line(&mut svg, &frame, &train, &format!("{class} raw"));
        line(
            &mut svg,
            &frame,
            &smoothed(&train),
            &format!("{class} smooth"),
        );
        line(
            &mut svg,
            &frame,
            &validation,
            &format!("{class} validation"),
        );
        for &(x, y) in &validation {
            let _ = writeln!(
                svg,
                r#"<circle class="{class} dot" cx="{:.1}" cy="{:.1}" r="3.5"><title>{}, step {x}: {y:.4}</title></circle>"#,
                frame.x(x),
                frame.y(y),
                escape_xml(&curve.name)
            );
        }
    }
    legend(&mut svg, curves);
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, curves: &[LossCurve]) {
    let shown = &curves[..curves.len().min(MAX_LEGEND)];
    let names: Vec<String> = shown
        .iter()
        .map(|curve| curve.name.chars().take(40).collect())
        .collect();
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    // A letter is about 6.5 wide, and ", training (smoothed)" has 21 of them.
    let start = WIDTH - RIGHT - 6.5 * (longest + 21) as f64 - 35.0;
    let mut y = TOP + 12.0;
    for (i, (curve, name)) in shown.iter().zip(names).enumerate() {
        let class = format!("c{}", i % COLOURS.len());
        let name = escape_xml(&name);
        let mut entry = |kind: &str, words: &str| {
            let _ = writeln!(
                svg,
                r#"<polyline class="{class} {kind}" points="{start},{y} {},{y}"/>"#,
                start + 28.0
            );
            let _ = writeln!(
                svg,
                r#"<text x="{}" y="{}">{name}, {words}</text>"#,
                start + 35.0,
                y + 4.0
            );
            y += 18.0;
        };
        if !curve.train.is_empty() {
            entry("smooth", "training (smoothed)");
        }
        if !curve.validation.is_empty() {
            entry("validation", "validation");
        }
    }
    if curves.len() > shown.len() {
        let more = curves.len() - shown.len();
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{}">and {more} more</text>"#,
            start + 35.0,
            y + 4.0
        );
    }
}

/// An exponential mean over about a twentieth of the curve, corrected for its start at zero.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let decay = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(3.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = decay * sum + (1.0 - decay) * y;
            weight = decay * weight + (1.0 - decay);
            (x, sum / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, steps: usize) -> LossCurve {
        let records: Vec<MetricsRecord> = (1..=steps as u64)
            .flat_map(|step| {
                let loss = 3.0 / step as f64;
                let train = MetricsRecord::Step {
                    step,
                    epoch: 1,
                    loss,
                    tokens: 1,
                    lr: 0.1,
                    grad_norm: 1.0,
                    preference: None,
                };
                let validation = MetricsRecord::Validation {
                    step,
                    epoch: 1,
                    loss,
                    tokens: 1,
                    best: true,
                    preference: None,
                };
                if step % 10 == 0 {
                    vec![train, validation]
                } else {
                    vec![train]
                }
            })
            .collect();
        LossCurve::new(name, &records)
    }

    #[test]
    fn curve_has_lines_axes_and_legend() {
        let svg = loss_curve("Loss <of> two", &[curve("customer", 40), curve("a&b", 40)]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for part in [
            "Loss &lt;of&gt; two",
            "customer, training (smoothed)",
            "a&amp;b, validation",
            "optimizer step",
            "prefers-color-scheme:dark",
            "<title>customer, step 40: 0.0750</title>",
        ] {
            assert!(svg.contains(part), "lacks {part}");
        }
        assert_eq!(svg.matches("<circle").count(), 8);
        assert_eq!(svg.matches("<polyline").count(), 6 + 4);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn empty_and_non_finite_curves_render() {
        let odd = LossCurve {
            name: "odd\u{0}".into(),
            train: vec![(1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 1.0)],
            validation: vec![],
        };
        let flat = LossCurve {
            name: "flat".into(),
            train: vec![(1.0, 2.0), (2.0, 2.0)],
            validation: vec![(2.0, 2.0)],
        };
        for curves in [
            vec![],
            vec![LossCurve::default()],
            vec![odd],
            vec![flat],
            vec![curve("long", 5000)],
        ] {
            let svg = loss_curve("x", &curves);
            assert!(
                !svg.contains("NaN") && !svg.contains("inf") && !svg.contains('\u{0}'),
                "{svg}"
            );
            assert!(svg.len() < 250_000);
        }
    }

    #[test]
    fn smoothing_starts_at_the_first_value() {
        let points: Vec<(f64, f64)> = (0..50).map(|i| (i as f64, 2.0)).collect();
        assert!(smoothed(&points).iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
    }
}
