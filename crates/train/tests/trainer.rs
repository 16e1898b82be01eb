//! The training loop with a toy learner: its guarantees about steps, tokens, other adapters and the best parameters.

mod toy;

use std::sync::atomic::AtomicBool;

use toy::{Notes, Toy, rows, task};
use train::measures::loss_table;
use train::metrics::{MetricsRecord, parse_metrics};
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};
use train::{LoraParams, TrainError, TrainSettings, TrainTask};

fn run_with(
    tasks: Vec<TrainTask>,
    options: &RunOptions,
    learner: &mut Toy,
    notes: &mut Notes,
) -> Result<Outcome, TrainError> {
    train(tasks, options, learner, notes, &AtomicBool::new(false))
}

fn run(tasks: Vec<TrainTask>) -> Vec<TrainedAdapter> {
    match run_with(
        tasks,
        &RunOptions::default(),
        &mut Toy::default(),
        &mut Notes::default(),
    )
    .unwrap()
    {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { .. } => panic!("the run was interrupted"),
    }
}

fn close(a: &LoraParams, b: &LoraParams, within: f32) -> bool {
    let flat = |params: &LoraParams| {
        train::params::tensors(params)
            .flatten()
            .copied()
            .collect::<Vec<f32>>()
    };
    flat(a)
        .iter()
        .zip(flat(b))
        .all(|(a, b)| (a - b).abs() <= within)
}

/// Equal except for the last bit of a loss, because sums of micro-batches are added up.
fn assert_metrics_close(a: &str, b: &str) {
    let (a, b) = (parse_metrics(a), parse_metrics(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.into_iter().zip(b) {
        let (mut a, mut b) = (a, b);
        let mut losses = [0.0; 2];
        for (record, seen) in [&mut a, &mut b].into_iter().zip(&mut losses) {
            match record {
                MetricsRecord::Step { loss, .. } | MetricsRecord::Validation { loss, .. } => {
                    *seen = std::mem::take(loss)
                }
            }
        }
        assert!((losses[0] - losses[1]).abs() < 1e-14, "{losses:?}");
        assert_eq!(a, b);
    }
}

#[test]
fn run_learns_validates_each_epoch_and_reports() {
    let (mut learner, mut notes) = (Toy::default(), Notes::default());
    let outcome = run_with(
        vec![task("one", 22, 0)],
        &RunOptions::default(),
        &mut learner,
        &mut notes,
    )
    .unwrap();
    let Outcome::Finished(trained) = outcome else {
        panic!("unfinished")
    };
    let plan = notes.plan.unwrap();
    assert_eq!(
        (
            plan.steps,
            plan.adapters[0].steps_per_epoch,
            plan.adapters[0].rows
        ),
        (18, 6, 22)
    );
    assert_eq!((notes.steps.len(), notes.finished), (18, Some(18)));
    assert_eq!(
        notes
            .validations
            .iter()
            .map(|v| (v.1.step, v.1.epoch))
            .collect::<Vec<_>>(),
        [(6, 1), (12, 2), (18, 3)]
    );
    assert!(notes.validations[2].1.loss < notes.validations[0].1.loss);
    assert!(notes.checkpoints.is_empty());
    let lines = parse_metrics(&trained[0].metrics);
    assert_eq!(lines.len(), 18 + 3);
    let losses: Vec<f64> = notes.steps.iter().map(|s| s.adapters[0].loss).collect();
    assert!(losses[15..].iter().sum::<f64>() < losses[..3].iter().sum::<f64>());
    // Every row is seen once an epoch.
    let mut seen: Vec<u32> = learner.batches[..6]
        .concat()
        .iter()
        .map(|row| row.1)
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..22).collect::<Vec<_>>());
}

#[test]
fn accumulation_equals_the_large_batch_by_tokens() {
    let with = |batch_rows, gradient_accumulation| {
        let mut task = task("one", 24, 0);
        task.settings = TrainSettings {
            batch_rows,
            gradient_accumulation,
            ..task.settings
        };
        run(vec![task]).remove(0)
    };
    let (large, small, tiny) = (with(8, 1), with(2, 4), with(1, 8));
    // The toy adds row by row in the same order, so even the bits agree.
    assert_eq!(large.params, small.params);
    assert_eq!(large.params, tiny.params);
    assert_metrics_close(&large.metrics, &small.metrics);
    // Weighing by micro-batch would differ: the rows have between 1 and 8 trained tokens.
    assert!(
        rows(24, 0)
            .iter()
            .any(|row| row.trained_tokens() != rows(1, 0)[0].trained_tokens())
    );
}

