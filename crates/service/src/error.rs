//! Errors of starting a service, of requests, and of publishing. There is one variant for each problem that a person
//! can act on; an error of a request names its field.

use std::path::PathBuf;
use std::time::Duration;

use engine::{ReservationError, SubmitError};
use registry::{LookupError, RegistryError, VariableError};

use auth::AuthError;

use crate::adapters::{AdapterError, LeaseError};
use crate::fields::{FieldNames, MAX_STOP_BYTES, MAX_STOPS};
use crate::uploads::UploadError;

/// Why a service did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceStartError {
    /// The base cannot be opened.
    #[error(transparent)]
    Base(#[from] base::BaseError),
    /// The device has no memory for keys and values.
    #[error(transparent)]
    Device(#[from] kernels::KernelError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] engine::StartError),
    /// An alias of a model cannot be used.
    #[error("--model-alias {alias}: {message}")]
    ModelAlias {
        /// The alias with its target.
        alias: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
}

/// Why nothing was published, or changed in the registry.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no registry.
    #[error("there is no registry to publish to; name one with --registry DIR, or set LORY_HOME")]
    NoRegistry,
    /// The name is the base's.
    #[error("{name:?} is the name of the base; publish under another name")]
    NameOfBase {
        /// The name.
        name: String,
    },
    /// The name is an alias that the operator set.
    #[error("{name:?} is an alias of this server; publish under another name")]
    NameOfAlias {
        /// The name.
        name: String,
    },
    /// The persona is in the folder, and is not published.
    #[error("{name} is not published: it is in {}; remove it there", path.display())]
    InFolder {
        /// The persona.
        name: String,
        /// Its folder.
        path: PathBuf,
    },
    /// Clients may not name folders.
    #[error(
        "loading adapters by path is off; start lory serve with --adapter-root DIR, and only adapters under it can be \
         loaded"
    )]
    NoAdapterRoot,
    /// The folder is elsewhere.
    #[error("{path:?} is not under --adapter-root; only adapters under it can be loaded")]
    OutsideRoot {
        /// The requested path.
        path: String,
    },
    /// There is no such folder.
    #[error("no adapter found at {path:?}: there is no such folder under --adapter-root")]
    NoSuchFolder {
        /// The requested path.
        path: String,
    },
    /// The folder of personas has no persona of this name.
    #[error("there is no persona {name} in the folder of personas")]
    NotInFolder {
        /// The name.
        name: String,
    },
    /// An upload was refused, or does not exist.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The base cannot run it.
    #[error(transparent)]
    Adapter(Box<AdapterError>),
    /// The registry refused it, or failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl PublishError {
    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            PublishError::InFolder { name, .. } => {
                format!("{name} is not published: it is in the folder of personas; remove it there")
            }
            PublishError::Upload(error) => error.client_message(),
            PublishError::Adapter(error) => error.client_message(),
            PublishError::Registry(error) => error.client_message(),
            PublishError::NoRegistry
            | PublishError::NameOfBase { .. }
            | PublishError::NameOfAlias { .. }
            | PublishError::NoAdapterRoot
            | PublishError::OutsideRoot { .. }
            | PublishError::NoSuchFolder { .. }
            | PublishError::NotInFolder { .. } => self.to_string(),
        }
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The persona does not exist, or the text is not a valid name.
    #[error("{field}: {}", describe(source, base.as_deref(), aliases))]
    Persona {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: LookupError,
        /// The base's name, if the caller may use it.
        base: Option<String>,
        /// The aliases that the caller may use.
        aliases: Vec<String>,
    },
    /// The text cannot be the name of a persona.
    #[error("{field}: no model is named {name:?}; {}", list_models(available))]
    UnknownModel {
        /// The field.
        field: &'static str,
        /// The beginning of the text.
        name: String,
        /// The names that the caller may use.
        available: Vec<String>,
    },
    /// The request names no persona and must.
    #[error("{field} is empty; name a persona or the base ({base})")]
    NoPersona {
        /// The field.
        field: &'static str,
        /// The base's name.
        base: String,
    },
    /// The persona's system prompt cannot be filled in.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// The prompt is empty.
    #[error("{field} is empty; write a prompt")]
    EmptyPrompt {
        /// The field, with the message's number where there is one.
        field: String,
    },
    /// A role that no template supports.
    #[error("{field} {role:?} is not known; a role is system, user, assistant or tool")]
    UnknownRole {
        /// The field.
        field: String,
        /// The role.
        role: String,
    },
    /// A schema that cannot be compiled to a grammar.
    #[error("{field} cannot be used: {message}")]
    Schema {
        /// The field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// Other requests keep all compilers busy.
    #[error("schemas of other requests are being compiled and take too long; try again later")]
    GrammarsBusy,
    /// Invalid tools.
    #[error("{field} {message}")]
    Tool {
        /// The field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// The base's template refuses the conversation.
    #[error("{field}: {source}")]
    Template {
        /// The field.
        field: &'static str,
        /// The message of the template.
        source: formats::chat_template::TemplateError,
    },
    /// The base's template refuses the system message in front of the conversation, and would render the rest.
    #[error(
        "{}the chat template of {base} renders no system message, and {whose} is one: {source}; lory serve --system-as-user puts the \
         text in front of the first user's message",
        field.as_ref().map_or(String::new(), |field| format!("{field}: "))
    )]
    NoSystemRole {
        /// The field that brings the message; none if the operator's persona does.
        field: Option<String>,
        /// What the message is.
        whose: String,
        /// The base.
        base: String,
        /// The message of the template.
        source: Box<formats::chat_template::TemplateError>,
    },
    /// The base's template fails, whatever the client could do.
    #[error("{source}; the chat template of {base} is at fault, not the request")]
    TemplateFailed {
        /// The base.
        base: String,
        /// What went wrong, with the line of the template.
        source: formats::chat_template::TemplateError,
    },
    /// The text could not be tokenized.
    #[error("{field}: {source}")]
    Tokenize {
        /// The field.
        field: &'static str,
        /// Why.
        source: formats::tokenizer::TokenizerError,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "{field} has {tokens} tokens with the system prompt and the template, and the context holds {limit} with the \
         answer; shorten it"
    )]
    PromptTooLong {
        /// The field.
        field: &'static str,
        /// Tokens in the prompt.
        tokens: usize,
        /// The most of prompt and answer.
        limit: usize,
    },
    /// The conversation is longer than any that the context holds, so it was not rendered to its end.
    #[error(
        "{field} is too long: {messages} messages with {bytes} bytes, and the context holds {limit} tokens with the answer; \
         shorten it"
    )]
    ConversationTooLong {
        /// The field.
        field: &'static str,
        /// How many messages.
        messages: usize,
        /// Their texts together.
        bytes: usize,
        /// The most tokens of prompt and answer.
        limit: usize,
    },
    /// The text is so long that it cannot fit, so it was not tokenized.
    #[error(
        "{field} has {bytes} bytes; that is more than the {limit} tokens that the context holds with the answer; shorten it"
    )]
    PromptTooLarge {
        /// The field.
        field: &'static str,
        /// Bytes of its texts.
        bytes: usize,
        /// The most tokens of prompt and answer.
        limit: usize,
    },
    /// Prompt and answer together go past the context.
    #[error(
        "{field} {max_new_tokens} and the prompt's {prompt} tokens go past the context of {limit}; ask for at most {} \
         new tokens or shorten the prompt",
        limit.saturating_sub(*prompt)
    )]
    PastContext {
        /// The field of the answer's limit.
        field: &'static str,
        /// Tokens in the prompt.
        prompt: usize,
        /// The requested limit.
        max_new_tokens: usize,
        /// The most of prompt and answer.
        limit: usize,
    },
    /// A setting is out of range.
    #[error("{field} {message}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it must be, and what it was.
        message: String,
    },
    /// Too many stop strings.
    #[error("stop has {count} texts; give at most {MAX_STOPS}")]
    TooManyStops {
        /// How many.
        count: usize,
    },
    /// A stop string that is empty or too long.
    #[error("stop[{index}] has {bytes} bytes; it must have from 1 to {MAX_STOP_BYTES}")]
    StopLength {
        /// Which, from 0.
        index: usize,
        /// Its length in bytes.
        bytes: usize,
    },
    /// More answers than the engine ever takes from this client at once.
    #[error(
        "this request needs {asked} answers, and this server takes at most {most} of one client at once; lower n or send fewer prompts"
    )]
    TooManyAnswers {
        /// Prompts times answers to each.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// The queue is full.
    #[error("the queue is full: {limit} requests wait already; try again later")]
    QueueFull {
        /// How many may wait.
        limit: usize,
        /// When there will probably be room.
        retry_after: Duration,
    },
    /// The key's requests take up its part of the queue.
    #[error(
        "this key has {held} requests that run or wait, which is its part of the {limit} places, and this request needs {asked} \
         more; wait for answers and try again, or ask for fewer at once"
    )]
    AboveShare {
        /// How many run or wait.
        held: usize,
        /// How many may run or wait, of all keys together.
        limit: usize,
        /// How many this request needs.
        asked: usize,
        /// When there will probably be room.
        retry_after: Duration,
    },
    /// Responses that have not ended hold too many log-probabilities.
    #[error(
        "responses that have not ended may have up to {used} log-probabilities, alternatives included, and this request up to {asked}; \
         {limit} is the limit; read the responses and try again, or ask for fewer alternatives, new tokens or answers"
    )]
    LogprobsInUse {
        /// What the key's responses, or all responses, have reserved.
        used: usize,
        /// What this request needs.
        asked: usize,
        /// The limit.
        limit: usize,
    },
    /// There was no time for a single token.
    #[error(
        "timeout_ms passed before the first token; give it more time, or try again when fewer requests wait"
    )]
    Timeout,
    /// An adapter could not be loaded.
    #[error("{}", about_adapter(adapter, source, source.to_string()))]
    Adapter {
        /// Its content hash.
        adapter: String,
        /// Why.
        source: Box<AdapterError>,
    },
    /// The answer's grammar reached a limit while it ran, or allows no token. The schema or the tools are the client's.
    #[error("response_format or tools: the answer's grammar failed: {0}; make the schema simpler")]
    GrammarLimit(String),
    /// The model failed in a step of this request.
    #[error("the model failed: {0}")]
    Failed(String),
    /// The device failed, and stays so until the process is started again.
    #[error("the device of the base failed: {0}")]
    DeviceFailed(String),
    /// The client went away before the request was queued.
    #[error("the client went away")]
    ClientGone,
    /// The engine has ended, or is ending.
    #[error("the service is shutting down")]
    Stopped,
    /// The caller's key does not allow it.
    #[error("{}{source}", field.map_or(String::new(), |field| format!("{field}: ")))]
    Denied {
        /// The field that the key does not permit.
        field: Option<&'static str>,
        /// Why not.
        source: AuthError,
    },
    /// The engine refused a request that passed the checks here.
    #[error("the engine refused the request: {0}")]
    Refused(SubmitError),
}

