//! How an adapter is trained, as plain data: the `[train]` table of `persona.toml`, or the flags of `lory train`.
//!
//! Checked once at the edge; the loop relies on it.

mod preference;
mod range;

use std::path::PathBuf;

use formats::peft::Module;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::example::{LossMask, TooLong};
use crate::schedule::LrDecay;
use dataset::Columns;
use range::check_range;

pub use preference::PreferenceSettings;

/// The settings of one adapter's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Rank of every pair.
    pub rank: usize,
    /// The product of a pair is scaled by alpha / rank (see [`TrainSettings::rslora`]).
    #[serde(serialize_with = "formats::decimal::serialize")]
    pub alpha: f32,
    /// Scales by alpha / sqrt(rank) instead, so that the size of an update does not fall with the rank (Kalajdzievski,
    /// "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
    pub rslora: bool,
    /// Share of the adapter's inputs that a training step sets to zero (see [`crate::dropout`]).
    #[serde(serialize_with = "formats::decimal::serialize")]
    pub dropout: f32,
    /// Linears that get a pair (`q_proj` .. `down_proj`).
    pub target_modules: Vec<String>,
    /// Peak learning rate; the default is [`default_lr`] of the base's width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The learning rate of every B is this many times that of its A (Hayou et al., "LoRA+", 2024).
    pub lora_plus_ratio: f64,
    /// The shape of the learning rate after its warm-up.
    pub schedule: LrDecay,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Passes over the training rows.
    pub epochs: u64,
    /// Ends the run early, after so many optimizer steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Rows of a micro-batch.
    pub batch_rows: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation: usize,
    /// Limit of the gradient's global norm; 0 for none.
    pub clip: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// How much of its mean of gradients AdamW keeps a step.
    pub beta1: f64,
    /// How much of its mean of squared gradients AdamW keeps a step.
    pub beta2: f64,
    /// Added to the root of the mean square in AdamW.
    pub epsilon: f64,
    /// Seed of the initial parameters, the order of rows and dropout.
    pub seed: u64,
    /// Most tokens of a row.
    pub max_length: usize,
    /// What happens to a longer row.
    pub too_long: TooLong,
    /// Which tokens of a conversation are trained.
    pub mask: LossMask,
    /// Maps fields of a row to columns of the data files.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Rows are put in a new order each epoch.
    pub shuffle: bool,
    /// Rows of similar length go into the same step.
    pub group_by_length: bool,
    /// How often each training row is used once more in an epoch, with other digits in the identifiers that its answer
    /// copies (see [`crate::vary_identifiers`]).
    pub vary_identifiers: u64,
    /// Share of the rows held out for validation when there is no evaluation file.
    pub validation_fraction: f64,
    /// A validation every so many optimizer steps, besides those at the end of an epoch; 0 for none.
    pub validate_every: u64,
    /// Ends the adapter's training after so many validations in a row without a new lowest loss; 0 for never.
    pub patience: u64,
    /// A checkpoint every so many optimizer steps, besides those at the end of an epoch; 0 for none.
    pub save_every: u64,
    /// Trains on pairs of answers, one to prefer and one to reject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceSettings>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rslora: false,
            dropout: 0.0,
            target_modules: Module::ALL
                .into_iter()
                .map(|module| module.name().to_owned())
                .collect(),
            lr: None,
            lora_plus_ratio: 1.0,
            schedule: LrDecay::Linear,
            warmup_ratio: 0.05,
            epochs: 3,
            max_steps: None,
            batch_rows: 8,
            gradient_accumulation: 1,
            clip: 1.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            seed: 42,
            max_length: 1024,
            too_long: TooLong::Drop,
            mask: LossMask::Completion,
            columns: Columns::default(),
            shuffle: true,
            group_by_length: true,
            vary_identifiers: 0,
            validation_fraction: 0.1,
            validate_every: 0,
            patience: 0,
            save_every: 50,
            preference: None,
        }
    }
}

