//! Where a job or an evaluation yields compute to requests: between two layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::YieldPoint;
use service::Service;
use service::sharing::{Borrower, Sharing};

/// The yield point of a job: waits until the service lets the next layer run, and reports whether the job must stop.
pub(crate) struct JobYieldPoint {
    service: Arc<Service>,
    sharing: Arc<Sharing>,
    who: Borrower,
    stop: Arc<AtomicBool>,
}

impl JobYieldPoint {
    pub fn new(service: &Arc<Service>, stop: &Arc<AtomicBool>) -> Arc<JobYieldPoint> {
        let sharing = service.sharing();
        Arc::new(JobYieldPoint {
            service: Arc::clone(service),
            who: sharing.borrower(),
            sharing,
            stop: Arc::clone(stop),
        })
    }
}

impl YieldPoint for JobYieldPoint {
    fn wait(&self) -> bool {
        let busy = || self.service.engine().stats().in_flight > 0;
        let stopped = || self.stop.load(Ordering::SeqCst);
        self.sharing.layer(self.who, &busy, &stopped)
    }

    fn release(&self) {
        self.sharing.rest(self.who);
    }
}
