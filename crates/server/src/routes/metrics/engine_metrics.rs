//! The engine's numbers at one moment, with the names of the adapters in its memory.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use engine::{AdapterId, LoadTimes, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use service::Service;

use crate::unix_time::unix_time;

/// The most names in one label of `vllm:lora_requests_info`.
const MAX_NAMES: usize = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct EngineMetrics {
    stats: Stats,
    /// The names of resident adapters, and of those that requests wait for, in vLLM's format.
    running: String,
    waiting: String,
    time: u64,
    /// The tokens of a block.
    block_tokens: usize,
}

impl EngineMetrics {
    /// The numbers now.
    pub fn read(service: &Service) -> EngineMetrics {
        // The name that a request uses for each adapter.
        let mut names: HashMap<AdapterId, Vec<String>> = HashMap::new();
        let personas = service.personas();
        for persona in personas.iter() {
            let current = personas.get(&persona.name).map(|current| current.version);
            if let Some(adapter) = &persona.adapter {
                let name = match current == Some(persona.version) {
                    true => persona.name.clone(),
                    false => format!("{}@{}", persona.name, persona.version),
                };
                names
                    .entry(AdapterId(adapter.sha256))
                    .or_default()
                    .push(name);
            }
        }
        let named = |id: &AdapterId| names.get(id).into_iter().flatten().map(String::as_str);
        let resident = service.engine().adapters();
        let running: BTreeSet<&str> = resident
            .iter()
            .filter(|info| !info.loading)
            .flat_map(|info| named(&info.id))
            .collect();
        let waiting = service.engine().waiting_adapters();
        let waiting: BTreeSet<&str> = waiting.iter().flat_map(named).collect();
        let joined = |names: Vec<&str>| names[..names.len().min(MAX_NAMES)].join(",");
        EngineMetrics {
            stats: service.engine().stats(),
            waiting: joined(waiting.difference(&running).copied().collect()),
            running: joined(running.into_iter().collect()),
            time: unix_time(),
            block_tokens: service.engine().limits().block_tokens,
        }
    }

    fn waiting_requests(&self) -> f64 {
        self.stats.in_flight.saturating_sub(self.stats.running) as f64
    }

    fn used_blocks(&self) -> f64 {
        (self.stats.blocks - self.stats.free_blocks) as f64
    }

    /// The batch, and the blocks of its keys and values.
    fn batch_gauges(&self) -> Vec<(&'static str, &'static str, f64)> {
        let s = &self.stats;
        vec![
            (
                "lory_requests_running",
                "Requests in the batch",
                s.running as f64,
            ),
            (
                "lory_requests_waiting",
                "Requests that wait for a place in the batch or for adapters",
                self.waiting_requests(),
            ),
            (
                "lory_kv_blocks",
                "Blocks for keys and values",
                s.blocks as f64,
            ),
            (
                "lory_kv_blocks_used",
                "Blocks that requests in flight hold",
                self.used_blocks(),
            ),
            (
                "lory_kv_blocks_cached",
                "Unused blocks that the prefix cache keeps",
                s.cached_blocks as f64,
            ),
        ]
    }

    /// The adapter pool.
    fn adapter_gauges(&self) -> Vec<(&'static str, &'static str, f64)> {
        let a = &self.stats.adapters;
        vec![
            (
                "lory_adapters_resident",
                "Adapters in memory",
                a.resident as f64,
            ),
            (
                "lory_adapters_loading",
                "Adapters being loaded, or waiting to be",
                a.loading as f64,
            ),
            (
                "lory_adapter_memory_bytes",
                "Bytes of adapters in memory and of those being loaded",
                a.bytes as f64,
            ),
            (
                "lory_adapter_memory_limit_bytes",
                "Bytes that adapters may take",
                a.limit as f64,
            ),
            (
                "lory_adapter_requests_waiting",
                "Requests that wait for room for their adapters",
                a.waiting as f64,
            ),
            (
                "lory_adapter_load_last_seconds",
                "The latest time to read and pack an adapter",
                a.loads.last.as_secs_f64(),
            ),
            (
                "lory_adapter_load_longest_seconds",
                "The longest time to read and pack an adapter",
                a.loads.longest.as_secs_f64(),
            ),
        ]
    }

    /// The request rate, and gauges by vLLM's names.
    fn other_gauges(&self) -> Vec<(&'static str, &'static str, f64)> {
        let s = &self.stats;
        vec![
            (
                "lory_request_interval_seconds",
                "The recent mean time between the ends of requests",
                s.end_interval.as_secs_f64(),
            ),
            (
                "vllm:num_requests_running",
                "Requests in the batch",
                s.running as f64,
            ),
            (
                "vllm:num_requests_waiting",
                "Requests that wait for a place in the batch or for adapters",
                self.waiting_requests(),
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Used fraction of the blocks for keys and values, 0 to 1",
                self.used_blocks() / (s.blocks as f64).max(1.0),
            ),
        ]
    }

