//! The curves of a learning rate sweep: the change of the loss over the logarithm of the rate.

use std::fmt::Write as _;

use super::chart::{
    COLOURS, Frame, LEFT, MAX_LEGEND, TOP, axes, escape_xml, head, labelled, line, ticks,
};

/// The curve of one adapter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LrCurve {
    /// The adapter's name, for the legend.
    pub name: String,
    /// (learning rate, change of the loss from the initial parameters).
    pub points: Vec<(f64, f64)>,
    /// The rate to train with.
    pub suggestion: Option<f64>,
}

/// Draws the curves under `title`.
#[must_use]
pub fn lr_curve(title: &str, curves: &[LrCurve]) -> String {
    let usable = |&&(lr, y): &&(f64, f64)| lr.is_finite() && lr > 0.0 && y.is_finite();
    let points = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter())
            .filter(usable)
    };
    let suggested = curves.iter().filter_map(|curve| curve.suggestion);
    let rates = || points().map(|p| p.0).chain(suggested.clone());
    let first = rates().fold(1.0, f64::min).log10().floor();
    let last = rates().fold(10f64.powf(first), f64::max).log10().ceil();
    let low = points().map(|p| p.1).fold(0.0, f64::min);
    // What is far worse than the start is not worth its room.
    let high = points()
        .map(|p| p.1)
        .fold(0.0, f64::max)
        .min((-low).max(1e-3));
    let y_ticks = ticks(low, high.max(low + 1e-3), 6);
    let frame = Frame {
        last: (last - first).max(1.0),
        bottom: y_ticks[0].min(low),
        top: y_ticks[y_ticks.len() - 1].max(high),
    };
    let decades: Vec<(f64, String)> = (0..=frame.last as i32)
        .map(|decade| (f64::from(decade), format!("1e{}", first as i32 + decade)))
        .collect();
    let mut svg = String::new();
    head(&mut svg, title, curves.len());
    let words = ["learning rate", "change of the loss (nats per token)"];
    axes(&mut svg, &frame, &decades, &labelled(&y_ticks), words);
    for (i, curve) in curves.iter().enumerate() {
        let class = format!("c{}", i % COLOURS.len());
        let at = |lr: f64| lr.log10() - first;
        let shown: Vec<(f64, f64)> = curve
            .points
            .iter()
            .filter(usable)
            .map(|&(lr, y)| (at(lr), y.min(frame.top)))
            .collect();
        line(&mut svg, &frame, &shown, &format!("{class} smooth"));
        let Some(lr) = curve.suggestion else { continue };
        let x = frame.x(at(lr));
        let line = [(at(lr), frame.bottom), (at(lr), frame.top)];
        super::chart::line(&mut svg, &frame, &line, &format!("{class} validation"));
        if i < MAX_LEGEND {
            let y = TOP + 12.0 + 18.0 * i as f64;
            let name: String = curve.name.chars().take(40).collect();
            let _ = writeln!(
                svg,
                r#"<text class="{class}" x="{:.1}" y="{y}">{}: {lr:e}</text>"#,
                (x + 6.0).max(LEFT),
                escape_xml(&name)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_plot_has_decades_a_line_and_the_suggestion() {
        let curve = LrCurve {
            name: "a<b".into(),
            points: vec![(1e-5, 0.0), (1e-3, -0.5), (1e-2, -1.0), (1e-1, 30.0)],
            suggestion: Some(1e-3),
        };
        let svg = lr_curve("Rates", &[curve]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for part in [
            "1e-5",
            "1e-1",
            "a&lt;b: 1e-3",
            "learning rate",
            "change of the loss",
        ] {
            assert!(svg.contains(part), "lacks {part}: {svg}");
        }
        assert_eq!(svg.matches("<polyline").count(), 2);
        // What is cut off above stays on the picture.
        assert!(!svg.contains(",-"), "{svg}");
    }

    #[test]
    fn empty_and_non_finite_sweeps_render() {
        let odd = LrCurve {
            points: vec![(0.0, 1.0), (f64::NAN, 1.0), (1e-3, f64::INFINITY)],
            ..LrCurve::default()
        };
        for curves in [vec![], vec![LrCurve::default()], vec![odd]] {
            let svg = lr_curve("x", &curves);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
