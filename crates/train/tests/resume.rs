//! An interrupted run that starts again ends with the same bytes as an uninterrupted one.

mod toy;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use formats::disk::faults::for_each_fault;
use toy::{Notes, Toy, task};
use train::trainer::{Outcome, RunOptions, TrainedAdapter, train};
use train::{TrainError, TrainTask};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> RunOptions {
        let checkpoint = Some(self.path("run/checkpoint.safetensors"));
        RunOptions {
            base: "a base".into(),
            checkpoint,
            ..RunOptions::default()
        }
    }

    fn tasks(&self) -> Vec<TrainTask> {
        let (mut one, mut two) = (task("one", 22, 0), task("two", 15, 500));
        one.metrics = Some(self.path("one/metrics.jsonl"));
        two.metrics = Some(self.path("two/metrics.jsonl"));
        two.settings.seed = 3;
        two.settings.epochs = 2;
        vec![one, two]
    }

    fn metrics(&self) -> [Vec<u8>; 2] {
        ["one", "two"].map(|name| fs::read(self.path(name).join("metrics.jsonl")).unwrap())
    }
}

fn run(
    tasks: Vec<TrainTask>,
    options: &RunOptions,
    notes: &mut Notes,
) -> Result<Outcome, TrainError> {
    let never = AtomicBool::new(false);
    let flag = notes.stop_at.map_or(&never, |stop| stop.1);
    train(tasks, options, &mut Toy::default(), notes, flag)
}

fn finished(outcome: Outcome) -> Vec<TrainedAdapter> {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { step, .. } => panic!("interrupted at {step}"),
    }
}

fn flag() -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(false)))
}

#[test]
fn run_resumes_to_the_same_bytes_after_every_fault_of_the_disk() {
    let tasks = |folder: &Folder| {
        let mut one = task("one", 9, 0);
        one.metrics = Some(folder.path("one/metrics.jsonl"));
        one.settings.epochs = 1;
        vec![one]
    };
    let files = |folder: &Folder| {
        let names = ["run/checkpoint.safetensors", "one/metrics.jsonl"];
        names.map(|name| fs::read(folder.path(name)).unwrap())
    };
    let whole = Folder::new();
    let run_in = |folder: &Folder| run(tasks(folder), &folder.options(), &mut Notes::default());
    let expected = finished(run_in(&whole).unwrap());
    for_each_fault(|injection| {
        let folder = Folder::new();
        // A run that cannot write ends with an error; a run that goes on is not affected.
        if let Ok(outcome) = injection.run(|| run_in(&folder)) {
            assert!(finished(outcome) == expected, "{injection:?}");
        }
        let again = finished(run_in(&folder).unwrap());
        assert!(again == expected, "{injection:?}");
        assert!(files(&folder) == files(&whole), "{injection:?}");
    });
}

#[test]
fn run_stopped_at_any_step_resumes_to_the_same_bytes() {
    let whole = Folder::new();
    let mut all = Notes::default();
    let expected = finished(run(whole.tasks(), &whole.options(), &mut all).unwrap());
    let expected_state = fs::read(whole.path("run/checkpoint.safetensors")).unwrap();
    // The observer sees every state, from before the first step to after the last.
    let seen: Vec<(u64, bool)> = all
        .snapshots
        .iter()
        .map(|(s, done, _)| (*s, *done))
        .collect();
    assert_eq!(seen, (0..=18).map(|s| (s, s == 18)).collect::<Vec<_>>());
    assert!(all.snapshots[0].2 == toy::params() && all.snapshots[0].2 != all.snapshots[1].2);
    for stop in [1, 2, 3, 6, 8, 11, 17] {
        let folder = Folder::new();
        let mut notes = Notes {
            stop_at: Some((stop, flag())),
            ..Notes::default()
        };
        let outcome = run(folder.tasks(), &folder.options(), &mut notes).unwrap();
        let checkpoint = folder.options().checkpoint;
        assert_eq!(
            outcome,
            Outcome::Interrupted {
                step: stop,
                steps: 18,
                checkpoint
            }
        );
        let mut notes = Notes::default();
        let trained = finished(run(folder.tasks(), &folder.options(), &mut notes).unwrap());
        assert_eq!(notes.resumed, Some(stop));
        assert_eq!(notes.steps.first().map(|s| s.step), Some(stop + 1));
        assert!(notes.snapshots == all.snapshots[stop as usize..]);
        assert!(trained == expected, "stopped at {stop}");
        assert!(folder.metrics() == whole.metrics(), "stopped at {stop}");
        assert!(
            fs::read(folder.path("run/checkpoint.safetensors")).unwrap() == expected_state,
            "stopped at {stop}"
        );
    }
}

/// The early stopping state is part of the checkpoint: before the stop, at the stop, and after it.
#[test]
fn run_stopped_around_an_early_stop_resumes_to_the_same_bytes() {
    let tasks = |folder: &Folder| {
        let mut tasks = folder.tasks();
        tasks[0] = TrainTask {
            metrics: tasks[0].metrics.clone(),
            ..toy::overshooting("one")
        };
        tasks[0].settings.validate_every = 2;
        tasks[0].settings.patience = 2;
        tasks[1].settings.epochs = 6;
        tasks
    };
    let whole = Folder::new();
    let expected = finished(run(tasks(&whole), &whole.options(), &mut Notes::default()).unwrap());
    assert!(expected[0].stopped_early && expected[0].steps < 12);
    let state = |folder: &Folder| fs::read(folder.path("run/checkpoint.safetensors")).unwrap();
    for stop in 1..15 {
        let folder = Folder::new();
        let mut notes = Notes {
            stop_at: Some((stop, flag())),
            ..Notes::default()
        };
        run(tasks(&folder), &folder.options(), &mut notes).unwrap();
        let trained =
            finished(run(tasks(&folder), &folder.options(), &mut Notes::default()).unwrap());
        assert!(trained == expected, "stopped at {stop}");
        assert!(folder.metrics() == whole.metrics(), "stopped at {stop}");
        assert!(state(&folder) == state(&whole), "stopped at {stop}");
    }
}

