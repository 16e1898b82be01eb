//! Estimates a run before it starts: its steps and tokens, its memory, and its time from a measured step.
//!
//! Pure arithmetic over lengths and shapes. Does not know the machine: available memory is a parameter.

mod memory;

use formats::config::ModelConfig;
use serde::Serialize;

use crate::error::TrainError;
use crate::learner_model::ACTIVATION_CACHE;
use crate::progress::RunPlan;
pub(crate) use memory::AdapterSizes;
pub use memory::MemoryEstimate;
use memory::{BaseShape, MemoryModel};

/// Cost of a validation token, which needs a forward pass, as a share of a training token's, which needs a forward pass, a
/// recomputation and a backward pass.
const VALIDATION_SHARE: f64 = 1.0 / 3.0;

/// The steps, tokens and memory of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunEstimate {
    /// Its steps, by adapter.
    pub plan: RunPlan,
    /// Tokens of all its training steps, with and without a loss.
    pub tokens: u64,
    /// Tokens of all its validations, and of the reference in preference tuning.
    pub validation_tokens: u64,
    /// Its peak memory.
    pub memory: MemoryEstimate,
    #[serde(skip)]
    model: MemoryModel,
}

impl RunEstimate {
    pub(crate) fn new(
        plan: RunPlan,
        tokens: u64,
        validation_tokens: u64,
        parts: Vec<AdapterSizes>,
        batch_tokens: usize,
        config: &ModelConfig,
    ) -> RunEstimate {
        let model = MemoryModel {
            shape: BaseShape::of(config),
            parts,
            batch_tokens,
            activation_cache: ACTIVATION_CACHE,
        };
        RunEstimate {
            plan,
            tokens,
            validation_tokens,
            memory: model.memory(model.now()),
            model,
        }
    }

    /// The duration of the run in seconds, at `tokens_per_s` in training steps.
    #[must_use]
    pub fn seconds(&self, tokens_per_s: f64) -> f64 {
        let validation = self.validation_tokens as f64 * VALIDATION_SHARE;
        (self.tokens as f64 + validation) / tokens_per_s.max(1e-9)
    }

    /// Limits the activation cache to what fits into `available` bytes with everything else. Returns its size in bytes, for
    /// [`crate::ModelLearner::set_activation_cache`].
    pub fn limit_activation_cache(&mut self, available: u64) -> u64 {
        let others = self.memory.total() - self.memory.activation_cache;
        self.model.activation_cache = ACTIVATION_CACHE.min(available.saturating_sub(others));
        self.memory = self.model.memory(self.model.now());
        self.model.activation_cache
    }

    /// Refuses a run that needs more than `available` bytes; `whose` says what limits them, as in "free on this machine".
    ///
    /// # Errors
    /// [`TrainError::Memory`], with the numbers and what to change.
    pub fn check(&self, available: u64, whose: &'static str) -> Result<(), TrainError> {
        let needed = self.memory.total();
        if needed <= available {
            return Ok(());
        }
        Err(TrainError::Memory {
            needed,
            available,
            whose,
            advice: self.model.advice(available),
        })
    }
}

/// The duration of a measured step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasuredStep {
    /// Tokens of the step.
    pub tokens: usize,
    /// Its duration in seconds.
    pub seconds: f64,
}

