//! The tables of `lory eval`.

use train::LossSum;

use crate::cli::output::table::Table;
use jobs::evaluation::gate::Check;
use jobs::evaluation::measures::{AnswerMeasures, Measures};

/// All tables.
pub(crate) fn render(measures: &Measures) -> String {
    let mut out = scores(measures).render();
    out += &format!("\n{}", texts(measures).render());
    let losses =
        |what: &str, pick: &dyn Fn(&LossSum) -> String| loss_table(measures, what, pick).render();
    out += &format!("\n{}", losses("loss", &|sum| format!("{:.4}", sum.mean())));
    out += &format!(
        "\n{}",
        losses("perplexity", &|sum| format!("{:.2}", sum.perplexity()))
    );
    if measures.personas.len() > 1 {
        let head = "answers of";
        out += &format!(
            "\n{}",
            matrix(measures, head, "in the tone of", &measures.tones).render()
        );
        out += &format!(
            "\n{}",
            matrix(measures, head, "distinct from", &measures.distinct).render()
        );
    }
    out
}

/// The table of thresholds.
pub(crate) fn gate(checks: &[Check]) -> String {
    let mut table = Table::new(&["persona", "measure", "value", "wanted", "key", "result"]);
    for check in checks {
        table.row([
            check.persona.clone(),
            check.measure.to_owned(),
            check.value_text(),
            check.wanted_text(),
            check.key.to_owned(),
            if check.passed { "passed" } else { "missed" }.to_owned(),
        ]);
    }
    table.render()
}

/// (rows, answered by, scores) of the base and the persona, for each persona.
fn scores_by_model(measures: &Measures) -> impl Iterator<Item = (&str, &str, &AnswerMeasures)> {
    measures.personas.iter().flat_map(|persona| {
        let name = persona.name.as_str();
        [
            (name, measures.base.as_str(), &persona.base),
            (name, name, &persona.own),
        ]
    })
}

fn scores(measures: &Measures) -> Table {
    let mut table = Table::new(&[
        "rows of",
        "answered by",
        "answers",
        "tone right",
        "identifiers right",
        "none left out",
    ]);
    for (rows, model, AnswerMeasures { score, .. }) in scores_by_model(measures) {
        table.row([
            rows.to_owned(),
            model.to_owned(),
            score.answers.to_string(),
            percent(score.tone_share()),
            format!(
                "{} of {}",
                percent(score.copied_share()),
                score.with_identifiers
            ),
            percent(score.complete_share()),
        ]);
    }
    table
}

fn texts(measures: &Measures) -> Table {
    let mut table = Table::new(&[
        "rows of",
        "answered by",
        "mean words",
        "median words",
        "length ratio",
        "repetition",
        "drift",
    ]);
    for persona in &measures.personas {
        for (model, answers, drift) in [
            (&measures.base, &persona.base, None),
            (&persona.name, &persona.own, persona.drift),
        ] {
            table.row([
                persona.name.clone(),
                model.clone(),
                format!("{:.1}", answers.lengths.mean),
                format!("{:.1}", answers.lengths.median),
                format!("{:.2}", answers.lengths.ratio()),
                percent(answers.repetition),
                drift.map_or_else(String::new, |drift| format!("{:.4}", drift.kl)),
            ]);
        }
    }
    table
}

fn loss_table(measures: &Measures, what: &str, pick: &dyn Fn(&LossSum) -> String) -> Table {
    let losses = &measures.losses;
    let head: Vec<String> = losses
        .adapters
        .iter()
        .map(|name| format!("{what} under {name}"))
        .collect();
    let head: Vec<&str> = std::iter::once("rows of")
        .chain(head.iter().map(String::as_str))
        .collect();
    let mut table = Table::new(&head);
    for (set, row) in losses.sets.iter().zip(&losses.losses) {
        table.row(std::iter::once(set.clone()).chain(row.iter().map(pick)));
    }
    table
}

fn matrix(measures: &Measures, rows: &str, columns: &str, cells: &[Vec<Option<f64>>]) -> Table {
    let names = || measures.personas.iter().map(|persona| &persona.name);
    let head: Vec<String> = std::iter::once(rows.to_owned())
        .chain(names().map(|name| format!("{columns} {name}")))
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new(&head);
    for (name, row) in names().zip(cells) {
        let cell = |cell: &Option<f64>| cell.map_or_else(|| "-".to_owned(), percent);
        table.row(std::iter::once(name.clone()).chain(row.iter().map(cell)));
    }
    table
}

/// A share in percent, with one decimal.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
