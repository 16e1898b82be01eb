//! The pools of threads for blocking work, by the kind of work.

use std::sync::Arc;

use crate::error::ApiError;
use crate::work_pool::{PoolLimits, WorkPool};

/// The most requests of a key that wait to be prepared.
const MAX_WAITING_TO_PREPARE: usize = 256;
/// The most requests of a key that wait for records.
const MAX_WAITING_FOR_RECORDS: usize = 64;
/// The most plans, lints, previews and uploads of a key that wait.
const MAX_WAITING_IN_BACKGROUND: usize = 16;
/// The most changes of the registry of a key that wait.
const MAX_WAITING_TO_ADMINISTER: usize = 64;

/// The most probes that wait.
const MAX_WAITING_PROBES: usize = 64;

/// The pools of the server. Accepting connections, `/health`, authentication and the shutdown need none of them.
pub(crate) struct WorkPools {
    /// Reads bodies, renders templates, tokenizes and compiles grammars.
    pub prepare: Arc<WorkPool>,
    /// Short reads and changes of records: jobs, files, evaluations, votes.
    pub records: Arc<WorkPool>,
    /// Work that takes seconds: plans, lints, previews, checks of uploads.
    pub background: Arc<WorkPool>,
    /// Changes of the registry, for keys with admin rights.
    pub administration: Arc<WorkPool>,
    /// What `/ready` looks at, which needs no key.
    probes: Arc<WorkPool>,
}

impl WorkPools {
    /// Pools for a machine with this many cores.
    pub fn new(cores: usize) -> WorkPools {
        let prepare = cores.clamp(4, 32);
        WorkPools {
            prepare: WorkPool::new(PoolLimits {
                work: "requests to prepare",
                slots: prepare,
                slots_per_key: prepare / 4,
                queue_per_key: MAX_WAITING_TO_PREPARE,
                low_priority: false,
            }),
            records: WorkPool::new(PoolLimits {
                work: "requests for files, jobs or votes",
                slots: 16,
                slots_per_key: 4,
                queue_per_key: MAX_WAITING_FOR_RECORDS,
                low_priority: false,
            }),
            background: WorkPool::new(PoolLimits {
                work: "plans, lints, previews or uploads",
                slots: 4,
                slots_per_key: 1,
                queue_per_key: MAX_WAITING_IN_BACKGROUND,
                low_priority: true,
            }),
            administration: WorkPool::new(PoolLimits {
                work: "changes of the registry",
                slots: 4,
                slots_per_key: 2,
                queue_per_key: MAX_WAITING_TO_ADMINISTER,
                low_priority: false,
            }),
            probes: WorkPool::new(PoolLimits {
                work: "probes",
                slots: 2,
                slots_per_key: 2,
                queue_per_key: MAX_WAITING_PROBES,
                low_priority: false,
            }),
        }
    }

    /// Runs the work of a probe.
    pub async fn probe<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.probes.run(&None, |_| work()).await
    }
}
