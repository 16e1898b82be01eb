//! Computes what an evaluation reports from answers, rows and adapters: measures of each persona, and matrices over all of them. Must
//! not know thresholds' results, terminals or HTTP.

use std::sync::Arc;

use formats::decimal::shortest;
use kernels::Compute;
use model::YieldPoint;
use registry::EvalSpec;
use serde_json::{Map, Value, json};
use train::example::Encoder;
use train::measures::{
    AnswerLengths, AnswerScore, Drift, LossTable, distinctness, drift, loss_table, neutral,
    repetition_of,
};
use train::{Example, Learner, LoraParams};

use super::answers::{Answers, Question, Responder};
use super::candidate::Candidate;
use super::error::EvaluationError;
use base::Base;
use base::progress::Progress;

/// Most tokens of one call of the learner.
const BATCH_TOKENS: usize = 2048;

/// Measures of one responder's answers to one persona's rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerMeasures {
    /// Tone and identifiers.
    pub score: AnswerScore,
    /// Words of the answers and of the references.
    pub lengths: AnswerLengths,
    /// Mean share of repeated 4-grams.
    pub repetition: f64,
}

/// Measures of one persona.
#[derive(Debug, Clone)]
pub struct PersonaMeasures {
    /// The persona's name.
    pub name: String,
    /// Its label in the matrices.
    pub label: String,
    /// The persona's version.
    pub version: u32,
    /// The adapter's content hash, in hex.
    pub adapter: Option<String>,
    /// The adapter's scale.
    pub scale: f32,
    /// The measures of the persona's answers.
    pub own: AnswerMeasures,
    /// The measures of the base's answers to the same questions.
    pub base: AnswerMeasures,
    /// Drift of its adapter on neutral text; `None` without an adapter, or if it was not requested.
    pub drift: Option<Drift>,
}

/// All measures.
#[derive(Debug, Clone)]
pub struct Measures {
    /// The base's name.
    pub base: String,
    /// Each persona's measures.
    pub personas: Vec<PersonaMeasures>,
    /// The loss of each persona's rows under each adapter.
    pub losses: LossTable,
    /// `tones[answered][check]`: share of the answers of persona `answered` to its own rows that pass the tone check of
    /// persona `check`; `None` if that persona has no tone check.
    pub tones: Vec<Vec<Option<f64>>>,
    /// `distinct[a][b]`: distinctness of two personas; `None` if a is b, or if they share no answered questions.
    pub distinct: Vec<Vec<Option<f64>>>,
    /// The number of questions that `distinct` compares.
    pub common: usize,
}

impl Measures {
    /// The highest share of a persona's answers that pass another persona's tone check.
    pub fn other_tone_share(&self, persona: usize) -> Option<f64> {
        let others = self.tones[persona].iter().enumerate();
        others
            .filter(|(check, _)| *check != persona)
            .filter_map(|(_, share)| *share)
            .reduce(f64::max)
    }

    /// The distinctness of a persona from the nearest other persona.
    pub fn nearest_distinctness(&self, persona: usize) -> Option<f64> {
        self.distinct[persona]
            .iter()
            .copied()
            .flatten()
            .reduce(f64::min)
    }

    /// Mean loss of a persona's rows in nats per token, under its own adapter at its own scale, or under the base if it has no adapter.
    /// `None` if it was not requested.
    pub fn own_loss(&self, persona: usize) -> Option<f64> {
        let label = &self.personas[persona].label;
        let row = self.losses.sets.iter().position(|set| set == label)?;
        let mut columns = self.losses.adapters.iter();
        let column = columns.position(|other| other == label);
        Some(self.losses.losses[row][column.unwrap_or(0)].mean())
    }
}

/// Which losses and drifts are computed. They take longer than the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasureScope {
    /// All of them.
    All,
    /// Those that a threshold needs.
    Thresholds,
}

impl MeasureScope {
    fn wants(self, candidate: &Candidate, threshold: impl Fn(&EvalSpec) -> Option<f64>) -> bool {
        let eval = candidate.persona.eval.as_ref();
        !candidate.is_baseline
            && (self == MeasureScope::All || eval.is_some_and(|eval| threshold(eval).is_some()))
    }
}

/// The number of parts that [`measure`] adds to its progress: one for the losses, one for each candidate's drift.
pub fn parts(candidates: &[Candidate]) -> usize {
    1 + candidates.len()
}

