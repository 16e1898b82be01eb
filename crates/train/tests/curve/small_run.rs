//! A small training run, the same here and in PEFT. The test runs it, and `examples/curve.rs` writes it to files for
//! `bench/peers/make_curve_fixture.py`.

use std::path::PathBuf;
use std::sync::Arc;

use formats::gguf::{GgmlType, Gguf};
use kernels::{Device, DeviceChoice};
use model::Model;
use testkit::tiny_gguf_as;
use train::lora_init::{lora_init, target_linears};
use train::schedule::LrDecay;
use train::task::DataReport;
use train::{Example, TrainSettings, TrainTask};

/// The base, as the bytes of a GGUF file in f32.
pub fn base() -> Vec<u8> {
    tiny_gguf_as(5, GgmlType::F32)
}

/// The base, loaded.
pub fn model() -> Arc<Model> {
    let gguf = Gguf::parse(Arc::new(base()), "tiny").unwrap();
    Arc::new(
        Model::load(
            &gguf,
            Device::open(DeviceChoice::Cpu { threads: Some(2) }).unwrap(),
        )
        .unwrap(),
    )
}

/// 20 rows, 4 a step, 10 epochs: 50 steps in the rows' own order.
pub fn task(model: &Model, metrics: Option<PathBuf>) -> TrainTask {
    let settings = TrainSettings {
        rank: 4,
        alpha: 8.0,
        lr: Some(5e-3),
        schedule: LrDecay::Linear,
        warmup_ratio: 0.1,
        epochs: 10,
        batch_rows: 4,
        weight_decay: 0.01,
        clip: 1.0,
        seed: 42,
        shuffle: false,
        group_by_length: false,
        ..TrainSettings::default()
    };
    let config = model.config();
    let init = lora_init(
        &target_linears(config, &settings.modules().unwrap()),
        &settings,
    );
    TrainTask {
        name: "curve".to_owned(),
        train: (0..20).map(row).collect(),
        validation: Vec::new(),
        preference: None,
        initial_adapter: None,
        init: init.into(),
        settings,
        metrics,
        data: DataReport::default(),
    }
}

/// Rows of different lengths with a pattern that can be learned; what comes before `prompt` is not trained.
fn row(index: u32) -> Example {
    let length = 12 + (index * 7) % 23;
    let prompt = 3 + index % 5;
    let tokens = (0..length).map(|i| 3 + (index * 13 + i * (1 + index % 3)) % 97);
    Example {
        tokens: tokens.collect(),
        loss_mask: (0..length).map(|i| i >= prompt).collect(),
    }
}
