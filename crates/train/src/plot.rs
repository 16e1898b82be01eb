//! The loss curve as an SVG: training loss (raw and smoothed) and validation loss of one adapter or of several. And the
//! curves of a sweep over learning rates (`lr_curve`).
//!
//! A pure function from numbers to text. Colours follow the reader's light or dark setting by themselves.

mod lr_curve;

use std::fmt::Write as _;

pub use lr_curve::{LrCurve, lr_curve};

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
    /// The curve that the records of one adapter draw.
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

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
/// Points that a drawn line has at most; more would be finer than a pixel.
const MAX_POINTS: usize = 1500;
/// Adapters that the legend names at most.
const MAX_LEGEND: usize = 6;
/// Line colours, (on light, on dark), distinguishable by people with colour-vision deficiencies too (after Okabe and Ito).
const COLOURS: [(&str, &str); 6] = [
    ("#0072b2", "#56b4e9"),
    ("#c04f00", "#f0a35e"),
    ("#007a5a", "#2fd0a5"),
    ("#a8437f", "#e397c4"),
    ("#7a6a00", "#f0e442"),
    ("#555555", "#bbbbbb"),
];

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

/// Maps values to positions in the picture.
struct Frame {
    last: f64,
    bottom: f64,
    top: f64,
}

impl Frame {
    fn x(&self, step: f64) -> f64 {
        LEFT + step / self.last * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        TOP + (self.top - loss) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)
    }
}

fn head(svg: &mut String, title: &str, curves: usize) {
    let title = escape_xml(title);
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{title}">"#
    );
    let used = &COLOURS[..curves.clamp(1, COLOURS.len())];
    let colours = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        let mut css = String::new();
        for (i, pair) in used.iter().enumerate() {
            let _ = write!(css, ".c{i}{{stroke:{0};fill:{0}}}", pick(pair));
        }
        css
    };
    let _ = writeln!(
        svg,
        "<style>\
         text{{font:12px system-ui,sans-serif;fill:#333}}.title{{font-size:15px;font-weight:600}}\
         .back{{fill:#fff}}.grid{{stroke:#e4e4e4}}.axis{{stroke:#888}}{}\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.back{{fill:#16181d}}.grid{{stroke:#2c3038}}{}}}\
         polyline{{fill:none!important;stroke-linejoin:round}}.raw{{stroke-width:1;stroke-opacity:.3}}\
         .smooth{{stroke-width:2}}.validation{{stroke-width:1.5;stroke-dasharray:5 4}}.dot{{stroke:none}}\
         </style>",
        colours(|pair| pair.0),
        colours(|pair| pair.1)
    );
    let _ = writeln!(
        svg,
        r#"<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>"#
    );
    let _ = writeln!(
        svg,
        r#"<text class="title" x="{LEFT}" y="24">{title}</text>"#
    );
}

/// Ticks with their labels.
type Ticks = [(f64, String)];

fn labelled(ticks: &[f64]) -> Vec<(f64, String)> {
    let with_label = |tick: &f64| (*tick, label(*tick, ticks));
    ticks.iter().map(with_label).collect()
}

/// The axes with their ticks and titles.
fn axes(svg: &mut String, frame: &Frame, x_ticks: &Ticks, y_ticks: &Ticks, words: [&str; 2]) {
    let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (tick, label) in y_ticks {
        let y = frame.y(*tick);
        let _ = writeln!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>"#
        );
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 7.0,
            y + 4.0,
        );
    }
    for (tick, label) in x_ticks.iter().filter(|tick| tick.0 <= frame.last) {
        let x = frame.x(*tick);
        let _ = writeln!(
            svg,
            r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{floor}" y2="{:.1}"/>"#,
            floor + 5.0
        );
        let _ = writeln!(
            svg,
            r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            floor + 18.0,
        );
    }
    let _ = writeln!(
        svg,
        r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>"#
    );
    let _ = writeln!(
        svg,
        r#"<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{floor}"/>"#
    );
    let middle = (LEFT + right) / 2.0;
    let _ = writeln!(
        svg,
        r#"<text x="{middle}" y="{}" text-anchor="middle">{}</text>"#,
        HEIGHT - 14.0,
        words[0]
    );
    let half = (TOP + floor) / 2.0;
    let _ = writeln!(
        svg,
        r#"<text transform="translate(16 {half}) rotate(-90)" text-anchor="middle">{}</text>"#,
        words[1]
    );
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

fn line(svg: &mut String, frame: &Frame, points: &[(f64, f64)], class: &str) {
    if points.len() < 2 {
        return;
    }
    let stride = points.len().div_ceil(MAX_POINTS);
    let _ = write!(svg, r#"<polyline class="{class}" points=""#);
    let last = points.len() - 1;
    for (i, &(x, y)) in points.iter().enumerate() {
        if i % stride == 0 || i == last {
            let _ = write!(svg, "{:.1},{:.1} ", frame.x(x), frame.y(y));
        }
    }
    svg.push_str("\"/>\n");
}

/// An exponential mean over about a twentieth of the curve, without the pull towards zero at its start.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(3.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = keep * sum + (1.0 - keep) * y;
            weight = keep * weight + (1.0 - keep);
            (x, sum / weight)
        })
        .collect()
}

/// Round numbers that cover `low..=high`, about `wanted` of them.
fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = ((high - low) / wanted as f64).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    let step = step
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let count = ((high / step).ceil() - first).max(1.0) as usize;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

/// `tick` with as many decimals as distinguish it from its neighbours.
fn label(tick: f64, ticks: &[f64]) -> String {
    let step = if ticks.len() > 1 {
        ticks[1] - ticks[0]
    } else {
        1.0
    };
    let exact = |decimals: &usize| {
        let scaled = step * 10f64.powi(*decimals as i32);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
    };
    let decimals = (0..6).find(exact).unwrap_or(6);
    format!("{tick:.decimals$}")
}

/// `text` as the content or the quoted attribute of XML or HTML.
#[must_use]
pub fn escape_xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Other control characters are not allowed in XML at all.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
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
                let seen = MetricsRecord::Validation {
                    step,
                    epoch: 1,
                    loss,
                    tokens: 1,
                    best: true,
                    preference: None,
                };
                if step % 10 == 0 {
                    vec![train, seen]
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
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let between = ticks(0.93, 2.71, 6);
        assert_eq!(
            between
                .iter()
                .map(|t| label(*t, &between))
                .collect::<Vec<_>>(),
            ["0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]
        );
        assert_eq!(label(0.25, &[0.0, 0.25]), "0.25");
    }

    #[test]
    fn smoothing_starts_at_the_first_value() {
        let points: Vec<(f64, f64)> = (0..50).map(|i| (i as f64, 2.0)).collect();
        assert!(smoothed(&points).iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
    }
}