#[test]
fn batch_tokens_limit_does_not_change_the_result() {
    let with = |batch_tokens| {
        let mut learner = Toy::default();
        let options = RunOptions {
            batch_tokens,
            ..RunOptions::default()
        };
        let outcome = run_with(
            vec![task("one", 24, 0)],
            &options,
            &mut learner,
            &mut Notes::default(),
        )
        .unwrap();
        let Outcome::Finished(mut trained) = outcome else {
            panic!("unfinished")
        };
        (learner.steps, trained.remove(0))
    };
    let ((few, whole), (many, cut)) = (with(0), with(12));
    assert!(many > few * 2, "{many} {few}");
    assert_eq!(whole.params, cut.params);
    assert_metrics_close(&whole.metrics, &cut.metrics);
}

#[test]
fn adapters_trained_together_equal_those_trained_alone() {
    let second = || {
        let mut task = task("two", 50, 500);
        task.settings = TrainSettings {
            seed: 7,
            batch_rows: 3,
            gradient_accumulation: 2,
            epochs: 2,
            lr: Some(0.05),
            ..task.settings
        };
        task
    };
    let (mut learner, mut notes) = (Toy::default(), Notes::default());
    let tasks = vec![task("one", 22, 0), second()];
    let outcome = run_with(tasks, &RunOptions::default(), &mut learner, &mut notes).unwrap();
    let Outcome::Finished(together) = outcome else {
        panic!("unfinished")
    };
    assert_eq!(together[0], run(vec![task("one", 22, 0)])[0]);
    assert_eq!(together[1], run(vec![second()])[0]);
    assert_eq!((together[0].steps, together[1].steps), (18, 18));
    let shared = |batch: &&Vec<(usize, u32)>| {
        [0, 1]
            .iter()
            .all(|adapter| batch.iter().any(|row| row.0 == *adapter))
    };
    assert_eq!(learner.batches.iter().filter(shared).count(), 18);
}

#[test]
fn finished_adapter_is_not_trained_further() {
    let mut notes = Notes::default();
    let mut short = task("short", 8, 500);
    short.settings.epochs = 1;
    let tasks = vec![task("one", 22, 0), short.clone()];
    let outcome = run_with(
        tasks,
        &RunOptions::default(),
        &mut Toy::default(),
        &mut notes,
    )
    .unwrap();
    let Outcome::Finished(trained) = outcome else {
        panic!("unfinished")
    };
    assert_eq!(notes.steps[1].adapters.len(), 2);
    assert_eq!(notes.steps[2].adapters.len(), 1);
    assert_eq!(notes.steps[17].step, 18);
    assert_eq!(trained[1], run(vec![short])[0]);
}

#[test]
fn best_parameters_are_kept_instead_of_the_last() {
    let task = toy::overshooting("one");
    let mut notes = Notes::default();
    let options = RunOptions::default();
    let outcome = run_with(
        vec![task.clone()],
        &options,
        &mut Toy::default(),
        &mut notes,
    )
    .unwrap();
    let Outcome::Finished(trained) = outcome else {
        panic!("unfinished")
    };
    let losses: Vec<f64> = notes.validations.iter().map(|v| v.1.loss).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = trained[0].best.unwrap();
    assert_eq!(best.loss, lowest);
    assert!(
        *losses.last().unwrap() > lowest,
        "the last was the best: {losses:?}"
    );
    // The kept parameters are those of that epoch: a run that ends there has the same ones.
    let mut shorter = task;
    shorter.settings.max_steps = Some(best.step);
    shorter.validation.clear();
    assert_eq!(run(vec![shorter])[0].params, trained[0].params);
}

#[test]
fn early_stopping_stops_one_adapter_only() {
    let impatient = || {
        let mut task = toy::overshooting("impatient");
        task.settings.validate_every = 2;
        task.settings.patience = 2;
        task
    };
    let losses = |trained: &TrainedAdapter| -> Vec<(u64, f64, bool)> {
        let validation = |record: &MetricsRecord| match *record {
            MetricsRecord::Validation {
                step, loss, best, ..
            } => Some((step, loss, best)),
            MetricsRecord::Step { .. } => None,
        };
        parse_metrics(&trained.metrics)
            .iter()
            .filter_map(validation)
            .collect()
    };
    let mut notes = Notes::default();
    let outcome = run_with(
        vec![impatient(), task("one", 22, 0)],
        &RunOptions::default(),
        &mut Toy::default(),
        &mut notes,
    )
    .unwrap();
    let Outcome::Finished(trained) = outcome else {
        panic!("unfinished")
    };
    let seen = losses(&trained[0]);
    let [.., best, (_, _, false), (last, _, false)] = seen[..] else {
        panic!("{seen:?}")
    };
    assert!(best.2 && last < 18, "{seen:?}");
    // Three steps an epoch and a validation every second step: when both fall on a step, it is validated once.
    let steps: Vec<u64> = seen.iter().map(|seen| seen.0).collect();
    assert_eq!(
        steps,
        [2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18][..steps.len()]
    );
    assert_eq!(notes.stopped_early, [(0, last)]);
    assert_eq!((trained[0].steps, trained[0].stopped_early), (last, true));
    assert_eq!(trained[0].best.unwrap().step, best.0);
    assert_eq!((trained[1].steps, trained[1].stopped_early), (18, false));
    assert_eq!(notes.steps.len(), 18);
    // Trained alone, the result is the same and the run ends there.
    let alone = run(vec![impatient()]).remove(0);
    assert_eq!(alone, trained[0]);
    // A patience longer than the run does not stop it.
    let mut patient = impatient();
    patient.settings.patience = 100;
    assert_eq!(run(vec![patient])[0].steps, 18);
}

