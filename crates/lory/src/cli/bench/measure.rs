//! Times one case: batches laid out as the scheduler does it, through the runner that serves requests.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use engine::{Batch, Limits, Logits, Runner as _, SequenceRows};
use formats::peft::{self, AdapterConfig, AdapterFile, Dtype, LoraPair, Module};
use kernels::{KvType, LoraType};
use model::{Adapter, Model};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use service::runner::{ModelRunner, StepPriority};

/// What a measurement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Prefills one prompt in steps of at most `chunk` rows.
    Prefill {
        tokens: usize,
        chunk: usize,
        adapters: usize,
    },
    /// `rows` sequences of `past` tokens decode `new` tokens each, one a step.
    Decode {
        rows: usize,
        past: usize,
        new: usize,
        adapters: usize,
    },
    /// Loads a PEFT folder that is in the system's file cache: reads, checks, hashes and packs it.
    AdapterLoad,
}

impl Case {
    pub fn adapters(&self) -> usize {
        match *self {
            Case::Prefill { adapters, .. } | Case::Decode { adapters, .. } => adapters,
            Case::AdapterLoad => 1,
        }
    }

    /// KV blocks that are in use at the same time.
    fn blocks(&self, block_tokens: usize) -> usize {
        match *self {
            Case::Prefill { tokens, .. } => tokens.div_ceil(block_tokens),
            Case::Decode {
                rows, past, new, ..
            } => rows * (past + new).div_ceil(block_tokens),
            Case::AdapterLoad => 0,
        }
    }
}

/// The result of one run of a case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub tokens: usize,
    pub steps: usize,
    pub seconds: f64,
    /// Bytes of weights and adapters that a step reads.
    pub bytes_per_step: usize,
    /// Launches of kernels on a GPU; 0 on the CPU.
    pub launches_per_step: u64,
}

/// A runner with its adapters.
pub(crate) struct Bench {
    model: Arc<Model>,
    runner: ModelRunner,
    limits: Limits,
    adapters: Vec<Arc<Adapter>>,
    /// The PEFT folder of [`Case::AdapterLoad`].
    folder: tempfile::TempDir,
    logits: Logits,
    random: SplitMix64,
}

