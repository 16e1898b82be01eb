//! Evaluations that clients ask for: what `lory eval` does, one at a time beside the answers. A result joins those of `lory eval`.
//! One that was under way when the process before this ended has failed; those that wait go on waiting.

use std::sync::atomic::Ordering;

use registry::{Personas, spec};
use serde::Deserialize;
use serde_json::Value;
use service::Caller;

use crate::background_queue::{QueueState, Running};
use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::evaluation::candidate::own_rows;
use crate::evaluation::run;
use crate::evaluation_results::ResultError;
use crate::listing::Viewer;
use crate::record_file::{fresh_id, now};
use crate::records::evaluation::{Evaluation, EvaluationProgress, EvaluationStatus};
use crate::records::failure::Failure;

/// The most personas of one.
const MAX_PERSONAS: usize = 8;
/// The most rows of a persona, and how many there are where nobody says.
const ROWS: (usize, usize) = (500, 100);
/// What its id begins with.
pub const ID: &str = "eval-";

/// What is to be measured.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEvaluation {
    /// 1 to 8 personas, or versions of one, such as `customer@3`.
    pub personas: Vec<String>,
    /// The id of an uploaded file whose rows all of them are asked; without, each is asked its own evaluation rows.
    pub file: Option<String>,
    /// The most rows of each persona, 1 to 500; 100 without.
    pub max_rows: Option<usize>,
}

impl QueueState<Evaluation> {
    /// An evaluation that `viewer` may see, with its progress at this moment.
    fn find_with_progress(&self, viewer: &Viewer, id: &str) -> Result<Evaluation, JobError> {
        let mut evaluation = self.find(viewer, id)?;
        if let Some(running) = self.running.as_ref().filter(|running| running.id == id) {
            evaluation.progress.done = running.done.load(Ordering::Relaxed);
        }
        Ok(evaluation)
    }
}

impl BackgroundWork {
    /// Asks for an evaluation, which is measured in the background next.
    ///
    /// # Errors
    /// What is wrong with the request, by field; [`JobError::EvaluationsFull`]; there is no place for results; or the disk's.
    pub fn evaluate(&self, caller: &Caller, new: &NewEvaluation) -> Result<Evaluation, JobError> {
        let viewer = Viewer::of(caller);
        self.results()?;
        let personas = self.measured(caller, new)?;
        let (most, default) = ROWS;
        let max_rows = new.max_rows.unwrap_or(default);
        if !(1..=most).contains(&max_rows) {
            let message = format!("is {max_rows}; it must lie between 1 and {most}");
            return Err(JobError::invalid("max_rows", message));
        }
        let evaluation = Evaluation {
            id: fresh_id(ID)?,
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
                "its rows are pairs of answers; give rows with one answer",
            )),
            _ => Ok(()),
        };
        self.evaluations
            .add(evaluation, file_has_questions, |_| Ok(()))
    }

    /// Who is to be measured, each as `name@version`, if the caller may use them and there is something to ask them.
    fn measured(&self, caller: &Caller, new: &NewEvaluation) -> Result<Vec<String>, JobError> {
        let names = &new.personas;
        if !(1..=MAX_PERSONAS).contains(&names.len()) {
            let message = format!("has {} names; give 1 to {MAX_PERSONAS}", names.len());
            return Err(JobError::invalid("personas", message));
        }
        let personas = self.service.personas();
        let mut measured: Vec<String> = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let refuse = |message: String| JobError::invalid(format!("personas[{index}]"), message);
            let pinned = self.pinned(caller, &personas, name, new.file.is_some(), &refuse)?;
            if measured.contains(&pinned) {
                return Err(refuse(format!("{pinned} stands there already")));
            }
            measured.push(pinned);
        }
        Ok(measured)
    }

    fn pinned(
        &self,
        caller: &Caller,
        personas: &Personas,
        name: &str,
        has_rows: bool,
        refuse: &dyn Fn(String) -> JobError,
    ) -> Result<String, JobError> {
        if name == self.service.base().name {
            let why = "is the base, which is measured beside every persona; leave it out";
            return Err(refuse(why.to_owned()));
        }
        let parts = spec::parse(name).map_err(|error| refuse(error.to_string()))?;
        let [part] = parts.as_slice() else {
            return Err(refuse("is a blend; name one persona".to_owned()));
        };
        if part.scale.is_some() {
            return Err(refuse("has a weight; name the persona alone".to_owned()));
        }
        caller.check_persona(&part.name)?;
        let persona = personas
            .find(part)
            .map_err(|error| refuse(error.to_string()))?;
        persona
            .system_prompt_by_default()
            .map_err(|error| refuse(error.to_string()))?;
        if !has_rows && own_rows(&self.service, persona).is_none() {
            return Err(refuse(format!(
                "{name} has no evaluation rows of its own; upload a file with questions and name it as `file`"
            )));
        }
        Ok(format!("{}@{}", persona.name, persona.version))
    }

    /// An evaluation, and what was measured, once it is and as long as that is kept.
    ///
    /// # Errors
    /// [`JobError::Results`]: there is none; or the disk's.
    pub fn evaluation(
        &self,
        viewer: &Viewer,
        id: &str,
    ) -> Result<(Evaluation, Option<Value>), JobError> {
        let evaluation = self.evaluations.lock().find_with_progress(viewer, id)?;
        let Some(kept) = &evaluation.result else {
            return Ok((evaluation, None));
        };
        let result = match self.results()?.read(kept) {
            Err(ResultError::Unknown(_)) => None,
            read => Some(read?),
        };
        Ok((evaluation, result))
    }

    /// Gives an evaluation up.
    ///
    /// # Errors
    /// It is not there, or over.
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

    /// The thread that evaluates.
    pub(crate) fn evaluate_all(&self) {
        let queued =
            |one: &Evaluation| (one.status == EvaluationStatus::Queued).then_some(one.number);
        while let Some(next) = self.evaluations.wait_for(queued) {
            let Some((evaluation, running)) = self.begin_evaluation(&next.id) else {
                continue;
            };
            let evaluated = run::run(self, &evaluation, &running.stop, &running.done);
            self.end_evaluation(&running, evaluated);
        }
    }

    /// Takes up an evaluation, unless its state has changed.
    fn begin_evaluation(&self, id: &str) -> Option<(Evaluation, Running)> {
        let mut state = self.evaluations.lock();
        let mut evaluation = state.records.get(id)?.clone();
        if state.is_closing() || evaluation.status != EvaluationStatus::Queued {
            return None;
        }
        evaluation.status = EvaluationStatus::Running;
        // Even if the disk fails: it is not queued a second time.
        self.evaluations.save_or_log(&mut state, &evaluation);
        let running = state.start(id);
        Some((evaluation, running))
    }

    /// Records what became of an evaluation.
    fn end_evaluation(&self, running: &Running, evaluated: Result<String, Failure>) {
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

    /// Says of how many parts an evaluation is.
    pub(crate) fn parts_of_evaluation(&self, id: &str, of: usize) {
        self.evaluations
            .change_in_memory(id, |evaluation| evaluation.progress.of = of as u64);
    }
}
