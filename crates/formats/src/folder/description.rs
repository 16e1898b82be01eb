//! The files that describe a folder's model: configuration, tokenizer, chat template, and the tokens that end an answer.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::FolderError;
use crate::chat_template::{ChatTemplate, TemplateError};
use crate::config::ModelConfig;
use crate::file::{FileError, read_json, read_text};
use crate::tokenizer::{Roles, Tokenizer, TokenizerError};

/// Longest files, in bytes. The longest `tokenizer.json` in use has about 35 MB.
const MAX_CONFIG: u64 = 4 << 20;
const MAX_TOKENIZER: u64 = 128 << 20;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// Whether a path is a folder of this kind, rather than a GGUF file or something else.
#[must_use]
pub fn is_folder(path: &Path) -> bool {
    path.is_dir() && path.join(CONFIG).is_file()
}

/// The names of the files that describe a folder's model, apart from the weights. A folder need not have all of them.
#[must_use]
pub fn description_files() -> [&'static str; 5] {
    [CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE]
}

/// A folder's files, apart from its weights.
pub struct Description {
    path: PathBuf,
    config: ModelConfig,
    /// `eos_token_id` of `generation_config.json`, or else of `config.json`: a number, a list or nothing.
    ends: Value,
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
        let generation = read_optional(&path.join(GENERATION))?;
        let ends = [&generation, &config].map(|file| file.get("eos_token_id"));
        let ends = ends.into_iter().flatten().find(|ends| !ends.is_null());
        let ends = ends.cloned().unwrap_or_default();
        let config = ModelConfig::from_json(&config, &file.display().to_string())?;
        Ok(Description {
            config,
            ends,
            tokenizer_config: read_optional(&path.join(TOKENIZER_CONFIG))?,
            path: path.to_owned(),
        })
    }

    /// The sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer of `tokenizer.json`, with the special tokens that the other files name.
    ///
    /// # Errors
    /// [`TokenizerError`]: the file is missing, malformed, or of a kind that is not supported, by name.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let path = self.path.join(TOKENIZER);
        let json = read_json(&path, MAX_TOKENIZER)?;
        let bos = self.special("bos_token");
        let eos = self.special("eos_token");
        let add_bos = self
            .tokenizer_config
            .get("add_bos_token")
            .and_then(Value::as_bool);
        let ends = match &self.ends {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            id => id.as_u64().into_iter().collect(),
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

    /// The chat template: `chat_template.jinja`, or the field `chat_template` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TemplateError`]: there is none, or it cannot be compiled.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        let missing = || TemplateError::None {
            origin: self.path.display().to_string(),
        };
        let file = self.path.join(TEMPLATE);
        let source = if file.is_file() {
            read_text(&file, MAX_CONFIG)?
        } else {
            let own = match self.tokenizer_config.get("chat_template") {
                Some(Value::String(source)) => Some(source.as_str()),
                // Several templates, by name.
                Some(Value::Array(all)) => all
                    .iter()
                    .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|one| one.get("template"))
                    .and_then(Value::as_str),
                _ => None,
            };
            own.ok_or_else(missing)?.to_owned()
        };
        let names = [
            "unk_token",
            "pad_token",
            "sep_token",
            "cls_token",
            "mask_token",
        ];
        let others = names
            .into_iter()
            .filter_map(|name| Some((name, self.special(name)?)));
        ChatTemplate::with_others(&source, tokenizer, others.collect())
    }
}

/// A JSON file; null if it does not exist.
fn read_optional(path: &Path) -> Result<Value, FileError> {
    if path.is_file() {
        read_json(path, MAX_CONFIG)
    } else {
        Ok(Value::Null)
    }
}
