//! `lory eval`: measures personas on rows that training did not see. [`jobs::evaluation`] has the measures.
//!
//! - `selection`: the personas and their rows; `save_result`: saves the result for the studio
//! - `tables`: the output on the terminal; `report`: the HTML page

mod report;
mod save_result;
mod selection;
mod tables;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use engine::EngineConfig;
use formats::atomic_file;
use registry::Personas;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::personas::{AdapterArgs, PersonasArgs, open_counting_broken, with_adapters};
use crate::cli::output::print;
use base::progress::Progress;
use jobs::evaluation::Candidate;
use jobs::evaluation::answers::{Answers, Responder};
use jobs::evaluation::{answers, gate, measures, summary};
use jobs::training;
use service::{Service, Settings};

/// Measure personas on their evaluation rows, and check their thresholds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The measures are loss and perplexity by adapter, tone, copied identifiers, how distinct the tones are, drift from the base on
neutral text, repetition and length. The exit code is 1 if a persona misses a threshold of its [eval] table.

Examples:
  lory eval
  lory eval --report eval.html
  lory eval --gate --persona customer
  lory eval --rows test.jsonl
  lory eval --adapter pirate --rows test.jsonl
  lory eval --persona customer --limit 20 --answers answers.jsonl")]
pub(crate) struct Args {
    /// A persona to evaluate; may be given several times [default: all that have evaluation rows]
    #[arg(long = "persona", value_name = "NAME")]
    names: Vec<String>,
    /// The file in each persona's folder to use instead of its `eval` file; for an adapter, a path from the current folder
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// Maximum number of rows of each persona
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Write every answer to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Write an HTML page with all measures, and answers side by side
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Only check the thresholds, which is faster: the base does not answer, and losses and drift are computed only if a
    /// threshold needs them
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
    device: DeviceArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let adapters = args.adapters.open()?;
    let adapter_names: Vec<String> = adapters.iter().map(|one| one.name.clone()).collect();
    // Adapters alone need no folder of personas.
    let only_adapters =
        !adapters.is_empty() && args.names.is_empty() && args.personas.dir.is_none();
    let (personas, mut broken) = match only_adapters {
        true => (Personas::new(adapters), 0),
        false => {
            let (folder, broken) = open_counting_broken(&args.personas.find()?)?;
            (with_adapters(folder, adapters), broken)
        }
    };
    if !args.names.is_empty() {
        // Only these are wanted.
        broken = 0;
    }
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let rows = args.rows.as_deref();
    let mut candidates = selection::select(&personas, &args.names, &adapter_names, rows, limit)?;
    if args.gate && candidates.iter().all(|one| one.persona.eval.is_none()) {
        let why =
            "--gate: no persona here has thresholds; write them into [eval] of its persona.toml";
        return Err(UsageError(why.to_owned()).into());
    }
    let most = answers::questions(&candidates).0.len();
    let service = open_service(&args, personas, most)?;
    broken += leave_out_broken(&service, &mut candidates)?;
    let (mut questions, common) = answers::questions(&candidates);
    if args.gate {
        questions.retain(|question| question.responder != Responder::Base);
    }

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
    service.engine().shutdown();
    if let Some(path) = &args.answers {
        answers::write(path, &candidates, &answers).with_context(|| path.display().to_string())?;
    }

    let measures = measures::measure(
        service.base(),
        &candidates,
        &answers,
        if args.gate {
            measures::MeasureScope::Thresholds
        } else {
            measures::MeasureScope::All
        },
        &mut training::learner(service.base()),
        None,
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    if let Some(path) = &args.report {
        let page = report::page(&candidates, &answers, &measures, &checks);
        atomic_file::replace(path, |file| file.write_all(page.as_bytes()))
            .with_context(|| path.display().to_string())?;
    }
    let (result, tables) = if args.gate {
        (summary::gate(&checks), tables::gate(&checks))
    } else {
        let result = summary::result(&measures, &checks);
        save_result::save(result.clone(), &candidates, &answers);
        (result, tables::render(&measures))
    };
    let missed = summary::missed(&checks);
    if args.json {
        print(&format!("{result}\n"))?;
    } else {
        print_tables(&tables, &answers, seconds, &missed)?;
    }
    Ok(if missed.is_empty() && broken == 0 {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

/// Leaves out the candidates whose adapters cannot be used, and names them on stderr. Returns how many they are.
///
/// # Errors
/// None is left.
fn leave_out_broken(service: &Service, candidates: &mut Vec<Candidate>) -> anyhow::Result<usize> {
    let all = candidates.len();
    let mut last = None;
    candidates.retain(|one| match service.check_adapter(&one.persona) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("persona {} is left out: {error}", one.persona.name);
            last = Some(error);
            false
        }
    });
    match last {
        Some(error) if candidates.is_empty() => Err(error.into()),
        _ => Ok(all - candidates.len()),
    }
}

/// Prints the tables and how long the answers took, and on stderr the missed thresholds.
fn print_tables(
    tables: &str,
    answers: &Answers,
    seconds: f64,
    missed: &[String],
) -> anyhow::Result<()> {
    let count = answers.all.len();
    let tokens: usize = answers.all.iter().map(|answer| answer.tokens).sum();
    print(&format!(
        "{tables}\n{count} answers, {tokens} tokens in {seconds:.1} s\n"
    ))?;
    for line in missed {
        eprintln!("{line}");
    }
    Ok(())
}

/// Opens the base with a queue for `questions` requests.
fn open_service(args: &Args, personas: Personas, questions: usize) -> anyhow::Result<Service> {
    let located = args.base.locate()?;
    let settings = Settings {
        engine: EngineConfig {
            max_queue: questions,
            ..EngineConfig::default()
        },
        ..located.settings(&args.precision, &args.device)?
    };
    Ok(Service::open(&located.path, personas, &settings)?)
}
