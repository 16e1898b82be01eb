//! `GET /metrics`: everything that is counted, in OpenMetrics' text format. What the names mean is in docs/serving.md.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use engine::{AdapterId, LoadTimes, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::server_state::ServerState;
use crate::unix_time::unix_time;
use jobs::meters::JobNumbers;
use service::Service;

/// What the text is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The most names in one label of `vllm:lora_requests_info`.
const MAX_NAMES: usize = 200;

/// What is counted, for Prometheus
///
/// For keys with admin rights, unless the server was started with `--open-metrics`.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "OpenMetrics' text", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(
    State(state): State<AppState>,
    Extension(server): Extension<Arc<ServerState>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let mut registry = Registry::default();
    server.register(&mut registry);
    service.metrics().register(&mut registry);
    service.shadows().register(&mut registry);
    registry.register_collector(Box::new(Snapshot::take(&service)));
    if let Ok(jobs) = state.jobs() {
        registry.register_collector(Box::new(Training(jobs.numbers())));
    }
    let mut text = String::new();
    text::encode(&mut text, &registry)
        .map_err(|_| ApiError::internal("the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

/// The engine's numbers at one moment, and who is in its memory.
#[derive(Debug)]
struct Snapshot {
    stats: Stats,
    /// Names of resident adapters, and of those that requests wait for, as vLLM writes them.
    running: String,
    waiting: String,
    time: u64,
    /// Tokens of a block.
    block_tokens: usize,
}

impl Snapshot {
    fn take(service: &Service) -> Snapshot {
        // What a request would have to say to be answered by the adapter.
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
        Snapshot {
            stats: service.engine().stats(),
            waiting: joined(waiting.difference(&running).copied().collect()),
            running: joined(running.into_iter().collect()),
            time: unix_time(),
            block_tokens: service.engine().limits().block_tokens,
        }
    }

    fn gauges(&self) -> [(&'static str, &'static str, f64); 16] {
        let s = &self.stats;
        let used = (s.blocks - s.free_blocks) as f64;
        let waiting = s.in_flight.saturating_sub(s.running) as f64;
        let usage = used / (s.blocks as f64).max(1.0);
        [
            (
                "lory_requests_running",
                "Requests in the batch",
                s.running as f64,
            ),
            (
                "lory_requests_waiting",
                "Requests that wait for a place in the batch or for adapters",
                waiting,
            ),
            (
                "lory_kv_blocks",
                "Blocks for keys and values",
                s.blocks as f64,
            ),
            (
                "lory_kv_blocks_used",
                "Blocks that requests under way hold",
                used,
            ),
            (
                "lory_kv_blocks_cached",
                "Blocks that nobody holds and the prefix cache knows",
                s.cached_blocks as f64,
            ),
            (
                "lory_adapters_resident",
                "Adapters in memory",
                s.adapters.resident as f64,
            ),
            (
                "lory_adapters_loading",
                "Adapters being read, or next",
                s.adapters.loading as f64,
            ),
            (
                "lory_adapter_memory_bytes",
                "Bytes of adapters in memory and of those being read",
                s.adapters.bytes as f64,
            ),
            (
                "lory_adapter_memory_limit_bytes",
                "Bytes that adapters may take",
                s.adapters.limit as f64,
            ),
            (
                "lory_adapter_requests_waiting",
                "Requests that wait for room for their adapters",
                s.adapters.waiting as f64,
            ),
            (
                "lory_adapter_load_last_seconds",
                "The latest time to read and pack an adapter",
                s.adapters.loads.last.as_secs_f64(),
            ),
            (
                "lory_adapter_load_longest_seconds",
                "The longest time to read and pack an adapter",
                s.adapters.loads.longest.as_secs_f64(),
            ),
            (
                "lory_request_interval_seconds",
                "The mean time between the ends of requests, of late",
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
                waiting,
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Used part of the blocks for keys and values, 0 to 1",
                usage,
            ),
        ]
    }

    fn counters(&self) -> [(&'static str, &'static str, u64); 16] {
        let s = &self.stats;
        let a = &s.adapters;
        [
            ("lory_steps", "Steps that the model ran", s.steps),
            ("lory_rows", "Rows that the model ran", s.rows),
            (
                "lory_prefill_rows",
                "Rows that gave no token of their own",
                s.prefill_rows,
            ),
            ("lory_sampled_tokens", "Tokens sampled", s.sampled_tokens),
            (
                "lory_preemptions",
                "Times that a request gave its blocks up, to be computed again",
                s.preemptions,
            ),
            (
                "lory_prefix_cache_hit_tokens",
                "Tokens that did not run, as the prefix cache had them",
                s.cached_tokens,
            ),
            (
                "lory_prefix_cache_evictions",
                "Cached blocks that made room",
                s.cache_evictions,
            ),
            (
                "lory_draft_tokens",
                "Tokens that were guessed and run",
                s.drafted_tokens,
            ),
            (
                "lory_draft_tokens_kept",
                "Those of them that were right",
                s.accepted_tokens,
            ),
            (
                "lory_adapter_hits",
                "Adapters of requests that were in memory when the request came",
                a.hits,
            ),
            (
                "lory_adapter_misses",
                "Adapters of requests that were not",
                a.misses,
            ),
            (
                "lory_adapter_evictions",
                "Adapters that made room for others",
                a.evictions,
            ),
            (
                "lory_adapter_waits",
                "Times that a request had to wait for room for its adapters",
                a.waits,
            ),
            (
                "lory_adapter_load_failures",
                "Reads of adapters that came to nothing",
                a.load_failures,
            ),
            (
                "lory_adapter_read_bytes",
                "Bytes of adapters' files read",
                a.bytes_read,
            ),
            (
                "lory_requests_ended",
                "Requests that the engine ended, however",
                s.finished_stop
                    + s.finished_length
                    + s.finished_deadline
                    + s.finished_cancelled
                    + s.finished_error,
            ),
        ]
    }

    /// How many adapters of the present mean size fit: what vLLM calls its slots.
    fn max_lora(&self) -> u64 {
        let a = &self.stats.adapters;
        let mean = a.bytes.checked_div((a.resident + a.loading) as u64);
        mean.and_then(|mean| a.limit.checked_div(mean)).unwrap_or(0)
    }
}

/// The queue's numbers at one moment.
#[derive(Debug)]
struct Training(JobNumbers);

impl Collector for Training {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = encoder.encode_descriptor(
            "lory_training_jobs",
            "Training jobs that are kept, by status",
            None,
            MetricType::Gauge,
        )?;
        for (status, count) in &self.0.jobs {
            gauge
                .encode_family(&[("status", *status)])?
                .encode_gauge(count)?;
        }
        let counter = ConstCounter::new(self.0.trained_tokens);
        counter.encode(encoder.encode_descriptor(
            "lory_training_tokens",
            "Tokens that jobs have trained on",
            None,
            MetricType::Counter,
        )?)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in self.gauges() {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in self.counters() {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
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
            )?;

        let (name, help) = (
            "vllm:cache_config_info",
            "How keys and values are kept; the value is 1",
        );
        // vLLM's names: the blocks need not be a GPU's.
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