#[test]
fn last_parameters_are_kept_without_validation_rows() {
    let mut task = task("one", 22, 0);
    task.validation.clear();
    let trained = run(vec![task]).remove(0);
    assert!(trained.best.is_none());
    assert!(!close(&trained.params, &toy::params(), 1e-3));
}

#[test]
fn run_with_a_step_limit_is_validated_at_its_end() {
    let mut task = task("one", 22, 0);
    task.settings.max_steps = Some(8);
    let mut notes = Notes::default();
    run_with(
        vec![task],
        &RunOptions::default(),
        &mut Toy::default(),
        &mut notes,
    )
    .unwrap();
    assert_eq!(
        notes
            .validations
            .iter()
            .map(|v| (v.1.step, v.1.epoch))
            .collect::<Vec<_>>(),
        [(6, 1), (8, 2)]
    );
}

#[test]
fn clipping_bounds_the_step_and_metrics_report_the_norm_before_clipping() {
    let mut clipped = task("one", 22, 0);
    clipped.settings.clip = 1e-3;
    let trained = run(vec![clipped]).remove(0);
    let norms: Vec<f64> = parse_metrics(&trained.metrics)
        .iter()
        .filter_map(|r| match r {
            MetricsRecord::Step { grad_norm, .. } => Some(*grad_norm),
            MetricsRecord::Validation { .. } => None,
        })
        .collect();
    assert!(norms.iter().all(|n| *n > 1e-3), "{norms:?}");
    assert_ne!(trained.params, run(vec![task("one", 22, 0)])[0].params);
}

#[test]
fn invalid_tasks_are_rejected_before_the_run_starts() {
    let refusal = |tasks: Vec<TrainTask>| {
        let mut learner = Toy::default();
        let error = run_with(
            tasks,
            &RunOptions::default(),
            &mut learner,
            &mut Notes::default(),
        )
        .unwrap_err();
        assert_eq!(learner.steps, 0);
        error.to_string()
    };
    let change = |change: fn(&mut TrainTask)| {
        let mut task = task("one", 6, 0);
        change(&mut task);
        vec![task]
    };
    assert!(refusal(vec![]).contains("no adapter to train"));
    assert!(
        refusal(vec![task("one", 6, 0), task("one", 6, 0)])
            .contains("two adapters are named `one`")
    );
    assert!(
        refusal(change(|task| task.train.clear()))
            .contains("adapter `one`: there are no training rows")
    );
    assert!(
        refusal(change(|task| task.train[3].loss_mask.fill(false)))
            .contains("row 4 has no token to train")
    );
    assert!(refusal(change(|task| task.settings.lr = None)).contains("`lr` is not set"));
    assert!(
        refusal(change(|task| {
            task.validation.clear();
            task.settings.patience = 1;
        }))
        .contains("`patience` counts validations")
    );
    assert!(refusal(change(|task| task.settings.dropout = 1.0)).contains("setting `dropout`"));
}

#[test]
fn diverged_loss_is_reported_with_the_adapter() {
    let mut learner = Toy {
        diverges_at: Some(5),
        ..Toy::default()
    };
    let result = run_with(
        vec![task("one", 22, 0)],
        &RunOptions::default(),
        &mut learner,
        &mut Notes::default(),
    );
    let error = result.unwrap_err().to_string();
    assert!(
        error.starts_with("adapter `one`, step 5: the loss is not a finite number"),
        "{error}"
    );
}

#[test]
fn loss_table_has_every_data_set_with_every_adapter() {
    let trained = run(vec![task("one", 22, 0)]).remove(0);
    let (seen, other) = (rows(22, 0), rows(9, 700));
    let start = toy::params();
    let adapters = [("start", &start), ("one", &trained.params)];
    let sets = [("seen", &seen[..]), ("other", &other[..])];
    let table = loss_table(&mut Toy::default(), &sets, &adapters, 20).unwrap();
    assert_eq!(
        (table.sets, table.adapters),
        (
            vec!["seen".into(), "other".into()],
            vec!["start".into(), "one".to_owned()]
        )
    );
    let tokens = |rows: &[train::Example]| {
        rows.iter()
            .map(train::Example::trained_tokens)
            .sum::<usize>()
    };
    for (losses, rows) in table.losses.iter().zip([&seen, &other]) {
        assert!(losses.iter().all(|loss| loss.tokens == tokens(rows)));
        assert!(losses[1].mean() < losses[0].mean());
        assert!(losses[1].perplexity() > 1.0);
    }
}
