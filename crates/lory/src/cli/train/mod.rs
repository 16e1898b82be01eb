//! `lory train`: trains adapters of one persona, of several in one run, or from a dataset file.
//!
//! - `targets`: the adapters that the command line asks for; `settings`, `preference`: the flags of settings
//! - `plan`: the tables of the plan; `observer`: progress and summary; `next_steps`: the commands that use what was trained
//! - `out_folder`: what may be replaced in the folder of `--out`; `lr_find`: the sweep of `--lr-find`

mod lr_find;
mod next_steps;
mod observer;
mod out_folder;
mod plan;
mod preference;
mod settings;
mod targets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use bytesize::ByteSize;
use formats::disk;
use serde_json::json;
use train::task::{DataReport, TrainTaskSpec};
use train::trainer::{self, Outcome, PreparedRun, RunOptions, TrainedAdapter};
use train::{ModelLearner, TrainTask};

use base::Base;
use base::memory::{self, AvailableMemory, MemoryLimit};
use base::plan::PlanRequest;
use jobs::training::folder::{self, Origin};
use jobs::training::plan::Plan;
use jobs::training::{Target, learner};

use crate::cli::exit::{ExitStatus, UsageError};

use crate::cli::flags::base::{BaseArgs, Located, PrecisionArgs, RequestedDevice, open_device};
use crate::cli::flags::dataset::{ColumnsArgs, notes};
use crate::cli::flags::personas::PersonasArgs;
use crate::cli::flags::units::memory_size;
use crate::cli::output::print;
use observer::ProgressObserver;
use out_folder::RUN_FOLDER;
use preference::PreferenceArgs;
use settings::SettingsArgs;
use targets::{TargetArgs, Targets};

/// Train adapters: of one persona, of several in one run, or from a dataset file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
After an interruption (Ctrl-C), the same command continues the run. Flags override a persona's [train] table.

Examples:
  lory train --persona customer --persona partner
  lory train --persona customer --plan
  lory train --persona customer --lr-find
  lory train --persona customer --prefer-over partner --from personas/customer/adapter
  lory train --data mine.jsonl --eval held-out.jsonl --out my-adapter --epochs 2")]
pub(crate) struct Args {
    /// Train this persona as its persona.toml says; may be given several times, and the personas share batches
    #[arg(long = "persona", value_name = "NAME", conflicts_with_all = ["data", "eval", "out", "system_prompt"])]
    names: Vec<String>,
    #[command(flatten)]
    personas: PersonasArgs,
    /// Train on this data file
    #[arg(long, value_name = "FILE", requires = "out")]
    data: Option<PathBuf>,
    /// Evaluation file that selects the best checkpoint [default: some of the training rows are held out]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// The folder to write the adapter to
    #[arg(long, value_name = "DIR", requires = "data")]
    out: Option<PathBuf>,
    /// The system prompt of rows that have none
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Print the steps, the memory and the duration of the run, and exit; trains one step to measure it
    #[arg(long)]
    plan: bool,
    /// Try learning rates in a short sweep over the training rows, print the losses and a suggestion, write lr-find.svg
    /// into the adapter's folder, and exit; no adapter is written
    #[arg(long, conflicts_with = "plan")]
    lr_find: bool,
    /// Maximum memory of the run, in addition to the base and the rows [default: the free memory, or what the control
    /// group's limit leaves]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    memory: Option<ByteSize>,
    /// Print the summary, or the plan, as one JSON object
    #[arg(long)]
    json: bool,
    // Last, because their headings would apply to the flags after them.
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    columns: ColumnsArgs,
    #[command(flatten)]
    preference: PreferenceArgs,
}

/// What to do if nothing to train on is named.
const NOTHING_NAMED: &str = "name what to train on with --data or --persona:
  lory data lint mine.jsonl                         checks a file of rows
  lory train --data mine.jsonl --out my-tone        trains an adapter on it
  lory train --persona customer                     trains a persona of the folder of personas
