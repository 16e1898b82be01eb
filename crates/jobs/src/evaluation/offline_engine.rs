//! The offline engine: a second engine over the serving weights, for personas that are not published. Its steps run in the gaps
//! between serving steps, as the layers of a job do.

use std::sync::Arc;

use base::progress::Progress;
use engine::EngineConfig;
use model::YieldPoint;
use registry::{Persona, Personas};
use service::catalog::Catalog;
use service::runner::StepPriority;
use service::{Service, Settings};

use super::answers::{self, Answers, Question};
use super::candidate::Candidate;
use super::error::EvaluationError;
use crate::jobs_state::JobsState;

/// The most questions in flight.
const AT_ONCE: usize = 8;
/// Memory of the KV cache, in bytes.
const KV_MEMORY: u64 = 128 << 20;
/// The most tokens of one step, which a serving step may have to wait for. A larger step would not fit between two serving steps, and
/// the steps after it would run rarely.
const STEP_TOKENS: usize = 64;
/// The least memory for adapters, in bytes.
const ADAPTER_MEMORY: u64 = 256 << 20;

/// Answers `questions` on an engine that only this call uses.
///
/// # Errors
/// The engine cannot start, an adapter cannot be read, or the run was stopped at `yield_point`.
pub(crate) fn answers(
    queue: &JobsState,
    candidates: &[Candidate],
    questions: &[Question],
    common: Vec<(usize, usize)>,
    yield_point: Arc<dyn YieldPoint>,
    progress: &mut Progress,
) -> Result<Answers, EvaluationError> {
    let personas: Vec<Persona> = candidates.iter().map(|one| one.persona.clone()).collect();
    let adapters = personas
        .iter()
        .filter_map(|persona| persona.adapter.as_ref());
    let bytes: u64 = adapters.map(|adapter| adapter.bytes).sum();
    let settings = Settings {
        base_name: Some(queue.service.base().name.clone()),
        kv_memory: KV_MEMORY,
        priority: StepPriority::Background(yield_point),
        engine: EngineConfig {
            max_batch: AT_ONCE,
            max_queue: AT_ONCE,
            step_tokens: STEP_TOKENS,
            prefill_chunk: STEP_TOKENS,
            adapter_memory: ADAPTER_MEMORY.max(4 * bytes),
            ..EngineConfig::default()
        },
        ..Settings::default()
    };
    let catalog = Catalog::from(Personas::new(personas));
    let service = Service::start(Arc::clone(queue.service.base()), catalog, &settings)?;
    let answers = answers::answer(&service, candidates, questions, common, AT_ONCE, progress);
    service.engine().shutdown();
    answers
}
