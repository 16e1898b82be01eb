//! The queue of requested evaluations. One runs at a time next to serving; the results are stored with those of `lory eval`. An
//! evaluation that was running when the process ended has failed; queued ones stay queued.

use std::sync::atomic::Ordering;

use registry::Personas;
use serde::Deserialize;
use serde_json::Value;
use service::{Caller, NameError};

use crate::error::JobError;
use crate::evaluation::candidate::own_rows;
use crate::evaluation::{run, summary};
use crate::evaluation_results::ResultError;
use crate::jobs_state::JobsState;
use crate::key_turns::Stage;
use crate::listing::Viewer;
use crate::queue_state::{QueueState, Running};
use crate::record_file::{fresh_id, now};
use crate::records::evaluation::{Evaluation, EvaluationProgress, EvaluationStatus, ID_PREFIX};
use crate::records::failure::Failure;

/// The most personas of one evaluation.
const MAX_PERSONAS: usize = 8;
/// The most rows of a persona.
const MAX_ROWS: usize = 500;
/// The default of `max_rows`.
const DEFAULT_ROWS: usize = 100;

/// The body of a request for an evaluation.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEvaluation {
    /// 1 to 8 personas, or versions of one, such as `customer@3`.
    pub personas: Vec<String>,
    /// The id of an uploaded file whose questions all personas answer. Default: each persona's own evaluation rows.
    pub file: Option<String>,
    /// The most rows of each persona, 1 to 500. Default: 100.
    pub max_rows: Option<usize>,
}

impl QueueState<Evaluation> {
    /// An evaluation that `viewer` may see, with its current progress.
    fn find_with_progress(&self, viewer: &Viewer, id: &str) -> Result<Evaluation, JobError> {
        let mut evaluation = self.find(viewer, id)?;
        if let Some(running) = self.running.as_ref().filter(|running| running.id == id) {
            evaluation.progress.done = running.done.load(Ordering::Relaxed);
        }
        Ok(evaluation)
    }
}

impl JobsState {
    /// Adds an evaluation to the queue.
    ///
    /// # Errors
    /// A field is invalid, [`JobError::Quota`], [`ResultError::Off`], or a disk error.
    pub fn evaluate(&self, caller: &Caller, new: &NewEvaluation) -> Result<Evaluation, JobError> {
        let viewer = Viewer::of(caller);
        self.results()?;
        self.folder.check()?;
        let personas = self.resolve_personas(caller, new)?;
        let max_rows = new.max_rows.unwrap_or(DEFAULT_ROWS);
        if !(1..=MAX_ROWS).contains(&max_rows) {
            let message = format!("is {max_rows}; it must be between 1 and {MAX_ROWS}");
            return Err(JobError::invalid("max_rows", message));
        }
        let evaluation = Evaluation {
            id: fresh_id(ID_PREFIX)?,
            number: 0,
            owner: viewer.name().map(str::to_owned),
            created_at: now(),
            finished_at: None,
            status: EvaluationStatus::Queued,
            personas,
            file: new.file.clone(),
            max_rows,
            progress: EvaluationProgress::default(),
            error: None,
            result: None,
        };
        // Checked under the lock that a deletion takes.
        let file_has_questions = || match &new.file {
            Some(id) if self.files.find(&viewer, id, "file")?.pairs => Err(JobError::invalid(
                "file",
                "has pairs of answers; give a file with one answer in each row",
            )),
            _ => Ok(()),
        };
        let added = self
            .evaluations
            .add(&caller.owner(), evaluation, file_has_questions, |_| Ok(()));
        let (evaluation, removed) = added?;
        for result in removed.iter().filter_map(|removed| removed.result.as_ref()) {
            self.results()?.remove(result);
        }
        Ok(evaluation)
    }