impl Bench {
    pub fn new(
        model: Arc<Model>,
        cases: &[Case],
        adapters: usize,
        rank: usize,
    ) -> anyhow::Result<Bench> {
        let block_tokens = kernels::BLOCK_TOKENS;
        let blocks = cases.iter().map(|case| case.blocks(block_tokens)).max();
        let bytes = blocks.unwrap_or(1).max(1) * model.block_bytes(KvType::F16);
        let runner = ModelRunner::new(model.clone(), bytes as u64, StepPriority::default())?;
        let limits = runner.limits();
        for case in cases {
            let longest = match *case {
                Case::Prefill { tokens, .. } => tokens,
                Case::Decode { past, new, .. } => past + new,
                Case::AdapterLoad => 0,
            };
            anyhow::ensure!(
                longest <= limits.context_length,
                "{longest} tokens are past the base's context of {}; use fewer",
                limits.context_length
            );
        }
        let mut random = SplitMix64::seed_from_u64(1);
        let folder = tempfile::tempdir()?;
        let on_disk = peft::Adapter {
            config: AdapterConfig::new(rank, rank as f64, &Module::ALL),
            pairs: random_pairs(&model, rank, &mut random),
            dtype: Dtype::BF16,
            metadata: BTreeMap::new(),
            base_tensors: Vec::new(),
        };
        on_disk.write(folder.path(), Dtype::BF16, "")?;
        let adapters = (0..adapters)
            .map(|_| {
                let pairs = random_pairs(&model, rank, &mut random);
                Ok(Arc::new(model.pack_adapter(&pairs, LoraType::Bf16)?))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Bench {
            model,
            runner,
            limits,
            adapters,
            folder,
            logits: Logits::default(),
            random,
        })
    }

    /// Bytes of one packed adapter.
    pub fn adapter_bytes(&self) -> u64 {
        self.adapters.first().map_or(0, |adapter| adapter.bytes())
    }

    pub fn measure(&mut self, case: &Case) -> anyhow::Result<Sample> {
        match *case {
            Case::Prefill {
                tokens,
                chunk,
                adapters,
            } => self.prefill(tokens, chunk, adapters),
            Case::Decode {
                rows,
                past,
                new,
                adapters,
            } => self.decode(rows, past, new, adapters),
            Case::AdapterLoad => self.load_adapter(),
        }
    }

    fn load_adapter(&self) -> anyhow::Result<Sample> {
        let started = Instant::now();
        let file = AdapterFile::open(self.folder.path())?;
        let (packed, hash) = file.hash_while(|| self.model.load_adapter_file(&file));
        black_box((packed?, hash));
        Ok(Sample {
            tokens: 0,
            steps: 1,
            seconds: started.elapsed().as_secs_f64(),
            bytes_per_step: 0,
            launches_per_step: 0,
        })
    }

    fn prefill(&mut self, tokens: usize, chunk: usize, adapters: usize) -> anyhow::Result<Sample> {
        let chunks = tokens.div_ceil(chunk);
        let batches: Vec<_> = (0..chunks)
            .map(|i| {
                let past = i * chunk;
                let rows = chunk.min(tokens - past);
                self.batch(&[(past, rows)], tokens, adapters, i + 1 == chunks)
            })
            .collect();
        let (seconds, launches) = self.count(&batches)?;
        Ok(Sample {
            tokens,
            steps: chunks,
            seconds,
            bytes_per_step: self.bytes_per_step(adapters.min(1)),
            launches_per_step: launches / chunks as u64,
        })
    }

    fn decode(
        &mut self,
        rows: usize,
        past: usize,
        new: usize,
        adapters: usize,
    ) -> anyhow::Result<Sample> {
        // Any finite numbers in the cache give the same time.
        for first in (0..past).step_by(64) {
            let count = 64.min(past - first);
            let sequences = vec![(first, count); rows];
            let batch = self.batch(&sequences, past + new, adapters, false);
            self.time(&[batch])?;
        }
        let batches: Vec<_> = (0..new)
            .map(|i| self.batch(&vec![(past + i, 1); rows], past + new, adapters, true))
            .collect();
        let (seconds, launches) = self.count(&batches)?;
        Ok(Sample {
            tokens: rows * new,
            steps: new,
            seconds,
            bytes_per_step: self.bytes_per_step(adapters.min(rows)),
            launches_per_step: launches / new as u64,
        })
    }

    fn bytes_per_step(&self, adapters: usize) -> usize {
        let embedding = self.model.embedding();
        // A step reads the whole embedding only if it is the head too.
        let lookup = if std::ptr::eq(embedding, self.model.head()) {
            0
        } else {
            embedding.bytes()
        };
        self.model.weight_bytes() - lookup + adapters * self.adapter_bytes() as usize
    }

    /// The seconds and the launches of the batches.
    fn count(&mut self, batches: &[Batch<Adapter>]) -> anyhow::Result<(f64, u64)> {
        let before = self.model.device().launches();
        let seconds = self.time(batches)?;
        Ok((seconds, self.model.device().launches() - before))
    }

    fn time(&mut self, batches: &[Batch<Adapter>]) -> anyhow::Result<f64> {
        let started = Instant::now();
        for batch in batches {
            self.runner
                .run(batch, &mut self.logits)
                .map_err(anyhow::Error::msg)?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// A batch of sequences of (past, rows). Each has its own blocks for `longest` tokens; the adapters take turns.
    fn batch(
        &mut self,
        sequences: &[(usize, usize)],
        longest: usize,
        adapters: usize,
        logits: bool,
    ) -> Batch<Adapter> {
        let mut batch = Batch::empty();
        let blocks = longest.div_ceil(self.limits.block_tokens) as u32;
        batch.slots = self.adapters[..adapters].to_vec();
        for (i, &(past, rows)) in sequences.iter().enumerate() {
            let first_row = batch.rows();
            let vocabulary = self.limits.vocab_size as u64;
            batch
                .tokens
                .extend((0..rows).map(|_| (self.random.next_u64() % vocabulary) as u32));
            batch.positions.extend(past as u32..(past + rows) as u32);
            let first_block = i as u32 * blocks;
            batch.sequences.push(SequenceRows {
                first_row,
                rows,
                past,
                blocks: (first_block..first_block + blocks).collect(),
                adapters: (adapters > 0)
                    .then(|| ((i % adapters) as u32, 1.0))
                    .into_iter()
                    .collect(),
            });
            if logits {
                batch.logit_rows.push((first_row + rows - 1) as u32);
                // Greedy sampling.
                batch.candidates.push(1);
            }
        }
        batch
    }
}

/// An adapter for all seven linear layers, with small random values.
fn random_pairs(model: &Model, rank: usize, random: &mut SplitMix64) -> Vec<LoraPair> {
    let mut pairs = Vec::new();
    for layer in 0..model.config().layers {
        for module in Module::ALL {
            let weights = model.layer_weights(layer).weights(module);
            let (outputs, inputs) = (weights.outputs(), weights.inputs());
            pairs.push(LoraPair {
                layer,
                module,
                rank,
                inputs,
                outputs,
                scale: 1.0,
                a: (0..rank * inputs).map(|_| small(random)).collect(),
                b: (0..outputs * rank).map(|_| small(random)).collect(),
            });
        }
    }
    pairs
}

/// A number from -0.01 to 0.01.
fn small(random: &mut SplitMix64) -> f32 {
    ((random.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.02
}
