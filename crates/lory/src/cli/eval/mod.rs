//! `lory eval`: what the personas are worth, on rows that training never saw.
//!
//! What is measured, and how, is in [`jobs::evaluation`].
//!
//! - `candidate`: who is examined; `keep`: the result, for the studio
//! - `tables`, `report`: for the terminal, and as a page

mod candidate;
mod keep;
mod report;
mod tables;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use engine::EngineConfig;

use super::base::{BaseArgs, PrecisionArgs};
use super::personas::PersonasArgs;
use super::{Usage, Verdict, print};
use base::plan::Demand;
use base::progress::Progress;
use jobs::evaluation::answers::Speaker;
use jobs::evaluation::{answers, gate, measures, summary};
use jobs::training;
use service::{Service, Settings};

/// Measure personas on their evaluation rows, and hold them to their thresholds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Measured are loss and perplexity by adapter, tone, copied identifiers, how distinct the tones are, drift from the base on
neutral text, repetition and length. Exit code 1 where a persona misses a threshold of its [eval] table.

Examples:
  lory eval
  lory eval --report eval.html
  lory eval --gate --persona customer
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
    /// Write a page with everything that was measured, and answers side by side
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Check the thresholds and nothing else, which is quicker: the base is not asked, and losses and drift are computed where a
    /// threshold is about them
    #[arg(long, conflicts_with = "report")]
    gate: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    personas: PersonasArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let personas = args.personas.open()?;
    let candidates = candidate::candidates(&personas, &args)?;
    let located = args.base.locate()?;
    let (mut questions, common) = answers::questions(&candidates);
    if args.gate {
        if candidates.iter().all(|one| one.persona.eval.is_none()) {
            let why = "--gate: no persona here has thresholds; write them into [eval] of its persona.toml";
            return Err(Usage(why.to_owned()).into());
        }
        questions.retain(|question| question.to != Speaker::Base);
    }
    let planned = located.planned(&args.precision, Demand::default())?;
    let settings = Settings {
        load: planned.load,
        base_name: located.name.clone(),
        base_sha256: located.sha256.map(str::to_owned),
        engine: EngineConfig {
            max_queue: questions.len(),
            ..EngineConfig::default()
        },
        ..Settings::default()
    };
    let service = Service::open(&located.path, personas, &settings)?;

    let start = Instant::now();
    let mut progress = Progress::stderr();
    let answers = answers::answer(
        &service,
        &candidates,
        &questions,
        common,
        questions.len(),
        &mut progress,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.all.iter().map(|answer| answer.tokens).sum();
    service.engine().shutdown();
    if let Some(path) = &args.answers {
        answers::write(path, &candidates, &answers).with_context(|| path.display().to_string())?;
    }

    let measures = measures::measure(
        service.base(),
        &candidates,
        &answers,
        if args.gate {
            measures::Extent::Thresholds
        } else {
            measures::Extent::All
        },
        &mut training::learner(service.base()),
        None,
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    if let Some(path) = &args.report {
        let page = report::page(&candidates, &answers, &measures, &checks);
        std::fs::write(path, page).with_context(|| path.display().to_string())?;
    }
    let missed = summary::missed(&checks);
    let (shown, tables) = if args.gate {
        (summary::gate(&checks), tables::gate(&checks))
    } else {
        let all = summary::result(&measures, &checks);
        keep::keep(all.clone(), &candidates, &answers);
        (all, tables::render(&measures))
    };
    if args.json {
        print(&format!("{shown}\n"))?;
    } else {
        let count = answers.all.len();
        print(&format!(
            "{tables}\n{count} answers, {tokens} tokens in {seconds:.1} s\n"
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