/// A kill leaves the last checkpoint and later metrics, perhaps with half a line.
#[test]
fn run_killed_between_checkpoints_resumes_to_the_same_bytes() {
    let whole = Folder::new();
    let mut notes = Notes::default();
    let expected = finished(run(whole.tasks(), &whole.options(), &mut notes).unwrap());
    // Every 3 steps, and at the ends of epochs (6, 12, 18 and 4, 8 steps).
    assert_eq!(notes.checkpoints, [3, 4, 6, 8, 9, 12, 15, 18]);

    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((7, flag())),
        ..Notes::default()
    };
    run(folder.tasks(), &folder.options(), &mut notes).unwrap();
    let at_seven = fs::read(folder.path("run/checkpoint.safetensors")).unwrap();
    let mut notes = Notes {
        stop_at: Some((10, flag())),
        ..Notes::default()
    };
    run(folder.tasks(), &folder.options(), &mut notes).unwrap();
    fs::write(folder.path("run/checkpoint.safetensors"), at_seven).unwrap();
    fs::write(
        folder.path(&format!("run/{}x", formats::atomic_file::MARK)),
        b"half",
    )
    .unwrap();
    let mut torn = fs::read(folder.path("one/metrics.jsonl")).unwrap();
    torn.extend_from_slice(b"{\"kind\":\"st");
    fs::write(folder.path("one/metrics.jsonl"), torn).unwrap();

    let trained = finished(run(folder.tasks(), &folder.options(), &mut Notes::default()).unwrap());
    assert!(trained == expected);
    assert!(folder.metrics() == whole.metrics());
}

#[test]
fn finished_run_has_no_steps_left_when_it_starts_again() {
    let folder = Folder::new();
    let first = finished(run(folder.tasks(), &folder.options(), &mut Notes::default()).unwrap());
    let mut notes = Notes::default();
    let again = finished(run(folder.tasks(), &folder.options(), &mut notes).unwrap());
    assert_eq!(
        (again == first, notes.steps.len(), notes.resumed),
        (true, 0, Some(18))
    );
}

#[test]
fn checkpoint_of_another_run_is_rejected_with_differences() {
    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    run(folder.tasks(), &folder.options(), &mut notes).unwrap();
    let before = fs::read(folder.path("run/checkpoint.safetensors")).unwrap();
    let refusal = |tasks: Vec<TrainTask>, options: RunOptions| {
        run(tasks, &options, &mut Notes::default())
            .unwrap_err()
            .to_string()
    };
    let changed = |change: fn(&mut Vec<TrainTask>)| {
        let mut tasks = folder.tasks();
        change(&mut tasks);
        refusal(tasks, folder.options())
    };
    let both = changed(|tasks| {
        tasks[0].settings.lr = Some(0.5);
        tasks[1].settings.epochs = 9;
    });
    assert!(
        both.contains("`one`: setting `lr` was 0.02, now it is 0.5"),
        "{both}"
    );
    assert!(
        both.contains("`two`: setting `epochs` was 2, now it is 9"),
        "{both}"
    );
    assert!(
        changed(|tasks| tasks[0].train[5].tokens[1] += 1)
            .contains("`one`: the training rows have changed")
    );
    assert!(
        changed(|tasks| drop(tasks[1].validation.pop()))
            .contains("`two`: the validation rows have changed")
    );
    assert!(
        changed(|tasks| drop(tasks.pop()))
            .contains("it trains `one`, `two`, this run trains `one`")
    );
    let base = refusal(
        folder.tasks(),
        RunOptions {
            base: "other".into(),
            ..folder.options()
        },
    );
    assert!(
        base.contains("the base was a base, now it is other"),
        "{base}"
    );
    assert_eq!(
        fs::read(folder.path("run/checkpoint.safetensors")).unwrap(),
        before
    );
    // `save_every` does not affect the trained parameters, so it may change.
    let mut tasks = folder.tasks();
    tasks[0].settings.save_every = 1;
    finished(run(tasks, &folder.options(), &mut Notes::default()).unwrap());
}

#[test]
fn damaged_checkpoint_is_reported_without_a_panic() {
    let folder = Folder::new();
    let path = folder.path("run/checkpoint.safetensors");
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    run(folder.tasks(), &folder.options(), &mut notes).unwrap();
    let whole = fs::read(&path).unwrap();
    let resume = || run(folder.tasks(), &folder.options(), &mut Notes::default());
    for length in (0..whole.len()).step_by(197) {
        fs::write(&path, &whole[..length]).unwrap();
        let error = resume().unwrap_err().to_string();
        assert!(
            error.contains("the checkpoint is damaged") && error.contains("remove it"),
            "{length}: {error}"
        );
    }
    for at in (0..whole.len().min(4000)).step_by(101) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x15;
        fs::write(&path, &flipped).unwrap();
        let _ = resume();
    }
}

#[test]
fn folder_that_cannot_be_written_is_named_in_the_error() {
    let folder = Folder::new();
    fs::write(folder.path("file"), b"").unwrap();
    let checkpoint = Some(folder.path("file/checkpoint.safetensors"));
    let options = RunOptions {
        checkpoint,
        ..folder.options()
    };
    let error = run(folder.tasks(), &options, &mut Notes::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot read") || error.starts_with("cannot write"),
        "{error}"
    );
    assert!(error.contains("file/checkpoint.safetensors"), "{error}");
}
