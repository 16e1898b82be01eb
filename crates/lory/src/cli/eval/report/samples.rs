//! Answers to the same question side by side: the base, and every persona that has the question.

use std::collections::HashMap;
use std::fmt::Write as _;

use train::measures::AnswerScore;
use train::plot::escape_xml;

use super::put::put;
use jobs::evaluation::Candidate;
use jobs::evaluation::answers::{Answers, Question, Responder};
use jobs::evaluation::measures::Measures;

/// The most questions on the page; `--answers` writes all.
const MAX_SAMPLES: usize = 100;

/// A question, with the rows that have it.
struct Sample {
    asked: String,
    /// (candidate, row) of every persona that has it.
    rows: Vec<(usize, usize)>,
    /// How many of the personas' answers to it are wrong in tone or identifiers.
    misses: usize,
}

pub(crate) fn write(
    page: &mut String,
    candidates: &[Candidate],
    answers: &Answers,
    measures: &Measures,
) {
    let samples = samples(candidates, answers);
    let shown = samples.len().min(MAX_SAMPLES);
    put!(
        page,
        "<h2>Side by side</h2>\n<p class=\"soft\">{shown} of {} questions; those with a wrong tone or identifier come first.</p>",
        samples.len()
    );
    for sample in &samples[..shown] {
        put!(
            page,
            "<section class=\"sample\"><p class=\"asked\">{}</p><div class=\"sides\">",
            escape_xml(&sample.asked)
        );
        let base = sample.rows.first().and_then(|&(of, row)| {
            let responder = Responder::Base;
            answers.get(Question {
                candidate: of,
                row,
                responder,
            })
        });
        if let Some(base) = base {
            put!(
                page,
                "<div class=\"side\"><h3>{}</h3><p class=\"text\">{}</p></div>",
                escape_xml(&measures.base),
                escape_xml(base.text.trim())
            );
        }
        for &(of, row) in &sample.rows {
            side(page, candidates, answers, (of, row));
        }
        put!(page, "</div></section>");
    }
}

/// One persona's answer, its marks, and the reference.
fn side(page: &mut String, candidates: &[Candidate], answers: &Answers, (of, row): (usize, usize)) {
    let candidate = &candidates[of];
    let Some((in_tone, copied, text)) = score(candidate, answers, (of, row)) else {
        return;
    };
    let mark = |right: bool, yes: &str, no: &str| match right {
        true => format!("<span class=\"good\">✓ {yes}</span>"),
        false => format!("<span class=\"bad\">✗ {no}</span>"),
    };
    let mut marks = String::new();
    if candidate.markers.is_some() {
        marks = mark(in_tone, "tone", "not in tone") + " ";
    }
    marks += &mark(copied, "identifiers", "an identifier is wrong");
    put!(
        page,
        "<div class=\"side\"><h3>{}</h3><p class=\"text\">{}</p><p class=\"mark\">{marks}</p>\
         <details><summary>reference</summary><p class=\"text\">{}</p></details></div>",
        escape_xml(&candidate.persona.name),
        escape_xml(text.trim()),
        escape_xml(candidate.rows[row].output())
    );
}

/// (in tone, identifiers right, answer) of a persona for one of its own rows.
fn score<'a>(
    candidate: &Candidate,
    answers: &'a Answers,
    (of, row): (usize, usize),
) -> Option<(bool, bool, &'a str)> {
    let responder = Responder::Persona(of);
    let text = answers
        .get(Question {
            candidate: of,
            row,
            responder,
        })?
        .text
        .as_str();
    let markers = candidate.markers.clone().unwrap_or_default();
    let asked = &candidate.rows[row];
    let (in_tone, copied) =
        AnswerScore::default().judge(&markers, &asked.input(), asked.output(), text);
    Some((in_tone, copied, text))
}

/// All questions, each once: those with the most misses first, then in the order of the rows.
fn samples(candidates: &[Candidate], answers: &Answers) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    for (of, candidate) in candidates.iter().enumerate() {
        for (row, asked) in candidate.rows.iter().enumerate() {
            let asked = asked.input();
            let index = *at.entry(asked.clone()).or_insert_with(|| {
                samples.push(Sample {
                    asked,
                    rows: Vec::new(),
                    misses: 0,
                });
                samples.len() - 1
            });
            let sample = &mut samples[index];
            // A question that occurs twice in a persona's rows is shown once.
            if sample.rows.iter().any(|(other, _)| *other == of) {
                continue;
            }
            sample.rows.push((of, row));
            if let Some((in_tone, copied, _)) = score(candidate, answers, (of, row)) {
                sample.misses += usize::from(!in_tone) + usize::from(!copied);
            }
        }
    }
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.misses));
    samples
}
