//! A session: carries out messages and commands until the user ends it.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::Path;

use console::style;
use registry::Personas;
use sampling::SamplingParams;
use service::{Caller, FieldNames, FinishReason, GenerateRequest, RequestError, Service};

use super::answer::{self, Interrupts, Streamed};
use super::commands::{self, Command, Input};
use super::conversation::{AnswerSettings, Conversation, Question};
use super::input::{Entry, InputSource};
use super::save::{self, SaveResult, SavedRow};
use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::output::print;

/// The names of the fields in error messages.
const NAMES: FieldNames = FieldNames {
    persona: "/tone",
    prompt: "the conversation",
    max_new_tokens: "--max-new-tokens",
};

/// The temperature of `/retry` if nothing else sets one: at 0 the answer would be the same again.
const RETRY_TEMPERATURE: f32 = 0.8;

/// How to go on when the context is full.
const FULL: &str = "/undo removes the last message and its answer, /clear removes all, /save FILE.jsonl keeps them in a file";

/// The flags that change answers.
pub(super) struct AnswerFlags {
    pub variables: BTreeMap<String, String>,
    pub max_new_tokens: Option<usize>,
    pub sampling: SamplingParams,
}

/// A running conversation.
pub(super) struct Session<'s> {
    service: &'s Service,
    flags: AnswerFlags,
    conversation: Conversation,
    /// Where the conversation was saved last.
    saved: Option<SavedRow>,
    /// An input could not be carried out.
    failed: bool,
}

