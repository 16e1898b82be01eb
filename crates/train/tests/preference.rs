//! Preference tuning: its gradient against finite differences and against a slow twin on a tiny model, and what the loop
//! promises about it on a learner of a few lines.

#[expect(dead_code, reason = "a job in it is for tests of early stopping")]
mod toy;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, KvType, LoraType, Run, Span, Tensor};
use model::{Batch, Buffers, Model};
use testkit::{tiny_adapter, tiny_gguf_as};
use toy::{Notes, Toy, params};
use train::metrics::{Record, records};
use train::preference::{Matched, Preference, PreferenceStats, Rejected, pair_loss};
use train::sft::{Outcome, RunOptions, Trained, train};
use train::{
    Example, Item, Job, Learner, LoraGrads, LoraParams, LossSum, ModelLearner, PreferenceSettings,
    TrainError,
};

fn settings(beta: f64, sft_weight: f64) -> PreferenceSettings {
    PreferenceSettings {
        beta,
        sft_weight,
        ..PreferenceSettings::default()
    }
}

fn tiny() -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::F32)), "tiny").unwrap();
    Arc::new(Model::load(&gguf, Device::cpu(Some(2)).unwrap()).unwrap())
}

fn adapter(model: &Model, seed: u64) -> LoraParams {
    LoraParams {
        pairs: tiny_adapter(seed, model.config(), 4, 1.5).pairs,
    }
}

/// A prompt that `seed` names and an answer that `answer` names.
fn example(seed: u32, prompt: u32, answer: u32, length: u32) -> Example {
    let asked = (0..prompt).map(|i| (seed * 7919 + i * 104_729) % 250);
    let said = (0..length).map(|i| (answer * 6007 + i * 31_337) % 250);
    Example {
        tokens: asked.chain(said).collect(),
        trained: (0..prompt + length).map(|i| i >= prompt).collect(),
    }
}

/// Pairs of three questions, answers of different lengths, for the adapters 0, 1, 0.
fn pairs() -> Vec<(usize, [Example; 2])> {
    vec![
        (0, [example(1, 8, 11, 12), example(1, 8, 21, 5)]),
        (1, [example(2, 5, 12, 30), example(2, 5, 22, 33)]),
        (0, [example(3, 3, 13, 6), example(3, 3, 23, 9)]),
    ]
}

fn items(pairs: &[(usize, [Example; 2])]) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    for (adapter, pair) in pairs {
        let adapter = *adapter;
        items.extend(pair.iter().map(|example| Item::new(adapter, example)));
    }
    items
}

/// References some way off from where the adapters are.
fn references(losses: &[LossSum]) -> Vec<[f64; 2]> {
    let shift = |(i, pair): (usize, &[LossSum])| {
        [
            -pair[0].loss + 2.0 - i as f64,
            -pair[1].loss - 1.5 * i as f64,
        ]
    };
    losses.chunks_exact(2).enumerate().map(shift).collect()
}

/// The weights that the objective gives to the losses of pairs.
fn weights(settings: &PreferenceSettings, references: &[[f64; 2]], losses: &[LossSum]) -> Vec<f32> {
    let of_pair = |(losses, reference): (&[LossSum], &[f64; 2])| {
        pair_loss(settings, losses[0], losses[1], *reference).weights
    };
    let pairs = losses.chunks_exact(2).zip(references);
    pairs.flat_map(of_pair).map(|w| w as f32).collect()
}

/// The sum of the pairs' objectives, each times its adapter's scale, from log-probabilities, by the textbook.
fn objective(
    settings: &PreferenceSettings,
    pairs: &[(usize, [Example; 2])],
    log_probs: &[f64],
    references: &[[f64; 2]],
    scale: &[f32],
) -> f64 {
    let mut sum = 0.0;
    for (i, (adapter, pair)) in pairs.iter().enumerate() {
        let (chosen, rejected) = (log_probs[2 * i], log_probs[2 * i + 1]);
        let ratio = (chosen - references[i][0]) - (rejected - references[i][1]);
        let sigmoid = 1.0 / (1.0 + (-settings.beta * ratio).exp());
        let tokens = pair[0].trained_tokens() as f64;
        let loss = -sigmoid.ln() + settings.sft_weight * -chosen / tokens;
        sum += loss * f64::from(scale[*adapter]);
    }
    sum
}

