//! The parts of every chart: frame, axes, lines, ticks and colours. Does not know what the curves mean.

use std::fmt::Write as _;

pub(super) const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
pub(super) const LEFT: f64 = 62.0;
pub(super) const RIGHT: f64 = 20.0;
pub(super) const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
/// Most points of a line. More would be finer than a pixel.
const MAX_POINTS: usize = 1500;
/// Most adapters in the legend.
pub(super) const MAX_LEGEND: usize = 6;
/// Line colours, (on light, on dark), distinguishable with colour-vision deficiencies (after Okabe and Ito).
pub(super) const COLOURS: [(&str, &str); 6] = [
    ("#0072b2", "#56b4e9"),
    ("#c04f00", "#f0a35e"),
    ("#007a5a", "#2fd0a5"),
    ("#a8437f", "#e397c4"),
    ("#7a6a00", "#f0e442"),
    ("#555555", "#bbbbbb"),
];

/// Maps values to positions in the picture.
pub(super) struct Frame {
    pub(super) last: f64,
    pub(super) bottom: f64,
    pub(super) top: f64,
}

impl Frame {
    pub(super) fn x(&self, step: f64) -> f64 {
        LEFT + step / self.last * (WIDTH - LEFT - RIGHT)
    }

    pub(super) fn y(&self, loss: f64) -> f64 {
        TOP + (self.top - loss) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Opens the SVG: its size, styles, background and title.
pub(super) fn head(svg: &mut String, title: &str, curves: usize) {
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

pub(super) fn labelled(ticks: &[f64]) -> Vec<(f64, String)> {
    let with_label = |tick: &f64| (*tick, label(*tick, ticks));
    ticks.iter().map(with_label).collect()
}

/// The axes with their ticks and titles.
pub(super) fn axes(
    svg: &mut String,
    frame: &Frame,
    x_ticks: &Ticks,
    y_ticks: &Ticks,
    words: [&str; 2],
) {
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

pub(super) fn line(svg: &mut String, frame: &Frame, points: &[(f64, f64)], class: &str) {
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

/// Returns about `wanted` round numbers that cover `low..=high`.
pub(super) fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
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

/// Formats `tick` with the decimals that distinguish it from its neighbours.
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

/// Escapes `text` for the content or a quoted attribute of XML or HTML.
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
            // XML does not allow other control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