lory train --help has all flags";

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    if args.data.is_none() && args.names.is_empty() {
        return Err(UsageError(NOTHING_NAMED.to_owned()).into());
    }
    let Targets {
        targets,
        checkpoint,
    } = targets::targets(&TargetArgs {
        names: &args.names,
        personas: &args.personas,
        data: args.data.as_deref(),
        eval: args.eval.as_deref(),
        out: args.out.as_deref(),
        system_prompt: args.system_prompt.as_deref(),
        settings: &args.settings,
        columns: &args.columns,
        preference: &args.preference,
    })?;
    let located = args.base.locate()?;
    let base = open_base(&located, &args.precision)?;
    let fingerprint = located.fingerprint()?;
    let tasks = load_tasks(&targets, &base, &checkpoint)?;
    let run = Run {
        base: &base,
        known: located.name.as_deref(),
        fingerprint: &fingerprint,
        targets: &targets,
        checkpoint: &checkpoint,
        data: tasks.iter().map(|task| task.data.clone()).collect(),
    };
    let options = RunOptions {
        base: base.run_identity(&fingerprint),
        checkpoint: Some(checkpoint.clone()),
        ..RunOptions::default()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut learner = learner(&base);
    if args.lr_find {
        stop_on_signal(&stop)?;
        return lr_find::run(&tasks, &targets, &options, &mut learner, &stop, args.json);
    }
    // Measured before the run allocates memory.
    let (in_use, available) = (memory::in_use(), available(args.memory));
    let prepared = trainer::prepare(tasks, &options)?;
    let forecast = prepared.estimate(base.model.config());
    let mut plan = Plan::new(forecast, in_use, available);
    learner.set_activation_cache(plan.keep);
    if args.plan {
        if plan.check().is_ok()
            && let Some(step) = prepared.measure(&mut learner, &stop)?
        {
            plan.measured(step);
        }
        return print_plan(&plan, args.json);
    }
    eprint!("{}", plan::table(&plan));
    plan.check()?;
    stop_on_signal(&stop)?;
    let status = train(&run, prepared, plan, &mut learner, &stop, args.json)?;
    if status == ExitStatus::Success && !args.json {
        for line in next_steps::lines(&targets, args.data.is_some(), &args.base.base) {
            eprintln!("{line}");
        }
    }
    Ok(status)
}

/// What a run trains, and on what.
struct Run<'a> {
    base: &'a Base,
    /// The id of the base, if it is a known one.
    known: Option<&'a str>,
    /// The SHA-256 of the base, in hex.
    fingerprint: &'a str,
    targets: &'a [Target],
    checkpoint: &'a Path,
    /// The rows of each target.
    data: Vec<DataReport>,
}

/// Opens the base without memory for serving: the run's memory is planned later, from its rows.
fn open_base(located: &Located, precision: &PrecisionArgs) -> anyhow::Result<Base> {
    let no_serving = PlanRequest {
        kv_memory: 0,
        adapter_memory: 0,
        train_memory: Some(0),
        rows: 0,
        logit_rows: 0,
        ..PlanRequest::default()
    };
    let planned = located.plan(precision, RequestedDevice::CPU, no_serving)?;
    eprintln!("{}", planned.line);
    let name = located.name.as_deref();
    Ok(Base::open_with(
        &located.path,
        name,
        open_device(None)?,
        &planned.load,
    )?)
}

/// Reads the rows of all targets, and reports on stderr what is left out.
fn load_tasks(
    targets: &[Target],
    base: &Base,
    checkpoint: &Path,
) -> anyhow::Result<Vec<TrainTask>> {
    let mut tasks = Vec::new();
    for target in targets {
        tasks.push(load(target, base, checkpoint)?);
    }
    for (task, target) in tasks.iter().zip(targets) {
        if let Some(preference) = &task.preference {
            preference::report_pairs(&target.name, &task.settings, &preference.counts);
        }
        for note in notes(task) {
            eprintln!("{note}");
        }
    }
    Ok(tasks)
}