/// Options of a whole run, the same for all its adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// The base, by fingerprint: a checkpoint is taken up only on the base it was made with.
    pub base: String,
    /// Path of the checkpoint. `None` writes none, so the run cannot be resumed.
    pub checkpoint: Option<PathBuf>,
    /// Most tokens of one call of the learner (0: no limit). Bounds memory; a step's gradient is the same sum.
    pub batch_tokens: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            base: String::new(),
            checkpoint: None,
            batch_tokens: 2048,
        }
    }
}

/// The learning rate for a base of `hidden_size`: 5e-4 at a width of 2000, falling with the power 0.781 of the width.
///
/// Schulman et al., "LoRA Without Regret" (2025), fitted on models of the Llama family at alpha = 32.
#[must_use]
pub fn default_lr(hidden_size: usize) -> f64 {
    5e-4 * (2000.0 / hidden_size.max(1) as f64).powf(0.781)
}

impl TrainSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first one out of its range, or not supported.
    pub fn check(&self) -> Result<(), TrainError> {
        check_range("rank", self.rank as u64, 1..=512)?;
        check_range("alpha", f64::from(self.alpha), 1e-6..=1e6)?;
        check_range("dropout", self.dropout, 0.0..=0.9)?;
        self.modules()?;
        if let Some(lr) = self.lr {
            check_range("lr", lr, 1e-9..=1.0)?;
        }
        check_range("lora_plus_ratio", self.lora_plus_ratio, 0.01..=1000.0)?;
        check_range("warmup_ratio", self.warmup_ratio, 0.0..=1.0)?;
        check_range("epochs", self.epochs, 1..=10_000)?;
        if let Some(steps) = self.max_steps {
            check_range("max_steps", steps, 1..=1_000_000_000)?;
        }
        check_range("batch_rows", self.batch_rows as u64, 1..=4096)?;
        check_range(
            "gradient_accumulation",
            self.gradient_accumulation as u64,
            1..=4096,
        )?;
        check_range("clip", self.clip, 0.0..=1e9)?;
        check_range("weight_decay", self.weight_decay, 0.0..=100.0)?;
        check_range("beta1", self.beta1, 0.0..=0.9999)?;
        check_range("beta2", self.beta2, 0.0..=0.999_999)?;
        check_range("epsilon", self.epsilon, 1e-30..=1.0)?;
        check_range("max_length", self.max_length as u64, 2..=1 << 20)?;
        check_range("vary_identifiers", self.vary_identifiers, 0..=64)?;
        if let Some(preference) = &self.preference {
            preference.check()?;
        }
        check_range("validation_fraction", self.validation_fraction, 0.0..=0.9)?;
        check_range("validate_every", self.validate_every, 0..=1_000_000_000)?;
        check_range("patience", self.patience, 0..=1_000_000)?;
        check_range("save_every", self.save_every, 0..=1_000_000_000)
    }

    /// The modules that get a pair, in the order of [`Module::ALL`].
    ///
    /// # Errors
    /// An unknown name, or none at all.
    pub fn modules(&self) -> Result<Vec<Module>, TrainError> {
        let known = || {
            Module::ALL
                .into_iter()
                .map(|module| module.name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let refuse = |message| TrainError::Setting {
            name: "target_modules",
            message,
        };
        for name in &self.target_modules {
            if !Module::ALL.into_iter().any(|module| module.name() == name) {
                return Err(refuse(format!(
                    "`{name}` is unknown; the modules are {}",
                    known()
                )));
            }
        }
        if self.target_modules.is_empty() {
            return Err(refuse(format!(
                "is empty; name at least one of {}",
                known()
            )));
        }
        let named = |module: &Module| self.target_modules.iter().any(|name| name == module.name());
        Ok(Module::ALL.into_iter().filter(named).collect())
    }

    /// The same settings with the learning rate filled in for a base of `hidden_size`.
    #[must_use]
    pub fn for_base(mut self, hidden_size: usize) -> Self {
        // Rounded to three digits, so that it reads well in outputs and records.
        let rounded = |lr: f64| format!("{lr:.2e}").parse().unwrap_or(lr);
        self.lr = Some(self.lr.unwrap_or_else(|| rounded(default_lr(hidden_size))));
        self
    }

    /// The scale of a pair's product: the number that PEFT and [`formats::peft`] read from the adapter's folder.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank.max(1) as f64;
        (f64::from(self.alpha) / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Rows of one optimizer step.
    #[must_use]
    pub fn rows_per_step(&self) -> usize {
        self.batch_rows.saturating_mul(self.gradient_accumulation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_stable() {
        let settings = TrainSettings::default();
        settings.check().unwrap();
        assert_eq!(
            (settings.rank, settings.alpha, settings.dropout),
            (16, 32.0, 0.0)
        );
        assert_eq!(settings.modules().unwrap().len(), 7);
        assert_eq!(
            (settings.epochs, settings.clip, settings.warmup_ratio),
            (3, 1.0, 0.05)
        );
    }

    #[test]
    fn settings_not_in_the_table_have_defaults() {
        let settings: TrainSettings =
            serde_json::from_str(r#"{"rank":8,"schedule":"cosine","lr":0.01}"#).unwrap();
        let expected = TrainSettings {
            rank: 8,
            schedule: LrDecay::Cosine,
            lr: Some(0.01),
            ..TrainSettings::default()
        };
        assert_eq!(settings, expected);
        let error = serde_json::from_str::<TrainSettings>(r#"{"ranks":8}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `ranks`"), "{error}");
    }

    #[test]
    fn setting_out_of_range_is_rejected_by_name() {
        let check = |change: fn(&mut TrainSettings)| {
            let mut settings = TrainSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert_eq!(
            check(|s| s.rank = 0),
            "setting `rank`: is 0; it must be between 1 and 512"
        );
        assert!(
            check(|s| s.dropout = 1.0)
                .contains("setting `dropout`: is 1; it must be between 0 and 0.9")
        );
        assert!(check(|s| s.lr = Some(f64::NAN)).starts_with("setting `lr`: is NaN"));
        assert!(
            check(|s| s.target_modules = vec!["lm_head".into()])
                .contains("`lm_head` is unknown; the modules are q_proj")
        );
        assert!(check(|s| s.target_modules.clear()).contains("is empty"));
        assert!(check(|s| s.lora_plus_ratio = 0.0).contains("between 0.01 and 1000"));
        assert!(check(|s| s.beta1 = 1.0).contains("setting `beta1`: is 1;"));
        assert!(check(|s| s.beta2 = -0.1).contains("setting `beta2`"));
        assert!(check(|s| s.epsilon = 0.0).contains("setting `epsilon`"));
        assert!(check(|s| s.patience = u64::MAX).contains("setting `patience`"));
        assert!(check(|s| s.epochs = 0).contains("setting `epochs`"));
        assert!(check(|s| s.batch_rows = usize::MAX).contains("setting `batch_rows`"));
    }

    #[test]
    fn scale_equals_pefts() {
        let scale = |rank, alpha, rslora| {
            let settings = TrainSettings {
                rank,
                alpha,
                rslora,
                ..TrainSettings::default()
            };
            settings.scale()
        };
        assert_eq!(scale(16, 32.0, false), 2.0);
        assert_eq!(scale(16, 32.0, true), 8.0);
        assert_eq!(scale(2, 3.0, true), (3.0 / 2f64.sqrt()) as f32);
    }

    #[test]
    fn default_learning_rate_depends_on_the_width() {
        assert!((default_lr(2000) - 5e-4).abs() < 1e-12);
        assert_eq!(TrainSettings::default().for_base(576).lr, Some(1.32e-3));
        let given = TrainSettings {
            lr: Some(1e-4),
            ..TrainSettings::default()
        };
        assert_eq!(given.for_base(576).lr, Some(1e-4));
    }
}
