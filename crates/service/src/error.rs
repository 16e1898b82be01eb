//! What can go wrong: opening a service, and asking it. One variant for each thing that someone can do something about;
//! an error about a request knows the field it is about.

use std::path::PathBuf;
use std::time::Duration;

use engine::{ReservationError, SubmitError};
use registry::{LookupError, RegistryError, VariableError};

use auth::Denied;

use crate::adapters::{AdapterError, LeaseError};
use crate::request::{FieldNames, MAX_STOP_BYTES, MAX_STOPS};
use crate::uploads::UploadError;
use crate::votes::MAX_VOTES;

/// Why a service did not open.
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
    /// A persona's adapter cannot be used.
    #[error("persona {persona:?}: {source}")]
    Adapter {
        /// The persona.
        persona: String,
        /// Why.
        source: Box<AdapterError>,
    },
    /// A persona has the base's name.
    #[error("{}: {name:?} is the name of the base; rename the persona", path.display())]
    NameTaken {
        /// The name.
        name: String,
        /// The persona's folder.
        path: PathBuf,
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
    /// The persona lies in the folder, and is not published.
    #[error("{name} is not published: it lies in {}; remove it there", path.display())]
    InFolder {
        /// The persona.
        name: String,
        /// Its folder.
        path: PathBuf,
    },
    /// Clients may not name folders.
    #[error(
        "loading adapters by path is off; start lory serve with --adapter-root DIR, and only what lies under it can be \
         loaded"
    )]
    NoAdapterRoot,
    /// The folder lies elsewhere.
    #[error("{path:?} does not lie under --adapter-root; only adapters under it can be loaded")]
    OutsideRoot {
        /// What was asked.
        path: String,
    },
    /// There is no such folder.
    #[error("no adapter found at {path:?}: there is no such folder under --adapter-root")]
    NoSuchFolder {
        /// What was asked.
        path: String,
    },
    /// Nothing of this name lies in the folder of personas.
    #[error("there is no persona {name} in the folder of personas")]
    NotInFolder {
        /// The name.
        name: String,
    },
    /// An upload was not taken, or is not there.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The base cannot run it.
    #[error(transparent)]
    Adapter(Box<AdapterError>),
    /// The registry refused it, or failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The persona is not there, or the text names none.
    #[error("{field}: {}", describe(source, base))]
    Persona {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: LookupError,
        /// The base's name, which would do as well.
        base: String,
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
    /// Nothing was asked.
    #[error("{field} is empty; say what is asked")]
    EmptyPrompt {
        /// The field, with the message's number where there is one.
        field: String,
    },
    /// A role that no template here knows.
    #[error("{field} {role:?} is not known; a role is system, user, assistant or tool")]
    UnknownRole {
        /// The field.
        field: String,
        /// The role.
        role: String,
    },
    /// A schema that no grammar can be made of.
    #[error("{field} cannot be used: {message}")]
    Schema {
        /// The field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// Schemas of others are being compiled, and take long.
    #[error("schemas of other requests are being compiled and take too long; try again later")]
    GrammarsBusy,
    /// Tools that cannot be called as they are given.
    #[error("{field} {message}")]
    Tool {
        /// The field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// The base's template does not take the conversation.
    #[error("{field}: {source}")]
    Template {
        /// The field.
        field: &'static str,
        /// What the template said.
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
        /// The answer's limit, as asked for.
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
    /// As many requests wait as may.
    #[error("the queue is full: {limit} requests wait already; try again later")]
    QueueFull {
        /// How many may wait.
        limit: usize,
        /// In how long there will probably be room.
        retry_after: Duration,
    },
    /// There was no time for a single token.
    #[error(
        "timeout_ms passed before the first token; give it more time, or try again when less is asked"
    )]
    Timeout,
    /// An adapter could not be brought into memory.
    #[error("adapter {adapter}: {source}")]
    Adapter {
        /// Its content hash.
        adapter: String,
        /// Why.
        source: Box<AdapterError>,
    },
    /// The model failed in a step of this request.
    #[error("the model failed: {0}")]
    Failed(String),
    /// Whoever asked went away before it was queued.
    #[error("the client went away")]
    ClientGone,
    /// The engine has ended, or is ending.
    #[error("the service is shutting down")]
    Stopped,
    /// The caller's key does not allow it.
    #[error("{}{source}", field.map_or(String::new(), |field| format!("{field}: ")))]
    Denied {
        /// The field that asks for it.
        field: Option<&'static str>,
        /// Why not.
        source: Denied,
    },
    /// The engine refused what this module should have.
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
            LeaseError::NotReserved(ReservationError::Stopped | ReservationError::Pool(_)) => {
                RequestError::Stopped
            }
        }
    }
}

impl RequestError {
    /// The engine's refusal, in the interface's own words.
    pub(super) fn refused(error: SubmitError, names: &FieldNames) -> RequestError {
        match error {
            SubmitError::InvalidSampling { field, message } => {
                RequestError::OutOfRange { field, message }
            }
            SubmitError::QueueFull { limit, retry_after } => {
                RequestError::QueueFull { limit, retry_after }
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

    /// The field that the error is about, if it is about one.
    pub fn field(&self) -> Option<String> {
        match self {
            RequestError::Persona { field, .. }
            | RequestError::NoPersona { field, .. }
            | RequestError::Template { field, .. }
            | RequestError::Tokenize { field, .. }
            | RequestError::PromptTooLong { field, .. }
            | RequestError::PastContext { field, .. }
            | RequestError::OutOfRange { field, .. } => Some((*field).to_owned()),
            RequestError::Variable(error) => Some(format!("variables.{}", error.name())),
            RequestError::EmptyPrompt { field }
            | RequestError::UnknownRole { field, .. }
            | RequestError::Schema { field, .. }
            | RequestError::Tool { field, .. } => Some(field.clone()),
            RequestError::TooManyStops { .. } => Some("stop".to_owned()),
            RequestError::StopLength { index, .. } => Some(format!("stop[{index}]")),
            RequestError::Timeout => Some("timeout_ms".to_owned()),
            RequestError::Denied { field, .. } => field.map(str::to_owned),
            RequestError::QueueFull { .. }
            | RequestError::Adapter { .. }
            | RequestError::Failed(_)
            | RequestError::GrammarsBusy
            | RequestError::ClientGone
            | RequestError::Stopped
            | RequestError::Refused(_) => None,
        }
    }
}

/// The registry's words, and that the base can be asked too.
fn describe(error: &LookupError, base: &str) -> String {
    match error {
        LookupError::Unknown { .. } => format!("{error}; the base is {base}"),
        _ => error.to_string(),
    }
}

/// Why a vote is not stored, or votes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// There is no folder.
    #[error(
        "there is nowhere to keep votes and evaluations; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// The limit of stored votes is reached.
    #[error("{MAX_VOTES} votes are kept already, as many as may be; move {} away to begin anew", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// A line of the file is not a vote.
    #[error("{}:{line}: {message}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The folder cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
}
