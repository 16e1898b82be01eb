//! `lory train`: adapters of one persona, of several in one run, or of a data file.

mod lr_find;
mod plan;
mod preference;
mod settings;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use bytesize::ByteSize;

use registry::Personas;
use serde_json::json;
use train::job::{DataReport, JobSpec};
use train::sft::{self, Outcome, RunOptions};
use train::{Job, TrainSettings};

use super::base::{BaseArgs, PrecisionArgs, open_device};
use super::personas::PersonasArgs;
use super::rows::{ColumnsArgs, notes};
use super::serve::size;
use super::{Usage, Verdict, print};
use base::Base;
use base::memory::{self, Available, Limit};
use base::plan::Demand;
use jobs::training::folder::{self, Origin};
use jobs::training::plan::Plan;
use jobs::training::{Target, learner};
use preference::PreferenceArgs;
use settings::SettingsArgs;
use watch::Watcher;

/// Train an adapter: of one persona, of several in one run, or of a data file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same command after an interruption (Ctrl-C) goes on where it was. Flags win over a persona's [train] table.

Examples:
  lory train --persona customer --persona partner
  lory train --persona customer --plan
  lory train --persona customer --lr-find
  lory train --persona customer --prefer-over partner --from personas/customer/adapter
  lory train --data mine.jsonl --eval held-out.jsonl --out my-adapter --epochs 2")]
pub(super) struct Args {
    /// Train this persona from its persona.toml; several share batches
    #[arg(long = "persona", value_name = "NAME", conflicts_with_all = ["data", "eval", "out", "system_prompt"])]
    who: Vec<String>,
    #[command(flatten)]
    personas: PersonasArgs,
    /// Train on this JSONL file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "who",
        requires = "out"
    )]
    data: Option<PathBuf>,
    /// Rows that choose the best checkpoint [default: some of the training rows are held out]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// The adapter's folder
    #[arg(long, value_name = "DIR", requires = "data")]
    out: Option<PathBuf>,
    /// The system prompt of rows that bring none
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    columns: ColumnsArgs,
    #[command(flatten)]
    preference: PreferenceArgs,
    /// Print what the run would do, need and take, and stop; takes one step to measure it
    #[arg(long)]
    plan: bool,
    /// Try learning rates in a short sweep over the training rows, print what each does and which to take, draw
    /// lr-find.svg in the adapter's folder, and stop; nothing is trained
    #[arg(long, conflicts_with = "plan")]
    lr_find: bool,
    /// The memory that the run may take beside the base and the rows [default: what is free, or left under the control
    /// group's limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<ByteSize>,
    /// Print the summary, or the plan, as one JSON object
    #[arg(long)]
    json: bool,
}

/// What the command line asks for: what to train, and where the run's state lies.
struct Order {
    targets: Vec<Target>,
    checkpoint: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let Order {
        targets,
        checkpoint,
    } = order(&args)?;
    let located = args.base.locate()?;
    // What the run takes beside the base is planned below, from its rows.
    let beside = Demand {
        kv_memory: 0,
        adapter_memory: 0,
        rows: 0,
        logit_rows: 0,
        ..Demand::default()
    };
    let planned = located.planned(&args.precision, beside)?;
    eprintln!("{}", planned.line);
    let name = located.name.as_deref();
    let base = Base::open_in(&located.path, name, open_device(None)?, &planned.load)?;
    let fingerprint = located.fingerprint()?;

    let mut jobs = Vec::new();
    for target in &targets {
        jobs.push(load(target, &base, &checkpoint)?);
    }
    for (job, target) in jobs.iter().zip(&targets) {
        if let Some(preference) = &job.preference {
            preference::tell(&target.name, &job.settings, &preference.counts);
        }
        for note in notes(job) {
            eprintln!("{note}");
        }
    }

