//! `lory eval --report`: one HTML page that needs no scripts and no other files. Text from rows, answers and names is escaped.

mod put;
mod samples;

use std::fmt::Write as _;

use train::metrics::parse_metrics;
use train::plot::{LossCurve, escape_xml, loss_curve};

use put::put;

use super::tables::percent;
use jobs::evaluation::Candidate;
use jobs::evaluation::answers::Answers;
use jobs::evaluation::gate::Check;
use jobs::evaluation::measures::{Measures, PersonaMeasures};

const STYLE: &str = include_str!("page.css");
/// The file of a training run's metrics, in the adapter's folder.
const METRICS: &str = "metrics.jsonl";

/// The page.
pub(crate) fn page(
    candidates: &[Candidate],
    answers: &Answers,
    measures: &Measures,
    checks: &[Check],
) -> String {
    let mut page = String::new();
    head(&mut page, measures);
    gate(&mut page, checks);
    losses(&mut page, measures);
    if measures.personas.len() > 1 {
        tones(&mut page, measures);
        distinct(&mut page, measures);
    }
    answer_scores(&mut page, measures);
    curves(&mut page, candidates, measures);
    samples::write(&mut page, candidates, answers, measures);
    page += "</main>\n</body>\n</html>\n";
    page
}

fn head(page: &mut String, measures: &Measures) {
    let names: Vec<String> = measures
        .personas
        .iter()
        .map(|p| escape_xml(&p.name))
        .collect();
    let title = format!("{} on {}", names.join(", "), escape_xml(&measures.base));
    put!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Evaluation: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>"
    );
    for persona in &measures.personas {
        let adapter = match &persona.adapter {
            Some(sha256) => format!(
                "adapter <code>{}</code> at scale {}",
                &sha256[..16],
                persona.scale
            ),
            None => "no adapter".to_owned(),
        };
        let (name, version) = (escape_xml(&persona.name), persona.version);
        put!(
            page,
            "<p class=\"soft\">{name} version {version}, {adapter}, {} rows</p>",
            persona.own.score.answers
        );
    }
}

fn gate(page: &mut String, checks: &[Check]) {
    if checks.is_empty() {
        put!(
            page,
            "<p class=\"soft\">No persona has thresholds: there is no <code>[eval]</code> table.</p>"
        );
        return;
    }
    let missed = checks.iter().filter(|check| !check.passed).count();
    let (class, words) = match missed {
        0 => ("good", format!("✓ all {} thresholds met", checks.len())),
        _ => (
            "bad",
            format!("✗ {missed} of {} thresholds missed", checks.len()),
        ),
    };
    put!(page, "<div class=\"verdict {class}\">{words}</div>");
    put!(
        page,
        "<div class=\"scroll\"><table class=\"words\"><thead><tr><th>persona</th><th>measure</th><th class=\"number\">value</th>\
         <th>wanted</th><th></th></tr></thead><tbody>"
    );
    for check in checks {
        let (class, mark) = match check.passed {
            true => ("good", "✓ met"),
            false => ("bad", "✗ missed"),
        };
        put!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td>{}</td><td class=\"{class}\">{mark}</td></tr>",
            escape_xml(&check.persona),
            escape_xml(check.measure),
            check.value_text(),
            check.wanted_text()
        );
    }
    put!(page, "</tbody></table></div>");
}

/// A cell of a matrix.
struct Cell {
    text: String,
    small: String,
    /// From 0 to 1; 1 is darkest.
    heat: f64,
    /// Whether row and column are the same persona.
    own: bool,
}

fn matrix(page: &mut String, corner: &str, columns: &[&str], rows: &[(&str, Vec<Option<Cell>>)]) {
    let _ = write!(
        page,
        "<div class=\"scroll\"><table><thead><tr><th>{corner}</th>"
    );
    for column in columns {
        let _ = write!(page, "<th>{}</th>", escape_xml(column));
    }
    put!(page, "</tr></thead><tbody>");
    for (name, cells) in rows {
        let _ = write!(page, "<tr><th>{}</th>", escape_xml(name));
        for cell in cells {
            let _ = match cell {
                None => write!(page, "<td class=\"soft\">–</td>"),
                Some(cell) => write!(
                    page,
                    "<td class=\"heat{}\" style=\"--h:{:.3}\">{}<small>{}</small></td>",
                    if cell.own { " own" } else { "" },
                    cell.heat.clamp(0.0, 1.0),
                    cell.text,
                    cell.small
                ),
            };
        }
        put!(page, "</tr>");
    }
    put!(page, "</tbody></table></div>");
}

