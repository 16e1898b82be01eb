//! `GET /v1/lora_adapters`: every adapter that is known, by content hash, and what the pool does with it. Loading and unloading
//! one by name, in vLLM's wire format, is `load_lora_adapter.rs`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use engine::AdapterId;
use serde_json::{Value, json};

use crate::answers::AdapterList;
use crate::app_state::AppState;
use crate::error::ApiError;

/// Every adapter that is known, and the pool that holds them
///
/// For keys with admin rights.
#[utoipa::path(
    get,
    path = "/v1/lora_adapters",
    responses((status = 200, description = "The list", body = AdapterList))
)]
pub(super) async fn lora_adapters(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let mut names: BTreeMap<AdapterId, Vec<Value>> = BTreeMap::new();
    for persona in service.personas().iter() {
        if let Some(adapter) = &persona.adapter {
            names
                .entry(AdapterId(adapter.sha256))
                .or_default()
                .push(json!({"name": persona.name, "version": persona.version}));
        }
    }
    let pool: BTreeMap<_, _> = service
        .engine()
        .adapters()
        .into_iter()
        .map(|info| (info.id, info))
        .collect();
    // One that was removed stays while it is leased.
    for id in pool.keys() {
        names.entry(*id).or_default();
    }
    let data: Vec<Value> = names
        .into_iter()
        .map(|(id, names)| {
            let info = pool.get(&id);
            let resident = info.is_some_and(|info| !info.loading);
            json!({
                "sha256": id.to_string(),
                "object": "lora_adapter",
                "names": names,
                "resident": resident,
                "loading": info.is_some_and(|info| info.loading),
                "bytes": info.filter(|_| resident).map_or(0, |info| info.bytes),
                "leases": info.map_or(0, |info| info.leases),
            })
        })
        .collect();
    let stats = service.engine().stats().adapters;
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "pool": {
            "bytes": stats.bytes,
            "limit": stats.limit,
            "resident": stats.resident,
            "loading": stats.loading,
            "waiting_requests": stats.waiting,
            "hits": stats.hits,
            "misses": stats.misses,
            "loads": stats.loads.count_all(),
            "load_failures": stats.load_failures,
            "evictions": stats.evictions,
            "waits": stats.waits,
            "bytes_read": stats.bytes_read,
            "load_ms": {
                "total": ms(stats.loads.total),
                "last": ms(stats.loads.last),
                "longest": ms(stats.loads.longest),
            },
        },
    })))
}
