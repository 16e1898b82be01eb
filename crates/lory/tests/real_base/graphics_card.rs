//! The real base and both shipped tones on a graphics card: the CPU's most probable tokens, except at near ties.

use std::path::Path;

use base::Base;
use formats::peft::AdapterFile;
use formats::tokenizer::Special;
use kernels::{Compute, Device, KvType};
use model::Model;
use testkit::{log_probabilities, logits};

use crate::{BASE, FILE};

/// Two tokens whose log-probabilities differ by less may change places: both devices round activations to 8 bits, each in its own way.
const NEAR_TIE: f64 = 0.4;
const TEXT: &str =
    "Where is my order #12345? I have asked our team to look up the address of your parcel.";

/// After each token of the text, the log-probabilities of all tokens.
fn predictions(model: &Model, persona: &str) -> Vec<Vec<f64>> {
    let personas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../personas");
    let file = AdapterFile::open(&personas.join(persona).join("adapter")).unwrap();
    let adapter = model.load_adapter_file(&file).unwrap();
    let tokens = BASE.tokenizer.encode(TEXT, Special::AsText).unwrap();
    let all = logits(
        model,
        &tokens,
        Some((&adapter, 1.0)),
        Compute::Int8,
        KvType::F16,
    );
    let row = |i| log_probabilities(all.row(i));
    (0..tokens.len()).map(row).collect()
}

/// The number of the largest.
fn argmax(values: &[f64]) -> usize {
    let order = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
    (0..values.len()).max_by(order).unwrap()
}

#[test]
fn both_tones_on_a_card_have_the_cpus_most_probable_tokens_except_at_near_ties() {
    let Some(device) = testkit::gpu::vulkan() else {
        return;
    };
    let card = Base::open(&FILE, None, Device::open(device).unwrap()).unwrap();
    let mut compared = 0;
    for persona in ["customer", "partner"] {
        let want = predictions(&BASE.model, persona);
        let got = predictions(&card.model, persona);
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            let best = argmax(want);
            let difference = (want[best] - got[best]).abs();
            assert!(
                difference < NEAR_TIE,
                "{persona}, position {i}: {difference}"
            );
            let mut others = want.clone();
            others[best] = f64::NEG_INFINITY;
            if want[best] - others[argmax(&others)] > NEAR_TIE {
                assert_eq!(best, argmax(got), "{persona}, position {i}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 20, "{compared} positions compared");
}
