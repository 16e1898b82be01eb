//! Preference runs: what they learn, from which rows, and from which initial adapter.

use std::sync::atomic::AtomicBool;

use kernels::Compute;
use testkit::tiny_adapter;
use train::metrics::{MetricsRecord, parse_metrics};
use train::preference::{PreferenceData, PreferenceStats};
use train::trainer::{RunOptions, TrainedAdapter};
use train::{BatchItem, Example, Learner, LoraGrads, LossSum, ModelLearner, TrainTask};

use super::toy::{self, Notes, Toy};
use super::{adapter, example, finished, items, pair_task, run, run_on, settings, tiny};

fn validations(trained: &TrainedAdapter) -> Vec<(f64, bool, PreferenceStats)> {
    parse_metrics(&trained.metrics)
        .into_iter()
        .filter_map(|record| match record {
            MetricsRecord::Validation {
                loss,
                best,
                preference,
                ..
            } => Some((loss, best, preference.unwrap())),
            MetricsRecord::Step { .. } => None,
        })
        .collect()
}

#[test]
fn the_loss_falls_from_ln_2_and_the_best_is_by_preference() {
    let mut task = pair_task("one", 22, 0);
    // The toy has no base, so the reference is the initial parameters.
    task.initial_adapter = Some("the first numbers".into());
    let trained = run(vec![task]).remove(0);
    let steps: Vec<(f64, PreferenceStats)> = parse_metrics(&trained.metrics)
        .into_iter()
        .filter_map(|record| match record {
            MetricsRecord::Step {
                loss, preference, ..
            } => Some((loss, preference.unwrap())),
            MetricsRecord::Validation { .. } => None,
        })
        .collect();
    // At the start there is no margin, and the loss is ln 2 plus that of the chosen answers.
    let (loss, first) = steps[0];
    assert_eq!((first.pairs, first.accuracy, first.margin), (4, 0.0, 0.0));
    assert!(loss > 2f64.ln() && loss < 2f64.ln() + 0.2 * 2.0, "{loss}");
    // The whole loss falls. (`model_learns_to_prefer_the_chosen_answers` tests the margin: the toy has too few parameters to
    // fit all pairs at once.)
    let mean = |steps: &[(f64, PreferenceStats)]| {
        let sum: f64 = steps.iter().map(|(loss, at)| loss * at.pairs as f64).sum();
        sum / 22.0
    };
    let (first, last) = (mean(&steps[..6]), mean(&steps[12..]));
    assert!(last < first, "{first} {last}");
    let seen = validations(&trained);
    assert_eq!(seen.len(), 3);
    assert!(seen[2].0 < seen[0].0, "{seen:?}");
    let lowest = seen.iter().map(|v| v.0).fold(f64::INFINITY, f64::min);
    let best = trained.best.unwrap();
    assert_eq!(best.loss, lowest);
    let of_best = seen.iter().rfind(|v| v.1).unwrap().2;
    assert_eq!(best.preference, Some(of_best));
    assert_eq!(of_best.pairs, 9);
}

#[test]
fn model_learns_to_prefer_the_chosen_answers() {
    let model = tiny();
    let mut task = pair_task("one", 0, 0);
    let pairs: Vec<[Example; 2]> = (0..6)
        .map(|i| [example(i, 6, 40 + i % 2, 6), example(i, 6, 50 + i % 2, 7)])
        .collect();
    let side = |i: usize| pairs.iter().map(|pair| pair[i].clone()).collect::<Vec<_>>();
    (task.train, task.validation) = (side(0), side(0));
    let preference = task.preference.as_mut().unwrap();
    (preference.train.examples, preference.validation.examples) = (side(1), side(1));
    task.settings.preference = Some(settings(0.1, 0.0));
    task.settings.batch_rows = 2;
    task.settings.lr = Some(2e-3);
    let config = model.config();
    (task.settings.rank, task.settings.alpha) = (4, 8.0);
    task.init = train::initial_params::InitialParams::drawn(
        &train::lora_init::target_linears(config, &task.settings.modules().unwrap()),
        &task.settings,
    );
    let mut learner = ModelLearner::new(model, Compute::F32);
    let options = RunOptions::default();
    let outcome = run_on(vec![task], &options, &mut learner, &mut Notes::default()).unwrap();
    let trained = finished(outcome).remove(0);
    let seen = validations(&trained);
    let (first, last) = (seen[0].2, seen.last().unwrap().2);
    assert_eq!(last.accuracy, 1.0, "{last:?}");
    assert!(
        last.margin > 2.0 * first.margin && first.margin > 0.0,
        "{first:?} {last:?}"
    );
    assert!(last.rejected_loss > last.chosen_loss, "{last:?}");
}

#[test]
fn accumulation_equals_the_large_batch_by_pairs() {
    let with = |batch_rows, gradient_accumulation, batch_tokens| {
        let mut task = pair_task("one", 24, 0);
        task.settings.batch_rows = batch_rows;
        task.settings.gradient_accumulation = gradient_accumulation;
        let options = RunOptions {
            batch_tokens,
            ..RunOptions::default()
        };
        let outcome = run_on(
            vec![task],
            &options,
            &mut Toy::default(),
            &mut Notes::default(),
        );
        finished(outcome.unwrap()).remove(0).params
    };
    let large = with(8, 1, 0);
    // The toy adds row by row in the same order, so even the bits agree.
    assert_eq!(large, with(2, 4, 0));
    assert_eq!(large, with(1, 8, 0));
    // A limit below a pair's tokens still keeps the pair together.
    assert_eq!(large, with(8, 1, 1));
}

