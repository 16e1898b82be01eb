//! Where a job or an evaluation yields compute to requests: between two layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::YieldPoint;
use service::Service;
use service::compute_arbiter::{BackgroundClient, ComputeArbiter};

/// The yield point of a job: waits until the service lets the next layer run, and reports whether the job must stop.
pub(crate) struct JobYieldPoint {
    service: Arc<Service>,
    arbiter: Arc<ComputeArbiter>,
    client: BackgroundClient,
    stop: Arc<AtomicBool>,
}

impl JobYieldPoint {
    pub fn new(service: &Arc<Service>, stop: &Arc<AtomicBool>) -> Arc<JobYieldPoint> {
        let arbiter = service.compute_arbiter();
        Arc::new(JobYieldPoint {
            service: Arc::clone(service),
            client: arbiter.background_client(),
            arbiter,
            stop: Arc::clone(stop),
        })
    }
}

impl YieldPoint for JobYieldPoint {
    fn wait(&self) -> bool {
        let busy = || self.service.engine().stats().in_flight > 0;
        let stopped = || self.stop.load(Ordering::SeqCst);
        self.arbiter.begin_layer(self.client, &busy, &stopped)
    }

    fn release(&self) {
        self.arbiter.end_layer(self.client);
    }
}
