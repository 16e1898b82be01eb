//! Adapters answer to whoever measures them alone, be they published or not: on an engine of its own over the weights that serve,
//! whose steps take the machine in the turns of a job.

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
use crate::background_work::BackgroundWork;

/// Questions that are asked at once.
const AT_ONCE: usize = 8;
/// Memory for the keys and values of those.
const KV_MEMORY: u64 = 128 << 20;
/// The most rows of one step, which is what an answer beside may have to wait for: a step of more would not fit between two of the
/// service's, and make all that follow it rare.
const STEP_TOKENS: usize = 64;
/// The least memory for adapters.
const ADAPTER_MEMORY: u64 = 256 << 20;

/// Puts `questions` to `candidates`, whom nobody else can ask.
pub(crate) fn answers(
    queue: &BackgroundWork,
    candidates: &[Candidate],
    questions: &[Question],
    common: Vec<(usize, usize)>,
    machine: Arc<dyn YieldPoint>,
    progress: &mut Progress,
) -> anyhow::Result<Answers> {
    let personas: Vec<Persona> = candidates.iter().map(|one| one.persona.clone()).collect();
    let adapters = personas
        .iter()
        .filter_map(|persona| persona.adapter.as_ref());
    let bytes: u64 = adapters.map(|adapter| adapter.bytes).sum();
    let settings = Settings {
        base_name: Some(queue.service.base().name.clone()),
        kv_memory: KV_MEMORY,
        priority: StepPriority::Background(machine),
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
