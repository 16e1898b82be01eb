//! `lory eval`: what the personas are worth, on rows that training never saw.
//!
//! Answers come from the engine, base and personas mixed in its batches, always the most probable token. The base is given
//! the persona's own system prompt, so that what differs is the adapter.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use engine::EngineConfig;
use formats::chat_template::Message;
use formats::peft;
use registry::{Persona, Personas};
use serde_json::{Value, json};
use train::dataset::{Content, Dataset, Row};
use train::evaluate::{LossTable, Markers, Score, loss_table};
use train::example::Encoder;
use train::{Example, LoraParams};

use super::base::BaseArgs;
use super::personas::PersonasArgs;
use super::table::Table;
use super::{Verdict, print, train as train_command};
use crate::progress::Progress;
use crate::service::{
    Ask, Base, Conversation, Overrides, Service, Settings, TextEvent, TextStream,
};

/// Most tokens of one call of the learner.
const BATCH_TOKENS: usize = 2048;

/// Measure personas on their evaluation rows: tone, copied identifiers, loss
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 1 where a persona misses a threshold of its [eval] table.

Examples:
  lory eval
  lory eval --rows test.jsonl
  lory eval --persona customer --limit 20 --answers answers.jsonl")]
pub(super) struct Args {
    /// Which persona; several may be named [default: all that have evaluation rows]
    #[arg(long = "persona", value_name = "NAME")]
    who: Vec<String>,
    /// Rows to use instead of the persona's `eval` file: this file in each persona's folder
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// The most rows of each persona
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Write every answer to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    personas: PersonasArgs,
}

/// A persona under examination.
struct Candidate {
    persona: Persona,
    rows: Vec<Row>,
    markers: Markers,
    own: Score,
    base: Score,
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let personas = args.personas.open()?;
    let mut candidates = candidates(&personas, &args)?;
    let located = args.base.locate()?;
    let asks: usize = candidates
        .iter()
        .map(|candidate| 2 * candidate.rows.len())
        .sum();
    let settings = Settings {
        base_name: located.name.clone(),
        engine: EngineConfig {
            max_queue: asks,
            ..EngineConfig::default()
        },
        ..Settings::default()
    };
    let service = Service::open(&located.path, personas, &settings)?;

    let start = Instant::now();
    let answers = answer(&service, &mut candidates)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    service.engine().shutdown();
    if let Some(path) = &args.answers {
        write_answers(path, &answers).with_context(|| path.display().to_string())?;
    }
    let losses = losses(service.base(), &candidates)?;

    let missed: Vec<String> = candidates.iter().flat_map(Candidate::missed).collect();
    if args.json {
        let personas: Vec<Value> = candidates.iter().map(Candidate::as_json).collect();
        let report = json!({"base": service.base().name, "personas": personas, "losses": losses_json(&losses), "missed": missed});
        print(&format!("{report}\n"))?;
    } else {
        print(&format!(
            "{}\n{}\n{} answers, {tokens} tokens in {seconds:.1} s\n",
            scores(&candidates, &service.base().name).render(),
            losses_table(&losses).render(),
            answers.len(),
        ))?;
        for line in &missed {
            eprintln!("{line}");
        }
    }
    Ok(if missed.is_empty() {
        Verdict::Good
    } else {
        Verdict::Bad
    })
}

fn candidates(personas: &Personas, args: &Args) -> anyhow::Result<Vec<Candidate>> {
    let rows_of = |persona: &Persona| match &args.rows {
        Some(file) => Some(persona.dir.join(file)).filter(|path| path.is_file()),
        None => persona.train.as_ref().and_then(|train| train.eval.clone()),
    };
    let missing = match &args.rows {
        Some(file) => format!("put a file {} into its folder", file.display()),
        None => "name a file as `eval` in the [train] table of its persona.toml".to_owned(),
    };
    let names: Vec<String> = if args.who.is_empty() {
        let all = personas
            .names()
            .into_iter()
            .filter_map(|name| personas.get(name));
        all.filter(|persona| rows_of(persona).is_some())
            .map(|persona| persona.name.clone())
            .collect()
    } else {
        args.who.clone()
    };
    if names.is_empty() {
        anyhow::bail!("no persona has evaluation rows; {missing}");
    }
    let mut candidates = Vec::new();
    for name in &names {
        let part = registry::Part {
            name: name.clone(),
            version: None,
            scale: None,
        };
        let persona = personas.find(&part)?;
        let Some(path) = rows_of(persona) else {
            anyhow::bail!(
                "{}: persona {name} has no evaluation rows; {missing}",
                persona.dir.display()
            );
        };
        let mut rows = Dataset::read(&path)?.rows;
        // Plain text has no question that could be asked.
        rows.retain(|row| !matches!(row.content, Content::Text(_)));
        rows.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
        let markers = match &persona.eval {
            Some(eval) => Markers::new(&eval.any_of, &eval.none_of)?,
            None => Markers::default(),
        };
        let (own, base) = (Score::default(), Score::default());
        candidates.push(Candidate {
            persona: persona.clone(),
            rows,
            markers,
            own,
            base,
        });
    }
    Ok(candidates)
}

