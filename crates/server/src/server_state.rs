//! The state of the running server: its settings and pools, whether it drains, the requests in flight, and counters of responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::arriving_bodies::ArrivingBodies;
use crate::body_budget::BodyBudget;
use crate::refusal_pace::RefusalPace;
use crate::rejected_keys::RejectedKeys;
use crate::settings::{KEY_BODY_MEMORY, ServerSettings};
use crate::work_pools::WorkPools;

/// See the module.
pub(crate) struct ServerState {
    pub settings: ServerSettings,
    pub pools: WorkPools,
    pub bodies: Arc<BodyBudget>,
    pub arriving_bodies: Arc<ArrivingBodies>,
    pub rejected_keys: RejectedKeys,
    pub refusal_pace: RefusalPace,
    draining: AtomicBool,
    in_flight: Arc<InFlight>,
    responses: Family<ResponseLabels, Counter>,
    refused_connections: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    route: String,
    status: u16,
}

impl ServerState {
    pub fn new(settings: ServerSettings) -> Arc<ServerState> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Arc::new(ServerState {
            pools: WorkPools::new(cores),
            bodies: BodyBudget::new(settings.body_memory, KEY_BODY_MEMORY),
            arriving_bodies: ArrivingBodies::new(settings.max_connections),
            rejected_keys: RejectedKeys::default(),
            refusal_pace: RefusalPace::default(),
            settings,
            draining: AtomicBool::new(false),
            in_flight: Arc::default(),
            responses: Family::default(),
            refused_connections: Counter::default(),
        })
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin_request(&self) -> InFlightGuard {
        self.in_flight.count.fetch_add(1, Ordering::SeqCst);
        InFlightGuard(Arc::clone(&self.in_flight))
    }

    /// The number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.count.load(Ordering::SeqCst)
    }

    /// Resolves when no request is in flight.
    pub async fn idle(&self) {
        while self.in_flight() > 0 {
            self.in_flight.ended.notified().await;
        }
    }

    /// Counts a response.
    pub fn count_response(&self, route: String, status: StatusCode) {
        let status = status.as_u16();
        let labels = ResponseLabels { route, status };
        self.responses.get_or_create(&labels).inc();
    }

    /// Counts a connection that was refused because too many are open.
    pub fn count_refused_connection(&self) {
        self.refused_connections.inc();
    }

    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lory_http_responses",
            "Responses by route and status",
            self.responses.clone(),
        );
        registry.register(
            "lory_http_connections_refused",
            "Connections refused because the limit was reached",
            self.refused_connections.clone(),
        );
    }
}

#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    ended: Notify,
}

/// One request in flight, until it is dropped.
pub(crate) struct InFlightGuard(Arc<InFlight>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        // If nothing waits yet, the next waiter returns at once.
        self.0.ended.notify_one();
    }
}
