//! Converts a trained adapter to PEFT's format, with its provenance in the metadata.
//!
//! Writes no file: [`formats::peft::Adapter::write`] puts it on the disk.

use std::collections::BTreeMap;

use formats::peft::{Adapter, AdapterConfig, Dtype};

use crate::error::TrainError;
use crate::metrics::{MetricsRecord, parse_metrics};
use crate::outcome::TrainedAdapter;
use crate::task::DataReport;

/// The base, tokenizer, template and data that an adapter was trained with. It can only be served with the same ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// The base's name, for PEFT's `base_model_name_or_path`.
    pub base_name: String,
    /// SHA-256 of the base's file.
    pub base_hash: String,
    /// The tokenizer's hash.
    pub tokenizer_hash: String,
    /// The chat template's hash.
    pub template_hash: String,
    /// The persona's system prompt, which conversations began with.
    pub system: Option<String>,
    /// The data files.
    pub data: DataReport,
}

/// Converts a trained adapter to PEFT; `provenance` goes into the header of its weights as `lory.*`.
///
/// # Errors
/// Settings that name no module.
pub fn peft_adapter(
    trained: &TrainedAdapter,
    provenance: &Provenance,
) -> Result<Adapter, TrainError> {
    let settings = &trained.settings;
    let mut config = AdapterConfig::new(
        settings.rank,
        f64::from(settings.alpha),
        &settings.modules()?,
    );
    config.use_rslora = settings.rslora;
    // The decimal that was written: 0.1, not the nearest f32.
    config.lora_dropout = settings.dropout.to_string().parse().unwrap_or(0.0);
    config.base_model_name_or_path = Some(provenance.base_name.clone());
    let mut metadata = BTreeMap::new();
    let mut put = |key: &str, value: String| metadata.insert(format!("lory.{key}"), value);
    put("version", env!("CARGO_PKG_VERSION").to_owned());
    put("base_sha256", provenance.base_hash.clone());
    put("tokenizer_hash", provenance.tokenizer_hash.clone());
    put("template_hash", provenance.template_hash.clone());
    put("data_sha256", provenance.data.train_file_hash.clone());
    put(
        "settings",
        serde_json::to_string(settings).unwrap_or_default(),
    );
    put("steps", trained.steps.to_string());
    if let Some(system) = &provenance.system {
        put("system", system.clone());
    }
    if let Some(hash) = &provenance.data.validation_file_hash {
        put("validation_data_sha256", hash.clone());
    }
    if let Some(loss) = last_loss(&trained.metrics) {
        put("training_loss", loss.to_string());
    }
    if let Some(start) = &trained.initial_adapter {
        put("started_from_sha256", start.clone());
    }
    if let Some(best) = trained.best {
        put("validation_loss", best.loss.to_string());
        put("kept_step", best.step.to_string());
        put("kept_epoch", best.epoch.to_string());
    }
    Ok(Adapter {
        config,
        pairs: trained.params.pairs.clone(),
        dtype: Dtype::F32,
        metadata,
        base_tensors: Vec::new(),
    })
}

/// The loss of the last step.
fn last_loss(metrics: &str) -> Option<f64> {
    let of_step = |record: &MetricsRecord| match record {
        MetricsRecord::Step { loss, .. } => Some(*loss),
        _ => None,
    };
    parse_metrics(metrics).iter().rev().find_map(of_step)
}
