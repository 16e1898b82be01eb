//! The trainer's settings as flags: one flag for each setting, with the same name. A flag overrides a persona's `[train]` table.

use serde::de::DeserializeOwned;
use train::TrainSettings;
use train::example::{LossMask, TooLong};
use train::schedule::LrDecay;

/// Settings for every adapter of the run.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Settings (of every adapter of the run)")]
pub(crate) struct SettingsArgs {
    /// Passes over the rows [default: 3]
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Maximum number of steps [default: no limit]
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<u64>,
    /// Rank of the adapter [default: 16]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank [default: 32]
    #[arg(long, value_name = "X")]
    alpha: Option<f32>,
    /// Scale by alpha / sqrt(rank) instead [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    rslora: Option<bool>,
    /// Dropout on the adapter's inputs, as a share [default: 0]
    #[arg(long, value_name = "SHARE")]
    dropout: Option<f32>,
    /// Linear layers that get an adapter, separated by commas [default: all seven, q_proj to down_proj]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Option<Vec<String>>,
    /// Peak learning rate [default: by the base's width; see --lr-find]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Ratio of B's learning rate to A's (LoRA+) [default: 1]
    #[arg(long, value_name = "X")]
    lora_plus_ratio: Option<f64>,
    /// Learning rate schedule after the warm-up: constant, linear, cosine [default: linear]
    #[arg(long, value_name = "NAME", value_parser = parse_word::<LrDecay>)]
    schedule: Option<LrDecay>,
    /// Share of the steps that are warm-up [default: 0.05]
    #[arg(long, value_name = "SHARE")]
    warmup_ratio: Option<f64>,
    /// Rows per micro-batch [default: 8]
    #[arg(long, value_name = "N")]
    batch_rows: Option<usize>,
    /// Micro-batches per step [default: 1]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<usize>,
    /// Maximum norm of the gradient; 0 for no clipping [default: 1]
    #[arg(long, value_name = "X")]
    clip: Option<f64>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// AdamW's first beta [default: 0.9]
    #[arg(long, value_name = "X")]
    beta1: Option<f64>,
    /// AdamW's second beta [default: 0.999]
    #[arg(long, value_name = "X")]
    beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "X")]
    epsilon: Option<f64>,
    /// Seed of the initial weights and of the order of rows [default: 42]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Maximum tokens of a row [default: 1024]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// What happens to a longer row: drop, truncate (its end), truncate_start, refuse [default: drop]
    #[arg(long, value_name = "NAME", value_parser = parse_word::<TooLong>)]
    too_long: Option<TooLong>,
    /// Which answers of a conversation are trained: the last one (completion) or all (assistant) [default: completion]
    #[arg(long, value_name = "NAME", value_parser = parse_word::<LossMask>)]
    mask: Option<LossMask>,
    /// Shuffle the rows each epoch [default: true]
    #[arg(long, value_name = "BOOL")]
    shuffle: Option<bool>,
    /// Put rows of similar length into the same step [default: true]
    #[arg(long, value_name = "BOOL")]
    group_by_length: Option<bool>,
    /// Extra copies of each row with other digits in the identifiers that its answer copies [default: 0]
    #[arg(long, value_name = "TIMES")]
    vary_identifiers: Option<u64>,
    /// Share of the rows held out for validation if there is no evaluation file [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
    /// Steps between validations, in addition to those at the end of an epoch; 0 for none [default: 0]
    #[arg(long, value_name = "STEPS")]
    validate_every: Option<u64>,
    /// Stop after this many validations in a row without a new lowest loss; 0 for never [default: 0]
    #[arg(long, value_name = "VALIDATIONS")]
    patience: Option<u64>,
    /// Steps between checkpoints; 0 for checkpoints only at the end of an epoch [default: 50]
    #[arg(long, value_name = "STEPS")]
    save_every: Option<u64>,
}

/// Parses a setting that is one of a few words.
fn parse_word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|error| error.to_string())
}