impl<'s> Session<'s> {
    /// A conversation with a persona, or with the base.
    ///
    /// # Errors
    /// The persona is unknown, or has no such variables.
    pub fn start(
        service: &'s Service,
        flags: AnswerFlags,
        persona: Option<String>,
        system: Option<String>,
    ) -> anyhow::Result<Session<'s>> {
        let mut session = Session {
            service,
            flags,
            conversation: Conversation::default(),
            saved: None,
            failed: false,
        };
        if let Some(name) = &persona {
            session.check_persona(name)?;
        }
        session.conversation.settings = AnswerSettings { persona, system };
        let declared = session.variables();
        if session.conversation.settings.system.is_none()
            && let Some(name) = session
                .flags
                .variables
                .keys()
                .find(|name| !declared.contains_key(*name))
        {
            let whose = session.name();
            return Err(UsageError(format!(
                "--variable {name}: the system prompt of {whose} has no variable of this name"
            ))
            .into());
        }
        Ok(session)
    }

    /// Reads and carries out inputs until the end.
    ///
    /// # Errors
    /// Reading or printing fails. An input that cannot be carried out is reported, and the conversation continues; the exit status of
    /// a run that nobody typed into then is a failure.
    pub fn run(
        &mut self,
        source: &mut InputSource,
        interrupts: &Interrupts,
    ) -> anyhow::Result<ExitStatus> {
        let by_hand = source.is_terminal();
        if by_hand {
            self.welcome();
        }
        loop {
            let prompt = self.prompt();
            let text = match interrupts.at_prompt(|| source.next(&prompt))? {
                Entry::Text(text) => text,
                Entry::Interrupted => {
                    notice("Ctrl-D or /quit ends the conversation");
                    continue;
                }
                Entry::End => break,
            };
            match commands::parse(&text) {
                Ok(Input::Blank) => {}
                Ok(Input::Message(text)) => self.answer(Question::new(text), interrupts)?,
                Ok(Input::Command(Command::Quit)) => break,
                Ok(Input::Command(command)) => self.carry_out(command, interrupts)?,
                Err(error) => self.fail(&error),
            }
        }
        Ok(match self.failed && !by_hand {
            true => ExitStatus::Failure,
            false => ExitStatus::Success,
        })
    }

    fn carry_out(&mut self, command: Command, interrupts: &Interrupts) -> anyhow::Result<()> {
        match command {
            Command::ListTones => print(&self.tones())?,
            Command::Tone(name) => match self.check_persona(&name) {
                Ok(()) => {
                    self.conversation.settings.persona = Some(name);
                    self.say_tone();
                }
                Err(error) => self.fail(&error.to_string()),
            },
            Command::ShowSystem => print(&format!("{}\n", self.system_text()))?,
            Command::System(text) => {
                self.conversation.settings.system = Some(text);
                notice("answers follow this system text from now on; /system reset goes back");
            }
            Command::ResetSystem => {
                self.conversation.settings.system = None;
                notice(&self.system_text());
            }
            Command::Retry => match self.conversation.last_question() {
                Some(question) => self.answer(question, interrupts)?,
                None => self.fail("nothing was answered yet; send a message first"),
            },
            Command::Undo => match self.conversation.undo() {
                Some(question) => notice(&format!("removed: {}", shortened(&question))),
                None => self.fail("the conversation has no messages"),
            },
            Command::Clear => {
                let removed = self.conversation.clear();
                self.saved = None;
                notice(&format!("removed {}", messages(removed)));
            }
            Command::Save(path) => self.save(&path),
            Command::Help => print(&commands::help())?,
            // The loop ends before.
            Command::Quit => {}
        }
        Ok(())
    }

    /// Answers a message, and adds it to the conversation.
    fn answer(&mut self, question: Question, interrupts: &Interrupts) -> anyhow::Result<()> {
        let request = self.request(&question);
        let on_terminal = std::io::stdout().is_terminal();
        let show = |text: &str| match on_terminal {
            true => print(&printable(text)),
            false => print(text),
        };
        match answer::stream(self.service, &request, interrupts, show)? {
            Err(error) => self.fail(&with_advice(&error)),
            Ok(Streamed { text, end: None }) if text.is_empty() => {
                notice(match question.again {
                    true => "stopped before the answer began; the earlier answer stays",
                    false => {
                        "stopped before the answer began; the message is not part of the conversation"
                    }
                });
            }
            Ok(Streamed { text, end }) => {
                print("\n")?;
                let reason = end.as_ref().map(|end| &end.reason);
                let cut = reason != Some(&FinishReason::Stop);
                match &end {
                    None => notice("stopped"),
                    Some(end) if end.reason == FinishReason::Length => {
                        notice(&self.cut_off(
                            end.prompt_tokens + end.completion_tokens,
                            end.completion_tokens,
                        ));
                    }
                    Some(_) if text.trim().is_empty() => {
                        notice("the answer is empty; /retry draws another one")
                    }
                    Some(_) => {}
                }
                if on_terminal {
                    print("\n")?;
                }
                self.conversation.answered(question, text, cut);
            }
        }
        Ok(())
    }

    /// Why an answer reached its limit: `total` tokens of prompt and answer, `new` of them new.
    fn cut_off(&self, total: usize, new: usize) -> String {
        let context = self.service.engine().limits().context_length;
        if total >= context {
            return format!("the context of {context} tokens is full; {FULL}");
        }
        format!(
            "cut off after {new} tokens; start with a larger --max-new-tokens for longer answers"
        )
    }

    fn request(&self, question: &Question) -> GenerateRequest {
        let settings = &self.conversation.settings;
        let declared = self.variables();
        let variables = self.flags.variables.iter();
        // Another tone may have other variables.
        let variables =
            variables.filter(|(name, _)| settings.system.is_none() && declared.contains_key(*name));
        GenerateRequest {
            conversation: service::Conversation::Messages(self.conversation.messages(question)),
            variables: variables
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            sampling: self.sampling(question.draw),
            max_new_tokens: self.flags.max_new_tokens,
            names: NAMES,
            ..GenerateRequest::new(settings.persona.as_deref(), &question.text)
        }
    }

    /// The sampling parameters of the answer number `draw` to a message: the first as set, the others at a temperature at which they
    /// differ, unless a flag sets it.
    fn sampling(&self, draw: u64) -> SamplingParams {
        let mut sampling = self.flags.sampling;
        if draw == 0 {
            return sampling;
        }
        let personas = self.service.personas();
        let persona = self
            .persona(&personas)
            .map(|persona| persona.sampling)
            .unwrap_or_default();
        let seed = sampling.seed.or(persona.seed);
        sampling.seed = seed.map(|seed| seed.wrapping_add(draw));
        if sampling.temperature.or(persona.temperature).unwrap_or(0.0) == 0.0 {
            if sampling.temperature.is_some() {
                notice("at --temperature 0 the answer is the same again");
            }
            sampling.temperature = sampling.temperature.or(Some(RETRY_TEMPERATURE));
        }
        sampling
    }

    /// The persona whose system prompt and settings apply; none for the base.
    fn persona<'p>(&'p self, personas: &'p Personas) -> Option<&'p registry::Persona> {
        let name = self.conversation.settings.persona.as_deref()?;
        let caller = Caller::default();
        let named = self.service.find_model(personas, &caller, name).ok()?;
        named.lead()
    }

    /// The variables of the system prompt.
    fn variables(&self) -> registry::Variables {
        let personas = self.service.personas();
        let persona = self.persona(&personas);
        persona
            .map(|persona| persona.variables.clone())
            .unwrap_or_default()
    }

    /// Checks that something has this name.
    fn check_persona(&self, name: &str) -> anyhow::Result<()> {
        let personas = self.service.personas();
        let found = self.service.find_model(&personas, &Caller::default(), name);
        match found {
            Ok(_) => Ok(()),
            Err(RequestError::Persona { source, .. }) => anyhow::bail!("{source}"),
            Err(error) => {
                let message = error.to_string();
                anyhow::bail!("{}", message.strip_prefix("model: ").unwrap_or(&message))
            }
        }
    }

    /// Saves the conversation as a row.
    fn save(&mut self, path: &Path) {
        if self.conversation.len() == self.conversation.cut() {
            return self.fail("the conversation has no complete answer to save yet");
        }
        let row = self.conversation.row();
        let count = row["messages"].as_array().map_or(0, Vec::len);
        match save::save(path, &row, self.saved.as_ref()) {
            Ok((saved, result)) => {
                self.saved = Some(saved);
                let path = path.display();
                let what = match result {
                    SaveResult::Appended => "added to",
                    SaveResult::Replaced => "replaced in",
                };
                notice(&format!("a row of {} was {what} {path}", messages(count)));
                if self.conversation.cut() > 0 {
                    notice(
                        "answers that were cut off are in it with weight 0: they are not trained",
                    );
                }
                notice(&format!(
                    "train on all of its answers: lory train --data {path} --mask assistant --out FOLDER"
                ));
            }
            Err(error) => self.fail(&format!("{error:#}")),
        }
    }

    /// What answers, as requests name it.
    fn name(&self) -> &str {
        let persona = self.conversation.settings.persona.as_deref();
        persona.unwrap_or(&self.service.base().name)
    }

    /// The prompt, plain and styled.
    fn prompt(&self) -> (String, String) {
        let name = self.name();
        (
            format!("({name}) > "),
            format!("{} > ", style(format!("({name})")).cyan()),
        )
    }

    fn welcome(&self) {
        let base = &self.service.base().name;
        let personas = self.service.personas();
        let tones = match personas.names().as_slice() {
            [] => "no tones yet: lory train makes one".to_owned(),
            names => format!("tones: {} (/tone NAME)", names.join(", ")),
        };
        notice(&format!(
            "{base}; {tones}; /help lists the commands, Ctrl-D ends"
        ));
    }

    fn say_tone(&self) {
        let name = self.name();
        let system = match self.conversation.settings.system {
            Some(_) => ", with your system text (/system reset goes back to its own)",
            None => "",
        };
        let retry = match self.conversation.len() {
            0 => "",
            _ => "; /retry answers the last message again",
        };
        notice(&format!("{name} answers from now on{system}{retry}"));
    }

    /// The list of `/tone`: an arrow marks what answers.
    fn tones(&self) -> String {
        let personas = self.service.personas();
        let base = &self.service.base().name;
        let mut tones = vec![(base.clone(), "the base, without an adapter".to_owned())];
        for persona in personas
            .names()
            .into_iter()
            .filter_map(|name| personas.get(name))
        {
            let about = match (&persona.adapter, persona.description.as_str()) {
                (None, "") => "not trained yet".to_owned(),
                (None, about) => format!("{about} (not trained yet)"),
                (Some(_), about) => about.to_owned(),
            };
            tones.push((persona.name.clone(), about));
        }
        let current = self.name().to_owned();
        if tones.iter().all(|(name, _)| *name != current) {
            tones.push((current.clone(), String::new()));
        }
        let width = tones.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = tones.iter().map(|(name, about)| {
            let mark = if *name == current { "→" } else { " " };
            format!("{}\n", format!("{mark} {name:<width$}  {about}").trim_end())
        });
        lines.collect()
    }

    /// The system text that applies, for people.
    fn system_text(&self) -> String {
        if let Some(text) = &self.conversation.settings.system {
            return format!("your system text: {text}");
        }
        let personas = self.service.personas();
        let persona = self.persona(&personas);
        let name = self.name();
        match persona.and_then(|persona| persona.system_prompt.as_ref()) {
            Some(text) => format!("the system prompt of {name}: {text}"),
            None => format!("{name} has no system prompt; /system TEXT sets a system text"),
        }
    }

    /// Reports an input that cannot be carried out.
    fn fail(&mut self, message: &str) {
        self.failed = true;
        eprintln!("{} {message}", console::style("error:").for_stderr().red());
    }
}

/// A line that is not part of an answer.
fn notice(text: &str) {
    eprintln!("{}", style(text).for_stderr().dim());
}

fn messages(count: usize) -> String {
    match count {
        1 => "1 message".to_owned(),
        count => format!("{count} messages"),
    }
}

/// The error of a request, with what to do here.
fn with_advice(error: &RequestError) -> String {
    match error {
        RequestError::PromptTooLong { .. }
        | RequestError::ConversationTooLong { .. }
        | RequestError::PastContext { .. } => format!("{error}; {FULL}"),
        _ => error.to_string(),
    }
}

/// The text without characters that would control the terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The beginning of a text, in one line.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_control_a_terminal_are_replaced() {
        assert_eq!(
            printable("a\n\tb \u{1b}[2J\r😊"),
            "a\n\tb \u{fffd}[2J\u{fffd}😊"
        );
    }

    #[test]
    fn long_messages_are_shortened_to_a_line() {
        assert_eq!(shortened("one\ntwo"), "one two");
        assert_eq!(shortened(&"é".repeat(61)), "é".repeat(60) + "…");
    }
}
