//! The decoder on a graphics card: the answers that the CPU gives, and bits that do not depend on the batch, the chunks of a
//! prompt or the pages. Needs a Vulkan driver; Mesa's llvmpipe is enough. `LORY_TEST_GPU=required` fails without one.

use std::path::Path;
use std::sync::Arc;

use formats::folder::Folder;
use formats::gguf::{GgmlType, Gguf};
use kernels::{Compute, Device, DeviceChoice, KvCache, KvType, Run, Span};
use model::{Adapter, Batch, Buffers, Model};
use testkit::{Logits, logits, tiny_adapter, tiny_gguf_as};

/// The two best logits of a near tie differ by less than this part of the largest logit.
const NEAR_TIE: f32 = 0.03;

fn gpu() -> Option<Device> {
    testkit::gpu::vulkan().map(|choice| Device::open(choice).unwrap())
}

fn cpu() -> Device {
    Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap()
}

fn load(dtype: GgmlType, device: Device) -> Model {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(7, dtype)), "tiny").unwrap();
    Model::load(&gguf, device).unwrap()
}

/// A tiny model of another family: biases (Qwen2), norms of heads (Qwen3), scaled rotary embeddings.
fn load_family(name: &str, device: Device) -> Model {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let read = |path: &Path| Ok(Arc::new(std::fs::read(path)?) as formats::gguf::Bytes);
    Model::load(&Folder::open(&fixtures.join(name), &read).unwrap(), device).unwrap()
}

fn adapters(model: &Model) -> Vec<Adapter> {
    let files = [(1, 4, 1.0), (2, 16, 0.5), (3, 5, 2.0)];
    files
        .map(|(seed, rank, scale)| tiny_adapter(seed, model.config(), rank, scale))
        .iter()
        .map(|file| model.load_adapter(file).unwrap())
        .collect()
}

/// A sequence that a test decodes: its tokens so far, how many have keys and values, its adapters and pages.
#[derive(Clone)]
struct Sequence {
    tokens: Vec<u32>,
    past: usize,
    slots: Vec<(u32, f32)>,
    blocks: Vec<u32>,
}

impl Sequence {
    fn new(seed: u32, tokens: u32, slots: &[(u32, f32)], first_block: u32) -> Sequence {
        Sequence {
            tokens: (0..tokens)
                .map(|i| (seed * 31 + 17 * i) % 250 + 3)
                .collect(),
            past: 0,
            slots: slots.to_vec(),
            blocks: (first_block..first_block + 12).collect(),
        }
    }
}

/// A model with what a step needs.
struct Runner<'a> {
    model: &'a Model,
    adapters: &'a [Adapter],
    cache: KvCache,
    buffers: Buffers,
    compute: Compute,
}

impl<'a> Runner<'a> {
    fn new(
        model: &'a Model,
        adapters: &'a [Adapter],
        dtype: KvType,
        compute: Compute,
    ) -> Runner<'a> {
        Runner {
            model,
            adapters,
            cache: model.new_cache(model.config().layers, 64, dtype).unwrap(),
            buffers: Buffers::new(model.device()),
            compute,
        }
    }

    /// Runs at most `chunk` rows of each sequence; returns the logits of each sequence's last row.
    fn step(&mut self, sequences: &mut [Sequence], chunk: usize) -> Vec<Vec<f32>> {
        let (mut spans, mut runs, mut tokens, mut last) = (vec![], vec![], vec![], vec![]);
        for s in sequences.iter_mut() {
            let rows = chunk.min(s.tokens.len() - s.past);
            let first = tokens.len();
            tokens.extend(&s.tokens[s.past..s.past + rows]);
            last.push(tokens.len() as u32 - 1);
            spans.push(Span {
                first,
                rows,
                past: s.past,
                blocks: &s.blocks,
            });
            if !s.slots.is_empty() {
                runs.push(Run {
                    first,
                    rows,
                    slots: s.slots.clone(),
                });
            }
            s.past += rows;
        }
        let adapters: Vec<&Adapter> = self.adapters.iter().collect();
        let batch = Batch {
            tokens: &tokens,
            spans: &spans,
            runs: &runs,
            adapters: &adapters,
            dropout: &[],
        };
        let mut logits = self.model.device().tensor();
        self.model.forward(
            batch,
            &mut self.cache,
            &mut self.buffers,
            &last,
            self.compute,
            &mut logits,
        );
        let logits = Logits::read(&logits);
        (0..last.len())
            .map(|row| logits.row(row).to_vec())
            .collect()
    }

    /// Reads a whole prompt in chunks; returns its last logits.
    fn read(&mut self, sequences: &mut [Sequence], chunk: usize) -> Vec<Vec<f32>> {
        loop {
            let logits = self.step(sequences, chunk);
            if sequences.iter().all(|s| s.past == s.tokens.len()) {
                return logits;
            }
        }
    }
}

/// The best token, and how far the second one is behind, as a part of the largest logit.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let largest = logits.iter().fold(0f32, |m, x| m.max(x.abs()));
    (
        order[0] as u32,
        (logits[order[0]] - logits[order[1]]) / largest,
    )
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn mixed() -> Vec<Sequence> {
    vec![
        Sequence::new(1, 9, &[], 0),
        Sequence::new(2, 23, &[(0, 1.0)], 12),
        Sequence::new(3, 4, &[(1, 0.7), (2, 0.3)], 24),
        Sequence::new(4, 17, &[(2, 1.0)], 36),
    ]
}

