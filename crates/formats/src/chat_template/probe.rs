//! Tests a template on a small set of conversations, so that what it cannot do is known before the first request.

use super::{ChatTemplate, Message, TemplateError};
use crate::tokenizer::{Special, Tokenizer};

/// A kind of conversation that a template does not render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateProblem {
    /// The conversation, for people.
    pub conversation: &'static str,
    /// What goes wrong.
    pub problem: String,
}

impl std::fmt::Display for TemplateProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.conversation, self.problem)
    }
}

const SYSTEM: &str = "Be brief, please.";
const USER: &str = "When do you open?";
const ANSWER: &str = "We open at nine.";
const CALL: &str = "<tool_call>\n{\"name\": \"hours\", \"arguments\": {}}\n</tool_call>";
const RESPONSE: &str = "<tool_response>\n{\"opens\": 9}\n</tool_response>";

/// Each conversation with the roles and texts of its messages.
const CONVERSATIONS: [(&str, &[(&str, &str)]); 7] = [
    ("a user's message", &[("user", USER)]),
    ("a system message", &[("system", SYSTEM), ("user", USER)]),
    (
        "several turns",
        &[
            ("user", USER),
            ("assistant", ANSWER),
            ("user", "And today?"),
        ],
    ),
    (
        "several turns after a system message",
        &[
            ("system", SYSTEM),
            ("user", USER),
            ("assistant", ANSWER),
            ("user", "And today?"),
        ],
    ),
    (
        "tool calls",
        &[
            ("system", SYSTEM),
            ("user", USER),
            ("assistant", CALL),
            ("user", RESPONSE),
        ],
    ),
    (
        "two user's messages in a row",
        &[("user", USER), ("user", "And today?")],
    ),
    (
        "an assistant's message at the start",
        &[("assistant", ANSWER), ("user", USER)],
    ),
];

impl ChatTemplate {
    /// What the template does not render, of conversations that requests and training data have. Takes some milliseconds.
    pub fn problems(&self) -> Vec<TemplateProblem> {
        let mut problems: Vec<TemplateProblem> = Vec::new();
        for (conversation, turns) in CONVERSATIONS {
            let problem = match self.render(&messages(turns), true) {
                Err(error) => Some(error.to_string()),
                Ok(rendered) => {
                    let lost = turns.iter().find(|(_, text)| !rendered.contains(text));
                    lost.map(|(role, _)| format!("the text of role {role} is left out"))
                }
            };
            problems.extend(problem.map(|problem| TemplateProblem {
                conversation,
                problem,
            }));
        }
        if problems
            .first()
            .is_none_or(|first| first.conversation != CONVERSATIONS[0].0)
        {
            problems.extend(self.training_problem());
        }
        problems
    }

    /// What keeps rows from training: the answer must follow the prompt as it is rendered for generation.
    fn training_problem(&self) -> Option<TemplateProblem> {
        let turns = messages(&[("user", USER), ("assistant", ANSWER)]);
        let prompt = self.render(&turns[..1], true);
        let whole = self.render(&turns, false);
        let problem = match (prompt, whole) {
            (Ok(prompt), Ok(whole)) => {
                let answer = whole.strip_prefix(&prompt);
                if answer.is_some_and(|answer| answer.contains(ANSWER)) {
                    return None;
                }
                "the answer does not follow the prompt as it is rendered for generation".to_owned()
            }
            (Err(error), _) | (_, Err(error)) => error.to_string(),
        };
        Some(TemplateProblem {
            conversation: "training rows",
            problem,
        })
    }

    /// Whether the template renders a system message. False if it renders the same conversation only without one.
    pub fn has_system_role(&self) -> bool {
        let turns = messages(&[("system", SYSTEM), ("user", USER)]);
        match self.render(&turns, true) {
            Ok(rendered) => rendered.contains(SYSTEM),
            Err(_) => self.render(&turns[1..], true).is_err(),
        }
    }

    /// Puts the system text in front of the first user's message from now on, if the template has no system role. Returns whether it has
    /// none. The hash of the template covers it.
    pub fn put_system_text_in_user_message(&mut self) -> bool {
        self.system_as_user = !self.has_system_role();
        self.system_as_user
    }

    /// The token with which an assistant's turn ends, as the template writes it: a control or user-defined token right after the
    /// answer, or a word there that is a token spelled like a control token. None if the template writes no such token.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let turns = messages(&[("system", SYSTEM), ("user", USER), ("assistant", ANSWER)]);
        // Some templates refuse a system message.
        let rendered = self.render(&turns[1..], false);
        let rendered = rendered.or_else(|_| self.render(&turns, false)).ok()?;
        let (_, after) = rendered.rsplit_once(ANSWER)?;
        let after = after.trim_start();
        let ids = tokenizer.encode(after, Special::Parse).ok()?;
        let is_added = |id: &u32| {
            let text = tokenizer.token(*id);
            text.is_some_and(|text| tokenizer.has_added_token(text))
        };
        let word = after.split_whitespace().next();
        let marked = ids.first().copied().filter(is_added);
        marked.or_else(|| tokenizer.unmarked_token(word?))
    }

    /// Why the template does not render this system text, if it renders a conversation without one.
    pub fn system_text_problem(&self, system: &str) -> Option<TemplateError> {
        let turns = messages(&[("system", system), ("user", USER)]);
        let error = self.render(&turns, true).err()?;
        self.render(&turns[1..], true).is_ok().then_some(error)
    }
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    let message = |(role, text): &(&str, &str)| Message::new(*role, *text);
    turns.iter().map(message).collect()
}
