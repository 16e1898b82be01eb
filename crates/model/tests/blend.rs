//! A row with several weighted adapters, in a batch of rows that carry others: the bits that it has alone, and what a model
//! whose weights are the summed deltas computes.

use std::sync::Arc;

use formats::gguf::Gguf;
use formats::peft;
use kernels::{BLOCK_TOKENS, Compute, Device, DeviceChoice, KvType, Run, Span};
use model::{Adapter, Batch, Buffers, Model, merge};
use testkit::{Logits, tiny_adapter, tiny_config, tiny_gguf};

/// Tokens of each sequence.
const TOKENS: usize = 21;
/// The largest difference of a logit, as a part of the largest logit: sums in another order.
const TOLERANCE: f32 = 2e-5;

fn parse(bytes: Vec<u8>) -> Gguf {
    Gguf::parse(Arc::new(bytes), "tiny").unwrap()
}

fn load(gguf: &Gguf) -> Model {
    Model::load(
        gguf,
        Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
    )
    .unwrap()
}

/// The last logits of each sequence: its first token tells it from the others, its slots are what all its rows carry.
fn last_logits(
    model: &Model,
    adapters: &[&Adapter],
    sequences: &[(u32, &[(u32, f32)])],
) -> Vec<Vec<f32>> {
    let blocks = TOKENS.div_ceil(BLOCK_TOKENS) as u32;
    let tables: Vec<Vec<u32>> = (0..sequences.len() as u32)
        .map(|n| (n * blocks..(n + 1) * blocks).collect())
        .collect();
    let tokens: Vec<u32> = sequences
        .iter()
        .flat_map(|(first, _)| (0..TOKENS as u32).map(move |i| (first + 13 * i) % 250))
        .collect();
    let spans: Vec<Span> = (0..sequences.len())
        .map(|n| Span {
            first: n * TOKENS,
            rows: TOKENS,
            past: 0,
            blocks: &tables[n],
        })
        .collect();
    let runs: Vec<Run> = sequences
        .iter()
        .enumerate()
        .filter(|(_, (_, slots))| !slots.is_empty())
        .map(|(n, (_, slots))| Run {
            first: n * TOKENS,
            rows: TOKENS,
            slots: slots.to_vec(),
        })
        .collect();
    let batch = Batch {
        tokens: &tokens,
        spans: &spans,
        runs: &runs,
        adapters,
        dropout: &[],
    };
    let pages = sequences.len() * blocks as usize;
    let layers = model.config().layers;
    let mut cache = model.new_cache(layers, pages, KvType::F32).unwrap();
    let rows: Vec<u32> = (1..=sequences.len())
        .map(|n| (n * TOKENS - 1) as u32)
        .collect();
    let mut logits = model.device().tensor();
    model.forward(
        batch,
        &mut cache,
        &mut Buffers::new(model.device()),
        &rows,
        Compute::F32,
        &mut logits,
    );
    let logits = Logits::read(&logits);
    (0..rows.len()).map(|n| logits.row(n).to_vec()).collect()
}

#[test]
fn a_blend_in_a_mixed_batch_is_its_own_and_the_summed_deltas() {
    let base = parse(tiny_gguf(3));
    let model = load(&base);
    // Ranks of whole tiles and others, each with its own alpha.
    let files: Vec<peft::Adapter> = [(1, 4, 1.0), (2, 16, 0.5), (3, 5, 2.0)]
        .map(|(seed, rank, scale)| tiny_adapter(seed, &tiny_config(), rank, scale))
        .into();
    let packed: Vec<Adapter> = files
        .iter()
        .map(|file| model.load_adapter(file).unwrap())
        .collect();
    let adapters: Vec<&Adapter> = packed.iter().collect();
    let sequences: [(u32, &[(u32, f32)]); 7] = [
        (5, &[]),
        (5, &[(0, 1.0)]),
        (5, &[(0, 0.7), (1, 0.3)]),
        (90, &[(2, -0.4), (0, 0.5), (1, 0.25)]),
        (90, &[(1, 0.25)]),
        (7, &[(1, 0.3), (0, 0.7)]),
        (5, &[(0, 0.7), (1, 0.31)]),
    ];
    let mixed = last_logits(&model, &adapters, &sequences);
    for (sequence, mixed) in sequences.iter().zip(&mixed) {
        let alone = &last_logits(&model, &adapters, &[*sequence])[0];
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(alone), bits(mixed), "{sequence:?}");

        // W + the sum of scale * B A, one adapter after the other.
        let mut merged = parse(tiny_gguf(3));
        for (slot, scale) in sequence.1 {
            let file = merge(&merged, &files[*slot as usize], *scale, None).unwrap();
            merged = parse(file.to_bytes().unwrap());
        }
        let summed = &last_logits(&load(&merged), &[], &[(sequence.0, &[])])[0];
        let largest = summed.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = mixed
            .iter()
            .zip(summed)
            .fold(0f32, |most, (x, y)| most.max((x - y).abs()));
        assert!(
            off <= TOLERANCE * largest,
            "{sequence:?}: {off} of {largest}"
        );
    }
    // A hundredth of one adapter is more than the tolerance: the comparison would see it.
    let [seen, other] = [&mixed[2], &mixed[6]];
    let largest = seen.iter().fold(0f32, |most, x| most.max(x.abs()));
    let change = seen.iter().zip(other).map(|(x, y)| (x - y).abs());
    assert!(change.fold(0f32, f32::max) > 10.0 * TOLERANCE * largest);
}