impl SettingsArgs {
    /// `settings` with the values of the flags.
    pub fn apply(&self, mut settings: TrainSettings) -> TrainSettings {
        fn set<T: Clone>(target: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                target.clone_from(value);
            }
        }
        let s = &mut settings;
        set(&mut s.epochs, &self.epochs);
        set(&mut s.rank, &self.rank);
        set(&mut s.alpha, &self.alpha);
        set(&mut s.rslora, &self.rslora);
        set(&mut s.dropout, &self.dropout);
        set(&mut s.target_modules, &self.target_modules);
        set(&mut s.lora_plus_ratio, &self.lora_plus_ratio);
        set(&mut s.schedule, &self.schedule);
        set(&mut s.warmup_ratio, &self.warmup_ratio);
        set(&mut s.batch_rows, &self.batch_rows);
        set(&mut s.gradient_accumulation, &self.gradient_accumulation);
        set(&mut s.clip, &self.clip);
        set(&mut s.weight_decay, &self.weight_decay);
        set(&mut s.beta1, &self.beta1);
        set(&mut s.beta2, &self.beta2);
        set(&mut s.epsilon, &self.epsilon);
        set(&mut s.seed, &self.seed);
        set(&mut s.max_length, &self.max_length);
        set(&mut s.too_long, &self.too_long);
        set(&mut s.mask, &self.mask);
        set(&mut s.shuffle, &self.shuffle);
        set(&mut s.group_by_length, &self.group_by_length);
        set(&mut s.vary_identifiers, &self.vary_identifiers);
        set(&mut s.validation_fraction, &self.validation_fraction);
        set(&mut s.validate_every, &self.validate_every);
        set(&mut s.patience, &self.patience);
        set(&mut s.save_every, &self.save_every);
        s.max_steps = self.max_steps.or(s.max_steps);
        s.lr = self.lr.or(s.lr);
        settings
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use serde_json::{Map, Value, json};

    use super::*;

    /// Every setting, with a value that is not its default.
    fn changed() -> Map<String, Value> {
        let changed = json!({
            "rank": 3, "alpha": 5.0, "rslora": true, "dropout": 0.25, "target_modules": ["q_proj", "v_proj"],
            "lr": 0.5, "lora_plus_ratio": 16.0, "schedule": "cosine", "warmup_ratio": 0.5, "epochs": 7,
            "max_steps": 11, "batch_rows": 2, "gradient_accumulation": 6, "clip": 0.5, "weight_decay": 0.25,
            "beta1": 0.5, "beta2": 0.75, "epsilon": 0.125, "seed": 1, "max_length": 99, "too_long": "refuse",
            "mask": "assistant", "shuffle": false, "group_by_length": false, "vary_identifiers": 4,
            "validation_fraction": 0.5, "validate_every": 9, "patience": 2, "save_every": 8,
        });
        changed.as_object().unwrap().clone()
    }

    #[test]
    fn every_setting_has_a_flag_of_the_same_name() {
        let default = TrainSettings {
            lr: Some(0.0),
            max_steps: Some(0),
            ..TrainSettings::default()
        };
        let every = serde_json::to_value(&default).unwrap();
        let changed = changed();
        let mut args = vec!["lory".to_owned()];
        for (name, default) in every.as_object().unwrap() {
            let value = changed.get(name);
            assert!(value.is_some_and(|value| value != default), "{name}");
            let value = match &changed[name] {
                Value::String(word) => word.clone(),
                Value::Array(words) => words
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(","),
                other => other.to_string(),
            };
            args.extend([format!("--{}", name.replace('_', "-")), value]);
        }
        let command = SettingsArgs::augment_args(clap::Command::new("lory"));
        let matches = command.try_get_matches_from(args).unwrap();
        let flags = SettingsArgs::from_arg_matches(&matches).unwrap();
        let applied = flags.apply(TrainSettings::default());
        assert_eq!(
            serde_json::to_value(applied).unwrap(),
            Value::Object(changed)
        );
        assert_eq!(
            SettingsArgs::default().apply(TrainSettings::default()),
            TrainSettings::default()
        );
    }

    #[test]
    fn an_unknown_word_is_rejected_with_the_known_ones() {
        let error = parse_word::<LrDecay>("polynomial").unwrap_err();
        assert!(error.contains("`constant`, `linear`, `cosine`"), "{error}");
    }
}
