//! Where a job or an evaluation yields compute to requests: between two layers, and within a long one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::YieldPoint;
use service::Service;
use service::compute_arbiter::{BackgroundClient, ComputeArbiter};

/// Waits until the service lets the next layer run, and reports whether the job must stop.
struct JobYieldPoint {
    service: Arc<Service>,
    arbiter: Arc<ComputeArbiter>,
    client: BackgroundClient,
    stop: Arc<AtomicBool>,
}

/// The yield point of a job or an evaluation, which stops it once `stop` is set.
pub(crate) fn job_yield_point(
    service: &Arc<Service>,
    stop: &Arc<AtomicBool>,
) -> Arc<dyn YieldPoint> {
    let arbiter = service.compute_arbiter();
    Arc::new(JobYieldPoint {
        service: Arc::clone(service),
        client: arbiter.background_client(),
        arbiter,
        stop: Arc::clone(stop),
    })
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
