//! `lory train --lr-find`: tries learning rates, prints and plots the losses, and suggests one. No adapter is written.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use formats::{atomic_file, disk};
use serde::Serialize;
use serde_json::json;
use train::lr_find::{LrSweep, LrSweepResult, lr_find};
use train::plot::{LrCurve, lr_curve};
use train::trainer::RunOptions;
use train::{ModelLearner, TrainTask};

use crate::cli::exit::ExitStatus;
use crate::cli::output::print;
use crate::cli::output::table::Table;
use base::progress::Progress;
use jobs::training::Target;

/// The plot, in the adapter's folder.
const FILE: &str = "lr-find.svg";

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: &'a LrSweepResult,
    /// The path of the plot.
    svg: String,
}

/// Sweeps over the learning rates for each task.
pub(crate) fn run(
    tasks: &[TrainTask],
    targets: &[Target],
    options: &RunOptions,
    learner: &mut ModelLearner,
    stop: &AtomicBool,
    as_json: bool,
) -> anyhow::Result<ExitStatus> {
    let sweep = LrSweep::default();
    let stop = || stop.load(Ordering::Relaxed);
    let mut reports = Vec::new();
    let mut sweeps: Vec<(LrSweepResult, PathBuf)> = Vec::new();
    for (task, target) in tasks.iter().zip(targets) {
        let mut progress = Progress::stderr();
        progress.count(
            &format!("{}: trying learning rates", task.name),
            sweep.steps as u64,
        );
        let found = lr_find(
            task,
            sweep,
            options.batch_tokens,
            learner,
            &mut |_| progress.add(1),
            &stop,
        )?;
        progress.clear();
        let Some(found) = found else {
            eprintln!("interrupted; the same command restarts the sweep");
            return Ok(ExitStatus::Failure);
        };
        let svg = target.out.join(FILE);
        let curve = LrCurve {
            name: found.name.clone(),
            points: found.points.iter().map(|p| (p.lr, p.change)).collect(),
            suggestion: found.suggestion,
        };
        let page = lr_curve(&format!("{}: learning rates", found.name), &[curve]);
        disk::create_folders(&target.out)
            .and_then(|()| atomic_file::replace(&svg, |file| file.write_all(page.as_bytes())))
            .with_context(|| format!("cannot write {}", svg.display()))?;
        sweeps.push((found, svg));
    }
    for (found, svg) in &sweeps {
        reports.push(Report {
            found,
            svg: svg.display().to_string(),
        });
    }
    let text = if as_json {
        format!("{}\n", json!({ "adapters": reports }))
    } else {
        let texts: Vec<String> = reports.iter().map(Report::text).collect();
        texts.join("\n")
    };
    print(&text)?;
    let all = reports
        .iter()
        .all(|report| report.found.suggestion.is_some());
    Ok(if all {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    })
}

impl Report<'_> {
    /// The table, the suggestion and the path of the plot.
    fn text(&self) -> String {
        let mut table = Table::new(&["learning rate", "loss", "loss at start", "change"]);
        for point in &self.found.points {
            table.row([
                format!("{:.1e}", point.lr),
                format!("{:.4}", point.loss),
                format!("{:.4}", point.start_loss),
                format!("{:.4}", point.change),
            ]);
        }
        let name = &self.found.name;
        let end = match (self.found.suggestion, self.found.lowest) {
            (Some(lr), Some(lowest)) => format!(
                "{name}: the loss is lowest at {lowest:.1e}; train with a tenth of that: --lr {lr:e} (lr = {lr:e} in \
                 [train])"
            ),
            _ => format!(
                "{name}: no learning rate lowers the loss by 1%; check the rows, or use a larger rank or more \
                 target_modules"
            ),
        };
        format!("{name}\n{}\n{end}\n{}\n", table.render(), self.svg)
    }
}
