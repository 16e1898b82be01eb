//! Evaluations that clients ask for: what `lory eval` does, one at a time beside the answers. A result joins those of `lory eval`.
//! One that was under way when the process before this ended has failed; those that wait go on waiting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use registry::{Personas, spec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::asking::Who;
use crate::disk::{fresh_id, get, now, put};
use crate::error::JobError;
use crate::evaluation::results::ResultError;
use crate::measure;
use crate::measure::own_rows;
use crate::queue::Queue;
use crate::record::Failure;
use service::Caller;

/// The most evaluations that are not over.
pub const MAX_OPEN_EVALUATIONS: usize = 16;
/// The most evaluations that are kept; the oldest that are over make room.
const MAX_KEPT: usize = 200;
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

/// Where an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationStatus {
    /// It waits for its turn.
    Queued,
    /// It is being measured.
    Running,
    /// Its result is there.
    Succeeded,
    /// It came to nothing; its error says why.
    Failed,
    /// It was given up.
    Cancelled,
}

impl EvaluationStatus {
    /// Whether nothing more will come of it.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, EvaluationStatus::Queued | EvaluationStatus::Running)
    }
}

/// How far an evaluation is, in answers and other parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Done {
    /// Parts that are done.
    pub done: u64,
    /// All parts; 0 until its rows were read.
    pub of: u64,
}

/// An evaluation as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival, which is the order of the queue.
    pub number: u64,
    /// The key that asked for it; none on a server without keys.
    pub owner: Option<String>,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// When it was over.
    pub finished_at: Option<u64>,
    /// Where it is.
    pub status: EvaluationStatus,
    /// Who is measured, each as `name@version`.
    pub personas: Vec<String>,
    /// Whose rows they are asked; none for each one's own.
    pub file: Option<String>,
    /// The most rows of each.
    pub max_rows: usize,
    /// How far it is.
    pub progress: Done,
    /// Why it failed.
    pub error: Option<Failure>,
    /// Its result among those that are kept.
    pub result: Option<String>,
}

/// All evaluations, and the one under way.
#[derive(Default)]
pub(super) struct Evaluations {
    all: BTreeMap<String, Evaluation>,
    current: Option<Current>,
    closing: bool,
}

