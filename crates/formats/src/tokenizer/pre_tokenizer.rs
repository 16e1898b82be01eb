//! Splits a text into words before tokens are merged: by a family that a GGUF names, by SentencePiece's rule for spaces, or by
//! the parts of a `tokenizer.json`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{Deserialize as _, DeserializeOwned};
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _,
};

use super::error::TokenizerError;
use super::family::{Family, MODEL, PRE};
use super::steps;
use crate::gguf::Gguf;

/// The character for a space in SentencePiece's vocabularies.
pub(super) const SPACE: &str = "▁";

/// How the vocabulary spells a token's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One character a byte (GPT-2's alphabet).
    Bytes,
    /// As text, with [`SPACE`] for a space and `<0x0A>` for a byte (SentencePiece).
    Pieces,
}

/// Where SentencePiece inserts a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    /// Before the text.
    First,
    /// Before the text, and after every added token.
    Always,
}

/// How texts are split.
pub(super) enum PreTokenizer {
    Family(Family),
    /// A text is one word, its spaces written as [`SPACE`].
    Metaspace {
        prefix: Prefix,
        /// Only if there is no space already.
        unless_there: bool,
    },
    Other(Box<Other>),
}

/// The parts of a `tokenizer.json` that match no family.
pub(super) struct Other {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    spelling: Spelling,
    ignore_merges: bool,
    /// Both parts as JSON, for the hash.
    source: String,
}

impl PreTokenizer {
    /// The pre-tokenizer that a GGUF names.
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<PreTokenizer, TokenizerError> {
        if gguf.get_str(MODEL)? != Some("llama") {
            return Ok(PreTokenizer::Family(Family::from_gguf(gguf)?));
        }
        // SentencePiece's BPE. Some files name a pre-tokenizer too, which has no effect.
        if let Some(other) = gguf.get_str(PRE)?
            && !matches!(other, "default" | "llama" | "")
        {
            return Err(TokenizerError::Unsupported {
                origin: gguf.origin().to_owned(),
                key: PRE,
                found: other.to_owned(),
                supported: "\"default\" for the model \"llama\"",
            });
        }
        let added = gguf.get_bool("tokenizer.ggml.add_space_prefix")?;
        Ok(PreTokenizer::Metaspace {
            prefix: match added {
                Some(false) => Prefix::Never,
                _ => Prefix::Always,
            },
            unless_there: false,
        })
    }

    /// The pre-tokenizer of a `tokenizer.json`.
    pub(super) fn from_json(json: &Value, origin: &str) -> Result<PreTokenizer, TokenizerError> {
        let part = |key: &str| json.get(key).unwrap_or(&Value::Null);
        let (normalizer, pre_tokenizer) = (part("normalizer"), part("pre_tokenizer"));
        let model = part("model");
        let flag = |key: &str| model.get(key).and_then(Value::as_bool) == Some(true);
        let ignore_merges = flag("ignore_merges");
        if let Some(family) = Family::from_json(normalizer, pre_tokenizer, ignore_merges) {
            return Ok(PreTokenizer::Family(family));
        }
        if let Some(metaspace) = metaspace(normalizer, pre_tokenizer) {
            return Ok(metaspace);
        }
        let spelling = if names(pre_tokenizer, "ByteLevel") {
            Spelling::Bytes
        } else if flag("byte_fallback") {
            Spelling::Pieces
        } else {
            return Err(TokenizerError::Unsupported {
                origin: origin.to_owned(),
                key: "pre_tokenizer",
                found: name_of(pre_tokenizer),
                supported: "byte-level BPE, and BPE with byte_fallback,",
            });
        };
        steps::check(normalizer, pre_tokenizer, origin)?;
        let invalid = |key, problem| TokenizerError::Invalid {
            origin: origin.to_owned(),
            key,
            problem,
        };
        let normalizer_of = parsed(normalizer).map_err(|problem| invalid("normalizer", problem))?;
        let pre_tokenizer_of =
            parsed(pre_tokenizer).map_err(|problem| invalid("pre_tokenizer", problem))?;
        Ok(PreTokenizer::Other(Box::new(Other {
            normalizer: normalizer_of,
            pre_tokenizer: pre_tokenizer_of,
            spelling,
            ignore_merges,
            source: format!("{normalizer} {pre_tokenizer}"),
        })))
    }

    /// A unique name, for the tokenizer's hash.
    pub(super) fn name(&self) -> String {
        match self {
            PreTokenizer::Family(family) => family.name().to_owned(),
            PreTokenizer::Metaspace {
                prefix,
                unless_there,
            } => format!("metaspace {prefix:?} {unless_there}"),
            PreTokenizer::Other(other) => format!("{} {}", other.source, other.ignore_merges),
        }
    }

