//! Shows the progress of a run on stderr, and its summary.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use train::estimate::MeasuredStep;
use train::preference::PreferenceStats;
use train::progress::{Observer, ReferenceProgress, RunPlan, StepMetrics, Validation};
use train::trainer::TrainedAdapter;

use super::plan;
use crate::cli::output::table::Table;
use base::progress::Progress;
use jobs::training::Target;
use jobs::training::plan::Plan;

/// Time between progress lines if stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows a run on stderr.
pub(crate) struct ProgressObserver {
    progress: Progress,
    names: Vec<String>,
    checkpoint: PathBuf,
    plan: Plan,
    rows: Vec<usize>,
    start: Instant,
    last_line: Option<Instant>,
    last_step: u64,
    tokens_per_s: f64,
}

impl ProgressObserver {
    pub fn new(targets: &[Target], checkpoint: &Path, plan: Plan) -> Self {
        Self {
            progress: Progress::stderr(),
            names: targets.iter().map(|target| target.name.clone()).collect(),
            checkpoint: checkpoint.to_owned(),
            plan,
            rows: Vec::new(),
            start: Instant::now(),
            last_line: None,
            last_step: 0,
            tokens_per_s: 0.0,
        }
    }

    pub fn clear(&self) {
        self.progress.clear();
    }

    pub fn summary(&self, trained: &[TrainedAdapter], targets: &[Target]) -> Summary {
        let one = |(i, (trained, target)): (usize, (&TrainedAdapter, &Target))| AdapterSummary {
            name: trained.name.clone(),
            rows: self.rows.get(i).copied().unwrap_or(0),
            steps: trained.steps,
            stopped_early: trained.stopped_early,
            best_epoch: trained.best.map(|best| best.epoch),
            validation_loss: trained.best.map(|best| best.loss),
            preference: trained.best.and_then(|best| best.preference),
            adapter: target.out.display().to_string(),
        };
        Summary {
            adapters: trained.iter().zip(targets).enumerate().map(one).collect(),
            seconds: self.start.elapsed().as_secs_f64(),
            tokens_per_s: self.tokens_per_s,
            plan: self.plan.clone(),
        }
    }
}

impl Observer for ProgressObserver {
    fn started(&mut self, plan: &RunPlan, resumed: Option<u64>) {
        for adapter in &plan.adapters {
            self.rows.push(adapter.rows);
        }
        if let Some(step) = resumed {
            self.progress.say(&format!(
                "resuming at step {step} of {}, from {}",
                plan.steps,
                self.checkpoint.display()
            ));
        }
        self.start = Instant::now();
        self.progress
            .custom("{pos}/{len} {wide_bar} {msg}", plan.steps);
        self.progress.set(resumed.unwrap_or(0));
    }

    fn reference(&mut self, adapter: usize, pairs: usize, from: ReferenceProgress<'_>) {
        let name = self.names.get(adapter).map_or("", String::as_str);
        let what = format!("{name}: log-probabilities of {pairs} pairs at the start");
        match from {
            ReferenceProgress::Read(path) => {
                self.progress
                    .say(&format!("{what}: from {}", path.display()));
            }
            ReferenceProgress::Damaged(path) => {
                let path = path.display();
                self.progress
                    .say(&format!("{path} is damaged and is computed again"));
            }
            ReferenceProgress::Computing { done: 0 } => self.progress.say(&what),
            ReferenceProgress::Computing { done } => {
                self.progress.message(format!("{what}: {done} done"));
            }
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        // The first step of this process gives the expected duration of the run.
        if self.tokens_per_s == 0.0 {
            self.plan.measured(MeasuredStep {
                tokens: metrics.tokens,
                seconds: metrics.tokens as f64 / metrics.tokens_per_s.max(1e-9),
            });
            self.progress
                .say(&plan::time(&self.plan).unwrap_or_default());
        }
        self.tokens_per_s = metrics.tokens_per_s;
        self.last_step = metrics.step;
        let name = |i: usize| self.names.get(i).map_or("", String::as_str);
        let losses: Vec<String> = metrics
            .adapters
            .iter()
            .map(|a| format!("{} {:.3}", name(a.adapter), a.loss))
            .collect();
        let message = format!(
            "loss {}  {:.0} tokens/s  {} left",
            losses.join(", "),
            metrics.tokens_per_s,
            indicatif::HumanDuration(metrics.eta)
        );
        self.progress.set(metrics.step);
        let due = self
            .last_line
            .is_none_or(|at| at.elapsed() >= LINE_INTERVAL)
            || metrics.step == metrics.steps;
        if !self.progress.is_terminal() && due {
            self.last_line = Some(Instant::now());
            eprintln!("step {}/{}  {message}", metrics.step, metrics.steps);
        }
        self.progress.message(message);
    }

    fn validating(&mut self, adapter: usize, rows: usize) {
        let name = self.names.get(adapter).map_or("", String::as_str);
        self.progress
            .message(format!("validating {name} on {rows} rows"));
    }

    fn stopped_early(&mut self, adapter: usize, step: u64) {
        let name = self.names.get(adapter).map_or("", String::as_str);
        self.progress.say(&format!(
            "{name}: stopped early at step {step}, because the validation loss has not improved for `patience` validations"
        ));
    }

    fn validated(&mut self, adapter: usize, validation: &Validation) {
        let name = self.names.get(adapter).map_or("", String::as_str);
        let best = if validation.best {
            ", the best so far"
        } else {
            ""
        };
        let pairs = validation.preference.map_or_else(String::new, |pairs| {
            format!(
                ", reward accuracy {:.1}% of {} pairs (margin {:.3})",
                pairs.accuracy * 100.0,
                pairs.pairs,
                pairs.margin
            )
        });
        self.progress.say(&format!(
            "{name}: validation loss {:.4} after epoch {} (step {}){pairs}{best}",
            validation.loss, validation.epoch, validation.step
        ));
    }
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    adapters: Vec<AdapterSummary>,
    seconds: f64,
    tokens_per_s: f64,
    plan: Plan,
}

#[derive(Debug, Serialize)]
struct AdapterSummary {
    name: String,
    rows: usize,
    steps: u64,
    stopped_early: bool,
    best_epoch: Option<u64>,
    validation_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preference: Option<PreferenceStats>,
    adapter: String,
}

impl Summary {
    /// The summary as a table.
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            "adapter",
            "rows",
            "steps",
            "best epoch",
            "validation loss",
            "written to",
        ]);
        for line in &self.adapters {
            table.row([
                line.name.clone(),
                line.rows.to_string(),
                line.steps.to_string(),
                line.best_epoch
                    .map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
                line.validation_loss
                    .map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")),
                line.adapter.clone(),
            ]);
        }
        let time = indicatif::HumanDuration(Duration::from_secs_f64(self.seconds));
        format!(
            "{}\ntrained for {time} at {:.0} tokens/s\n",
            table.render(),
            self.tokens_per_s
        )
    }
}