impl MeasuredStep {
    /// Tokens a second.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: BaseShape = BaseShape {
        layers: 30,
        hidden: 576,
        query: 576,
        key: 192,
        intermediate: 1536,
        vocab: 49152,
        qk_norm: false,
    };

    fn estimate(parts: Vec<AdapterSizes>) -> RunEstimate {
        let model = MemoryModel {
            shape: BASE,
            parts,
            batch_tokens: 2048,
            activation_cache: ACTIVATION_CACHE,
        };
        RunEstimate {
            plan: RunPlan {
                steps: 10,
                adapters: Vec::new(),
            },
            tokens: 3000,
            validation_tokens: 300,
            memory: model.memory(model.now()),
            model,
        }
    }

    fn part(batch_rows: usize, lengths: &[usize]) -> AdapterSizes {
        AdapterSizes {
            parameters: 4_884_480,
            rank: 16,
            continues: false,
            batch_rows,
            lengths: lengths.to_vec(),
            validation: vec![10; 4],
            pairs: false,
        }
    }

    #[test]
    fn pairs_add_reference_memory() {
        let plain = estimate(vec![part(4, &[128; 20])]).memory;
        let pairs = AdapterSizes {
            pairs: true,
            ..part(4, &[128; 20])
        };
        let with_pairs = estimate(vec![pairs]).memory;
        assert_eq!((plain.reference, with_pairs.reference), (0, 16 * 24));
        assert_eq!(with_pairs.total(), plain.total() + 16 * 24);
    }

    #[test]
    fn memory_counts_every_copy_of_the_parameters() {
        let memory = estimate(vec![part(4, &[128; 20])]).memory;
        let p = 4 * 4_884_480;
        assert_eq!(
            (
                memory.adapters,
                memory.gradients,
                memory.optimizer,
                memory.best
            ),
            (2 * p, p, 2 * p, p)
        );
        let two = estimate(vec![part(4, &[128; 20]), part(4, &[128; 20])]).memory;
        assert_eq!(two.adapters, 4 * p);
        assert_eq!(two.activations, 2 * memory.activations);
        let mut unseen = part(4, &[128; 20]);
        unseen.validation.clear();
        assert_eq!(estimate(vec![unseen]).memory.best, 0);
    }

    #[test]
    fn activation_memory_depends_on_the_longest_call() {
        let activations =
            |rows, lengths: &[usize]| estimate(vec![part(rows, lengths)]).memory.activations;
        let four = activations(4, &[128; 20]);
        assert_eq!(activations(8, &[128; 20]), 2 * four);
        assert_eq!(activations(2, &[256, 256, 10, 10, 10]), four);
        // A call is cut at 2048 tokens, unless one row is longer.
        assert_eq!(activations(64, &[128; 200]), 4 * four);
        assert_eq!(activations(1, &[4096]), 8 * four);
    }

    #[test]
    fn run_that_does_not_fit_is_refused_with_advice() {
        let mut whole = estimate(vec![part(16, &[128; 64])]);
        whole.limit_activation_cache(0);
        let needed = whole.memory.total();
        whole.check(needed, "free").unwrap();
        let error = whole.check(needed - 1, "free").unwrap_err().to_string();
        assert!(
            error.contains("batch_rows 8 (with gradient_accumulation 2")
                && error.contains("max_length 64")
                && error.contains("rank 8"),
            "{error}"
        );
        assert!(error.contains(" MiB"), "{error}");
        let error = whole.check(1 << 20, "free").unwrap_err().to_string();
        assert!(error.contains("take a smaller base"), "{error}");
        // If the adapters alone take all memory, only a lower rank helps.
        let mut narrow = estimate(vec![part(1, &[16; 64])]);
        narrow.limit_activation_cache(narrow.memory.gradients * 6);
        let error = narrow
            .check(narrow.memory.gradients * 6, "free")
            .unwrap_err()
            .to_string();
        assert!(error.contains("is enough: rank 8"), "{error}");
    }

    #[test]
    fn advice_for_a_run_that_continues_an_adapter_does_not_name_its_rank() {
        let continued = |lengths: &[usize], batch_rows| {
            let part = AdapterSizes {
                continues: true,
                ..part(batch_rows, lengths)
            };
            let mut estimate = estimate(vec![part]);
            estimate.limit_activation_cache(0);
            estimate
        };
        let refusal = |estimate: &RunEstimate, available| {
            estimate.check(available, "free").unwrap_err().to_string()
        };
        let wide = continued(&[128; 64], 16);
        let error = refusal(&wide, wide.memory.total() - 1);
        assert!(
            error.contains("is enough: batch_rows 8") && !error.contains("rank"),
            "{error}"
        );
        // The adapter alone takes more than there is.
        let narrow = continued(&[16; 64], 1);
        let error = refusal(&narrow, narrow.memory.gradients);
        assert!(
            error.contains("no setting makes it fit: start from an adapter with a smaller rank or from the base, take a smaller base"),
            "{error}"
        );
        // What is left if one row is as short as it can be.
        let large = continued(&[4096; 64], 16);
        let least = continued(&[64; 64], 1).memory.total();
        let error = refusal(&large, least);
        assert!(
            error.ends_with("lower batch_rows and max_length together"),
            "{error}"
        );
    }

    #[test]
    fn activation_cache_is_limited_by_memory() {
        let mut estimate = estimate(vec![part(4, &[128; 20])]);
        // 5184 floats a row and layer.
        let layer = 4 * 5184 * 512;
        assert_eq!(estimate.memory.activation_cache, 30 * layer);
        let others = estimate.memory.total() - estimate.memory.activation_cache;
        assert_eq!(
            estimate.limit_activation_cache(others + 3 * layer + 1),
            3 * layer + 1
        );
        assert_eq!(estimate.memory.activation_cache, 3 * layer);
        assert_eq!(estimate.limit_activation_cache(others - 1), 0);
        assert_eq!(estimate.memory.total(), others);
        estimate.check(others - 1, "free").unwrap_err();
    }

    #[test]
    fn time_is_estimated_from_the_measured_step() {
        let estimate = estimate(vec![part(4, &[128; 20])]);
        let measured = MeasuredStep {
            tokens: 512,
            seconds: 2.0,
        };
        assert_eq!(measured.tokens_per_s(), 256.0);
        let seconds = estimate.seconds(measured.tokens_per_s());
        assert!((seconds - 3100.0 / 256.0).abs() < 1e-9, "{seconds}");
    }
}
