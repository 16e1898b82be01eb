//! Renders a conversation with the model's own chat template, as the transformers library renders it.
//!
//! Templates are untrusted programs: each rendering has a budget of work and memory, and a template sees only the
//! conversation. Of the tokens, this module knows only the texts of the first and the last one.

mod alpaca;
mod date;
mod hidden;
mod json;
mod methods;
mod probe;
mod python;
mod rewrite;
mod tags;
mod tool_text;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use serde::{Deserialize, Serialize};

use crate::file::FileError;
use crate::gguf::{Gguf, GgufError};
use crate::sha256::FieldHasher;
use crate::tokenizer::Tokenizer;

pub use alpaca::alpaca_prompt;
pub use hidden::Hidden;
pub use probe::TemplateProblem;
pub use tool_text::{
    ToolCall, ToolSignature, add_tool_instructions, call_arguments, merge_tool_responses,
    python_json, render_turn, tool_instructions,
};

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role of the template.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A template that is missing or broken, or a conversation that it refuses.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The metadata could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model has no template.
    #[error(
        "{origin}: metadata \"tokenizer.chat_template\" is missing: a base model without chat, not an instruct model?"
    )]
    Missing {
        /// The file.
        origin: String,
    },
    /// The folder has no template.
    #[error(
        "{origin}: neither chat_template.jinja nor a chat_template in tokenizer_config.json: a base model without chat, not an \
         instruct model?"
    )]
    None {
        /// The folder.
        origin: String,
    },
    /// A file of the folder could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Longer than any template in use.
    #[error("the chat template has {found} bytes; at most {MAX_TEMPLATE} are read")]
    TooLarge {
        /// Its length.
        found: usize,
    },
    /// An expression longer than any template has.
    #[error("the chat template has a tag of {found} bytes; at most {MAX_TAG} are read")]
    LongTag {
        /// Its length.
        found: usize,
    },
    /// The template is not valid Jinja.
    #[error("the chat template is not understood: {0}")]
    Syntax(String),
    /// The template refused the conversation (`raise_exception`); the text is its own.
    #[error("the chat template refused the conversation: {0}")]
    Refused(String),
    /// The conversation takes more work or memory than a rendering may.
    #[error("the chat template failed: it takes more work or memory than a rendering may")]
    OutOfFuel,
    /// The template failed.
    #[error("the chat template failed: {0}")]
    Render(String),
}

/// Longest template, in bytes; the longest in use have some 20 KiB.
const MAX_TEMPLATE: usize = 64 << 10;
/// Longest `{{ }}` or `{% %}`, in bytes.
const MAX_TAG: usize = 8 << 10;
/// Work of one rendering: an instruction costs 1, and so do 64 bytes of output. Enough for a conversation of several megabytes.
const FUEL: u64 = 250_000;
/// Deepest nesting of macros and blocks.
const MAX_DEPTH: usize = 100;
/// The template engine recurses over long expressions and nested lists, by at most 2 KiB for each byte of a template and
/// each unit of fuel. This stack is large enough for both limits above; only the used part takes memory.
const STACK: usize = 512 << 20;
const NAME: &str = "chat_template";
/// Special tokens that templates may mention, and where a GGUF has them.
const GGUF_TOKENS: [(&str, &str); 5] = [
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    // As ggml spells it.
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: SpecialTexts,
    /// Whether the system text goes in front of the first user's message.
    system_as_user: bool,
}