    /// Steps and tokens of the model.
    fn token_counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let s = &self.stats;
        vec![
            ("lory_steps", "Steps that the model ran", s.steps),
            ("lory_rows", "Rows that the model ran", s.rows),
            (
                "lory_prefill_rows",
                "Rows that produced no token",
                s.prefill_rows,
            ),
            ("lory_sampled_tokens", "Tokens sampled", s.sampled_tokens),
            (
                "lory_preemptions",
                "Times that a request released its blocks, to be computed again",
                s.preemptions,
            ),
            (
                "lory_prefix_cache_hit_tokens",
                "Tokens that were not computed, because the prefix cache had them",
                s.cached_tokens,
            ),
            (
                "lory_prefix_cache_evictions",
                "Cached blocks that were evicted",
                s.cache_evictions,
            ),
            (
                "lory_draft_tokens",
                "Tokens that were drafted and verified",
                s.drafted_tokens,
            ),
            (
                "lory_draft_tokens_kept",
                "Drafted tokens that were right",
                s.accepted_tokens,
            ),
        ]
    }

    /// The adapter pool.
    fn adapter_counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let a = &self.stats.adapters;
        vec![
            (
                "lory_adapter_hits",
                "Adapters of requests that were in memory when the request arrived",
                a.hits,
            ),
            (
                "lory_adapter_misses",
                "Adapters of requests that were not in memory",
                a.misses,
            ),
            (
                "lory_adapter_evictions",
                "Adapters that were evicted for others",
                a.evictions,
            ),
            (
                "lory_adapter_waits",
                "Times that a request had to wait for room for its adapters",
                a.waits,
            ),
            (
                "lory_adapter_load_failures",
                "Loads of adapters that failed",
                a.load_failures,
            ),
            (
                "lory_adapter_read_bytes",
                "Bytes of adapters' files read",
                a.bytes_read,
            ),
        ]
    }

    fn ended_requests(&self) -> u64 {
        let s = &self.stats;
        s.finished_stop
            + s.finished_length
            + s.finished_deadline
            + s.finished_cancelled
            + s.finished_error
    }

    /// How many adapters of the current mean size fit: vLLM's adapter slots.
    fn max_lora(&self) -> u64 {
        let a = &self.stats.adapters;
        let mean = a.bytes.checked_div((a.resident + a.loading) as u64);
        mean.and_then(|mean| a.limit.checked_div(mean)).unwrap_or(0)
    }

    fn encode_times(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("lory_model_time", "Time spent in the model");
        let seconds = ConstCounter::new(self.stats.model_time.as_secs_f64());
        seconds.encode(encoder.encode_descriptor(
            name,
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?)?;

        let loads = &self.stats.adapters.loads;
        let bounds = LoadTimes::BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(loads.counts).collect();
        let (name, help) = ("lory_adapter_load", "Time to read and pack an adapter");
        encoder
            .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(
                loads.total.as_secs_f64(),
                loads.count_all(),
                &buckets,
                None,
            )
    }

    /// Metrics of vLLM whose labels hold the information.
    fn encode_infos(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = (
            "vllm:cache_config_info",
            "The configuration of the cache for keys and values; the value is 1",
        );
        // vLLM's names, although the blocks are not on a GPU.
        let labels = [
            ("block_size", self.block_tokens.to_string()),
            ("cache_dtype", "float16".to_owned()),
            ("num_gpu_blocks", self.stats.blocks.to_string()),
        ];
        encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_family(&labels)?
            .encode_gauge(&1u64)?;

        let (name, help) = (
            "vllm:lora_requests_info",
            "Resident adapters, and those that requests wait for; the value is the time",
        );
        let labels = [
            ("max_lora", self.max_lora().to_string()),
            ("running_lora_adapters", self.running.clone()),
            ("waiting_lora_adapters", self.waiting.clone()),
        ];
        encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_family(&labels)?
            .encode_gauge(&(self.time as f64))
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauges = [
            self.batch_gauges(),
            self.adapter_gauges(),
            self.other_gauges(),
        ];
        for (name, help, value) in gauges.concat() {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let ended = (
            "lory_requests_ended",
            "Requests that the engine ended, for any reason",
            self.ended_requests(),
        );
        let counters = [self.token_counters(), self.adapter_counters(), vec![ended]];
        for (name, help, value) in counters.concat() {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        self.encode_times(&mut encoder)?;
        self.encode_infos(&mut encoder)
    }
}