/// Computes all measures. The drift yields compute at `yield_point`; `learner` has its own yield point.
///
/// # Errors
/// An adapter cannot be read, a row cannot be encoded, or the run was stopped at a yield point.
pub fn measure(
    base: &Base,
    candidates: &[Candidate],
    answers: &Answers,
    scope: MeasureScope,
    learner: &mut dyn Learner,
    yield_point: Option<&Arc<dyn YieldPoint>>,
    progress: &mut Progress,
) -> Result<Measures, EvaluationError> {
    let adapters = adapters(candidates)?;
    if candidates
        .iter()
        .any(|one| scope.wants(one, |eval| eval.loss_at_most))
    {
        progress.spin("Computing losses");
    }
    let losses = losses(base, candidates, &adapters, scope, learner)?;
    progress.add(1);
    let drifts = drifts(base, candidates, &adapters, scope, yield_point, progress)?;
    progress.clear();
    let mut personas = Vec::new();
    for (of, (candidate, drift)) in candidates.iter().zip(drifts).enumerate() {
        let persona = &candidate.persona;
        personas.push(PersonaMeasures {
            name: persona.name.clone(),
            label: candidate.label.clone(),
            version: persona.version,
            adapter: persona
                .adapter
                .as_ref()
                .map(registry::AdapterRef::sha256_hex),
            scale: persona.scale,
            own: answer_measures(candidate, answers, of, Responder::Persona(of)),
            base: answer_measures(candidate, answers, of, Responder::Base),
            drift,
        });
    }
    let tones = (0..candidates.len())
        .map(|of| tones(candidates, answers, of))
        .collect();
    Ok(Measures {
        base: base.name.clone(),
        personas,
        losses,
        tones,
        distinct: distinctness_matrix(candidates, answers),
        common: answers.common.len(),
    })
}

/// The drift of each candidate's adapter on neutral text, if it is in `scope`.
fn drifts(
    base: &Base,
    candidates: &[Candidate],
    adapters: &[Option<LoraParams>],
    scope: MeasureScope,
    yield_point: Option<&Arc<dyn YieldPoint>>,
    progress: &mut Progress,
) -> Result<Vec<Option<Drift>>, EvaluationError> {
    let text = neutral(
        &base.tokenizer,
        &base.template,
        base.model.config().context_length,
    )?;
    let wanted = |candidate: &Candidate| scope.wants(candidate, |eval| eval.drift_at_most);
    if candidates.iter().any(wanted) {
        progress.spin("Measuring drift");
    }
    let mut drifts = Vec::with_capacity(candidates.len());
    for (candidate, adapter) in candidates.iter().zip(adapters) {
        drifts.push(match adapter {
            Some(adapter) if wanted(candidate) => Some(drift(
                &base.model,
                Compute::Int8,
                adapter,
                &text,
                yield_point,
            )?),
            _ => None,
        });
        progress.add(1);
    }
    Ok(drifts)
}

/// The distinctness of each pair of personas on the common questions.
fn distinctness_matrix(candidates: &[Candidate], answers: &Answers) -> Vec<Vec<Option<f64>>> {
    let cell = |a: usize, b: usize| {
        let pairs = answers.common.iter().filter_map(|&question| {
            let answer = |persona| answers.of_persona(candidates, persona, question);
            Some((answer(a)?, answer(b)?))
        });
        if a == b { None } else { distinctness(pairs) }
    };
    let count = candidates.len();
    (0..count)
        .map(|a| (0..count).map(|b| cell(a, b)).collect())
        .collect()
}

/// Scores the answers of `responder` to the rows of candidate `of`.
fn answer_measures(
    candidate: &Candidate,
    answers: &Answers,
    of: usize,
    responder: Responder,
) -> AnswerMeasures {
    let markers = candidate.markers.clone().unwrap_or_default();
    let mut score = AnswerScore::default();
    let mut pairs = Vec::new();
    for (index, row) in candidate.rows.iter().enumerate() {
        let question = Question {
            candidate: of,
            row: index,
            responder,
        };
        let Some(answered) = answers.get(question) else {
            continue;
        };
        score.judge(&markers, &row.input(), row.output(), &answered.text);
        pairs.push((answered.text.as_str(), row.output()));
    }
    AnswerMeasures {
        score,
        lengths: AnswerLengths::new(pairs.iter().copied()),
        repetition: repetition_of(pairs.iter().map(|pair| pair.0)),
    }
}

/// For each candidate, the share of persona `of`'s answers that pass that candidate's tone check.
fn tones(candidates: &[Candidate], answers: &Answers, of: usize) -> Vec<Option<f64>> {
    let question = |row| Question {
        candidate: of,
        row,
        responder: Responder::Persona(of),
    };
    let texts: Vec<&str> = (0..candidates[of].rows.len())
        .filter_map(|row| answers.get(question(row)))
        .map(|answered| answered.text.as_str())
        .collect();
    let share = |candidate: &Candidate| {
        let markers = candidate.markers.as_ref().filter(|_| !texts.is_empty())?;
        let passed = texts.iter().filter(|text| markers.hold(text)).count();
        Some(passed as f64 / texts.len() as f64)
    };
    candidates.iter().map(share).collect()
}

/// Each candidate's adapter, scaled as it is served.
fn adapters(candidates: &[Candidate]) -> Result<Vec<Option<LoraParams>>, EvaluationError> {
    let read = |candidate: &Candidate| {
        let Some(adapter) = &candidate.persona.adapter else {
            return Ok(None);
        };
        let mut pairs = adapter.read()?.pairs;
        for pair in &mut pairs {
            pair.scale *= candidate.persona.scale;
        }
        Ok(Some(LoraParams { pairs }))
    };
    candidates.iter().map(read).collect()
}

