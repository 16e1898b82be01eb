//! Estimates a run before it starts: its steps and tokens, its memory, and its time from a measured step.
//!
//! Pure arithmetic over lengths and shapes, which must match what [`crate::learner_model`] allocates. Does not know the
//! machine: available memory is a parameter.

use formats::config::ModelConfig;
use kernels::BLOCK_TOKENS;
use serde::Serialize;

use crate::activation_cache;
use crate::error::TrainError;
use crate::learner_model::{ACTIVATION_CACHE, HEAD_ROWS};
use crate::progress::RunPlan;
use crate::settings::TrainSettings;

/// A validation token costs a forward pass; a training token costs that, the layer again, and the backward.
const VALIDATION_SHARE: f64 = 1.0 / 3.0;
/// Bytes of the reference of a pair: two log-probabilities.
const PAIR_REFERENCE: u64 = 16;
/// Packed adapters are padded to so many columns.
const PADDED_RANK: usize = 16;

/// The steps, tokens and memory of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunEstimate {
    /// Its steps, by adapter.
    pub plan: RunPlan,
    /// Tokens that are trained on in all its steps, those whose loss does not count among them.
    pub tokens: u64,
    /// Tokens of all its validations, and of the reference that preferences are measured from.
    pub validation_tokens: u64,
    /// Its peak memory.
    pub memory: MemoryEstimate,
    #[serde(skip)]
    model: MemoryModel,
}

/// Peak memory of a run in bytes, in addition to the loaded base and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryEstimate {
    /// The adapters as they are, and as the products take them; what they start from is among the data.
    pub adapters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's means.
    pub optimizer: u64,
    /// The best state of those that are validated.
    pub best: u64,
    /// Layer inputs, and the tensors of one layer, forward and backward.
    pub activations: u64,
    /// The activation cache; with less memory, fewer layers are cached.
    #[serde(rename = "kept")]
    pub activation_cache: u64,
    /// Keys and values of one layer.
    pub cache: u64,
    /// Logits of the rows that go through the head at once.
    pub logits: u64,
    /// The log-probabilities that preferences are measured from.
    pub reference: u64,
}

impl MemoryEstimate {
    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.adapters
            + self.gradients
            + self.optimizer
            + self.best
            + self.activations
            + self.activation_cache
            + self.cache
            + self.logits
            + self.reference
    }
}

/// The sizes of one adapter's job that memory depends on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterSizes {
    pub parameters: usize,
    pub rank: usize,
    pub batch_rows: usize,
    /// Tokens of the training rows.
    pub lengths: Vec<usize>,
    /// Tokens of the validation rows.
    pub validation: Vec<usize>,
    /// Whether its rows are pairs, with a reference.
    pub pairs: bool,
}

impl AdapterSizes {
    pub fn new(
        settings: &TrainSettings,
        parameters: usize,
        lengths: &[usize],
        validation: Vec<usize>,
    ) -> AdapterSizes {
        AdapterSizes {
            parameters,
            rank: settings.rank,
            batch_rows: settings.batch_rows,
            lengths: lengths.to_vec(),
            validation,
            pairs: settings.preference.is_some(),
        }
    }
}

/// The sizes of the base that memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BaseShape {
    layers: usize,
    hidden: usize,
    query: usize,
    key: usize,
    intermediate: usize,
    vocab: usize,
    qk_norm: bool,
}

/// The run's memory as a function of what a user can change.
#[derive(Debug, Clone, PartialEq)]
struct MemoryModel {
    shape: BaseShape,
    parts: Vec<AdapterSizes>,
    batch_tokens: usize,
    /// Most bytes of activations that are kept.
    activation_cache: u64,
}

/// Upper limits on the settings of all adapters.
#[derive(Debug, Clone, Copy)]
struct SettingLimits {
    batch_rows: usize,
    max_length: usize,
    rank: usize,
}

