//! Asks all questions and collects the answers.
//!
//! Every persona answers its own rows, and so does the base with the persona's system prompt. To compare tones, each persona also
//! answers common questions: those that are in all personas' rows and, if these are few, some of each persona's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::Write as _;
use std::path::Path;

use dataset::DataRow;
use formats::atomic_file;
use registry::Persona;
use serde_json::json;

use super::candidate::Candidate;
use super::error::EvaluationError;
use base::progress::Progress;
use service::{
    Conversation, GenerateRequest, RequestError, SamplingParams, Service, TextEvent, TextStream,
};

/// The number of common questions, if there are enough rows.
const COMMON: usize = 24;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Responder {
    /// The base, with the system prompt of the persona whose row it is.
    Base,
    /// A persona, by its index among the candidates.
    Persona(usize),
}

/// A row for one responder to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    /// The index of the candidate whose row it is.
    pub candidate: usize,
    /// The row's index.
    pub row: usize,
    /// Who answers.
    pub responder: Responder,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The question.
    pub question: Question,
    /// The answer.
    pub text: String,
    /// New tokens of the answer.
    pub tokens: usize,
}

/// All answers, in the order of the questions.
pub struct Answers {
    /// Every answer.
    pub all: Vec<Answered>,
    /// Questions that every persona answered, as (candidate, row).
    pub common: Vec<(usize, usize)>,
    at: HashMap<Question, usize>,
    /// By candidate: its rows by their question.
    rows: Vec<HashMap<String, usize>>,
}

impl Answers {
    /// The answer to `question`.
    pub fn get(&self, question: Question) -> Option<&Answered> {
        self.at.get(&question).map(|&index| &self.all[index])
    }

    /// The answer of a persona to a row's question: to this row, or to its own row with the same question.
    pub fn of_persona(
        &self,
        candidates: &[Candidate],
        persona: usize,
        (of, row): (usize, usize),
    ) -> Option<&str> {
        let responder = Responder::Persona(persona);
        let own = self.rows[persona].get(&candidates[of].rows[row].input());
        let place = own.map_or((of, row), |&row| (persona, row));
        self.get(Question {
            candidate: place.0,
            row: place.1,
            responder,
        })
        .map(|answered| answered.text.as_str())
    }
}

/// All questions, and the common ones as (candidate, row): each candidate's rows for itself and for the base, then the common questions
/// that a persona does not have in its own rows.
pub fn questions(candidates: &[Candidate]) -> (Vec<Question>, Vec<(usize, usize)>) {
    let mut questions = Vec::new();
    for (of, candidate) in candidates.iter().enumerate() {
        for row in 0..candidate.rows.len() {
            for responder in [Responder::Base, Responder::Persona(of)] {
                questions.push(Question {
                    candidate: of,
                    row,
                    responder,
                });
            }
        }
    }
    let common = common(candidates);
    let rows = by_input(candidates);
    for &(of, row) in &common {
        let question = candidates[of].rows[row].input();
        for (persona, own) in rows.iter().enumerate() {
            if !own.contains_key(&question) {
                questions.push(Question {
                    candidate: of,
                    row,
                    responder: Responder::Persona(persona),
                });
            }
        }
    }
    (questions, common)
}

/// The common questions: first those that are in all candidates' rows, then rows of each candidate in turn, up to [`COMMON`]. Empty for a
/// single candidate.
fn common(candidates: &[Candidate]) -> Vec<(usize, usize)> {
    if candidates.len() < 2 {
        return Vec::new();
    }
    let rows = by_input(candidates);
    let mut seen = BTreeSet::new();
    let mut common = Vec::new();
    for (row, question) in candidates[0].rows.iter().enumerate() {
        let question = question.input();
        if rows.iter().all(|own| own.contains_key(&question)) && seen.insert(question) {
            common.push((0, row));
        }
    }
    let longest = candidates.iter().map(|c| c.rows.len()).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|row| (0..candidates.len()).map(move |of| (of, row)));
    for (of, row) in in_turn {
        if common.len() >= COMMON {
            break;
        }
        if let Some(question) = candidates[of].rows.get(row)
            && seen.insert(question.input())
        {
            common.push((of, row));
        }
    }
    common
}

/// By candidate: the first row with each question.
fn by_input(candidates: &[Candidate]) -> Vec<HashMap<String, usize>> {
    let first_rows = |candidate: &Candidate| {
        let mut rows = HashMap::new();
        for (index, row) in candidate.rows.iter().enumerate() {
            rows.entry(row.input()).or_insert(index);
        }
        rows
    };
    candidates.iter().map(first_rows).collect()
}

