//! The peak memory of a run as a function of its settings, and advice for a run that does not fit.
//!
//! The sums must match what [`crate::learner_model`] allocates.

use formats::config::ModelConfig;
use kernels::BLOCK_TOKENS;
use serde::Serialize;

use crate::activation_cache;
use crate::learner_model::HEAD_ROWS;
use crate::settings::TrainSettings;

/// Bytes of the reference of a pair: two log-probabilities.
const PAIR_REFERENCE: u64 = 16;
/// Packed adapters are padded to so many columns.
const PADDED_RANK: usize = 16;

/// Peak memory of a run in bytes, in addition to the loaded base and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryEstimate {
    /// The adapters, in f32 and packed for the products. Their initial parameters count as data.
    pub adapters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's means.
    pub optimizer: u64,
    /// The best parameters of the adapters with validation rows.
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
    /// Reference log-probabilities in preference tuning.
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

/// The sizes of one adapter's task that memory depends on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterSizes {
    pub parameters: usize,
    pub rank: usize,
    /// Whether it continues an adapter, whose rank it has.
    pub continues: bool,
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
        continues: bool,
        lengths: &[usize],
        validation: Vec<usize>,
    ) -> AdapterSizes {
        AdapterSizes {
            parameters,
            rank: settings.rank,
            continues,
            batch_rows: settings.batch_rows,
            lengths: lengths.to_vec(),
            validation,
            pairs: settings.preference.is_some(),
        }
    }
}

/// The sizes of the base that memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseShape {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) intermediate: usize,
    pub(super) vocab: usize,
    pub(super) qk_norm: bool,
}

impl BaseShape {
    pub(super) fn of(config: &ModelConfig) -> BaseShape {
        BaseShape {
            layers: config.layers,
            hidden: config.hidden_size,
            query: config.heads * config.head_dim,
            key: config.kv_heads * config.head_dim,
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
            qk_norm: config.qk_norm,
        }
    }
}

/// The run's memory as a function of what a user can change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MemoryModel {
    pub(super) shape: BaseShape,
    pub(super) parts: Vec<AdapterSizes>,
    pub(super) batch_tokens: usize,
    /// Size limit of the activation cache in bytes.
    pub(super) activation_cache: u64,
}

/// Upper limits on the settings of all adapters.
#[derive(Debug, Clone, Copy)]
pub(super) struct SettingLimits {
    batch_rows: usize,
    max_length: usize,
    /// Of the new adapters: one that continues an adapter keeps its rank.
    rank: usize,
}

impl MemoryModel {
    /// Peak memory with the settings cut to `limits`.
    pub(super) fn memory(&self, limits: SettingLimits) -> MemoryEstimate {
        let s = self.shape;
        let mut memory = MemoryEstimate::default();
        let clipped = |length: &usize| (*length).min(limits.max_length);
        let (mut longest, mut rows, mut tokens) = (0, 0, 0usize);
        let (mut validated, mut widest_rank) = (0, 0);
        for part in &self.parts {
            let rank = match part.continues {
                true => part.rank,
                false => part.rank.min(limits.rank),
            };
            let parameters = part.parameters / part.rank.max(1) * rank;
            let packed = parameters / rank.max(1) * rank.next_multiple_of(PADDED_RANK);
            memory.adapters += 4 * (parameters + packed) as u64;
            memory.gradients += 4 * parameters as u64;
            memory.optimizer += 8 * parameters as u64;
            if !part.validation.is_empty() {
                memory.best += 4 * parameters as u64;
            }
            widest_rank = widest_rank.max(rank);
            // The longest rows may be in the same micro-batch.
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
        // Logits, and up to half of them rounded, with the indices of the nonzero ones, for six rows together.
        let logits = s.vocab * (6 * head_rows + head_rows.div_ceil(6));
        memory.logits = (logits + head_rows * 4 * 4 * s.hidden) as u64;
        memory
    }

    /// Most tokens of one call of the learner, when `tokens` are run.
    fn limit(&self, tokens: usize) -> usize {
        match self.batch_tokens {
            0 => tokens,
            most => tokens.min(most),
        }
    }

    /// The current settings as limits.
    pub(super) fn now(&self) -> SettingLimits {
        let most = |of: fn(&AdapterSizes) -> usize| self.parts.iter().map(of).max().unwrap_or(0);
        let new_rank = |part: &AdapterSizes| if part.continues { 0 } else { part.rank };
        SettingLimits {
            batch_rows: most(|part| part.batch_rows.min(part.lengths.len())),
            max_length: most(|part| part.lengths.iter().copied().max().unwrap_or(0)),
            rank: most(new_rank),
        }
    }

    /// Lists the single changes that would make the run fit into `available` bytes.
    pub(super) fn advice(&self, available: u64) -> String {
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
            return match now.rank {
                0 => "lower batch_rows and max_length together".to_owned(),
                _ => "lower batch_rows, max_length and rank together".to_owned(),
            };
        }
        let mut ways = Vec::new();
        if self.parts.len() > 1 {
            ways.push("train fewer adapters at once");
        }
        if self.parts.iter().any(|part| part.continues) {
            ways.push("start from an adapter with a smaller rank or from the base");
        }
        ways.push("take a smaller base");
        format!(
            "no setting makes it fit: {}, or free memory",
            ways.join(", ")
        )
    }
}