impl MemoryModel {
    fn memory(&self, limits: SettingLimits) -> MemoryEstimate {
        let s = self.shape;
        let mut memory = MemoryEstimate::default();
        let clipped = |length: &usize| (*length).min(limits.max_length);
        let (mut longest, mut rows, mut tokens) = (0, 0, 0usize);
        let (mut validated, mut widest_rank) = (0, 0);
        for part in &self.parts {
            let rank = part.rank.min(limits.rank);
            let parameters = part.parameters / part.rank.max(1) * rank;
            let packed = parameters / rank.max(1) * rank.next_multiple_of(PADDED_RANK);
            memory.adapters += 4 * (parameters + packed) as u64;
            memory.gradients += 4 * parameters as u64;
            memory.optimizer += 8 * parameters as u64;
            if !part.validation.is_empty() {
                memory.best += 4 * parameters as u64;
            }
            widest_rank = widest_rank.max(rank);
            // The longest rows may well meet in one micro-batch.
            let mut lengths: Vec<usize> = part.lengths.iter().map(clipped).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            longest = longest.max(lengths.first().copied().unwrap_or(0));
            let most = part.batch_rows.min(limits.batch_rows).min(lengths.len());
            rows += most;
            tokens += lengths[..most].iter().sum::<usize>();
            let in_validation: Vec<usize> = part.validation.iter().map(clipped).collect();
            let one_row = in_validation.iter().copied().max().unwrap_or(0);
            validated = validated.max(self.limit(in_validation.iter().sum()).max(one_row));
            rows = rows.max(part.validation.len());
            if part.pairs {
                let pairs = part.lengths.len() + part.validation.len();
                memory.reference += PAIR_REFERENCE * pairs as u64;
            }
        }
        let tokens = self.limit(tokens).max(longest);
        let wide = s.query.max(s.intermediate);
        let inputs = s.layers * s.hidden;
        let both = 3 * s.intermediate + 2 * s.query + 2 * s.key + 2 * widest_rank;
        let (forward, backward) = (4 * s.hidden + both, 3 * s.hidden + both);
        // Rounded copies for the products: bytes with their scales and pairs of bf16, forward and backward.
        let rounded = 4 * (2 * s.hidden + wide) + 2 * wide;
        // Only training keeps layer inputs and goes back; a forward's buffers are as large as the larger call needs.
        let larger = tokens.max(validated);
        memory.activations =
            (tokens * 4 * (inputs + backward) + larger * (4 * forward + rounded)) as u64;
        let row =
            activation_cache::bytes_per_row_of(s.query, s.key, s.hidden, s.intermediate, s.qk_norm);
        let cached_layers =
            activation_cache::cached_layers(self.activation_cache, row, tokens, s.layers);
        memory.activation_cache = row * (tokens * cached_layers) as u64;
        memory.cache = (4 * 2 * s.key * (larger + rows * (BLOCK_TOKENS - 1))) as u64;
        let head_rows = larger.min(HEAD_ROWS);
        // Logits, and as much as half of them rounded, with the places of those that count, for six rows together.
        let logits = s.vocab * (6 * head_rows + head_rows.div_ceil(6));
        memory.logits = (logits + head_rows * 4 * 4 * s.hidden) as u64;
        memory
    }

    /// Tokens of one call of the learner, of `tokens` that are to be run.
    fn limit(&self, tokens: usize) -> usize {
        match self.batch_tokens {
            0 => tokens,
            most => tokens.min(most),
        }
    }

    fn now(&self) -> SettingLimits {
        let most = |of: fn(&AdapterSizes) -> usize| self.parts.iter().map(of).max().unwrap_or(0);
        SettingLimits {
            batch_rows: most(|part| part.batch_rows.min(part.lengths.len())),
            max_length: most(|part| part.lengths.iter().copied().max().unwrap_or(0)),
            rank: most(|part| part.rank),
        }
    }