fn losses(page: &mut String, measures: &Measures) {
    put!(
        page,
        "<h2>Loss</h2>\n<p class=\"soft\">Nats per token of the reference answers, with the perplexity below. A row has a persona's \
         evaluation rows, a column an adapter. Darker is lower within the row; a frame marks a persona with its own adapter.</p>"
    );
    let table = &measures.losses;
    let rows: Vec<(&str, Vec<Option<Cell>>)> = table
        .sets
        .iter()
        .zip(&table.losses)
        .map(|(set, sums)| {
            let means = || sums.iter().map(|sum| sum.mean());
            let (low, high) = (
                means().fold(f64::INFINITY, f64::min),
                means().fold(0.0, f64::max),
            );
            let cells = sums.iter().zip(&table.adapters);
            let cell = cells.map(|(sum, adapter)| {
                Some(Cell {
                    text: format!("{:.4}", sum.mean()),
                    small: format!("{:.2}", sum.perplexity()),
                    heat: (high - sum.mean()) / (high - low).max(1e-9),
                    own: adapter == set,
                })
            });
            (set.as_str(), cell.collect())
        })
        .collect();
    let columns: Vec<&str> = table.adapters.iter().map(String::as_str).collect();
    matrix(page, "rows of", &columns, &rows);
}

fn names(measures: &Measures) -> Vec<&str> {
    measures.personas.iter().map(|p| p.name.as_str()).collect()
}

fn shares<'a>(
    measures: &'a Measures,
    cells: &[Vec<Option<f64>>],
) -> Vec<(&'a str, Vec<Option<Cell>>)> {
    let row = |(of, (name, row)): (usize, (&'a str, &Vec<Option<f64>>))| {
        let cells = row.iter().enumerate().map(|(column, share)| {
            share.map(|share| Cell {
                text: percent(share),
                small: String::new(),
                heat: share,
                own: of == column,
            })
        });
        (name, cells.collect())
    };
    names(measures)
        .into_iter()
        .zip(cells)
        .enumerate()
        .map(row)
        .collect()
}

fn tones(page: &mut String, measures: &Measures) {
    put!(
        page,
        "<h2>Tone</h2>\n<p class=\"soft\">Share of a persona's answers that pass each persona's tone check. A frame marks its own \
         tone, which should be near 100%; the other columns show tones that leak in.</p>"
    );
    let rows = shares(measures, &measures.tones);
    matrix(page, "answers of", &names(measures), &rows);
}

fn distinct(page: &mut String, measures: &Measures) {
    put!(
        page,
        "<h2>Distinctness</h2>\n<p class=\"soft\">1 minus the similarity (chrF) of two personas' answers to the same question, \
         over {} questions. 0% means identical answers.</p>",
        measures.common
    );
    let rows = shares(measures, &measures.distinct);
    matrix(page, "answers of", &names(measures), &rows);
}

fn answer_scores(page: &mut String, measures: &Measures) {
    put!(
        page,
        "<h2>Answers</h2>\n<p class=\"soft\">Drift is the KL divergence from the base in nats per token, on neutral text. \
         Repetition is the share of word 4-grams that occur earlier in the same answer. Length ratio is relative to the references.</p>\n\
         <div class=\"scroll\"><table class=\"two\"><thead><tr><th>rows of</th><th>answered by</th><th>tone right</th>\
         <th>identifiers right</th><th>none left out</th><th>mean words</th><th>median words</th><th>length ratio</th>\
         <th>repetition</th><th>drift</th></tr></thead><tbody>"
    );
    for persona in &measures.personas {
        let PersonaMeasures {
            name, own, base, ..
        } = persona;
        for (model, scores, drift) in [(&measures.base, base, None), (name, own, persona.drift)] {
            put!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}<small>of {}</small></td><td>{}</td><td>{:.1}</td>\
                 <td>{:.1}</td><td>{:.2}</td><td>{}</td><td>{}</td></tr>",
                escape_xml(name),
                escape_xml(model),
                percent(scores.score.tone_share()),
                percent(scores.score.copied_share()),
                scores.score.with_identifiers,
                percent(scores.score.complete_share()),
                scores.lengths.mean,
                scores.lengths.median,
                scores.lengths.ratio(),
                percent(scores.repetition),
                drift.map_or_else(String::new, |drift| format!("{:.4}", drift.kl))
            );
        }
    }
    put!(page, "</tbody></table></div>");
}

/// The training curves of adapters whose folder has metrics.
fn curves(page: &mut String, candidates: &[Candidate], measures: &Measures) {
    let mut drawn = Vec::new();
    for candidate in candidates {
        let Some(adapter) = &candidate.persona.adapter else {
            continue;
        };
        // An adapter that Lory did not train has no metrics.
        let Ok(text) = std::fs::read_to_string(adapter.path.join(METRICS)) else {
            continue;
        };
        let name = &candidate.persona.name;
        let curve = LossCurve::new(name, &parse_metrics(&text));
        if !curve.train.is_empty() {
            let title = format!("{name} on {}", measures.base);
            drawn.push(loss_curve(&title, &[curve]));
        }
    }
    if !drawn.is_empty() {
        put!(page, "<h2>Training</h2>\n<div class=\"curves\">");
        drawn.iter().for_each(|svg| page.push_str(svg));
        put!(page, "</div>");
    }
}
