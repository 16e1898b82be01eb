//! What a folder says about its model: the configuration, the tokenizer, the chat template, and which tokens end an answer.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{CONFIG, FolderError, GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG};
use crate::chat_template::{ChatTemplate, TemplateError};
use crate::config::ModelConfig;
use crate::tokenizer::{Roles, Tokenizer, TokenizerError};

/// Longest files, in bytes. The longest `tokenizer.json` in use has some 35 MB.
const MAX_CONFIG: u64 = 4 << 20;
const MAX_TOKENIZER: u64 = 128 << 20;
pub(super) const MAX_INDEX: u64 = 64 << 20;

/// A folder's files without its weights.
pub struct Description {
    path: PathBuf,
    config: ModelConfig,
    generation: Value,
    tokenizer_config: Value,
}

impl std::fmt::Debug for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Description")
            .field("path", &self.path)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Description {
    /// Reads and checks the folder's configuration.
    ///
    /// # Errors
    /// [`FolderError`], naming the file and the field.
    pub fn read(path: &Path) -> Result<Description, FolderError> {
        let file = path.join(CONFIG);
        let config = read_json(&file, MAX_CONFIG)?;
        let config = ModelConfig::from_json(&config, &file.display().to_string())?;
        Ok(Description {
            config,
            generation: read_optional(&path.join(GENERATION))?,
            tokenizer_config: read_optional(&path.join(TOKENIZER_CONFIG))?,
            path: path.to_owned(),
        })
    }

    /// The sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer of `tokenizer.json`, with the roles that the other files give to tokens.
    ///
    /// # Errors
    /// [`TokenizerError`]: the file is missing or broken, or of a kind that is not supported, by name.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let path = self.path.join(TOKENIZER);
        let failed = |error: FolderError| TokenizerError::Folder(Box::new(error));
        let json = read_json(&path, MAX_TOKENIZER).map_err(failed)?;
        let bos = self.special("bos_token");
        let eos = self.special("eos_token");
        let add_bos = self
            .tokenizer_config
            .get("add_bos_token")
            .and_then(Value::as_bool);
        let ends = match self.generation.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        let roles = Roles {
            bos,
            eos,
            add_bos,
            ends,
        };
        Tokenizer::from_json(&json, &roles, &path.display().to_string())
    }

    /// The text of a special token of `tokenizer_config.json`: a string, or an object with its content.
    fn special(&self, key: &str) -> Option<String> {
        let value = self.tokenizer_config.get(key)?;
        let text = value
            .as_str()
            .or_else(|| value.get("content").and_then(Value::as_str))?;
        Some(text.to_owned())
    }

    /// The chat template: `chat_template.jinja`, else what `tokenizer_config.json` has under `chat_template`.
    ///
    /// # Errors
    /// [`TemplateError`]: there is none, or it is not understood.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        let missing = || TemplateError::None {
            origin: self.path.display().to_string(),
        };
        let file = self.path.join(TEMPLATE);
        let source = if file.is_file() {
            read_text(&file, MAX_CONFIG).map_err(|error| TemplateError::Folder(Box::new(error)))?
        } else {
            let own = match self.tokenizer_config.get("chat_template") {
                Some(Value::String(source)) => Some(source.as_str()),
                // Several, by name.
                Some(Value::Array(all)) => all
                    .iter()
                    .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|one| one.get("template"))
                    .and_then(Value::as_str),
                _ => None,
            };
            own.ok_or_else(missing)?.to_owned()
        };
        ChatTemplate::of(&source, tokenizer)
    }
}

/// A JSON file that may be absent, which is then null.
fn read_optional(path: &Path) -> Result<Value, FolderError> {
    if path.is_file() {
        read_json(path, MAX_CONFIG)
    } else {
        Ok(Value::Null)
    }
}

/// A JSON file of at most `limit` bytes.
pub(super) fn read_json(path: &Path, limit: u64) -> Result<Value, FolderError> {
    let text = read_text(path, limit)?;
    serde_json::from_str(&text).map_err(|source| FolderError::Json {
        path: path.to_owned(),
        source,
    })
}

fn read_text(path: &Path, limit: u64) -> Result<String, FolderError> {
    let io = |source| FolderError::Io {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    let mut text = String::new();
    // A file that grows meanwhile is cut, and then is no JSON.
    let read = file.take(limit + 1).read_to_string(&mut text).map_err(io)?;
    if found > limit || read as u64 > limit {
        return Err(FolderError::TooLarge {
            path: path.to_owned(),
            found: found.max(read as u64),
            limit,
        });
    }
    Ok(text)
}
