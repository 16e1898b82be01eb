//! `GET /metrics`: every metric, in the OpenMetrics text format. docs/serving.md describes them. Each module registers its own metrics;
//! the engine and the training jobs only have plain numbers, which `engine_metrics` and [`JobMetrics`] turn into metrics.

mod engine_metrics;

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::server_state::ServerState;
use engine_metrics::EngineMetrics;
use jobs::metrics::JobCounts;

/// The content type.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics, for Prometheus
///
/// For keys with admin rights, unless the server was started with `--open-metrics`.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "The OpenMetrics text format", body = String, content_type = "application/openmetrics-text"))
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
    registry.register_collector(Box::new(EngineMetrics::read(&service)));
    if let Ok(jobs) = state.jobs() {
        let mut counts = jobs.counts();
        if let Ok(votes) = service.votes() {
            counts.damaged.push(("vote", votes.damaged()));
        }
        registry.register_collector(Box::new(JobMetrics(counts)));
    }
    let mut text = String::new();
    text::encode(&mut text, &registry)
        .map_err(|_| ApiError::internal("the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

/// The numbers of the training jobs.
#[derive(Debug)]
struct JobMetrics(JobCounts);

impl Collector for JobMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = encoder.encode_descriptor(
            "lory_training_jobs",
            "Training jobs, by status",
            None,
            MetricType::Gauge,
        )?;
        for (status, count) in &self.0.jobs {
            gauge
                .encode_family(&[("status", *status)])?
                .encode_gauge(count)?;
        }
        let mut gauge = encoder.encode_descriptor(
            "lory_damaged_records",
            "Records of jobs, files, evaluations and votes that could not be read and were skipped",
            None,
            MetricType::Gauge,
        )?;
        for (kind, count) in &self.0.damaged {
            gauge
                .encode_family(&[("kind", *kind)])?
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