#[test]
fn logits_match_those_of_the_cpu_for_a_mixed_batch_in_every_written_type() {
    let Some(gpu) = gpu() else { return };
    for dtype in [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
    ] {
        let (on_cpu, on_gpu) = (load(dtype, cpu()), load(dtype, gpu.clone()));
        let (cpu_adapters, gpu_adapters) = (adapters(&on_cpu), adapters(&on_gpu));
        for (kv, compute, tolerance) in [
            (KvType::F32, Compute::F32, 2e-5),
            (KvType::F16, Compute::Int8, 0.03),
        ] {
            let want = Runner::new(&on_cpu, &cpu_adapters, kv, compute).read(&mut mixed(), 64);
            let got = Runner::new(&on_gpu, &gpu_adapters, kv, compute).read(&mut mixed(), 64);
            for (got, want) in got.iter().zip(&want) {
                let difference = difference(got, want);
                assert!(
                    difference < tolerance,
                    "{dtype:?} {compute:?}: {difference}"
                );
            }
        }
    }
}

#[test]
fn greedy_answers_are_those_of_the_cpu_except_at_near_ties() {
    let Some(gpu) = gpu() else { return };
    let mut compared = 0;
    for dtype in [GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0] {
        let (on_cpu, on_gpu) = (load(dtype, cpu()), load(dtype, gpu.clone()));
        let (cpu_adapters, gpu_adapters) = (adapters(&on_cpu), adapters(&on_gpu));
        let mut cpu_run = Runner::new(&on_cpu, &cpu_adapters, KvType::F16, Compute::Int8);
        let mut gpu_run = Runner::new(&on_gpu, &gpu_adapters, KvType::F16, Compute::Int8);
        let (mut cpu_sequences, mut gpu_sequences) = (mixed(), mixed());
        for _ in 0..16 {
            let want = cpu_run.read(&mut cpu_sequences, 64);
            let got = gpu_run.read(&mut gpu_sequences, 64);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let (token, margin) = best(want);
                if margin > NEAR_TIE {
                    assert_eq!(best(got).0, token, "{dtype:?}, sequence {i}");
                    compared += 1;
                }
                // Both continue with the CPU's token.
                cpu_sequences[i].tokens.push(token);
                gpu_sequences[i].tokens.push(token);
            }
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_company_in_chunks_and_on_other_pages() {
    let Some(gpu) = gpu() else { return };
    let bits = |logits: &[f32]| -> Vec<u32> { logits.iter().map(|x| x.to_bits()).collect() };
    for dtype in [GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_0] {
        let model = load(dtype, gpu.clone());
        let adapters = adapters(&model);
        let company =
            Runner::new(&model, &adapters, KvType::F16, Compute::Int8).read(&mut mixed(), 64);
        for (i, sequence) in mixed().into_iter().enumerate() {
            for chunk in [1, 5, 64] {
                let mut alone = [Sequence {
                    blocks: (0..12).map(|b| 50 - 2 * b).collect(),
                    ..sequence.clone()
                }];
                let logits = Runner::new(&model, &adapters, KvType::F16, Compute::Int8)
                    .read(&mut alone, chunk);
                assert!(
                    bits(&logits[0]) == bits(&company[i]),
                    "{dtype:?}, sequence {i}, chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn every_family_computes_what_the_cpu_computes() {
    let Some(gpu) = gpu() else { return };
    for family in ["linear", "llama", "llama3", "mistral", "qwen2", "qwen3"] {
        let (on_cpu, on_gpu) = (load_family(family, cpu()), load_family(family, gpu.clone()));
        let tokens: Vec<u32> = (0..40).map(|i| (7 + 11 * i) % 60).collect();
        let want = logits(&on_cpu, &tokens, None, Compute::F32, KvType::F32);
        let got = logits(&on_gpu, &tokens, None, Compute::F32, KvType::F32);
        let difference = difference(got.values(), want.values());
        assert!(difference < 2e-5, "{family}: {difference}");
    }
}

/// Launches of a step outside the layers: the embeddings, the rows of the logits, and the head's two.
const OTHER_LAUNCHES: u64 = 4;

#[test]
fn a_layer_of_decode_takes_at_most_12_launches() {
    let Some(choice) = testkit::gpu::vulkan() else {
        return;
    };
    for family in ["llama", "qwen2", "qwen3"] {
        // Its own device, because other tests launch at the same time.
        let model = load_family(family, Device::open(choice).unwrap());
        let adapters = adapters(&model);
        let mut runner = Runner::new(&model, &adapters, KvType::F16, Compute::Int8);
        // Longer than a split of attention, which takes another launch.
        let mut sequences = [
            Sequence::new(1, 140, &[(0, 1.0)], 0),
            Sequence::new(2, 20, &[(1, 0.7), (2, 0.3)], 12),
            Sequence::new(3, 5, &[], 24),
        ];
        for sequence in &mut sequences {
            for token in &mut sequence.tokens {
                *token %= model.config().vocab_size as u32;
            }
        }
        runner.read(&mut sequences, 200);
        for sequence in &mut sequences {
            sequence.tokens.push(3);
        }
        let before = model.device().launches();
        runner.read(&mut sequences, 1);
        let launches = model.device().launches() - before - OTHER_LAUNCHES;
        let layers = model.config().layers as u64;
        assert_eq!(launches % layers, 0, "{family}: {launches}");
        assert!(launches <= 12 * layers, "{family}: {launches}");
    }
}
