//! `GET /v1/lora_adapters`: every known adapter by content hash, and its state in the adapter pool. Loading and unloading one by name,
//! in vLLM's wire format, is `load_lora_adapter`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use engine::{AdapterId, AdapterInfo};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::milliseconds::milliseconds;

/// Adapters and the pool that holds them.
#[derive(Serialize, ToSchema)]
pub(super) struct AdapterList {
    /// `list`.
    object: &'static str,
    data: Vec<AdapterState>,
    #[schema(value_type = serde_json::Value)]
    pool: Pool,
}

#[derive(Serialize, ToSchema)]
struct AdapterState {
    /// The content hash.
    sha256: String,
    /// `lora_adapter`.
    object: &'static str,
    names: Vec<AdapterName>,
    /// Whether it is in memory and ready.
    resident: bool,
    /// Whether it is being read, or waits to be read.
    loading: bool,
    /// Its size in memory.
    bytes: u64,
    /// The requests that use it.
    leases: u64,
}

impl AdapterState {
    fn new(id: AdapterId, names: Vec<AdapterName>, info: Option<&AdapterInfo>) -> AdapterState {
        let resident = info.filter(|info| !info.loading);
        AdapterState {
            sha256: id.to_string(),
            object: "lora_adapter",
            names,
            resident: resident.is_some(),
            loading: info.is_some_and(|info| info.loading),
            bytes: resident.map_or(0, |info| info.bytes),
            leases: info.map_or(0, |info| info.leases as u64),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct AdapterName {
    name: String,
    version: u32,
}

/// The adapter pool.
#[derive(Serialize)]
struct Pool {
    bytes: u64,
    limit: u64,
    resident: u64,
    loading: u64,
    waiting_requests: u64,
    hits: u64,
    misses: u64,
    loads: u64,
    load_failures: u64,
    evictions: u64,
    waits: u64,
    bytes_read: u64,
    load_ms: LoadMilliseconds,
}

#[derive(Serialize)]
struct LoadMilliseconds {
    total: f64,
    last: f64,
    longest: f64,
}

/// Every known adapter, and the pool that holds them
///
/// For keys with admin rights.
#[utoipa::path(
    get,
    path = "/v1/lora_adapters",
    responses((status = 200, description = "The list", body = AdapterList))
)]
pub(super) async fn lora_adapters(
    State(state): State<AppState>,
) -> Result<Json<AdapterList>, ApiError> {
    let service = state.service()?;
    let mut names: BTreeMap<AdapterId, Vec<AdapterName>> = BTreeMap::new();
    for persona in service.personas().iter() {
        if let Some(adapter) = &persona.adapter {
            let names = names.entry(AdapterId(adapter.sha256)).or_default();
            names.push(AdapterName {
                name: persona.name.clone(),
                version: persona.version,
            });
        }
    }
    let pool: BTreeMap<_, _> = service
        .engine()
        .adapters()
        .into_iter()
        .map(|info| (info.id, info))
        .collect();
    // An adapter whose persona was removed stays while requests use it.
    for id in pool.keys() {
        names.entry(*id).or_default();
    }
    let data = names
        .into_iter()
        .map(|(id, names)| AdapterState::new(id, names, pool.get(&id)))
        .collect();
    let stats = service.engine().stats().adapters;
    let pool = Pool {
        bytes: stats.bytes,
        limit: stats.limit,
        resident: stats.resident as u64,
        loading: stats.loading as u64,
        waiting_requests: stats.waiting as u64,
        hits: stats.hits,
        misses: stats.misses,
        loads: stats.loads.count_all(),
        load_failures: stats.load_failures,
        evictions: stats.evictions,
        waits: stats.waits,
        bytes_read: stats.bytes_read,
        load_ms: LoadMilliseconds {
            total: milliseconds(stats.loads.total),
            last: milliseconds(stats.loads.last),
            longest: milliseconds(stats.loads.longest),
        },
    };
    Ok(Json(AdapterList {
        object: "list",
        data,
        pool,
    }))
}
