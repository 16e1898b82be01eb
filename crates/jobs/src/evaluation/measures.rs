//! Everything that was measured, as plain data: by persona, and as matrices over them.

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

use super::answers::{Answers, Question, Speaker};
use super::candidate::Candidate;
use base::Base;
use base::progress::Progress;

/// Most tokens of one call of the learner.
const BATCH_TOKENS: usize = 2048;

/// What the answers of one speaker to one persona's rows are worth.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    /// Tone and copied identifiers.
    pub score: AnswerScore,
    /// Words of the answers.
    pub lengths: AnswerLengths,
    /// Mean share of repeated 4-grams.
    pub repetition: f64,
}

/// One persona, measured.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The persona's name.
    pub name: String,
    /// What it is called in the matrices.
    pub called: String,
    /// The persona's version.
    pub version: u32,
    /// The adapter's content hash, in hex.
    pub adapter: Option<String>,
    /// The adapter's scale.
    pub scale: f32,
    /// The measures of the persona's answers.
    pub own: Told,
    /// The measures of the base's answers to the same questions.
    pub base: Told,
    /// What its adapter changes on neutral text; none without an adapter, and where nobody asks.
    pub drift: Option<Drift>,
}

/// All measures.
#[derive(Debug, Clone)]
pub struct Measures {
    /// The base's name.
    pub base: String,
    /// Each persona's measures.
    pub personas: Vec<Examined>,
    /// The loss of each persona's rows under each adapter.
    pub losses: LossTable,
    /// `tones[answered][check]`: share of the answers of persona `answered` to its own rows that pass the tone check of
    /// persona `check`; none where that persona has no check.
    pub tones: Vec<Vec<Option<f64>>>,
    /// `distinct[a][b]`; none where a is b, or where both have answered nothing in common.
    pub distinct: Vec<Vec<Option<f64>>>,
    /// How many questions `distinct` is from.
    pub common: usize,
}

impl Measures {
    /// The share of a persona's answers that pass the tone check of whichever other persona they pass most.
    pub fn other_tone(&self, persona: usize) -> Option<f64> {
        let others = self.tones[persona].iter().enumerate();
        others
            .filter(|(check, _)| *check != persona)
            .filter_map(|(_, share)| *share)
            .reduce(f64::max)
    }

    /// The distinctness of a persona from the nearest other one.
    pub fn nearest(&self, persona: usize) -> Option<f64> {
        self.distinct[persona]
            .iter()
            .copied()
            .flatten()
            .reduce(f64::min)
    }

    /// Loss of a persona's rows under its own adapter, at its own scale; under the base where it has none. None where nobody asks.
    pub fn own_loss(&self, persona: usize) -> Option<f64> {
        let called = &self.personas[persona].called;
        let row = self.losses.sets.iter().position(|set| set == called)?;
        let mut columns = self.losses.adapters.iter();
        let column = columns.position(|other| other == called);
        Some(self.losses.losses[row][column.unwrap_or(0)].mean())
    }
}

/// How much of losses and drift is computed, which take longer than the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it, for people to look at.
    All,
    /// What a threshold asks for.
    Thresholds,
}

impl Extent {
    fn wants(self, candidate: &Candidate, threshold: impl Fn(&EvalSpec) -> Option<f64>) -> bool {
        let eval = candidate.persona.eval.as_ref();
        !candidate.beside
            && (self == Extent::All || eval.is_some_and(|eval| threshold(eval).is_some()))
    }
}

/// How many parts [`measure`] adds to its progress: the losses, and each candidate's drift.
pub fn parts(candidates: &[Candidate]) -> usize {
    1 + candidates.len()
}

/// Computes everything from the answers, the rows and the adapters; drift yields at `yield_point`, as `learner` may.
pub fn measure(
    base: &Base,
    candidates: &[Candidate],
    answers: &Answers,
    extent: Extent,
    learner: &mut dyn Learner,
    yield_point: Option<&dyn YieldPoint>,
    progress: &mut Progress,
) -> anyhow::Result<Measures> {
    let adapters = adapters(candidates)?;
    if candidates
        .iter()
        .any(|one| extent.wants(one, |eval| eval.loss_at_most))
    {
        progress.spin("Computing losses");
    }
    let losses = losses(base, candidates, &adapters, extent, learner)?;
    progress.add(1);
    let text = neutral(
        &base.tokenizer,
        &base.template,
        base.model.config().context_length,
    )?;
    if candidates
        .iter()
        .any(|one| extent.wants(one, |eval| eval.drift_at_most))
    {
        progress.spin("Measuring drift");
    }
    let mut personas = Vec::new();
    for (of, (candidate, adapter)) in candidates.iter().zip(&adapters).enumerate() {
        let moved = match adapter {
            Some(adapter) if extent.wants(candidate, |eval| eval.drift_at_most) => Some(drift(
                &base.model,
                Compute::Int8,
                adapter,
                &text,
                yield_point,
            )?),
            _ => None,
        };
        progress.add(1);
        let persona = &candidate.persona;
        personas.push(Examined {
            name: persona.name.clone(),
            called: candidate.called.clone(),
            version: persona.version,
            adapter: persona
                .adapter
                .as_ref()
                .map(registry::AdapterRef::sha256_hex),
            scale: persona.scale,
            own: told(candidate, answers, of, Speaker::Persona(of)),
            base: told(candidate, answers, of, Speaker::Base),
            drift: moved,
        });
    }
    progress.clear();
    let count = candidates.len();
    let tones = (0..count)
        .map(|of| tones(candidates, answers, of))
        .collect();
    let distinct = |a: usize, b: usize| {
        let pairs = answers.common.iter().filter_map(|&place| {
            let of = |persona| answers.of_persona(candidates, persona, place);
            Some((of(a)?, of(b)?))
        });
        if a == b { None } else { distinctness(pairs) }
    };
    let distinct = (0..count)
        .map(|a| (0..count).map(|b| distinct(a, b)).collect())
        .collect();
    Ok(Measures {
        base: base.name.clone(),
        personas,
        losses,
        tones,
        distinct,
        common: answers.common.len(),
    })
}