impl From<LeaseError> for RequestError {
    fn from(error: LeaseError) -> RequestError {
        match error {
            LeaseError::Unusable(id, source) => RequestError::Adapter {
                adapter: id.to_string(),
                source,
            },
            LeaseError::NotReserved(ReservationError::TimedOut) => RequestError::Timeout,
            LeaseError::NotReserved(ReservationError::Cancelled) => RequestError::ClientGone,
            // The loader handles the other two itself.
            LeaseError::NotReserved(
                ReservationError::Stopped
                | ReservationError::Pool(_)
                | ReservationError::MoreThanReserved,
            ) => RequestError::Stopped,
        }
    }
}

impl RequestError {
    /// Translates the engine's error, with the interface's names of the fields.
    pub(super) fn refused(error: SubmitError, names: &FieldNames) -> RequestError {
        match error {
            SubmitError::InvalidSampling { field, message } => {
                RequestError::OutOfRange { field, message }
            }
            SubmitError::QueueFull { limit, retry_after } => {
                RequestError::QueueFull { limit, retry_after }
            }
            SubmitError::AboveShare {
                held,
                limit,
                asked,
                retry_after,
            } => RequestError::AboveShare {
                held,
                limit,
                asked,
                retry_after,
            },
            SubmitError::TooManyAtOnce { asked, most } => {
                RequestError::TooManyAnswers { asked, most }
            }
            SubmitError::Stopped => RequestError::Stopped,
            SubmitError::PromptTooLong { tokens, limit } => RequestError::PromptTooLong {
                field: names.prompt,
                tokens,
                limit,
            },
            SubmitError::EmptyPrompt => RequestError::EmptyPrompt {
                field: names.prompt.to_owned(),
            },
            other => RequestError::Refused(other),
        }
    }

    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            RequestError::Adapter { adapter, source } => {
                about_adapter(adapter, source, source.client_message())
            }
            _ => self.to_string(),
        }
    }

    /// The field that the error is about, if it is about one.
    pub fn field(&self) -> Option<String> {
        match self {
            RequestError::Persona { field, .. }
            | RequestError::UnknownModel { field, .. }
            | RequestError::NoPersona { field, .. }
            | RequestError::Template { field, .. }
            | RequestError::Tokenize { field, .. }
            | RequestError::PromptTooLong { field, .. }
            | RequestError::ConversationTooLong { field, .. }
            | RequestError::PromptTooLarge { field, .. }
            | RequestError::PastContext { field, .. }
            | RequestError::OutOfRange { field, .. } => Some((*field).to_owned()),
            RequestError::Variable(error) => Some(format!("variables.{}", error.name())),
            RequestError::EmptyPrompt { field }
            | RequestError::UnknownRole { field, .. }
            | RequestError::Schema { field, .. }
            | RequestError::Tool { field, .. } => Some(field.clone()),
            RequestError::NoSystemRole { field, .. } => field.clone(),
            RequestError::TooManyAnswers { .. } => Some("n".to_owned()),
            RequestError::TooManyStops { .. } => Some("stop".to_owned()),
            RequestError::StopLength { index, .. } => Some(format!("stop[{index}]")),
            RequestError::Timeout => Some("timeout_ms".to_owned()),
            RequestError::Denied { field, .. } => field.map(str::to_owned),
            RequestError::QueueFull { .. }
            | RequestError::AboveShare { .. }
            | RequestError::LogprobsInUse { .. }
            | RequestError::Adapter { .. }
            | RequestError::Failed(_)
            | RequestError::DeviceFailed(_)
            | RequestError::TemplateFailed { .. }
            | RequestError::GrammarLimit(_)
            | RequestError::GrammarsBusy
            | RequestError::ClientGone
            | RequestError::Stopped
            | RequestError::Refused(_) => None,
        }
    }
}