    let loaded: Vec<DataReport> = jobs.iter().map(|job| job.data.clone()).collect();
    let options = RunOptions {
        base: base.bound(&fingerprint),
        checkpoint: Some(checkpoint.clone()),
        ..RunOptions::default()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut learner = learner(&base);
    if args.lr_find {
        stop_on_signal(&stop)?;
        return lr_find::run(&jobs, &targets, &options, &mut learner, &stop, args.json);
    }
    // Looked at before anything of the run is there.
    let (in_use, available) = (memory::in_use(), available(args.memory));
    let prepared = sft::prepare(jobs, &options)?;
    let forecast = prepared.estimate(base.model.config());
    let mut plan = Plan::new(forecast, in_use, available);
    learner.keep(plan.keep);
    if args.plan {
        if plan.check().is_ok()
            && let Some(step) = prepared.measure(&mut learner, &stop)?
        {
            plan.measured(step);
        }
        return show(&plan, args.json);
    }
    eprint!("{}", plan::table(&plan));
    plan.check()?;

    stop_on_signal(&stop)?;
    for target in &targets {
        preference::keep(target, &checkpoint)?;
    }
    let folder = checkpoint.parent().unwrap_or(Path::new("."));
    let mut watcher = Watcher::new(&targets, &checkpoint, plan);
    match prepared.train(&mut learner, &mut watcher, &stop)? {
        Outcome::Interrupted { step, steps, .. } => {
            watcher.clear();
            eprintln!(
                "interrupted after step {step} of {steps}; the same command goes on from there (checkpoint: {})",
                checkpoint.display()
            );
            Ok(Verdict::Bad)
        }
        Outcome::Finished(trained) => {
            watcher.clear();
            let origin = Origin {
                base: &base,
                known: located.name.as_deref(),
                sha256: &fingerprint,
            };
            for ((trained, target), loaded) in trained.iter().zip(&targets).zip(&loaded) {
                folder::write(trained, target, loaded, &origin).with_context(|| {
                    format!(
                        "cannot write the adapter of {}; all that was trained is kept in {}: make room in {} or let it be \
                         written, then run the same command again",
                        target.name,
                        checkpoint.display(),
                        target.out.display()
                    )
                })?;
            }
            // The adapters are on the disk; a checkpoint that stays would only be taken up for nothing.
            std::fs::remove_file(&checkpoint).ok();
            for target in &targets {
                preference::finished(target, &checkpoint);
            }
            if folder.file_name().is_some_and(|name| name == STATE) {
                std::fs::remove_dir(folder).ok();
            }
            let summary = watcher.summary(&trained, &targets);
            let text = if args.json {
                format!("{}\n", json!(summary))
            } else {
                summary.table()
            };
            print(&text)?;
            Ok(Verdict::Good)
        }
    }
}

/// What the run may take.
fn available(flag: Option<ByteSize>) -> Option<Available> {
    let of_flag = |bytes: ByteSize| Available {
        bytes: bytes.as_u64(),
        limit: Limit::Flag,
    };
    flag.map(of_flag).or_else(memory::available)
}

/// Prints the plan; an error where it does not fit.
fn show(plan: &Plan, json: bool) -> anyhow::Result<Verdict> {
    let text = if json {
        format!("{}\n", json!(plan))
    } else {
        let time = plan::time(plan).map_or_else(String::new, |time| format!("\n{time}\n"));
        format!("{}{time}", plan::table(plan))
    };
    print(&text)?;
    plan.check()?;
    Ok(Verdict::Good)
}

/// The folder of a run's state, hidden beside what it trains.
const STATE: &str = ".train";

fn order(args: &Args) -> anyhow::Result<Order> {
    if let (Some(data), Some(out)) = (&args.data, &args.out) {
        let name = std::path::absolute(out)?.file_name().map_or_else(
            || "adapter".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let settings = args
            .columns
            .over(args.settings.over(TrainSettings::default()))?;
        let settings = args.preference.over(&name, data, settings)?;
        let rejects = settings
            .preference
            .as_ref()
            .is_some_and(|p| !p.against.is_empty());
        let siblings = if rejects {
            preference::siblings(&settings, &args.personas.open()?)?
        } else {
            Vec::new()
        };
        let target = Target {
            name,
            data: data.clone(),
            eval: args.eval.clone(),
            system_prompt: args.system_prompt.clone(),
            settings,
            siblings,
            from: args.preference.from().cloned(),
            out: out.clone(),
        };
        let checkpoint = out.join(STATE).join("checkpoint.safetensors");
        return Ok(Order {
            targets: vec![target],
            checkpoint,
        });
    }
    let dir = args.personas.find()?;
    let personas = Personas::open(&dir)?;
    let mut targets: Vec<Target> = Vec::new();
    for who in &args.who {
        if targets.iter().any(|target| target.name == *who) {
            return Err(Usage(format!("--persona {who} stands twice")).into());
        }
        targets.push(persona(&personas, who, args)?);
    }
    let mut names = args.who.join("+");
    // A file's name has a limit, and any of them will do that this run alone has.
    names.truncate(200);
    Ok(Order {
        targets,
        checkpoint: dir.join(STATE).join(format!("{names}.safetensors")),
    })
}

fn persona(personas: &Personas, who: &str, args: &Args) -> anyhow::Result<Target> {
    let parts =
        registry::spec::parse(who).map_err(|error| Usage(format!("--persona {who}: {error}")))?;
    let [part] = parts.as_slice() else {
        return Err(Usage(format!(
            "--persona {who}: a blend is not trained; name its parts one by one"
        ))
        .into());
    };
    if part.scale.is_some() || part.version.is_some() {
        return Err(Usage(format!("--persona {who}: training takes a name alone")).into());
    }
    let persona = personas.find(part)?;
    let Some(train) = &persona.train else {
        anyhow::bail!(
            "{}: persona {who} has no [train] table; add one with data = \"train.jsonl\"",
            persona.dir.join(registry::persona_file::FILE).display()
        );
    };
    let settings = args.columns.over(args.settings.over(train.settings()?))?;
    let settings = args.preference.over(who, &train.data, settings)?;
    Ok(Target {
        name: persona.name.clone(),
        data: train.data.clone(),
        eval: train.eval.clone(),
        system_prompt: persona.system_prompt_by_default()?,
        siblings: preference::siblings(&settings, personas)?,
        from: args.preference.from().cloned(),
        settings,
        out: persona.dir.join(registry::personas::ADAPTER),
    })
}

fn load(target: &Target, base: &Base, checkpoint: &Path) -> anyhow::Result<Job> {
    let source = JobSpec {
        name: &target.name,
        train: &target.data,
        validation: target.eval.as_deref(),
        system: target.system_prompt.as_deref(),
        settings: target.settings.clone(),
        metrics: Some(target.out.join("metrics.jsonl")),
    };
    let (config, tokenizer, template) = (base.model.config(), &base.tokenizer, &base.template);
    let mut job = if target.settings.preference.is_some() {
        train::Job::load_pairs(source, &target.siblings, config, tokenizer, template)?
    } else {
        Job::load(source, config, tokenizer, template)?
    };
    preference::start(&mut job, target, checkpoint, base)?;
    Ok(job)
}

/// The first signal ends the run after its step, with a checkpoint; the second one ends the process.
fn stop_on_signal(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let stop = Arc::clone(stop);
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\nstopping after this step, to keep what is done; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")
}
