//! Asks everyone everything at once, and keeps the answers.
//!
//! Every persona answers its own rows, and so does the base behind the persona's system prompt. To compare tones, each
//! persona also answers questions that all of them get: those that stand in everybody's rows, and where these are few,
//! some of each persona's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use formats::chat_template::Message;
use registry::Persona;
use serde_json::json;
use train::dataset::{DataRow, RowContent};

use super::candidate::Candidate;
use base::progress::Progress;
use service::{Conversation, GenerateRequest, SamplingParams, Service, TextEvent, TextStream};

/// Questions that every persona answers at least, where there are so many.
const COMMON: usize = 24;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// The base, behind the system prompt of the persona whose row it is.
    Base,
    /// A persona, by its place among the candidates.
    Persona(usize),
}

/// A row put to a speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    /// The candidate whose row it is.
    pub of: usize,
    /// The row.
    pub row: usize,
    /// Who answers.
    pub to: Speaker,
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
    /// Questions that every persona has answered, as (candidate, row).
    pub common: Vec<(usize, usize)>,
    at: HashMap<Question, usize>,
    /// By candidate: its rows by what they ask.
    rows: Vec<HashMap<String, usize>>,
}

impl Answers {
    /// The answer of `to` to the row `row` of the candidate `of`.
    pub fn get(&self, question: Question) -> Option<&Answered> {
        self.at.get(&question).map(|&index| &self.all[index])
    }

    /// The answer of a persona to what a row asks, be it to this row or to its own of the same words.
    pub fn of_persona(
        &self,
        candidates: &[Candidate],
        persona: usize,
        (of, row): (usize, usize),
    ) -> Option<&str> {
        let to = Speaker::Persona(persona);
        let own = self.rows[persona].get(&candidates[of].rows[row].input());
        let place = own.map_or((of, row), |&row| (persona, row));
        self.get(Question {
            of: place.0,
            row: place.1,
            to,
        })
        .map(|answered| answered.text.as_str())
    }
}

/// All questions: each candidate's rows to itself and to the base, then what the comparison of tones needs besides.
pub fn questions(candidates: &[Candidate]) -> (Vec<Question>, Vec<(usize, usize)>) {
    let mut questions = Vec::new();
    for (of, candidate) in candidates.iter().enumerate() {
        for row in 0..candidate.rows.len() {
            for to in [Speaker::Base, Speaker::Persona(of)] {
                questions.push(Question { of, row, to });
            }
        }
    }
    let common = common(candidates);
    let rows = by_input(candidates);
    for &(of, row) in &common {
        let asked = candidates[of].rows[row].input();
        for (persona, own) in rows.iter().enumerate() {
            if !own.contains_key(&asked) {
                let to = Speaker::Persona(persona);
                questions.push(Question { of, row, to });
            }
        }
    }
    (questions, common)
}

/// What all are asked: rows of everybody, then rows of each in turn up to [`COMMON`]. None where there is but one.
fn common(candidates: &[Candidate]) -> Vec<(usize, usize)> {
    if candidates.len() < 2 {
        return Vec::new();
    }
    let rows = by_input(candidates);
    let mut seen = BTreeSet::new();
    let mut common = Vec::new();
    for (row, asked) in candidates[0].rows.iter().enumerate() {
        let asked = asked.input();
        if rows.iter().all(|own| own.contains_key(&asked)) && seen.insert(asked) {
            common.push((0, row));
        }
    }
    let longest = candidates.iter().map(|c| c.rows.len()).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|row| (0..candidates.len()).map(move |of| (of, row)));
    for (of, row) in in_turn {
        if common.len() >= COMMON {
            break;
        }
        if let Some(asked) = candidates[of].rows.get(row)
            && seen.insert(asked.input())
        {
            common.push((of, row));
        }
    }
    common
}

/// By candidate: the first of its rows that asks something.
fn by_input(candidates: &[Candidate]) -> Vec<HashMap<String, usize>> {
    let of = |candidate: &Candidate| {
        let mut rows = HashMap::new();
        for (index, row) in candidate.rows.iter().enumerate() {
            rows.entry(row.input()).or_insert(index);
        }
        rows
    };
    candidates.iter().map(of).collect()
}

/// Asks, at most `at_once` questions at a time, and waits.
pub fn answer(
    service: &Service,
    candidates: &[Candidate],
    questions: &[Question],
    common: Vec<(usize, usize)>,
    at_once: usize,
    progress: &mut Progress,
) -> anyhow::Result<Answers> {
    progress.count("Answering", questions.len() as u64);
    let mut all = Vec::with_capacity(questions.len());
    let mut at = HashMap::new();
    let mut asked: VecDeque<(Question, TextStream)> = VecDeque::new();
    let mut rest = questions.iter();
    loop {
        while asked.len() < at_once.max(1)
            && let Some(&question) = rest.next()
        {
            let row = &candidates[question.of].rows[question.row];
            let (persona, own) = match question.to {
                Speaker::Base => (&candidates[question.of].persona, false),
                Speaker::Persona(index) => (&candidates[index].persona, true),
            };
            let stream = service.stream(&ask(persona, row, own)?);
            asked.push_back((question, stream.with_context(|| row.location.to_string())?));
        }
        let Some((question, stream)) = asked.pop_front() else {
            break;
        };
        let (text, tokens) = whole(stream)?;
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

/// The row's question, to the persona or to the base behind the persona's system prompt.
fn ask(persona: &Persona, row: &DataRow, own: bool) -> anyhow::Result<GenerateRequest> {
    let mut turns = match &row.content {
        RowContent::Messages(messages) => messages[..messages.len().saturating_sub(1)].to_vec(),
        _ => vec![Message::new("user", row.input())],
    };
    if let Some(system) = persona.system_prompt_by_default()?
        && turns.first().is_none_or(|turn| turn.role != "system")
    {
        turns.insert(0, Message::new("system", system));
    }
    let who = own.then(|| format!("{}@{}", persona.name, persona.version));
    Ok(GenerateRequest {
        conversation: Conversation::Messages(turns),
        sampling: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        stop: Some(persona.stop.clone()),
        max_new_tokens: persona.max_new_tokens,
        ..GenerateRequest::new(who.as_deref(), "")
    })
}

fn whole(stream: TextStream) -> anyhow::Result<(String, usize)> {
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
    anyhow::bail!("the engine ended before the answer did")
}

/// Writes what was asked of the base and of each persona on its own rows, one JSON object a line.
pub fn write(path: &Path, candidates: &[Candidate], answers: &Answers) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for answered in &answers.all {
        let Question { of, row, to } = answered.question;
        let candidate = &candidates[of];
        let row = &candidate.rows[row];
        let (question, reference) = (row.input(), row.output());
        let speaker = match to {
            Speaker::Base => "base",
            Speaker::Persona(index) if index == of => "persona",
            // Only there to compare tones; the row is not written for this persona.
            Speaker::Persona(_) => continue,
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
    file.flush()
}