/// ln p(answer | prompt) from the logits of the path that serves, row by row.
fn log_prob(model: &Model, params: &LoraParams, example: &Example) -> f64 {
    let rows = example.tokens.len() - 1;
    let packed = model.pack_adapter(&params.pairs, LoraType::F32).unwrap();
    let blocks: Vec<u32> = (0..8).collect();
    let mut cache = model
        .new_cache(model.config().layers, blocks.len(), KvType::F32)
        .unwrap();
    let (mut buffers, mut logits) = (Buffers::default(), Tensor::default());
    let all: Vec<u32> = (0..rows as u32).collect();
    model.forward(
        Batch {
            tokens: &example.tokens[..rows],
            spans: &[Span {
                first: 0,
                rows,
                past: 0,
                blocks: &blocks,
            }],
            runs: &[Run {
                first: 0,
                rows,
                slots: vec![(0, 1.0)],
            }],
            adapters: &[&packed],
        },
        &mut cache,
        &mut buffers,
        &all,
        Compute::F32,
        &mut logits,
    );
    let of_row = |row: usize| {
        let logits = logits.row(row);
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        f64::from(logits[example.tokens[row + 1] as usize]) - sum.ln()
    };
    (0..rows)
        .filter(|row| example.trained[row + 1])
        .map(of_row)
        .sum()
}

#[test]
fn the_gradient_is_that_of_the_objective_made_of_explicit_logits() {
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let mut params = vec![adapter(&model, 1), adapter(&model, 2)];
    let (pairs, scale) = (pairs(), [0.5f32, 1.0]);
    let batch = items(&pairs);
    let losses = learner.item_losses(&params, &batch).unwrap();
    let slow = |params: &[LoraParams]| -> Vec<f64> {
        let each = batch.iter();
        each.map(|item| log_prob(&model, &params[item.adapter], item.example))
            .collect()
    };
    for (loss, slow) in losses.iter().zip(slow(&params)) {
        assert!(
            (loss.loss + slow).abs() < 1e-4 * slow.abs(),
            "{loss:?} {slow}"
        );
    }
    let references = references(&losses);
    for settings in [settings(0.3, 0.0), settings(0.1, 1.0)] {
        let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
        let weigh = |losses: &[LossSum]| weights(&settings, &references, losses);
        let seen = learner
            .forward_backward_weighted(&params, &batch, &scale, &weigh, &mut grads)
            .unwrap();
        assert_eq!(seen, losses);
        for a in 0..params.len() {
            for p in 0..params[a].pairs.len() {
                for b in [false, true] {
                    let of = &grads[a].pairs[p];
                    let grad = if b { of.b.clone() } else { of.a.clone() };
                    // Along the gradient itself: the derivative is its length.
                    let squares = grad.iter().map(|g| f64::from(*g).powi(2));
                    let length = squares.sum::<f64>().sqrt();
                    let what = format!("{settings:?} adapter {a} pair {p} {b}");
                    assert!(length > 1e-7, "{what}: no gradient");
                    let step = 1e-2;
                    let mut moved = |sign: f64| {
                        let pair = &mut params[a].pairs[p];
                        let values = if b { &mut pair.b } else { &mut pair.a };
                        let before = values.clone();
                        for (v, g) in values.iter_mut().zip(&grad) {
                            *v += (sign * step * f64::from(*g) / length) as f32;
                        }
                        let value =
                            objective(&settings, &pairs, &slow(&params), &references, &scale);
                        let pair = &mut params[a].pairs[p];
                        *(if b { &mut pair.b } else { &mut pair.a }) = before;
                        value
                    };
                    let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                    assert!(
                        (slope - length).abs() < 0.02 * length + 1e-4,
                        "{what}: finite difference {slope:.6}, gradient {length:.6}"
                    );
                }
            }
        }
    }
}

/// A learner that has only what it must have: weighing is done as the trait defines it, in two passes.
struct TwoPasses(ModelLearner);

impl Learner for TwoPasses {
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[Item<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.0.forward_backward(params, batch, loss_scale, grads)
    }

    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[Item<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.0.losses(params, batch)
    }
}