    /// The requested personas as `name@version`. Refuses those that the caller may not use and those that have no rows.
    fn resolve_personas(
        &self,
        caller: &Caller,
        new: &NewEvaluation,
    ) -> Result<Vec<String>, JobError> {
        let names = &new.personas;
        if !(1..=MAX_PERSONAS).contains(&names.len()) {
            let message = format!("has {} names; give 1 to {MAX_PERSONAS}", names.len());
            return Err(JobError::invalid("personas", message));
        }
        let personas = self.service.personas();
        let mut resolved: Vec<String> = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let refuse = |message: String| JobError::invalid(format!("personas[{index}]"), message);
            let pinned =
                self.resolve_persona(caller, &personas, name, new.file.is_some(), &refuse)?;
            if resolved.contains(&pinned) {
                return Err(refuse(format!("{pinned} is listed twice; leave one out")));
            }
            resolved.push(pinned);
        }
        Ok(resolved)
    }

    fn resolve_persona(
        &self,
        caller: &Caller,
        personas: &Personas,
        name: &str,
        has_rows: bool,
        refuse: &dyn Fn(String) -> JobError,
    ) -> Result<String, JobError> {
        let found = self.service.find_single_persona(personas, caller, name);
        let Some(persona) = found.map_err(|error| match error {
            NameError::Denied(error) => JobError::Denied(error),
            NameError::Unusable(message) => refuse(message),
        })?
        else {
            let why = "is the base, which is always measured; leave it out";
            return Err(refuse(why.to_owned()));
        };
        persona
            .system_prompt_by_default()
            .map_err(|error| refuse(error.to_string()))?;
        if !has_rows && own_rows(&self.service, persona).is_none() {
            return Err(refuse(format!(
                "{name} has no evaluation rows; upload a file with questions and name it as `file`"
            )));
        }
        Ok(format!("{}@{}", persona.name, persona.version))
    }

    /// An evaluation, and its result if it is finished and the result is still stored. Answers to a persona's own rows, with their questions,
    /// are only for viewers that may read the persona's settings.
    ///
    /// # Errors
    /// [`JobError::Results`].
    pub fn evaluation(
        &self,
        viewer: &Viewer,
        id: &str,
    ) -> Result<(Evaluation, Option<Value>), JobError> {
        let evaluation = self.evaluations.lock().find_with_progress(viewer, id)?;
        let Some(id) = &evaluation.result else {
            return Ok((evaluation, None));
        };
        let result = match self.results()?.read(id) {
            Err(ResultError::Unknown(_)) => None,
            read => Some(read?),
        };
        // The questions of a persona's own rows are a part of its settings.
        let is_private = evaluation.file.is_none() && !viewer.sees_settings();
        let result = result.map(|result| match is_private {
            true => summary::without_samples(result),
            false => result,
        });
        Ok((evaluation, result))
    }

    /// Cancels an evaluation.
    ///
    /// # Errors
    /// It does not exist, [`JobError::EvaluationOver`], or a disk error.
    pub fn cancel_evaluation(&self, viewer: &Viewer, id: &str) -> Result<Evaluation, JobError> {
        let mut state = self.evaluations.lock();
        let mut evaluation = state.find_with_progress(viewer, id)?;
        if evaluation.status.is_over() {
            return Err(JobError::EvaluationOver { id: evaluation.id });
        }
        evaluation.status = EvaluationStatus::Cancelled;
        evaluation.finished_at = Some(now());
        self.evaluations.save(&mut state, &evaluation)?;
        state.stop(id);
        Ok(evaluation)
    }

    /// Runs queued evaluations until the queue closes.
    pub(crate) fn run_evaluations(&self) {
        let queued = |one: &Evaluation| (one.status == EvaluationStatus::Queued).then_some(0);
        while let Some(next) = self.evaluations.wait_for(Stage::Run, queued) {
            let Some((evaluation, running)) = self.start_evaluation(&next.id) else {
                continue;
            };
            let evaluated = run::run(self, &evaluation, &running.stop, &running.done);
            self.finish_evaluation(&running, evaluated);
        }
    }

    /// Marks an evaluation as running; `None` if its state has changed.
    fn start_evaluation(&self, id: &str) -> Option<(Evaluation, Running)> {
        let mut state = self.evaluations.lock();
        let mut evaluation = state.records.get(id)?.clone();
        if state.is_closing() || evaluation.status != EvaluationStatus::Queued {
            return None;
        }
        evaluation.status = EvaluationStatus::Running;
        // Even if the disk fails, so that it does not run twice.
        self.evaluations.save_or_log(&mut state, &evaluation);
        let running = state.start(id);
        Some((evaluation, running))
    }

    /// Records the outcome of an evaluation.
    fn finish_evaluation(&self, running: &Running, evaluated: Result<String, Failure>) {
        let mut state = self.evaluations.lock();
        state.running = None;
        let Some(mut evaluation) = state.records.get(&running.id).cloned() else {
            return;
        };
        evaluation.progress.done = running.done.load(Ordering::Relaxed);
        // A cancellation has recorded its own state; a shutdown leaves the evaluation to the next process.
        let is_running = evaluation.status == EvaluationStatus::Running;
        if !is_running || running.stop.load(Ordering::SeqCst) {
            return;
        }
        match evaluated {
            Ok(result) => {
                evaluation.status = EvaluationStatus::Succeeded;
                evaluation.result = Some(result);
            }
            Err(failure) => {
                evaluation.status = EvaluationStatus::Failed;
                evaluation.error = Some(failure);
            }
        }
        evaluation.finished_at = Some(now());
        self.evaluations.save_or_log(&mut state, &evaluation);
    }

    /// Sets the number of parts of an evaluation.
    pub(crate) fn set_total_parts(&self, id: &str, parts: usize) {
        self.evaluations
            .change_in_memory(id, |evaluation| evaluation.progress.of = parts as u64);
    }
}