impl Candidate {
    /// The thresholds that are missed, in words.
    fn missed(&self) -> Vec<String> {
        let Some(eval) = &self.persona.eval else {
            return Vec::new();
        };
        let shares = [
            ("tone right", self.own.tone_share(), eval.tone_at_least),
            (
                "identifiers right",
                self.own.copied_share(),
                eval.copied_at_least,
            ),
        ];
        let missed = shares.into_iter().filter(|(_, share, least)| share < least);
        let say = |(what, share, least): (&str, f64, f64)| {
            format!(
                "{}: {what} in {} of answers, {} are wanted",
                self.persona.name,
                percent(share),
                percent(least)
            )
        };
        missed.map(say).collect()
    }

    fn as_json(&self) -> Value {
        let score = |score: &Score| {
            json!({
                "answers": score.answers,
                "tone_share": score.tone_share(),
                "with_identifiers": score.with_identifiers,
                "copied_share": score.copied_share(),
                "complete_share": score.complete_share(),
            })
        };
        let eval = self.persona.eval.as_ref();
        json!({
            "name": self.persona.name,
            "version": self.persona.version,
            "adapter": self.persona.adapter.as_ref().map(registry::AdapterRef::sha256_hex),
            "persona": score(&self.own),
            "base": score(&self.base),
            "tone_at_least": eval.map(|eval| eval.tone_at_least),
            "copied_at_least": eval.map(|eval| eval.copied_at_least),
        })
    }
}

/// One answer, judged.
struct Judged {
    persona: String,
    speaker: &'static str,
    row: String,
    question: String,
    reference: String,
    answer: String,
    tokens: usize,
    in_tone: bool,
    copied: bool,
}

/// Asks everyone everything at once and judges the answers.
fn answer(service: &Service, candidates: &mut [Candidate]) -> anyhow::Result<Vec<Judged>> {
    let mut streams: Vec<(usize, usize, bool, TextStream)> = Vec::new();
    for (c, candidate) in candidates.iter().enumerate() {
        for (r, row) in candidate.rows.iter().enumerate() {
            for own in [false, true] {
                let stream = service.stream(&ask(&candidate.persona, row, own));
                let stream = stream.with_context(|| row.place.to_string())?;
                streams.push((c, r, own, stream));
            }
        }
    }
    let mut progress = Progress::stderr();
    progress.count("Answering", streams.len() as u64);
    let mut judged = Vec::with_capacity(streams.len());
    for (c, r, own, stream) in streams {
        let (answer, tokens) = whole(stream)?;
        progress.add(1);
        let candidate = &mut candidates[c];
        let row = &candidate.rows[r];
        let (question, reference) = (row.input(), row.output());
        let score = if own {
            &mut candidate.own
        } else {
            &mut candidate.base
        };
        let (in_tone, copied) = score.judge(&candidate.markers, &question, reference, &answer);
        judged.push(Judged {
            persona: candidate.persona.name.clone(),
            speaker: if own { "persona" } else { "base" },
            row: row.place.to_string(),
            reference: reference.to_owned(),
            question,
            answer,
            tokens,
            in_tone,
            copied,
        });
    }
    Ok(judged)
}