/// The texts of the special tokens that a template sees. An absent one is undefined in the template, but for the first two, which are
/// empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTexts {
    /// `bos_token`, which begins a text.
    pub bos: String,
    /// `eos_token`, which ends a text.
    pub eos: String,
    /// Others by their names in templates, such as `unk_token`.
    pub others: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// The template of a model file.
    ///
    /// # Errors
    /// [`TemplateError`]: there is none, or it cannot be compiled.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        let source =
            gguf.get_str("tokenizer.chat_template")?
                .ok_or_else(|| TemplateError::Missing {
                    origin: gguf.origin().to_owned(),
                })?;
        let mut others = Vec::new();
        for (name, key) in GGUF_TOKENS {
            let id = gguf.get_u32(key)?;
            let text = id.and_then(|id| tokenizer.token(id));
            others.extend(text.map(|text| (name, text.to_owned())));
        }
        ChatTemplate::with_others(source, tokenizer, others)
    }

    /// Compiles the template of a model with this tokenizer.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn of(source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::with_others(source, tokenizer, Vec::new())
    }

    /// [`ChatTemplate::of`] with the texts of `others` of the model's special tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_others(
        source: &str,
        tokenizer: &Tokenizer,
        others: Vec<(&'static str, String)>,
    ) -> Result<ChatTemplate, TemplateError> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let tokens = SpecialTexts {
            bos: text(tokenizer.bos()).to_owned(),
            eos: text(tokenizer.eos()).to_owned(),
            others,
        };
        ChatTemplate::with_tokens(source, tokens)
    }

    /// Compiles a template; the template sees `bos` and `eos` as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError`]: too long, or it cannot be compiled.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let tokens = SpecialTexts {
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            others: Vec::new(),
        };
        ChatTemplate::with_tokens(source, tokens)
    }

    /// Compiles a template that sees these special tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_tokens(
        source: &str,
        mut tokens: SpecialTexts,
    ) -> Result<ChatTemplate, TemplateError> {
        if source.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLarge {
                found: source.len(),
            });
        }
        let rewritten = rewrite::rewrite(source);
        let found = tags::longest(source).max(tags::longest(&rewritten));
        if found > MAX_TAG {
            return Err(TemplateError::LongTag { found });
        }
        // What a template does not mention does not change its hash.
        tokens.others.retain(|(name, _)| source.contains(name));
        let mut environment = Environment::new();
        // As in transformers: no escaping (the name has no extension), blocks take their line with them.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, state, value| match python::str(state, value)? {
            Some(text) => out.write_str(&text).map_err(Error::from),
            None => minijinja::escape_formatter(out, state, value),
        });
        add_python(&mut environment);
        environment.set_fuel(Some(FUEL));
        on_deep_stack(|| {
            environment
                .add_template_owned(NAME, rewritten)
                .map_err(|error| TemplateError::Syntax(describe(&error)))
        })?;
        Ok(ChatTemplate {
            environment,
            source: source.to_owned(),
            tokens,
            system_as_user: false,
        })
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] with the template's own message, or [`TemplateError::Render`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let merged = self.system_as_user.then(|| with_system_as_user(messages));
        let conversation: Vec<Value> = merged
            .as_deref()
            .unwrap_or(messages)
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let others = self.tokens.others.iter();
        let others = Value::from_pairs(others.map(|(name, text)| (*name, text.as_str())));
        let context = context! {
            messages => conversation,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.tokens.bos.clone(),
            eos_token => self.tokens.eos.clone(),
            tools => (),
            documents => (),
            ..others
        };
        on_deep_stack(|| {
            let template = self.environment.get_template(NAME).map_err(failed)?;
            template.render(context).map_err(failed)
        })
    }

    /// The source text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The sha256, in hex, of everything that determines a rendering.
    pub fn hash(&self) -> String {
        let mut hasher = FieldHasher::new();
        let SpecialTexts { bos, eos, others } = &self.tokens;
        for field in ["chat template", &self.source, bos, eos] {
            hasher.field(field.as_bytes());
        }
        for (name, text) in others {
            hasher.field(name.as_bytes()).field(text.as_bytes());
        }
        if self.system_as_user {
            hasher.field(b"system as user");
        }
        hasher.finish()
    }
}

/// The messages with the text of a leading system message in front of the first user's.
fn with_system_as_user(messages: &[Message]) -> Vec<Message> {
    let Some((system, turns)) = messages
        .split_first()
        .filter(|(first, _)| first.role == "system")
    else {
        return messages.to_vec();
    };
    let mut turns = turns.to_vec();
    match turns.iter_mut().find(|turn| turn.role == "user") {
        Some(user) => user.content = format!("{}\n\n{}", system.content, user.content),
        None => turns.insert(0, Message::new("user", system.content.as_str())),
    }
    turns
}

/// Adds what Python's templates have and the template engine does not.
fn add_python(environment: &mut Environment<'static>) {
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
                .with_source(Refusal(message)))
        },
    );
    environment.add_function("strftime_now", |format: String| {
        date::strftime(&format, SystemTime::now())
    });
    environment.add_function(
        rewrite::MOD,
        |state: &mut State, left: Value, right: Value| python::modulo(state, &left, &right),
    );
    environment.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.0)
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", |state: &mut State, value: Value| {
        let text = python::str(state, &value)?;
        Ok::<_, Error>(text.map_or_else(|| Value::from(value.to_string()), Value::from))
    });
}

/// Runs the template engine on a stack that no template can exhaust, as that would end the process.
fn on_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK);
        let running = thread
            .spawn_scoped(scope, work)
            .map_err(|error| TemplateError::Render(format!("no thread to render on: {error}")))?;
        running.join().unwrap_or_else(|_| {
            Err(TemplateError::Render(
                "the template engine panicked".to_owned(),
            ))
        })
    })
}

fn failed(error: Error) -> TemplateError {
    match refusal(&error) {
        Some(refusal) => TemplateError::Refused(refusal.0.clone()),
        None if error.kind() == ErrorKind::OutOfFuel => TemplateError::OutOfFuel,
        None => TemplateError::Render(describe(&error)),
    }
}

/// The message of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(error: &Error) -> Option<&Refusal> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        cause = error.source();
    }
    None
}

/// The error in one line, with its position in the template.
fn describe(error: &Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes more work or memory than a rendering may".to_owned(),
        kind => error
            .detail()
            .map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    error
        .line()
        .map_or_else(|| what.clone(), |line| format!("{what} (line {line})"))
}
