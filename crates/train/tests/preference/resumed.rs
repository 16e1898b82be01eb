//! Resuming a preference run, and its reference file.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use train::TrainTask;
use train::metrics::{MetricsRecord, parse_metrics};
use train::trainer::Outcome;

use super::toy::{Notes, Toy, params};
use super::{Folder, finished, pair_task, run, run_on};

fn flag() -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(false)))
}

#[test]
fn run_stopped_at_any_step_resumes_to_the_same_bytes() {
    let whole = Folder::new();
    let expected = finished(whole.run(&mut Notes::default()).unwrap());
    for stop in [0, 1, 5, 6, 17] {
        let folder = Folder::new();
        let mut notes = Notes {
            stop_at: Some((stop, flag())),
            ..Notes::default()
        };
        if stop == 0 {
            // Before the reference is complete.
            notes
                .stop_at
                .unwrap()
                .1
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
        match folder.run(&mut notes).unwrap() {
            Outcome::Interrupted { step, .. } => assert_eq!(step, stop),
            Outcome::Finished(_) => panic!("not stopped at {stop}"),
        }
        let mut notes = Notes::default();
        let trained = finished(folder.run(&mut notes).unwrap());
        assert!(trained == expected, "stopped at {stop}");
        assert!(folder.state() == whole.state(), "stopped at {stop}");
        let metrics = |folder: &Folder| fs::read(folder.path("one/metrics.jsonl")).unwrap();
        assert!(metrics(&folder) == metrics(&whole), "stopped at {stop}");
        // The reference is computed once, and only for the task that has preferences.
        let how = if stop == 0 { "computing" } else { "read" };
        assert_eq!(notes.references, [(0, how)], "stopped at {stop}");
    }
}

fn reference_file(folder: &Folder) -> PathBuf {
    let state = folder.state();
    let named = |(name, _): &&(String, Vec<u8>)| name.starts_with("reference-");
    folder
        .path("run")
        .join(&state.iter().find(named).unwrap().0)
}

#[test]
fn damaged_reference_file_is_recomputed() {
    let folder = Folder::new();
    let expected = finished(folder.run(&mut Notes::default()).unwrap());
    let file = reference_file(&folder);
    let whole = fs::read(&file).unwrap();
    for at in [0, 40, 64, 80, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&file, flipped).unwrap();
        fs::remove_file(folder.path("run/checkpoint.safetensors")).unwrap();
        let mut notes = Notes::default();
        assert!(finished(folder.run(&mut notes).unwrap()) == expected);
        assert_eq!(notes.references[0].1, "damaged");
        assert!(fs::read(&file).unwrap() == whole);
    }
    // Other answers have another reference file, and the old one stays.
    fs::remove_file(folder.path("run/checkpoint.safetensors")).unwrap();
    let mut tasks = folder.tasks();
    tasks[0].preference.as_mut().unwrap().train.examples[3].tokens[1] += 1;
    let mut notes = Notes::default();
    run_on(tasks, &folder.options(), &mut Toy::default(), &mut notes).unwrap();
    assert_eq!(notes.references[0].1, "computing");
    assert_eq!(folder.state().len(), 3);
}

#[test]
fn reference_is_the_initial_model_of_the_run() {
    let mut start = params();
    start.pairs[0].b = vec![0.3, -0.2, 0.1];
    let started = |hash: Option<&str>| {
        let mut task = pair_task("one", 22, 0);
        task.init = start.clone().into();
        task.initial_adapter = hash.map(str::to_owned);
        let trained = run(vec![task]).remove(0);
        match parse_metrics(&trained.metrics).remove(0) {
            MetricsRecord::Step { preference, .. } => preference.unwrap().margin,
            MetricsRecord::Validation { .. } => panic!("validated first"),
        }
    };
    assert_eq!(started(Some("an adapter")), 0.0);
    // Measured from the bare base, a trained initial adapter has a margin from the start.
    assert!(started(None).abs() > 1e-3);

    // Another initial adapter makes another run.
    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    folder.run(&mut notes).unwrap();
    let mut tasks = folder.tasks();
    tasks[0].initial_adapter = Some("abc".into());
    let result = run_on(
        tasks,
        &folder.options(),
        &mut Toy::default(),
        &mut Notes::default(),
    );
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains(
            "`one`: it started from freshly drawn parameters, now it would from the adapter abc"
        ),
        "{error}"
    );
}

#[test]
fn checkpoint_with_other_preference_settings_is_rejected() {
    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    folder.run(&mut notes).unwrap();
    let refusal = |change: fn(&mut TrainTask)| {
        let mut tasks = folder.tasks();
        change(&mut tasks[0]);
        let ran = run_on(
            tasks,
            &folder.options(),
            &mut Toy::default(),
            &mut Notes::default(),
        );
        ran.unwrap_err().to_string()
    };
    let beta = refusal(|task| task.settings.preference.as_mut().unwrap().beta = 0.7);
    assert!(
        beta.contains("setting `preference` was") && beta.contains("0.7"),
        "{beta}"
    );
    let rows = refusal(|task| task.preference.as_mut().unwrap().train.examples[0].tokens[1] += 1);
    assert!(
        rows.contains("`one`: the training rows have changed"),
        "{rows}"
    );
    let rows =
        refusal(|task| task.preference.as_mut().unwrap().validation.examples[0].tokens[1] += 1);
    assert!(
        rows.contains("`one`: the validation rows have changed"),
        "{rows}"
    );
}
