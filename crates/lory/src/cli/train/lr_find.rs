//! `lory train --lr-find`: a table of rates, a picture, a suggestion. Nothing is trained.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use train::lr_find::{LrSweep, LrSweepResult, lr_find};
use train::plot::{LrCurve, lr_curve};
use train::sft::RunOptions;
use train::{Job, ModelLearner};

use crate::cli::table::Table;
use crate::cli::{Verdict, print};
use base::progress::Progress;
use jobs::training::Target;

/// The picture's name, in the adapter's folder.
const FILE: &str = "lr-find.svg";

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: &'a LrSweepResult,
    /// The picture.
    svg: String,
}

/// Sweeps over every job, one after the other.
pub(super) fn run(
    jobs: &[Job],
    targets: &[Target],
    options: &RunOptions,
    learner: &mut ModelLearner,
    stop: &AtomicBool,
    as_json: bool,
) -> anyhow::Result<Verdict> {
    let sweep = LrSweep::default();
    let stop = || stop.load(Ordering::Relaxed);
    let mut reports = Vec::new();
    let mut founds: Vec<(LrSweepResult, PathBuf)> = Vec::new();
    for (job, target) in jobs.iter().zip(targets) {
        let mut progress = Progress::stderr();
        progress.count(&format!("{}: trying rates", job.name), sweep.steps as u64);
        let found = lr_find(
            job,
            sweep,
            options.batch_tokens,
            learner,
            &mut |_| progress.add(1),
            &stop,
        )?;
        progress.clear();
        let Some(found) = found else {
            eprintln!("interrupted; the same command starts the sweep again");
            return Ok(Verdict::Bad);
        };
        let svg = target.out.join(FILE);
        let curve = LrCurve {
            name: found.name.clone(),
            points: found.points.iter().map(|p| (p.lr, p.change)).collect(),
            suggestion: found.suggestion,
        };
        std::fs::create_dir_all(&target.out)
            .and_then(|()| {
                let title = format!("{}: learning rates", found.name);
                std::fs::write(&svg, lr_curve(&title, &[curve]))
            })
            .with_context(|| format!("cannot write {}", svg.display()))?;
        founds.push((found, svg));
    }
    for (found, svg) in &founds {
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
    Ok(if all { Verdict::Good } else { Verdict::Bad })
}

impl Report<'_> {
    /// For people.
    fn text(&self) -> String {
        let mut table = Table::new(&["learning rate", "loss", "at the start", "change"]);
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
                "{name}: the loss is lowest at {lowest:.1e}; train with a tenth of that, --lr {lr:e} (lr = {lr:e} in \
                 [train])"
            ),
            _ => format!(
                "{name}: no rate lowers the loss by a hundredth of what it is; look at the rows, or give a larger rank \
                 or more target_modules"
            ),
        };
        format!("{name}\n{}\n{end}\n{}\n", table.render(), self.svg)
    }
}