/// The row's question, to the persona or to the base behind the persona's system prompt.
fn ask(persona: &Persona, row: &Row, own: bool) -> Ask {
    let mut turns = match &row.content {
        Content::Messages(messages) => messages[..messages.len().saturating_sub(1)].to_vec(),
        _ => vec![Message::new("user", row.input())],
    };
    if let Some(system) = &persona.system_prompt
        && turns.first().is_none_or(|turn| turn.role != "system")
    {
        turns.insert(0, Message::new("system", system));
    }
    Ask {
        conversation: Conversation::Messages(turns),
        overrides: Overrides {
            temperature: Some(0.0),
            ..Overrides::default()
        },
        stop: Some(persona.stop.clone()),
        max_new_tokens: persona.max_new_tokens,
        ..Ask::new(own.then_some(persona.name.as_str()), "")
    }
}

fn whole(stream: TextStream) -> anyhow::Result<(String, usize)> {
    let mut text = String::new();
    for event in stream {
        match event {
            TextEvent::Delta(delta) => text.push_str(&delta),
            TextEvent::End(end) => {
                end.check()?;
                return Ok((text, end.completion_tokens));
            }
        }
    }
    anyhow::bail!("the engine ended before the answer did")
}

fn write_answers(path: &PathBuf, answers: &[Judged]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for answer in answers {
        let line = json!({
            "persona": answer.persona,
            "speaker": answer.speaker,
            "row": answer.row,
            "question": answer.question,
            "reference": answer.reference,
            "answer": answer.answer,
            "in_tone": answer.in_tone,
            "copied": answer.copied,
        });
        writeln!(file, "{line}")?;
    }
    file.flush()
}

/// The loss of each persona's rows under the base and under each persona's adapter.
fn losses(base: &Base, candidates: &[Candidate]) -> anyhow::Result<LossTable> {
    let mut sets: Vec<(&str, Vec<Example>)> = Vec::new();
    let mut adapters: Vec<(&str, LoraParams)> = vec![(&base.name, LoraParams::default())];
    for Candidate { persona, rows, .. } in candidates {
        let settings = match &persona.train {
            Some(train) => train.settings::<train::Settings>()?,
            None => train::Settings::default(),
        };
        let encoder = Encoder {
            tokenizer: &base.tokenizer,
            template: &base.template,
            system: persona.system_prompt.as_deref(),
            mask: settings.mask,
            max_length: settings.max_length.min(base.model.config().context_length),
            too_long: settings.too_long,
        };
        sets.push((&persona.name, encoder.encode_all(rows)?.examples));
        if let Some(adapter) = &persona.adapter {
            let pairs = peft::Adapter::read(&adapter.path)?.pairs;
            adapters.push((&persona.name, LoraParams { pairs }));
        }
    }
    let sets: Vec<(&str, &[Example])> = sets
        .iter()
        .map(|(name, examples)| (*name, examples.as_slice()))
        .collect();
    let adapters: Vec<(&str, &LoraParams)> = adapters
        .iter()
        .map(|(name, params)| (*name, params))
        .collect();
    let mut progress = Progress::stderr();
    progress.spin("Computing losses");
    Ok(loss_table(
        &mut train_command::learner(base),
        &sets,
        &adapters,
        BATCH_TOKENS,
    )?)
}

fn scores(candidates: &[Candidate], base: &str) -> Table {
    let mut table = Table::new(&[
        "rows of",
        "answered by",
        "answers",
        "tone right",
        "identifiers right",
        "none left out",
    ]);
    for candidate in candidates {
        for (speaker, score) in [
            (base, &candidate.base),
            (candidate.persona.name.as_str(), &candidate.own),
        ] {
            table.row([
                candidate.persona.name.clone(),
                speaker.to_owned(),
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
    }
    table
}

fn losses_table(losses: &LossTable) -> Table {
    let head: Vec<String> = losses
        .adapters
        .iter()
        .map(|name| format!("loss under {name}"))
        .collect();
    let head: Vec<&str> = std::iter::once("rows of")
        .chain(head.iter().map(String::as_str))
        .collect();
    let mut table = Table::new(&head);
    for (set, row) in losses.sets.iter().zip(&losses.losses) {
        table.row(
            std::iter::once(set.clone()).chain(row.iter().map(|sum| format!("{:.4}", sum.mean()))),
        );
    }
    table
}

fn losses_json(losses: &LossTable) -> Value {
    let mut sets = serde_json::Map::new();
    for (set, row) in losses.sets.iter().zip(&losses.losses) {
        let under = losses
            .adapters
            .iter()
            .cloned()
            .zip(row.iter().map(|sum| json!(sum.mean())));
        sets.insert(set.clone(), under.collect::<serde_json::Map<_, _>>().into());
    }
    Value::Object(sets)
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