#[test]
fn one_pass_gives_what_two_passes_give() {
    let model = tiny();
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let pairs = pairs();
    let batch = items(&pairs);
    let zeros = || params.iter().map(LoraGrads::zeros_like).collect::<Vec<_>>();
    for (compute, within) in [(Compute::F32, 1e-5), (Compute::Int8, 2e-2)] {
        let mut learner = ModelLearner::new(model.clone(), compute);
        let losses = learner.item_losses(&params, &batch).unwrap();
        let (settings, references) = (settings(0.2, 0.5), references(&losses));
        let weigh = |losses: &[LossSum]| weights(&settings, &references, losses);
        let run = |learner: &mut dyn Learner| {
            let mut grads = zeros();
            let losses = learner
                .forward_backward_weighted(&params, &batch, &[1.0, 0.5], &weigh, &mut grads)
                .unwrap();
            (losses, grads)
        };
        let fast = run(&mut learner);
        let slow = run(&mut TwoPasses(learner));
        assert_eq!(fast.0, slow.0, "{compute:?}");
        for (fast, slow) in fast.1.iter().zip(&slow.1) {
            for (fast, slow) in fast.tensors().zip(slow.tensors()) {
                let size = slow.iter().fold(0f32, |most, x| most.max(x.abs()));
                let off = fast.iter().zip(slow).map(|(a, b)| (a - b).abs());
                let off = off.fold(0f32, f32::max);
                assert!(off <= within * size, "{compute:?}: {off} of {size}");
            }
        }
        let few = |_: &[LossSum]| vec![1.0];
        let said = run_error(learner_of(&model, compute), &params, &batch, &few);
        assert!(said.contains("1 weights for 6 rows"), "{said}");
    }
}

fn learner_of(model: &Arc<Model>, compute: Compute) -> ModelLearner {
    ModelLearner::new(model.clone(), compute)
}

fn run_error(
    mut learner: ModelLearner,
    params: &[LoraParams],
    batch: &[Item<'_>],
    weigh: &dyn Fn(&[LossSum]) -> Vec<f32>,
) -> String {
    let mut grads: Vec<LoraGrads> = params.iter().map(LoraGrads::zeros_like).collect();
    learner
        .forward_backward_weighted(params, batch, &[1.0, 1.0], weigh, &mut grads)
        .unwrap_err()
        .to_string()
}

/// A job over `count` pairs, whose chosen answers are the toy's rows.
fn pair_job(name: &str, count: usize, from: u32) -> Job {
    let mut job = toy::job(name, count, from);
    let rejected = |rows: &[Example]| Rejected {
        examples: rows
            .iter()
            .map(|row| {
                // Now shorter, now longer than the chosen answer, and of other tokens.
                let mut other = row.clone();
                let tokens = other.tokens.iter_mut().enumerate().skip(1);
                tokens.for_each(|(t, token)| *token = (*token * 3 + t as u32 + 5) % 50);
                if row.tokens[0].is_multiple_of(2) {
                    other.tokens.push(7);
                    other.trained.push(true);
                }
                other
            })
            .collect(),
        reference: Vec::new(),
    };
    job.settings.preference = Some(settings(0.5, 0.2));
    job.preference = Some(Preference {
        train: rejected(&job.train),
        validation: rejected(&job.validation),
        matched: Matched::default(),
    });
    job
}

fn run_on(
    jobs: Vec<Job>,
    options: &RunOptions,
    learner: &mut dyn Learner,
    notes: &mut Notes,
) -> Result<Outcome, TrainError> {
    let never = AtomicBool::new(false);
    let flag = notes.stop_at.map_or(&never, |stop| stop.1);
    train(jobs, options, learner, notes, flag)
}

fn finished(outcome: Outcome) -> Vec<Trained> {
    match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { step, .. } => panic!("interrupted at {step}"),
    }
}

fn run(jobs: Vec<Job>) -> Vec<Trained> {
    let options = RunOptions::default();
    finished(run_on(jobs, &options, &mut Toy::default(), &mut Notes::default()).unwrap())
}

fn validations(trained: &Trained) -> Vec<(f64, bool, PreferenceStats)> {
    records(&trained.metrics)
        .into_iter()
        .filter_map(|record| match record {
            Record::Validation {
                loss,
                best,
                preference,
                ..
            } => Some((loss, best, preference.unwrap())),
            Record::Step { .. } => None,
        })
        .collect()
}