    /// Advice: the single changes that would make the run fit into `available` bytes.
    fn advice(&self, available: u64) -> String {
        let now = self.now();
        let fits = |limits: SettingLimits| {
            let memory = self.memory(limits);
            memory.total() - memory.activation_cache <= available
        };
        let largest = |now: usize, least: usize, with: &dyn Fn(usize) -> SettingLimits| {
            let mut value = now;
            while value > least && !fits(with(value)) {
                value = (value / 2).max(least);
            }
            (value < now && fits(with(value))).then_some(value)
        };
        let rows = largest(now.batch_rows, 1, &|batch_rows| SettingLimits {
            batch_rows,
            ..now
        });
        let length = largest(now.max_length, 64, &|max_length| SettingLimits {
            max_length,
            ..now
        });
        let rank = largest(now.rank, 1, &|rank| SettingLimits { rank, ..now });
        let mut ways = Vec::new();
        if let Some(rows) = rows {
            ways.push(format!(
                "batch_rows {rows} (with gradient_accumulation {} a step stays the same)",
                now.batch_rows.div_ceil(rows)
            ));
        }
        if let Some(length) = length {
            ways.push(format!("max_length {length}"));
        }
        if let Some(rank) = rank {
            ways.push(format!("rank {rank}"));
        }
        if !ways.is_empty() {
            return format!("one of these is enough: {}", ways.join(", "));
        }
        let least = self.memory(SettingLimits {
            batch_rows: 1,
            max_length: now.max_length.min(64),
            rank: 1,
        });
        if least.total() - least.activation_cache <= available {
            return "lower batch_rows, max_length and rank together".to_owned();
        }
        let adapters = if self.parts.len() > 1 {
            "train fewer adapters at once, take a smaller base, or "
        } else {
            "take a smaller base, or "
        };
        format!("no setting makes it fit: {adapters}free memory")
    }
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
        let shape = BaseShape {
            layers: config.layers,
            hidden: config.hidden_size,
            query: config.heads * config.head_dim,
            key: config.kv_heads * config.head_dim,
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
            qk_norm: config.qk_norm,
        };
        let model = MemoryModel {
            shape,
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

    /// How long the run takes at `tokens_per_s` of its training steps, in seconds.
    #[must_use]
    pub fn seconds(&self, tokens_per_s: f64) -> f64 {
        let validation = self.validation_tokens as f64 * VALIDATION_SHARE;
        (self.tokens as f64 + validation) / tokens_per_s.max(1e-9)
    }

    /// Keeps no more activations than fit into `available` bytes with everything else. Returns the bytes that may be kept, for
    /// [`crate::ModelLearner::set_activation_cache`].
    pub fn limit_activation_cache(&mut self, available: u64) -> u64 {
        let others = self.memory.total() - self.memory.activation_cache;
        self.model.activation_cache = ACTIVATION_CACHE.min(available.saturating_sub(others));
        self.memory = self.model.memory(self.model.now());
        self.model.activation_cache
    }

    /// Refuses a run that needs more than `available` bytes.
    ///
    /// # Errors
    /// [`TrainError::Memory`], with the numbers and what to change.
    pub fn check(&self, available: u64) -> Result<(), TrainError> {
        let needed = self.memory.total();
        if needed <= available {
            return Ok(());
        }
        Err(TrainError::Memory {
            needed,
            available,
            advice: self.model.advice(available),
        })
    }
}

/// The duration of a measured step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasuredStep {
    /// Tokens of the step.
    pub tokens: usize,
    /// Time that it took.
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
        whole.check(needed).unwrap();
        let error = whole.check(needed - 1).unwrap_err().to_string();
        assert!(
            error.contains("batch_rows 8 (with gradient_accumulation 2")
                && error.contains("max_length 64")
                && error.contains("rank 8"),
            "{error}"
        );
        assert!(error.contains(" MiB"), "{error}");
        let error = whole.check(1 << 20).unwrap_err().to_string();
        assert!(error.contains("take a smaller base"), "{error}");
        // Where the adapters alone take it all, only the rank helps.
        let mut narrow = estimate(vec![part(1, &[16; 64])]);
        narrow.limit_activation_cache(narrow.memory.gradients * 6);
        let error = narrow
            .check(narrow.memory.gradients * 6)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is enough: rank 8"), "{error}");
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
        estimate.check(others - 1).unwrap_err();
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
