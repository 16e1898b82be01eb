//! Baselines of the eval gate: the other personas that a job's adapter is compared with.

use registry::{Persona, spec};

use crate::error::JobError;
use crate::evaluation::candidate::with_folder_settings;
use crate::evaluation::{Candidate, EvaluationError};
use crate::jobs_state::JobsState;
use crate::records::job::JobRecord;
use crate::records::thresholds::Thresholds;
use service::{Caller, Service};

/// The most baselines of a job.
pub(crate) const MAX_BASELINES: usize = 4;

/// The two sources of a job's thresholds.
pub(crate) struct Sides<'a> {
    /// Those of the request.
    pub requested: Option<&'a Thresholds>,
    /// Those of the persona in the server's folder.
    pub own: Option<&'a Thresholds>,
}

/// A threshold that compares with baselines.
struct Comparison {
    name: &'static str,
    of: fn(&Thresholds) -> Option<f64>,
    drop: fn(&mut Thresholds),
}

/// The thresholds that compare with baselines.
const COMPARISONS: [Comparison; 2] = [
    Comparison {
        name: "distinct_at_least",
        of: |thresholds| thresholds.distinct_at_least,
        drop: |thresholds| thresholds.distinct_at_least = None,
    },
    Comparison {
        name: "other_tone_at_most",
        of: |thresholds| thresholds.other_tone_at_most,
        drop: |thresholds| thresholds.other_tone_at_most = None,
    },
];

fn compares(thresholds: &Thresholds) -> bool {
    COMPARISONS
        .iter()
        .any(|comparison| (comparison.of)(thresholds).is_some())
}

/// Chooses the baselines of a job for `persona`: those that the client named, or else the first by name that have an adapter and that the
/// client may use, with those in the server's folder first. If the persona's own gate compares with baselines, its baselines are the same
/// for every client, whichever personas it may use and whatever it names: fewer or other ones could loosen the gate. A job shows neither
/// their names nor their answers. If there are none, thresholds that the client gave are refused, and those of the server's folder are
/// dropped.
///
/// # Errors
/// [`JobError::Invalid`] with the field, or [`JobError::Denied`].
pub(crate) fn choose(
    service: &Service,
    caller: &Caller,
    persona: &str,
    thresholds: &mut Thresholds,
    sides: &Sides<'_>,
) -> Result<(), JobError> {
    if !compares(thresholds) {
        return match &thresholds.baselines {
            None => Ok(()),
            Some(_) => Err(JobError::invalid(
                "gate.beside",
                "is only used by distinct_at_least and other_tone_at_most; give one of them, or leave it out",
            )),
        };
    }
    let own_compares = sides.own.is_some_and(compares);
    let mut others = match &thresholds.baselines {
        Some(names) => named_baselines(service, caller, persona, names)?,
        None if own_compares => Vec::new(),
        None => default_baselines(service, persona, |name| caller.may_use(name)),
    };
    if own_compares {
        for other in default_baselines(service, persona, |_| true) {
            let is_listed =
                |listed: &Persona| (&listed.name, listed.version) == (&other.name, other.version);
            if !others.iter().any(is_listed) {
                others.push(other);
            }
        }
    }
    let mut drop = |comparison: &Comparison, why: &str| {
        let requested = sides.requested.and_then(comparison.of);
        if requested.is_some() {
            return Err(JobError::invalid(format!("gate.{}", comparison.name), why));
        }
        (comparison.drop)(thresholds);
        Ok(())
    };
    let [distinct, other_tone] = &COMPARISONS;
    if others.is_empty() {
        let why = "compares with other personas, and there is no other persona with an adapter; leave it out";
        drop(distinct, why)?;
        drop(other_tone, why)?;
    }
    let has_tone = |persona: &Persona| {
        let eval = persona.eval.as_ref();
        eval.is_some_and(|eval| !eval.any_of.is_empty() || !eval.none_of.is_empty())
    };
    if !others.iter().any(has_tone) {
        let why = "needs another persona with tone patterns in its `[eval]` table; name one in `beside`, or leave it out";
        drop(other_tone, why)?;
    }
    let pinned = |other: &Persona| format!("{}@{}", other.name, other.version);
    thresholds.baselines = Some(others.iter().map(pinned).collect());
    Ok(())
}

/// The personas that the client named.
fn named_baselines(
    service: &Service,
    caller: &Caller,
    persona: &str,
    names: &[String],
) -> Result<Vec<Persona>, JobError> {
    if !(1..=MAX_BASELINES).contains(&names.len()) {
        let message = format!("has {} names; give 1 to {MAX_BASELINES}", names.len());
        return Err(JobError::invalid("gate.beside", message));
    }
    let personas = service.personas();
    let field = |index: usize| format!("gate.beside[{index}]");
    let mut others: Vec<Persona> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let refuse = |message: String| JobError::invalid(field(index), message);
        let found = service.find_single_persona(&personas, caller, name);
        let found = found.map_err(|error| JobError::name(field(index), error))?;
        let other = found
            .ok_or_else(|| refuse("is the base; name a persona with an adapter".to_owned()))?;
        other
            .system_prompt_by_default()
            .map_err(|error| refuse(error.to_string()))?;
        if other.name == persona {
            let why = "is the persona that the job publishes; name others";
            return Err(refuse(why.to_owned()));
        }
        if others.iter().any(|listed| listed.name == other.name) {
            return Err(refuse(format!(
                "{} is listed twice; leave one out",
                other.name
            )));
        }
        others.push(with_folder_settings(service, other));
    }
    Ok(others)
}

/// The first allowed personas by name that can be baselines.
fn default_baselines(
    service: &Service,
    persona: &str,
    allowed: impl Fn(&str) -> bool,
) -> Vec<Persona> {
    let personas = service.personas();
    let folder = service.catalog().folder();
    let mut names = personas.names();
    // A stable sort: each group stays in the order of names.
    names.sort_by_key(|name| folder.get(name).is_none());
    let others = names
        .into_iter()
        .filter(|name| *name != persona && allowed(name))
        .filter_map(|name| personas.get(name));
    others
        .filter(|other| other.adapter.is_some() && other.system_prompt_by_default().is_ok())
        .take(MAX_BASELINES)
        .map(|other| with_folder_settings(service, other))
        .collect()
}

/// The baselines of `thresholds`. One that does not exist any more is skipped, with an event, which has no name: the job's owner may not
/// know it.
pub(crate) fn candidates(
    queue: &JobsState,
    record: &JobRecord,
    thresholds: &Thresholds,
) -> Result<Vec<Candidate>, EvaluationError> {
    let personas = queue.service.personas();
    let mut candidates = Vec::new();
    for pinned in thresholds.baselines.iter().flatten() {
        let parts = spec::parse(pinned)?;
        match parts.first().map(|part| personas.find(part)) {
            Some(Ok(other)) => candidates.push(Candidate::baseline(with_folder_settings(
                &queue.service,
                other,
            ))?),
            _ => {
                tracing::warn!(
                    job = %record.id,
                    "{pinned} does not exist any more, so the gate does not compare with it"
                );
                let message = "a persona that the gate compares with does not exist any more";
                let message = queue.client_message(message);
                queue.event_log(&record.id).push("warn", message, None);
            }
        }
    }
    Ok(candidates)
}