/// The most names that a message lists.
const SHOWN: usize = 20;

fn list_models(names: &[String]) -> String {
    match names {
        [] => "the key may not use any".to_owned(),
        names if names.len() > SHOWN => {
            let shown = names[..SHOWN].join(", ");
            format!("the models are {shown} and {} more", names.len() - SHOWN)
        }
        names => format!("the models are {}", names.join(", ")),
    }
}

/// The registry's message, which also names the base and the aliases.
fn describe(error: &LookupError, base: Option<&str>, aliases: &[String]) -> String {
    let mut message = error.to_string();
    if let LookupError::Unknown { .. } = error {
        if let Some(base) = base {
            message += &format!("; the base is {base}");
        }
        if !aliases.is_empty() {
            let shown = aliases[..aliases.len().min(SHOWN)].join(", ");
            message += &format!("; the aliases are {shown}");
            if aliases.len() > SHOWN {
                message += &format!(" and {} more", aliases.len() - SHOWN);
            }
        }
    }
    message
}

/// `message` of the adapter `id`, which most of its errors do not name.
fn about_adapter(id: &str, error: &AdapterError, message: String) -> String {
    match error {
        AdapterError::Pool(_) => message,
        _ => format!("adapter {id}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use engine::{AdapterId, PoolError};

    use super::*;

    #[test]
    fn error_of_the_adapter_memory_names_the_adapter_once() {
        let id = AdapterId([7; 32]);
        let (bytes, limit) = (200, 100);
        for (pool, names) in [
            (PoolError::TooLarge { id, bytes, limit }, 1),
            (
                PoolError::TogetherTooLarge {
                    adapters: 2,
                    bytes,
                    limit,
                },
                0,
            ),
        ] {
            let error =
                RequestError::from(LeaseError::Unusable(id, Box::new(AdapterError::Pool(pool))));
            for message in [error.to_string(), error.client_message()] {
                assert_eq!(message.matches(&id.to_string()).count(), names, "{message}");
                assert!(message.contains("adapter memory is 100"), "{message}");
            }
        }
    }
}