#[test]
fn preference_and_supervised_adapters_train_together_as_alone() {
    let supervised = || toy::task("two", 15, 500);
    let both = run(vec![pair_task("one", 22, 0), supervised()]);
    assert_eq!(both[0].params, run(vec![pair_task("one", 22, 0)])[0].params);
    assert_eq!(both[1].params, run(vec![supervised()])[0].params);
    assert_eq!(both[1].best.unwrap().preference, None);

    // The same for the model, whose rows share matrix products.
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let pair = [(0, [example(1, 8, 11, 12), example(1, 8, 21, 5)])];
    let row = example(7, 4, 9, 9);
    let mut batch = items(&pair);
    batch.push(BatchItem::new(1, &row));
    let scale = [1.0, 0.3];
    let zeros = || params.iter().map(LoraGrads::zeros_like).collect::<Vec<_>>();
    let (mut shared, mut alone) = (zeros(), zeros());
    let weigh = |_: &[LossSum]| vec![0.7, -0.2, 1.0];
    learner
        .forward_backward_weighted(&params, &batch, &scale, &weigh, &mut shared)
        .unwrap();
    learner
        .forward_backward(&params, &batch[2..], &scale, &mut alone)
        .unwrap();
    assert_eq!(shared[1], alone[1]);
}

#[test]
fn inconsistent_pairs_are_rejected() {
    let refusal = |change: fn(&mut TrainTask)| {
        let mut task = pair_task("one", 6, 0);
        change(&mut task);
        let options = RunOptions::default();
        let ran = run_on(
            vec![task],
            &options,
            &mut Toy::default(),
            &mut Notes::default(),
        );
        ran.unwrap_err().to_string()
    };
    fn preference(task: &mut TrainTask) -> &mut PreferenceData {
        task.preference.as_mut().unwrap()
    }
    assert!(refusal(|task| task.settings.preference = None).contains("disagree on whether"));
    assert!(refusal(|task| task.preference = None).contains("disagree on whether"));
    assert!(
        refusal(|task| drop(preference(task).train.examples.pop()))
            .contains("6 chosen and 5 rejected answers")
    );
    assert!(
        refusal(|task| preference(task).validation.examples[1]
            .loss_mask
            .fill(false))
        .contains("the rejected answer of row 2 has no token")
    );
    assert!(
        refusal(|task| task.settings.preference.as_mut().unwrap().beta = -1.0)
            .contains("setting `preference.beta`: is -1")
    );
    // A reference that is not a number is rejected.
    let mut learner = Toy {
        diverges_at: Some(0),
        ..Toy::default()
    };
    let task = pair_task("one", 6, 0);
    let ran = run_on(
        vec![task],
        &RunOptions::default(),
        &mut learner,
        &mut Notes::default(),
    );
    let error = ran.unwrap_err().to_string();
    assert!(
        error.contains("the reference log-probability is not a finite number"),
        "{error}"
    );
}

#[test]
fn step_is_timed_without_a_reference_and_sweep_is_rejected() {
    let task = pair_task("one", 22, 0);
    let longest = |task: &TrainTask| task.train.iter().map(|row| row.tokens.len()).max().unwrap();
    let longest = longest(&task);
    let options = RunOptions::default();
    let prepared = train::trainer::prepare(vec![task], &options).unwrap();
    let config = testkit::tiny::tiny_config();
    assert!(prepared.estimate(&config).plan.adapters[0].longest > longest);
    let never = AtomicBool::new(false);
    let measured = prepared.measure(&mut Toy::default(), &never).unwrap();
    assert!(measured.unwrap().tokens > 0);
    let result = train::lr_find::lr_find(
        &pair_task("one", 22, 0),
        train::lr_find::LrSweep::default(),
        0,
        &mut Toy::default(),
        &mut |_| (),
        &|| false,
    );
    let error = result.unwrap_err().to_string();
    assert!(error.contains("not over preferences"), "{error}");
}

#[test]
fn task_can_start_from_an_adapter_of_its_base() {
    let config = testkit::tiny::tiny_config();
    let start = |change: fn(&mut formats::peft::Adapter)| {
        let mut from = tiny_adapter(3, &config, 6, 1.5);
        change(&mut from);
        let mut task = pair_task("one", 4, 0);
        let pairs = from.pairs.clone();
        task.init_from_adapter(
            train::params::LoraParams { pairs }.into(),
            "h".into(),
            &config,
        )
        .map(|()| (task, from))
    };
    let (task, from) = start(|_| ()).unwrap();
    assert_eq!(
        (task.settings.rank, task.initial_adapter.as_deref()),
        (6, Some("h"))
    );
    assert_eq!(task.settings.alpha / 6.0, from.pairs[0].scale);
    assert_eq!(task.init.values().unwrap().pairs, from.pairs);
    let refusal = |change| start(change).unwrap_err().to_string();
    assert!(refusal(|from| from.pairs.clear()).contains("it has no pairs"));
    assert!(
        refusal(|from| from.pairs[1].scale *= 2.0)
            .contains("all pairs must have the same rank and scale")
    );
    assert!(refusal(|from| drop(from.pairs.pop())).contains("leaves no layer out"));
    assert!(refusal(|from| from.pairs[0].inputs += 1).contains("in their shapes"));
}
