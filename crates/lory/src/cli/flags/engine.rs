//! The flags of `lory serve` that configure the engine.

use std::time::Duration;

use bytesize::ByteSize;
use engine::EngineConfig;

use base::plan::PlanRequest;
use service::Settings;

use crate::cli::flags::base::Located;
use crate::cli::flags::units::memory_size;

/// Memory, batch and latency limits.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Memory for resident adapters
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory_size)]
    adapter_memory: ByteSize,
    /// Memory for the KV cache of running requests
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    kv_memory: ByteSize,
    /// Maximum number of requests that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_batch: u32,
    /// Maximum number of requests that wait in the queue; more are refused
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// A request that has waited this long goes before all others, whatever their persona and priority
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    max_wait: Duration,
    /// Target duration of a step while answers are being decoded; prompts are read in chunks that fit into it
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    step_latency: Duration,
    /// Maximum number of draft tokens from prompt lookup, used when it is faster; answers stay the same. 0 turns it off
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(0..=64))]
    draft_tokens: u8,
    /// Compute every prompt from its beginning, without reusing the prefixes of earlier requests to the same persona
    #[arg(long)]
    no_prefix_cache: bool,
}

impl EngineArgs {
    /// The memory that the engine takes in addition to the base, with `train_memory` for training (see [`PlanRequest`]).
    pub fn demand(&self, train_memory: Option<u64>) -> PlanRequest {
        let max_batch = self.max_batch as usize;
        PlanRequest {
            kv_memory: self.kv_memory.as_u64(),
            adapter_memory: self.adapter_memory.as_u64(),
            train_memory,
            rows: EngineConfig::default().step_tokens.max(max_batch),
            logit_rows: max_batch,
            ..PlanRequest::default()
        }
    }

    pub fn settings(&self, base: &Located) -> Settings {
        let max_batch = self.max_batch as usize;
        let defaults = EngineConfig::default();
        Settings {
            base_name: base.name.clone(),
            base_sha256: base.sha256.map(str::to_owned),
            kv_memory: self.kv_memory.as_u64(),
            engine: EngineConfig {
                max_batch,
                max_queue: self.max_queue,
                step_tokens: defaults.step_tokens.max(max_batch),
                adapter_memory: self.adapter_memory.as_u64(),
                max_wait: self.max_wait,
                step_latency: self.step_latency,
                draft_tokens: self.draft_tokens.into(),
                prefix_cache: !self.no_prefix_cache,
                ..defaults
            },
            ..Settings::default()
        }
    }
}