    pub(super) fn spelling(&self) -> Spelling {
        match self {
            PreTokenizer::Family(_) => Spelling::Bytes,
            PreTokenizer::Metaspace { .. } => Spelling::Pieces,
            PreTokenizer::Other(other) => other.spelling,
        }
    }

    /// Whether a word that is a token becomes that token, regardless of the merges.
    pub(super) fn ignore_merges(&self) -> bool {
        match self {
            PreTokenizer::Family(family) => family.ignore_merges(),
            PreTokenizer::Metaspace { .. } => false,
            PreTokenizer::Other(other) => other.ignore_merges,
        }
    }

    /// Whether prompts begin with the `bos` token by default.
    pub(super) fn adds_bos(&self) -> bool {
        match self {
            PreTokenizer::Family(family) => family.adds_bos(),
            PreTokenizer::Metaspace { .. } => true,
            PreTokenizer::Other(_) => false,
        }
    }

    /// Whether a space is inserted before a text.
    pub(super) fn has_prefix(&self) -> bool {
        matches!(self, PreTokenizer::Metaspace { prefix, .. } if *prefix != Prefix::Never)
    }

    /// The words of a text. `begins`: it is the beginning of what is encoded; `follows`: it follows an added token.
    pub(super) fn words(
        &self,
        text: &str,
        begins: bool,
        follows: bool,
    ) -> Result<Vec<String>, tokenizers::Error> {
        match self {
            PreTokenizer::Family(family) => family.words(text),
            PreTokenizer::Metaspace {
                prefix,
                unless_there,
            } => {
                let mut word = text.replace(' ', SPACE);
                let wanted = match prefix {
                    Prefix::Never => false,
                    Prefix::First => begins,
                    Prefix::Always => begins || follows,
                };
                if wanted && !(*unless_there && word.starts_with(SPACE)) {
                    word.insert_str(0, SPACE);
                }
                Ok(vec![word])
            }
            PreTokenizer::Other(other) => caught(|| other.words(text))?,
        }
    }
}

impl Other {
    fn words(&self, text: &str) -> Result<Vec<String>, tokenizers::Error> {
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut text)?;
        }
        let mut words = PreTokenizedString::from(text);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(splits
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect())
    }
}

/// A part of a `tokenizer.json` as the library reads it.
fn parsed<T: DeserializeOwned>(part: &Value) -> Result<Option<T>, String> {
    caught(|| Option::<T>::deserialize(part).map_err(|error| error.to_string()))?
}

/// Runs the library's code for a part that a stranger wrote. [`steps::check`] refuses what is known to make it panic; a panic
/// that is not known becomes an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let panicked = |_| "the tokenizers library panicked".to_owned();
    catch_unwind(AssertUnwindSafe(work)).map_err(panicked)
}

/// SentencePiece's rule for spaces, as the converters of transformers write it: older ones as a normalizer, newer ones as a
/// pre-tokenizer.
fn metaspace(normalizer: &Value, pre_tokenizer: &Value) -> Option<PreTokenizer> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let is = |value: &Value, kind: &str| text(value, "type").as_deref() == Some(kind);
    let replaces = |value: &Value| {
        is(value, "Replace")
            && value.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
            && text(value, "content").as_deref() == Some(SPACE)
    };
    let prepends =
        |value: &Value| is(value, "Prepend") && text(value, "prepend").as_deref() == Some(SPACE);
    if pre_tokenizer.is_null() {
        let always = match normalizer.get("normalizers").and_then(Value::as_array) {
            Some(steps) => match steps.as_slice() {
                [first, second] => prepends(first) && replaces(second),
                _ => false,
            },
            None => false,
        };
        if always || replaces(normalizer) {
            return Some(PreTokenizer::Metaspace {
                prefix: if always {
                    Prefix::Always
                } else {
                    Prefix::Never
                },
                unless_there: false,
            });
        }
        return None;
    }
    let whole = is(pre_tokenizer, "Metaspace")
        && text(pre_tokenizer, "replacement").as_deref() == Some(SPACE)
        && pre_tokenizer.get("split") == Some(&Value::Bool(false));
    if !whole || !normalizer.is_null() {
        return None;
    }
    let prefix = match text(pre_tokenizer, "prepend_scheme").as_deref() {
        Some("first") => Prefix::First,
        Some("never") => Prefix::Never,
        Some("always") => Prefix::Always,
        _ => return None,
    };
    Some(PreTokenizer::Metaspace {
        prefix,
        unless_there: true,
    })
}

/// Whether a part, or one inside it, is of this type.
fn names(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(kind)
                || map.values().any(|value| names(value, kind))
        }
        Value::Array(values) => values.iter().any(|value| names(value, kind)),
        _ => false,
    }
}

fn name_of(value: &Value) -> String {
    value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("none")
        .to_owned()
}