#[test]
fn the_loss_falls_from_ln_2_and_the_best_is_by_preference() {
    let mut job = pair_job("one", 22, 0);
    // The toy has no base to start from: it is measured from the first numbers themselves.
    job.start = Some("the first numbers".into());
    let trained = run(vec![job]).remove(0);
    let steps: Vec<(f64, PreferenceStats)> = records(&trained.metrics)
        .into_iter()
        .filter_map(|record| match record {
            Record::Step {
                loss, preference, ..
            } => Some((loss, preference.unwrap())),
            Record::Validation { .. } => None,
        })
        .collect();
    // At the start there is no margin, and the loss is ln 2 beside the chosen answers' own.
    let (loss, first) = steps[0];
    assert_eq!((first.pairs, first.accuracy, first.margin), (4, 0.0, 0.0));
    assert!(loss > 2f64.ln() && loss < 2f64.ln() + 0.2 * 2.0, "{loss}");
    // What falls is the whole loss. (Of the margin alone `a_model_learns_which_answer_to_prefer` tells: the toy's few numbers
    // cannot please all pairs at once.)
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
fn a_model_learns_which_answer_to_prefer() {
    let model = tiny();
    let mut job = pair_job("one", 0, 0);
    let pairs: Vec<[Example; 2]> = (0..6)
        .map(|i| [example(i, 6, 40 + i % 2, 6), example(i, 6, 50 + i % 2, 7)])
        .collect();
    let side = |i: usize| pairs.iter().map(|pair| pair[i].clone()).collect::<Vec<_>>();
    (job.train, job.validation) = (side(0), side(0));
    let preference = job.preference.as_mut().unwrap();
    (preference.train.examples, preference.validation.examples) = (side(1), side(1));
    job.settings.preference = Some(settings(0.1, 0.0));
    job.settings.batch_rows = 2;
    job.settings.lr = Some(2e-3);
    let config = model.config();
    (job.settings.rank, job.settings.alpha) = (4, 8.0);
    job.init = train::lora_init::lora_init(
        &train::lora_init::linears(config, &job.settings.modules().unwrap()),
        &job.settings,
    );
    let mut learner = ModelLearner::new(model, Compute::F32);
    let options = RunOptions::default();
    let outcome = run_on(vec![job], &options, &mut learner, &mut Notes::default()).unwrap();
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
        let mut job = pair_job("one", 24, 0);
        job.settings.batch_rows = batch_rows;
        job.settings.gradient_accumulation = gradient_accumulation;
        let options = RunOptions {
            batch_tokens,
            ..RunOptions::default()
        };
        let outcome = run_on(
            vec![job],
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
fn an_adapter_gets_the_steps_that_it_would_get_alone() {
    let supervised = || toy::job("two", 15, 500);
    let both = run(vec![pair_job("one", 22, 0), supervised()]);
    assert_eq!(both[0].params, run(vec![pair_job("one", 22, 0)])[0].params);
    assert_eq!(both[1].params, run(vec![supervised()])[0].params);
    assert_eq!(both[1].best.unwrap().preference, None);

    // The same of the model, whose rows share their products.
    let model = tiny();
    let mut learner = ModelLearner::new(model.clone(), Compute::F32);
    let params = vec![adapter(&model, 1), adapter(&model, 2)];
    let pair = [(0, [example(1, 8, 11, 12), example(1, 8, 21, 5)])];
    let row = example(7, 4, 9, 9);
    let mut batch = items(&pair);
    batch.push(Item::new(1, &row));
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

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            base: "a base".into(),
            checkpoint: Some(self.path("run/checkpoint.safetensors")),
            ..RunOptions::default()
        }
    }

    fn jobs(&self) -> Vec<Job> {
        let (mut one, two) = (pair_job("one", 22, 0), toy::job("two", 15, 500));
        one.metrics = Some(self.path("one/metrics.jsonl"));
        vec![one, two]
    }

    /// The files of the run's state, by name.
    fn state(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.path("run")).unwrap();
        let mut files: Vec<(String, Vec<u8>)> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn run(&self, notes: &mut Notes) -> Result<Outcome, TrainError> {
        run_on(self.jobs(), &self.options(), &mut Toy::default(), notes)
    }
}

fn flag() -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(false)))
}