/// The loss of each persona's rows under the base and under each persona's adapter.
fn losses(
    base: &Base,
    candidates: &[Candidate],
    params: &[Option<LoraParams>],
    scope: MeasureScope,
    learner: &mut dyn Learner,
) -> Result<LossTable, EvaluationError> {
    let mut sets: Vec<(&str, Vec<Example>)> = Vec::new();
    let bare = LoraParams::default();
    let wanted = |candidate: &Candidate| scope.wants(candidate, |eval| eval.loss_at_most);
    let measured = candidates.iter().zip(params);
    let mut adapters: Vec<(&str, &LoraParams)> = Vec::new();
    // The loss of a persona without an adapter is the base's.
    if scope == MeasureScope::All
        || measured
            .clone()
            .any(|(one, params)| wanted(one) && params.is_none())
    {
        adapters.push((&base.name, &bare));
    }
    for (candidate, params) in measured.filter(|(candidate, _)| wanted(candidate)) {
        let (label, persona) = (&candidate.label, &candidate.persona);
        sets.push((label, examples(base, persona, &candidate.rows)?));
        if let Some(params) = params {
            adapters.push((label, params));
        }
    }
    let sets: Vec<(&str, &[Example])> = sets
        .iter()
        .map(|(name, examples)| (*name, examples.as_slice()))
        .collect();
    Ok(loss_table(learner, &sets, &adapters, BATCH_TOKENS)?)
}

/// Encodes a persona's rows with the loss mask of its training settings.
pub fn examples(
    base: &Base,
    persona: &registry::Persona,
    rows: &[dataset::DataRow],
) -> Result<Vec<Example>, EvaluationError> {
    let settings = match &persona.train {
        Some(train) => train.settings::<train::TrainSettings>()?,
        None => train::TrainSettings::default(),
    };
    let system = persona.system_prompt_by_default()?;
    let encoder = Encoder {
        tokenizer: &base.tokenizer,
        template: &base.template,
        system: system.as_deref(),
        mask: settings.mask,
        max_length: settings.max_length.min(base.model.config().context_length),
        too_long: settings.too_long,
    };
    Ok(encoder.encode_all(rows)?.examples)
}

impl Measures {
    /// All measures as JSON, for `--json` and stored results.
    pub fn as_json(&self) -> Value {
        let answers = |of: &AnswerMeasures| {
            json!({
                "answers": of.score.answers,
                "tone_share": of.score.tone_share(),
                "with_identifiers": of.score.with_identifiers,
                "copied_share": of.score.copied_share(),
                "complete_share": of.score.complete_share(),
                "repetition": of.repetition,
                "words": of.lengths,
                "length_ratio": of.lengths.ratio(),
            })
        };
        let personas: Vec<Value> = (self.personas.iter().enumerate())
            .map(|(i, persona)| {
                json!({
                    "name": persona.name,
                    "version": persona.version,
                    "adapter": persona.adapter,
                    "scale": shortest(persona.scale),
                    "persona": answers(&persona.own),
                    "base": answers(&persona.base),
                    "loss": self.own_loss(i),
                    "distinct_from_nearest": self.nearest_distinctness(i),
                    "most_of_another_tone": self.other_tone_share(i),
                    "drift": persona.drift,
                })
            })
            .collect();
        let names: Vec<&str> = self.personas.iter().map(|p| p.label.as_str()).collect();
        let by_name = |cells: &[Vec<Option<f64>>]| -> Value {
            let row = |row: &Vec<Option<f64>>| -> Value {
                let cells = names.iter().zip(row);
                cells
                    .map(|(name, cell)| ((*name).to_owned(), json!(cell)))
                    .collect::<Map<_, _>>()
                    .into()
            };
            let rows = names.iter().zip(cells);
            rows.map(|(name, cells)| ((*name).to_owned(), row(cells)))
                .collect::<Map<_, _>>()
                .into()
        };
        let of_losses = |pick: fn(&train::LossSum) -> f64| -> Value {
            let row = |row: &Vec<train::LossSum>| -> Value {
                let under = self.losses.adapters.iter().zip(row);
                under
                    .map(|(name, sum)| (name.clone(), json!(pick(sum))))
                    .collect::<Map<_, _>>()
                    .into()
            };
            let sets = self.losses.sets.iter().zip(&self.losses.losses);
            sets.map(|(set, sums)| (set.clone(), row(sums)))
                .collect::<Map<_, _>>()
                .into()
        };
        json!({
            "base": self.base,
            "personas": personas,
            "losses": of_losses(train::LossSum::mean),
            "perplexities": of_losses(train::LossSum::perplexity),
            "tones": by_name(&self.tones),
            "distinct": by_name(&self.distinct),
            "common_questions": self.common,
        })
    }
}