/// The answers of `to` to the rows of candidate `of`, judged.
fn told(candidate: &Candidate, answers: &Answers, of: usize, to: Speaker) -> Told {
    let markers = candidate.markers.clone().unwrap_or_default();
    let mut score = AnswerScore::default();
    let mut pairs = Vec::new();
    for (index, row) in candidate.rows.iter().enumerate() {
        let question = Question { of, row: index, to };
        let Some(answered) = answers.get(question) else {
            continue;
        };
        score.judge(&markers, &row.input(), row.output(), &answered.text);
        pairs.push((answered.text.as_str(), row.output()));
    }
    Told {
        score,
        lengths: AnswerLengths::new(pairs.iter().copied()),
        repetition: repetition_of(pairs.iter().map(|pair| pair.0)),
    }
}

/// The shares of persona `of`'s answers that pass everybody's tone check.
fn tones(candidates: &[Candidate], answers: &Answers, of: usize) -> Vec<Option<f64>> {
    let to = Speaker::Persona(of);
    let texts: Vec<&str> = (0..candidates[of].rows.len())
        .filter_map(|row| answers.get(Question { of, row, to }))
        .map(|answered| answered.text.as_str())
        .collect();
    let share = |candidate: &Candidate| {
        let markers = candidate.markers.as_ref().filter(|_| !texts.is_empty())?;
        let passed = texts.iter().filter(|text| markers.hold(text)).count();
        Some(passed as f64 / texts.len() as f64)
    };
    candidates.iter().map(share).collect()
}

/// Each candidate's adapter at the scale that it serves with.
fn adapters(candidates: &[Candidate]) -> anyhow::Result<Vec<Option<LoraParams>>> {
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
    extent: Extent,
    learner: &mut dyn Learner,
) -> anyhow::Result<LossTable> {
    let mut sets: Vec<(&str, Vec<Example>)> = Vec::new();
    let bare = LoraParams::default();
    let wanted = |candidate: &Candidate| extent.wants(candidate, |eval| eval.loss_at_most);
    let measured = candidates.iter().zip(params);
    let mut adapters: Vec<(&str, &LoraParams)> = Vec::new();
    // The loss of a persona without an adapter is the base's.
    if extent == Extent::All
        || measured
            .clone()
            .any(|(one, params)| wanted(one) && params.is_none())
    {
        adapters.push((&base.name, &bare));
    }
    for (candidate, params) in measured.filter(|(candidate, _)| wanted(candidate)) {
        let (called, persona) = (&candidate.called, &candidate.persona);
        sets.push((called, examples(base, persona, &candidate.rows)?));
        if let Some(params) = params {
            adapters.push((called, params));
        }
    }
    let sets: Vec<(&str, &[Example])> = sets
        .iter()
        .map(|(name, examples)| (*name, examples.as_slice()))
        .collect();
    Ok(loss_table(learner, &sets, &adapters, BATCH_TOKENS)?)
}

/// A persona's rows as its training masks them.
pub fn examples(
    base: &Base,
    persona: &registry::Persona,
    rows: &[train::dataset::DataRow],
) -> anyhow::Result<Vec<Example>> {
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
    /// Everything, for `--json`.
    pub fn as_json(&self) -> Value {
        let told = |told: &Told| {
            json!({
                "answers": told.score.answers,
                "tone_share": told.score.tone_share(),
                "with_identifiers": told.score.with_identifiers,
                "copied_share": told.score.copied_share(),
                "complete_share": told.score.complete_share(),
                "repetition": told.repetition,
                "words": told.lengths,
                "length_ratio": told.lengths.ratio(),
            })
        };
        let personas: Vec<Value> = (self.personas.iter().enumerate())
            .map(|(i, persona)| {
                json!({
                    "name": persona.name,
                    "version": persona.version,
                    "adapter": persona.adapter,
                    "scale": shortest(persona.scale),
                    "persona": told(&persona.own),
                    "base": told(&persona.base),
                    "loss": self.own_loss(i),
                    "distinct_from_nearest": self.nearest(i),
                    "most_of_another_tone": self.other_tone(i),
                    "drift": persona.drift,
                })
            })
            .collect();
        let names: Vec<&str> = self.personas.iter().map(|p| p.called.as_str()).collect();
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
