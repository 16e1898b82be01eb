//! Checks drift on neutral text against a slow reference: separate forward passes and explicit probabilities.

use std::sync::Arc;

use formats::chat_template::ChatTemplate;
use formats::gguf::{GgmlType, Gguf};
use formats::tokenizer::Tokenizer;
use kernels::{BLOCK_TOKENS, Compute, Device, DeviceChoice, KvType, LoraType, Run, Span};
use model::{Batch, Buffers, Model};
use testkit::{Logits, tiny_adapter, tiny_gguf_as};
use train::measures::{drift, neutral};
use train::{BatchItem, Example, Learner, LoraParams, ModelLearner};

fn tiny() -> (Gguf, Arc<Model>) {
    let gguf = Gguf::parse(Arc::new(tiny_gguf_as(3, GgmlType::Q4_1)), "tiny").unwrap();
    let model = Model::load(
        &gguf,
        Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
    )
    .unwrap();
    (gguf, Arc::new(model))
}

/// The probabilities of every row's next token, in a separate batch.
fn probabilities(model: &Model, params: &LoraParams, tokens: &[u32]) -> Vec<Vec<f64>> {
    let adapter = model.pack_adapter(&params.pairs, LoraType::F32).unwrap();
    let rows = tokens.len();
    let blocks: Vec<u32> = (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model
        .new_cache(model.config().layers, blocks.len(), KvType::F32)
        .unwrap();
    let span = Span {
        first: 0,
        rows,
        past: 0,
        blocks: &blocks,
    };
    let run = Run {
        first: 0,
        rows,
        slots: vec![(0, 1.0)],
    };
    let batch = Batch {
        tokens,
        spans: &[span],
        runs: &[run],
        adapters: &[&adapter],
        dropout: &[],
    };
    let mut logits = model.device().tensor();
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut buffers = Buffers::new(model.device());
    model.forward(
        batch,
        &mut cache,
        &mut buffers,
        &all,
        Compute::Int8,
        &mut logits,
    );
    let logits = Logits::read(&logits);
    (0..rows)
        .map(|row| {
            let exps: Vec<f64> = logits
                .row(row)
                .iter()
                .map(|x| f64::from(*x).exp())
                .collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|x| x / sum).collect()
        })
        .collect()
}

#[test]
fn drift_equals_the_divergence_of_separate_forward_passes() {
    let (_, model) = tiny();
    let tokens: Vec<u32> = (0..39).map(|i| (i * 104_729) % 250).collect();
    let loss_mask = (0..tokens.len()).map(|i| i > 5).collect();
    let example = Example { tokens, loss_mask };
    let adapter = LoraParams {
        pairs: tiny_adapter(2, model.config(), 4, 1.5).pairs,
    };
    let drifted = drift(
        &model,
        Compute::Int8,
        &adapter,
        std::slice::from_ref(&example),
        None,
    )
    .unwrap();

    let rows = &example.tokens[..38];
    let p = probabilities(&model, &LoraParams::default(), rows);
    let q = probabilities(&model, &adapter, rows);
    let counted: Vec<usize> = (5..38).collect();
    let kl: f64 = counted
        .iter()
        .map(|&row| {
            p[row]
                .iter()
                .zip(&q[row])
                .map(|(p, q)| p * (p / q).ln())
                .sum::<f64>()
        })
        .sum();
    assert_eq!(drifted.tokens, counted.len());
    assert!(drifted.kl > 0.01, "{drifted:?}");
    assert!(
        (drifted.kl - kl / counted.len() as f64).abs() < 1e-5,
        "{drifted:?} {kl}"
    );

    // The losses are those that training and evaluation see.
    let mut learner = ModelLearner::new(model.clone(), Compute::Int8);
    let both = [LoraParams::default(), adapter];
    for (adapter, seen) in [(0, drifted.base_loss), (1, drifted.loss)] {
        let items = [BatchItem::new(adapter, &example)];
        let loss = learner.losses(&both, &items).unwrap()[adapter].mean();
        assert!((loss - seen).abs() < 1e-5, "{loss} {seen}");
    }
}

#[test]
fn adapter_without_effect_has_no_drift() {
    let (gguf, model) = tiny();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let examples = neutral(&tokenizer, &template, model.config().context_length).unwrap();
    assert_eq!(examples.len(), 20);
    let mut untrained = tiny_adapter(2, model.config(), 4, 1.5).pairs;
    untrained.iter_mut().for_each(|pair| pair.b.fill(0.0));
    let adapter = LoraParams { pairs: untrained };
    let drifted = drift(&model, Compute::Int8, &adapter, &examples[..3], None).unwrap();
    assert_eq!((drifted.kl, drifted.loss), (0.0, drifted.base_loss));
    assert!(drifted.tokens > 30 && drifted.loss > 0.0);
    let wild = Example {
        tokens: vec![1, 9999],
        loss_mask: vec![false, true],
    };
    let error = drift(&model, Compute::Int8, &adapter, &[wild], None).unwrap_err();
    assert!(error.to_string().contains("vocabulary"), "{error}");
}