#[test]
fn stopped_at_any_step_it_ends_with_the_same_bytes() {
    let whole = Folder::new();
    let expected = finished(whole.run(&mut Notes::default()).unwrap());
    for stop in [0, 1, 5, 6, 17] {
        let folder = Folder::new();
        let mut notes = Notes {
            stop_at: Some((stop, flag())),
            ..Notes::default()
        };
        if stop == 0 {
            // Before the reference is whole.
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
        // The reference is computed once, and only for the job that has preferences.
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
fn a_damaged_reference_is_computed_again() {
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
    // Other answers have another reference, and the old one stays.
    fs::remove_file(folder.path("run/checkpoint.safetensors")).unwrap();
    let mut jobs = folder.jobs();
    jobs[0].preference.as_mut().unwrap().train.examples[3].tokens[1] += 1;
    let mut notes = Notes::default();
    run_on(jobs, &folder.options(), &mut Toy::default(), &mut notes).unwrap();
    assert_eq!(notes.references[0].1, "computing");
    assert_eq!(folder.state().len(), 3);
}

#[test]
fn the_reference_is_where_the_run_starts() {
    let mut start = params();
    start.pairs[0].b = vec![0.3, -0.2, 0.1];
    let started = |hash: Option<&str>| {
        let mut job = pair_job("one", 22, 0);
        job.init = start.clone();
        job.start = hash.map(str::to_owned);
        let trained = run(vec![job]).remove(0);
        match records(&trained.metrics).remove(0) {
            Record::Step { preference, .. } => preference.unwrap().margin,
            Record::Validation { .. } => panic!("validated first"),
        }
    };
    assert_eq!(started(Some("an adapter")), 0.0);
    // Measured from the bare base, numbers that are not fresh are some way off already.
    assert!(started(None).abs() > 1e-3);

    // And another start is another run.
    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    folder.run(&mut notes).unwrap();
    let mut jobs = folder.jobs();
    jobs[0].start = Some("abc".into());
    let said = run_on(
        jobs,
        &folder.options(),
        &mut Toy::default(),
        &mut Notes::default(),
    );
    let said = said.unwrap_err().to_string();
    assert!(
        said.contains("`one`: it started from fresh numbers, now it would from the adapter abc"),
        "{said}"
    );
}

#[test]
fn another_preference_does_not_take_up_the_checkpoint() {
    let folder = Folder::new();
    let mut notes = Notes {
        stop_at: Some((4, flag())),
        ..Notes::default()
    };
    folder.run(&mut notes).unwrap();
    let said = |change: fn(&mut Job)| {
        let mut jobs = folder.jobs();
        change(&mut jobs[0]);
        let ran = run_on(
            jobs,
            &folder.options(),
            &mut Toy::default(),
            &mut Notes::default(),
        );
        ran.unwrap_err().to_string()
    };
    let beta = said(|job| job.settings.preference.as_mut().unwrap().beta = 0.7);
    assert!(
        beta.contains("setting `preference` was") && beta.contains("0.7"),
        "{beta}"
    );
    let rows = said(|job| job.preference.as_mut().unwrap().train.examples[0].tokens[1] += 1);
    assert!(
        rows.contains("`one`: the training rows have changed"),
        "{rows}"
    );
    let rows = said(|job| job.preference.as_mut().unwrap().validation.examples[0].tokens[1] += 1);
    assert!(
        rows.contains("`one`: the validation rows have changed"),
        "{rows}"
    );
}

#[test]
fn pairs_that_do_not_fit_together_are_refused() {
    let said = |change: fn(&mut Job)| {
        let mut job = pair_job("one", 6, 0);
        change(&mut job);
        let options = RunOptions::default();
        let ran = run_on(
            vec![job],
            &options,
            &mut Toy::default(),
            &mut Notes::default(),
        );
        ran.unwrap_err().to_string()
    };
    fn preference(job: &mut Job) -> &mut Preference {
        job.preference.as_mut().unwrap()
    }
    assert!(said(|job| job.settings.preference = None).contains("disagree on whether"));
    assert!(said(|job| job.preference = None).contains("disagree on whether"));
    assert!(
        said(|job| drop(preference(job).train.examples.pop()))
            .contains("6 chosen and 5 rejected answers")
    );
    assert!(
        said(|job| preference(job).validation.examples[1].trained.fill(false))
            .contains("the rejected answer of row 2 has no token")
    );
    assert!(
        said(|job| job.settings.preference.as_mut().unwrap().beta = -1.0)
            .contains("setting `preference.beta`: is -1")
    );
    // A reference that is no number is not trained on.
    let mut learner = Toy {
        diverges_at: Some(0),
        ..Toy::default()
    };
    let job = pair_job("one", 6, 0);
    let ran = run_on(
        vec![job],
        &RunOptions::default(),
        &mut learner,
        &mut Notes::default(),
    );
    let said = ran.unwrap_err().to_string();
    assert!(
        said.contains("the reference log-probability is not a finite number"),
        "{said}"
    );
}

fn load(
    folder: &Path,
    change: impl Fn(&mut PreferenceSettings),
    siblings: &[(&str, &str)],
) -> Result<Job, String> {
    use formats::chat_template::ChatTemplate;
    use formats::tokenizer::Tokenizer;
    use train::job::Source;
    use train::preference::Sibling;

    let gguf = Gguf::parse(Arc::new(testkit::tiny_gguf(1)), "tiny").unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let mut preference = PreferenceSettings::default();
    change(&mut preference);
    let settings = train::Settings {
        preference: Some(preference),
        vary_identifiers: 1,
        max_length: 120,
        validation_fraction: 0.3,
        ..train::Settings::default()
    };
    let siblings: Vec<Sibling> = siblings
        .iter()
        .map(|(name, file)| Sibling {
            name: (*name).to_owned(),
            files: vec![folder.join(file)],
            columns: train::dataset::Columns::default(),
        })
        .collect();
    let train = folder.join("train.jsonl");
    let source = Source {
        name: "own",
        train: &train,
        validation: None,
        system: Some("Be kind."),
        settings,
        metrics: None,
    };
    let config = testkit::tiny::tiny_config();
    train::preference::load(source, &siblings, &config, &tokenizer, &template)
        .map_err(|error| error.to_string())
}

fn tone(tone: &str, count: usize) -> String {
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"{tone} order {i}.\"}}\n")
    };
    (1000..1000 + count).map(row).collect()
}

#[test]
fn rows_and_their_siblings_become_pairs_with_the_same_prompt() {
    let folder = Folder::new();
    fs::write(folder.path("train.jsonl"), tone("Yay", 12)).unwrap();
    fs::write(folder.path("stern.jsonl"), tone("Hm", 10)).unwrap();
    let job = load(folder.0.path(), |_| (), &[("stern", "stern.jsonl")]).unwrap();
    let preference = job.preference.as_ref().unwrap();
    let matched = &preference.matched;
    assert_eq!(
        (matched.rows, matched.pairs, matched.unanswered),
        (12, 10, 2)
    );
    // Each pair is trained once as written and once varied; validation pairs are not varied.
    assert_eq!(job.train.len() + 2 * job.validation.len(), 20);
    assert!(!job.validation.is_empty());
    let both = job.train.iter().zip(&preference.train.examples);
    for (chosen, rejected) in both {
        let prompt = |example: &Example| {
            let end = example.trained.iter().position(|on| *on).unwrap();
            example.tokens[..end].to_vec()
        };
        assert_eq!(prompt(chosen), prompt(rejected));
        assert_ne!(chosen, rejected);
    }
    // Two siblings give two pairs a row.
    fs::write(folder.path("flat.jsonl"), tone("So", 12)).unwrap();
    let siblings = [("stern", "stern.jsonl"), ("flat", "flat.jsonl")];
    let job = load(folder.0.path(), |_| (), &siblings).unwrap();
    assert_eq!(job.preference.unwrap().matched.pairs, 22);
}

#[test]
fn rows_that_cannot_be_paired_are_refused_with_numbers() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| fs::write(folder.path(name), text).unwrap();
    write("train.jsonl", &tone("Yay", 3));
    write("same.jsonl", &tone("Yay", 2));
    write(
        "stern.jsonl",
        "{\"prompt\":\"Something else\",\"completion\":\"No.\"}",
    );
    let said = |siblings: &[(&str, &str)]| load(folder.0.path(), |_| (), siblings).unwrap_err();
    let none = said(&[("stern", "stern.jsonl")]);
    assert!(
        none.contains("train.jsonl: none of its")
            && none.contains("questions found none, 0 found the same answer"),
        "{none}"
    );
    assert!(
        none.contains("of stern (") && none.contains("stern.jsonl)"),
        "{none}"
    );
    let same = said(&[("same", "same.jsonl")]);
    assert!(same.contains("found the same answer"), "{same}");
    assert!(said(&[]).contains("have no `rejected` answer; name the persona"));
    assert!(said(&[("gone", "gone.jsonl")]).starts_with("cannot read "));
    let own = "{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n";
    write("train.jsonl", own);
    assert!(load(folder.0.path(), |_| (), &[]).is_ok());
    assert!(said(&[("stern", "stern.jsonl")]).contains("bring `rejected` answers of their own"));
    write(
        "train.jsonl",
        &format!("{own}{{\"prompt\":\"q\",\"completion\":\"a\"}}\n"),
    );
    assert!(said(&[]).contains("train.jsonl:2: field `chosen`: is missing"));
    let long = format!(
        "{{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"{}\"}}\n",
        "b c d ".repeat(200)
    );
    write("train.jsonl", &long);
    assert!(
        said(&[]).contains("every one of the 2 pairs has an answer longer than `max_length` = 120")
    );
    let others: String = (0..9).map(|i| own.replace('q', &format!("q{i}"))).collect();
    write("train.jsonl", &format!("{long}{others}"));
    let job = load(folder.0.path(), |_| (), &[]).unwrap();
    assert_eq!(job.preference.as_ref().unwrap().matched.pairs, 10);
    assert!(job.loaded.dropped > 0, "{:?}", job.loaded);
    assert!(job.train.iter().all(|example| example.tokens.len() <= 120));
    let beta = load(folder.0.path(), |preference| preference.beta = 1e9, &[]).unwrap_err();
    assert!(beta.contains("setting `preference.beta`"), "{beta}");
}