/// The evaluation under way.
struct Current {
    id: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Evaluations {
    /// Those in the folder `dir`.
    pub fn open(dir: &Path) -> Result<Evaluations, JobError> {
        std::fs::create_dir_all(dir).map_err(JobError::io(dir))?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(JobError::io(dir))? {
            let path = entry.map_err(JobError::io(dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // What it measured lies elsewhere; a damaged record is no reason not to serve.
            let mut evaluation: Evaluation = match get(&path) {
                Err(error @ JobError::Damaged { .. }) => {
                    tracing::warn!("an evaluation is passed over: {error}");
                    continue;
                }
                read => read?,
            };
            // One that broke the process would break the next one too.
            if evaluation.status == EvaluationStatus::Running {
                evaluation.status = EvaluationStatus::Failed;
                evaluation.finished_at = Some(now());
                evaluation.error = Some(Failure {
                    code: "interrupted".to_owned(),
                    message: "the server ended before it was done; ask for it again".to_owned(),
                    param: None,
                });
                put(&path, &evaluation)?;
            }
            all.insert(evaluation.id.clone(), evaluation);
        }
        Ok(Evaluations {
            all,
            ..Evaluations::default()
        })
    }

    /// Ends the one under way, and takes up no other.
    pub fn close(&mut self) {
        self.closing = true;
        if let Some(current) = &self.current {
            current.stop.store(true, Ordering::SeqCst);
        }
    }

    /// The one that is not over and needs the file.
    pub fn needs(&self, file: &str) -> Option<&str> {
        let open = self.all.values().filter(|one| !one.status.is_over());
        let mut needing = open.filter(|one| one.file.as_deref() == Some(file));
        needing.next().map(|one| one.id.as_str())
    }

    fn find(&self, who: &Who, id: &str) -> Result<Evaluation, JobError> {
        let found = self.all.get(id);
        let found = found.filter(|one| who.sees(one.owner.as_deref()));
        let mut found = found.cloned().ok_or_else(|| {
            JobError::Results(ResultError::Unknown(id.chars().take(40).collect()))
        })?;
        if let Some(current) = self.current.as_ref().filter(|current| current.id == id) {
            found.progress.done = current.done.load(Ordering::Relaxed);
        }
        Ok(found)
    }
}

impl Queue {
    pub(super) fn evaluations(&self) -> MutexGuard<'_, Evaluations> {
        let evaluations = self.evaluations.lock();
        evaluations.unwrap_or_else(PoisonError::into_inner)
    }

    fn path_of_evaluation(&self, id: &str) -> PathBuf {
        self.evaluations_dir.join(format!("{id}.json"))
    }

    /// Asks for an evaluation, which is measured in the background next.
    ///
    /// # Errors
    /// What is wrong with the request, by field; [`JobError::EvaluationsFull`]; there is no place for results; or the disk's.
    pub fn evaluate(&self, caller: &Caller, new: &NewEvaluation) -> Result<Evaluation, JobError> {
        let who = Who::of(caller);
        self.results()?;
        let personas = self.measured(caller, new)?;
        let (most, default) = ROWS;
        let max_rows = new.max_rows.unwrap_or(default);
        if !(1..=most).contains(&max_rows) {
            let message = format!("is {max_rows}; it must lie between 1 and {most}");
            return Err(JobError::invalid("max_rows", message));
        }
        let mut evaluations = self.evaluations();
        let all = &evaluations.all;
        if all.values().filter(|one| !one.status.is_over()).count() >= MAX_OPEN_EVALUATIONS {
            let limit = MAX_OPEN_EVALUATIONS;
            return Err(JobError::EvaluationsFull { limit });
        }
        // Under the lock that a deletion takes.
        if let Some(id) = &new.file
            && self.files.find(&who, id, "file")?.pairs
        {
            let message = "its rows are pairs of answers; give rows with one answer";
            return Err(JobError::invalid("file", message));
        }
        let number = all.values().map(|one| one.number).max().unwrap_or(0) + 1;
        let evaluation = Evaluation {
            id: fresh_id(ID)?,
            number,
            owner: who.name().map(str::to_owned),
            created_at: now(),
            finished_at: None,
            status: EvaluationStatus::Queued,
            personas,
            file: new.file.clone(),
            max_rows,
            progress: Done::default(),
            error: None,
            result: None,
        };
        self.forget_evaluations(&mut evaluations);
        self.save_evaluation(&mut evaluations, &evaluation)?;
        drop(evaluations);
        self.evaluations_changed.notify_all();
        Ok(evaluation)
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
    /// [`JobError::Judgement`]: there is none; or the disk's.
    pub fn evaluation(&self, who: &Who, id: &str) -> Result<(Evaluation, Option<Value>), JobError> {
        let evaluation = self.evaluations().find(who, id)?;
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
    pub fn cancel_evaluation(&self, who: &Who, id: &str) -> Result<Evaluation, JobError> {
        let mut evaluations = self.evaluations();
        let mut evaluation = evaluations.find(who, id)?;
        if evaluation.status.is_over() {
            return Err(JobError::EvaluationOver { id: evaluation.id });
        }
        evaluation.status = EvaluationStatus::Cancelled;
        evaluation.finished_at = Some(now());
        self.save_evaluation(&mut evaluations, &evaluation)?;
        if let Some(current) = evaluations.current.as_ref().filter(|one| one.id == id) {
            current.stop.store(true, Ordering::SeqCst);
        }
        Ok(evaluation)
    }

    /// Writes an evaluation, and only then lets it be seen.
    fn save_evaluation(
        &self,
        evaluations: &mut Evaluations,
        evaluation: &Evaluation,
    ) -> Result<(), JobError> {
        put(&self.path_of_evaluation(&evaluation.id), evaluation)?;
        evaluations
            .all
            .insert(evaluation.id.clone(), evaluation.clone());
        Ok(())
    }

    /// Forgets the oldest evaluations that are over, where there are too many. Their results stay.
    fn forget_evaluations(&self, evaluations: &mut Evaluations) {
        while evaluations.all.len() >= MAX_KEPT {
            let over = evaluations.all.values().filter(|one| one.status.is_over());
            let Some(oldest) = over.min_by_key(|one| one.number).map(|one| one.id.clone()) else {
                return;
            };
            if let Err(error) = std::fs::remove_file(self.path_of_evaluation(&oldest)) {
                tracing::warn!("evaluation {oldest} cannot be removed: {error}");
            }
            evaluations.all.remove(&oldest);
        }
    }

    /// The thread that measures.
    pub(super) fn measure_all(&self) {
        while let Some((evaluation, stop, done)) = self.next_evaluation() {
            let measured = measure::measure(self, &evaluation, &stop, &done);
            let mut evaluations = self.evaluations();
            let done = done.load(Ordering::Relaxed);
            evaluations.current = None;
            let Some(mut evaluation) = evaluations.all.get(&evaluation.id).cloned() else {
                continue;
            };
            evaluation.progress.done = done;
            // Whoever stopped it has said what it is now; the server's end leaves it to the next process.
            if evaluation.status != EvaluationStatus::Running || stop.load(Ordering::SeqCst) {
                continue;
            }
            match measured {
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
            if let Err(error) = self.save_evaluation(&mut evaluations, &evaluation) {
                tracing::error!("evaluation {}: {error}", evaluation.id);
                evaluations.all.insert(evaluation.id.clone(), evaluation);
            }
        }
    }

    /// Waits for an evaluation and takes it up, the oldest first; none at the end.
    fn next_evaluation(&self) -> Option<(Evaluation, Arc<AtomicBool>, Arc<AtomicU64>)> {
        let mut evaluations = self.evaluations();
        loop {
            if evaluations.closing {
                return None;
            }
            let queued = evaluations
                .all
                .values()
                .filter(|one| one.status == EvaluationStatus::Queued);
            if let Some(mut next) = queued.min_by_key(|one| one.number).cloned() {
                next.status = EvaluationStatus::Running;
                // Whatever the disk says: it will not be queued a second time.
                if let Err(error) = self.save_evaluation(&mut evaluations, &next) {
                    tracing::error!("evaluation {}: {error}", next.id);
                    evaluations.all.insert(next.id.clone(), next.clone());
                }
                let (stop, done) = (Arc::default(), Arc::default());
                evaluations.current = Some(Current {
                    id: next.id.clone(),
                    stop: Arc::clone(&stop),
                    done: Arc::clone(&done),
                });
                return Some((next, stop, done));
            }
            let woken = self.evaluations_changed.wait(evaluations);
            evaluations = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says of how many parts an evaluation is.
    pub(super) fn parts_of_evaluation(&self, id: &str, of: usize) {
        if let Some(evaluation) = self.evaluations().all.get_mut(id) {
            evaluation.progress.of = of as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let whole = Evaluation {
            id: "eval-1".to_owned(),
            number: 1,
            owner: None,
            created_at: 1,
            finished_at: None,
            status: EvaluationStatus::Queued,
            personas: vec!["warm@1".to_owned()],
            file: None,
            max_rows: 3,
            progress: Done::default(),
            error: None,
            result: None,
        };
        put(&folder.path().join("eval-1.json"), &whole).unwrap();
        let text = std::fs::read(folder.path().join("eval-1.json")).unwrap();
        let cut = folder.path().join("eval-2.json");
        std::fs::write(&cut, &text[..text.len() / 2]).unwrap();
        let opened = Evaluations::open(folder.path()).unwrap();
        assert_eq!(opened.all.into_values().collect::<Vec<_>>(), [whole]);
        assert!(cut.exists());
    }
}