/// Answers `questions`, with at most `max_in_flight` at a time.
///
/// # Errors
/// A request is refused, or the engine ends before the answers do.
pub fn answer(
    service: &Service,
    candidates: &[Candidate],
    questions: &[Question],
    common: Vec<(usize, usize)>,
    max_in_flight: usize,
    progress: &mut Progress,
) -> Result<Answers, EvaluationError> {
    progress.count("Answering", questions.len() as u64);
    let mut all = Vec::with_capacity(questions.len());
    let mut at = HashMap::new();
    let mut in_flight: VecDeque<(Question, TextStream)> = VecDeque::new();
    let mut rest = questions.iter();
    loop {
        while in_flight.len() < max_in_flight.max(1)
            && let Some(&question) = rest.next()
        {
            let row = &candidates[question.candidate].rows[question.row];
            let (persona, own) = match question.responder {
                Responder::Base => (&candidates[question.candidate].persona, false),
                Responder::Persona(index) => (&candidates[index].persona, true),
            };
            let stream = service.stream(&request(persona, row, own)?);
            let stream = stream.map_err(|source| EvaluationError::Question {
                row: row.location.clone(),
                source: Box::new(source),
            })?;
            in_flight.push_back((question, stream));
        }
        let Some((question, stream)) = in_flight.pop_front() else {
            break;
        };
        let (text, tokens) = collect_text(stream)?;
        progress.add(1);
        at.insert(question, all.len());
        all.push(Answered {
            question,
            text,
            tokens,
        });
    }
    Ok(Answers {
        all,
        common,
        at,
        rows: by_input(candidates),
    })
}

/// The request for a row: to the persona if `own`, else to the base with the persona's system prompt.
fn request(
    persona: &Persona,
    row: &DataRow,
    own: bool,
) -> Result<GenerateRequest, EvaluationError> {
    let system = persona.system_prompt_by_default()?;
    let mut turns = row.turns(system.as_deref()).unwrap_or_default();
    // The answer.
    turns.pop();
    let model = own.then(|| format!("{}@{}", persona.name, persona.version));
    Ok(GenerateRequest {
        conversation: Conversation::Messages(turns),
        sampling: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        stop: Some(persona.stop.clone()),
        max_new_tokens: persona.max_new_tokens,
        ..GenerateRequest::new(model.as_deref(), "")
    })
}

/// The whole answer, and its number of tokens.
fn collect_text(stream: TextStream) -> Result<(String, usize), EvaluationError> {
    let mut text = String::new();
    for event in stream {
        match event {
            TextEvent::Delta(delta) => text.push_str(&delta.text),
            // No tools are offered.
            TextEvent::ToolCall(_) => {}
            TextEvent::End(end) => {
                end.check()?;
                return Ok((text, end.completion_tokens));
            }
        }
    }
    Err(RequestError::Stopped.into())
}

/// Writes the answers of the base and of each persona to its own rows, one JSON object per line.
pub fn write(path: &Path, candidates: &[Candidate], answers: &Answers) -> std::io::Result<()> {
    atomic_file::replace(path, |file| {
        let mut file = std::io::BufWriter::new(file);
        write_lines(&mut file, candidates, answers)?;
        file.flush()
    })
}

fn write_lines(
    file: &mut impl std::io::Write,
    candidates: &[Candidate],
    answers: &Answers,
) -> std::io::Result<()> {
    for answered in &answers.all {
        let Question {
            candidate: of,
            row,
            responder,
        } = answered.question;
        let candidate = &candidates[of];
        let row = &candidate.rows[row];
        let (question, reference) = (row.input(), row.output());
        let speaker = match responder {
            Responder::Base => "base",
            Responder::Persona(index) if index == of => "persona",
            // Only for comparing tones: the row is not one of this persona's.
            Responder::Persona(_) => continue,
        };
        let markers = candidate.markers.clone().unwrap_or_default();
        let (in_tone, copied) = train::measures::AnswerScore::default().judge(
            &markers,
            &question,
            reference,
            &answered.text,
        );
        let line = json!({
            "persona": candidate.persona.name,
            "speaker": speaker,
            "row": row.location.to_string(),
            "question": question,
            "reference": reference,
            "answer": answered.text,
            "in_tone": in_tone,
            "copied": copied,
        });
        writeln!(file, "{line}")?;
    }
    Ok(())
}