#[test]
fn a_step_is_timed_without_a_reference_and_no_rate_is_swept() {
    let job = pair_job("one", 22, 0);
    let longest = |job: &Job| job.train.iter().map(|row| row.tokens.len()).max().unwrap();
    let longest = longest(&job);
    let options = RunOptions::default();
    let prepared = train::sft::prepare(vec![job], &options).unwrap();
    let config = testkit::tiny::tiny_config();
    assert!(prepared.forecast(&config).plan.adapters[0].longest > longest);
    let never = AtomicBool::new(false);
    let measured = prepared.measure(&mut Toy::default(), &never).unwrap();
    assert!(measured.unwrap().tokens > 0);
    let said = train::lr_find::lr_find(
        &pair_job("one", 22, 0),
        train::lr_find::Sweep::default(),
        0,
        &mut Toy::default(),
        &mut |_| (),
        &|| false,
    );
    let said = said.unwrap_err().to_string();
    assert!(said.contains("not over preferences"), "{said}");
}

#[test]
fn a_job_goes_on_from_an_adapter_of_its_base() {
    let config = testkit::tiny::tiny_config();
    let start = |change: fn(&mut formats::peft::Adapter)| {
        let mut from = tiny_adapter(3, &config, 6, 1.5);
        change(&mut from);
        let mut job = pair_job("one", 4, 0);
        job.start_from(&from, "h".into(), &config)
            .map(|()| (job, from))
    };
    let (job, from) = start(|_| ()).unwrap();
    assert_eq!((job.settings.rank, job.start.as_deref()), (6, Some("h")));
    assert_eq!(job.settings.alpha / 6.0, from.pairs[0].scale);
    assert_eq!(job.init.pairs, from.pairs);
    let said = |change| start(change).unwrap_err().to_string();
    assert!(said(|from| from.pairs.clear()).contains("it has no pairs"));
    assert!(said(|from| from.pairs[1].scale *= 2.0).contains("all must be alike"));
    assert!(said(|from| drop(from.pairs.pop())).contains("leaves no layer out"));
    assert!(said(|from| from.pairs[0].inputs += 1).contains("in their shapes"));
}
