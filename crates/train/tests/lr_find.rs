//! The learning rate sweep with a toy learner.

#[expect(dead_code, reason = "other tests use its records and tasks")]
mod toy;

use std::sync::atomic::AtomicBool;

use toy::{Notes, Toy, task};
use train::TrainTask;
use train::lr_find::{LrSweep, lr_find};
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};

fn run(task: TrainTask) -> TrainedAdapter {
    let outcome = train(
        vec![task],
        &RunOptions::default(),
        &mut Toy::default(),
        &mut Notes::default(),
        &AtomicBool::new(false),
    );
    match outcome.unwrap() {
        Outcome::Finished(mut trained) => trained.remove(0),
        Outcome::Interrupted { .. } => panic!("the run was interrupted"),
    }
}

#[test]
fn sweep_suggests_a_rate_and_does_not_change_the_task() {
    let task = task("one", 22, 0);
    let before = task.clone();
    let mut learner = Toy::default();
    let mut steps = 0;
    let sweep = lr_find(
        &task,
        LrSweep::default(),
        16,
        &mut learner,
        &mut |_| steps += 1,
        &|| false,
    )
    .unwrap()
    .unwrap();
    assert_eq!(
        (task.init.values().unwrap(), task.train.clone()),
        (before.init.values().unwrap(), before.train)
    );
    assert_eq!(sweep.points.len(), steps);
    let [first, .., last] = &sweep.points[..] else {
        panic!("no points")
    };
    // The weights are near 1: much smaller steps change nothing, much larger ones diverge.
    assert!(
        (first.lr, first.change.abs() < 1e-3) == (1e-5, true),
        "{first:?}"
    );
    assert!(last.change > 0.0 && last.lr > 0.1, "{last:?}");
    let (lowest, suggestion) = (sweep.lowest.unwrap(), sweep.suggestion.unwrap());
    assert!((0.02..0.5).contains(&lowest), "{lowest}");
    assert!(
        (suggestion / lowest - 0.1).abs() < 0.006,
        "{suggestion} {lowest}"
    );
    // Training at the suggested rate gives a lower loss than at a tenth of it.
    let loss = |lr: f64| {
        let mut task = task.clone();
        task.settings.lr = Some(lr);
        run(task).best.unwrap().loss
    };
    assert!(loss(suggestion) < loss(suggestion / 10.0));
    let stopped = lr_find(
        &task,
        LrSweep::default(),
        0,
        &mut learner,
        &mut |_| {},
        &|| true,
    );
    assert_eq!(stopped.unwrap(), None);
}

#[test]
fn no_rate_is_suggested_if_none_lowers_the_loss() {
    let mut task = task("one", 22, 0);
    // One row, and weights that already fit it best.
    task.train.truncate(1);
    task.settings.lr = Some(0.05);
    task.settings.epochs = 400;
    task.validation.clear();
    task.init = run(task.clone()).params.into();
    let sweep = lr_find(
        &task,
        LrSweep::default(),
        0,
        &mut Toy::default(),
        &mut |_| {},
        &|| false,
    );
    let sweep = sweep.unwrap().unwrap();
    assert_eq!((sweep.lowest, sweep.suggestion), (None, None));
}