/// Trains until the end or the first signal, and writes the adapters.
fn train(
    run: &Run<'_>,
    prepared: PreparedRun<'_>,
    plan: Plan,
    learner: &mut ModelLearner,
    stop: &AtomicBool,
    as_json: bool,
) -> anyhow::Result<ExitStatus> {
    // Before any other file: it marks the folder as one of an unfinished run.
    if let Some(folder) = run.checkpoint.parent() {
        disk::create_folders(folder).with_context(|| {
            format!(
                "cannot write {}; make its folder writable, then run the same command again",
                folder.display()
            )
        })?;
    }
    for target in run.targets {
        preference::save_start(target, run.checkpoint)?;
    }
    let mut observer = ProgressObserver::new(run.targets, run.checkpoint, plan);
    let outcome = prepared.train(learner, &mut observer, stop)?;
    observer.clear();
    match outcome {
        Outcome::Interrupted { step, steps, .. } => {
            eprintln!(
                "interrupted after step {step} of {steps}; the same command continues from there (checkpoint: {})",
                run.checkpoint.display()
            );
            Ok(ExitStatus::Failure)
        }
        Outcome::Finished(trained) => {
            write_adapters(run, &trained)?;
            let summary = observer.summary(&trained, run.targets);
            let text = if as_json {
                format!("{}\n", json!(summary))
            } else {
                summary.table()
            };
            print(&text)?;
            Ok(ExitStatus::Success)
        }
    }
}

/// Writes the trained adapters, then removes the run's files.
fn write_adapters(run: &Run<'_>, trained: &[TrainedAdapter]) -> anyhow::Result<()> {
    let origin = Origin {
        base: run.base,
        known_base: run.known,
        sha256: run.fingerprint,
    };
    for ((trained, target), data) in trained.iter().zip(run.targets).zip(&run.data) {
        folder::write(trained, target, data, &origin).with_context(|| {
            format!(
                "cannot write the adapter of {}; the trained weights are kept in {}: free space in {} or make it \
                 writable, then run the same command again",
                target.name,
                run.checkpoint.display(),
                target.out.display()
            )
        })?;
    }
    // The adapters are on disk, so the same command would only resume a finished run.
    disk::remove_file(run.checkpoint).ok();
    for target in run.targets {
        preference::remove_start(target, run.checkpoint);
    }
    let folder = run.checkpoint.parent().unwrap_or(Path::new("."));
    if folder.file_name().is_some_and(|name| name == RUN_FOLDER) {
        std::fs::remove_dir(folder).ok();
    }
    Ok(())
}

/// The memory that the run may use.
fn available(flag: Option<ByteSize>) -> Option<AvailableMemory> {
    let of_flag = |bytes: ByteSize| AvailableMemory {
        bytes: bytes.as_u64(),
        limit: MemoryLimit::Flag,
    };
    flag.map(of_flag).or_else(memory::available)
}

/// Prints the plan. It is an error if the plan does not fit into memory.
fn print_plan(plan: &Plan, json: bool) -> anyhow::Result<ExitStatus> {
    let text = if json {
        format!("{}\n", json!(plan))
    } else {
        let time = plan::time(plan).map_or_else(String::new, |time| format!("\n{time}\n"));
        format!("{}{time}", plan::table(plan))
    };
    print(&text)?;
    plan.check()?;
    Ok(ExitStatus::Success)
}

/// Reads the rows of a target, and the adapter that it starts from.
fn load(target: &Target, base: &Base, checkpoint: &Path) -> anyhow::Result<TrainTask> {
    let spec = TrainTaskSpec {
        name: &target.name,
        train: &target.data,
        validation: target.eval.as_deref(),
        system: target.system_prompt.as_deref(),
        settings: target.settings.clone(),
        metrics: Some(target.out.join("metrics.jsonl")),
        max_bytes: usize::MAX,
        stop: &dataset::stop::NEVER,
    };
    let (config, tokenizer, template) = (base.model.config(), &base.tokenizer, &base.template);
    let mut task = if target.settings.preference.is_some() {
        train::TrainTask::load_pairs(spec, &target.siblings, config, tokenizer, template)?
    } else {
        TrainTask::load(spec, config, tokenizer, template)?
    };
    preference::load_start(&mut task, target, checkpoint, base)?;
    Ok(task)
}

/// The first signal stops the run after the current step, with a checkpoint. The second one ends the process.
fn stop_on_signal(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let stop = Arc::clone(stop);
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\nstopping after this step with a checkpoint; press Ctrl-C again to stop now");
    })
    .context("cannot listen for Ctrl-C")
}
