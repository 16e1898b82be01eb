//! The byte-level pre-tokenizers that GGUF files name. A wrong one gives plausible text and wrong ids, so each one repeats the
//! `tokenizer.json` of its model, and unknown names are refused.

use std::sync::LazyLock;

use serde_json::Value;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, SplitDelimiterBehavior,
};

use super::error::TokenizerError;
use crate::gguf::Gguf;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";

/// Contractions, words with one leading character, numbers of `{digits}`, punctuation, line ends, spaces.
macro_rules! split_expression {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const LLAMA_EXPRESSION: &str = split_expression!(r"\p{N}{1,3}");
const QWEN_EXPRESSION: &str = split_expression!(r"\p{N}");

static LLAMA_SPLIT: LazyLock<Result<Split, String>> = LazyLock::new(|| split(LLAMA_EXPRESSION));
static QWEN_SPLIT: LazyLock<Result<Split, String>> = LazyLock::new(|| split(QWEN_EXPRESSION));

fn split(expression: &str) -> Result<Split, String> {
    Split::new(
        SplitPattern::Regex(expression.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| error.to_string())
}

fn kind(value: &Value) -> Option<&str> {
    value.get("type").and_then(Value::as_str)
}

/// Control tokens of the vocabularies that each family was made for, by their ids.
const KNOWN_TOKENS: [(Family, &[(usize, &str)]); 5] = [
    (
        Family::Qwen2,
        &[(151_643, "<|endoftext|>"), (151_644, "<|im_start|>")],
    ),
    // DeepSeek's distillations of Qwen.
    (
        Family::Qwen2,
        &[(151_643, "<｜end▁of▁sentence｜>"), (151_644, "<｜User｜>")],
    ),
    (
        Family::Llama3,
        &[(128_000, "<|begin_of_text|>"), (128_001, "<|end_of_text|>")],
    ),
    (
        Family::SmolLm,
        &[
            (0, "<|endoftext|>"),
            (1, "<|im_start|>"),
            (3, "<repo_name>"),
        ],
    ),
    (
        Family::Gpt2,
        &[(50_255, "Ġgazed"), (50_256, "<|endoftext|>")],
    ),
];

/// A family of byte-level tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// GPT-2: words with one leading space, runs of numbers.
    Gpt2,
    /// SmolLM: every digit alone, then as GPT-2.
    SmolLm,
    /// Llama 3: numbers of up to three digits; a word in the vocabulary is not merged again.
    Llama3,
    /// Qwen 2: text is composed (NFC) first, every digit alone.
    Qwen2,
}

impl Family {
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Family, TokenizerError> {
        let required = |key: &'static str| {
            let value = gguf.get_str(key)?;
            value.ok_or(TokenizerError::Missing {
                origin: gguf.origin().to_owned(),
                key,
            })
        };
        let unsupported = |key, found: &str, supported| TokenizerError::Unsupported {
            origin: gguf.origin().to_owned(),
            key,
            found: found.to_owned(),
            supported,
        };
        let model = required(MODEL)?;
        if model != "gpt2" {
            return Err(unsupported(
                MODEL,
                model,
                "byte-level BPE (\"gpt2\") and SentencePiece's BPE (\"llama\")",
            ));
        }
        const SUPPORTED: &str = "gpt2, smollm, llama-bpe and qwen2";
        match gguf.get_str(PRE)?.unwrap_or_default() {
            "gpt2" | "gpt-2" | "phi-2" => Ok(Family::Gpt2),
            "smollm" => Ok(Family::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Family::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Ok(Family::Qwen2),
            // Converters that did not know the tokenizer wrote no name.
            unnamed @ ("" | "default") => match Family::of_unnamed(gguf)? {
                Some(family) => Ok(family),
                None if unnamed.is_empty() => {
                    required(PRE).and(Err(unsupported(PRE, "", SUPPORTED)))
                }
                None => Err(unsupported(PRE, unnamed, SUPPORTED)),
            },
            other => Err(unsupported(PRE, other, SUPPORTED)),
        }
    }

    /// The family of a file that names none: by the parts of the `tokenizer.json` in it, or else by where the family's own vocabulary has
    /// its control tokens.
    fn of_unnamed(gguf: &Gguf) -> Result<Option<Family>, TokenizerError> {
        let json = gguf.get_str("tokenizer.huggingface.json")?;
        if let Some(json) = json.and_then(|json| serde_json::from_str::<Value>(json).ok()) {
            let part = |key: &str| json.get(key).unwrap_or(&Value::Null);
            let ignores = part("model").get("ignore_merges") == Some(&Value::Bool(true));
            return Ok(Family::from_json(
                part("normalizer"),
                part("pre_tokenizer"),
                ignores,
            ));
        }
        let Some(tokens) = gguf.get_str_array("tokenizer.ggml.tokens")? else {
            return Ok(None);
        };
        let known = KNOWN_TOKENS.iter().find(|(_, places)| {
            places
                .iter()
                .all(|(id, text)| tokens.get(*id).is_some_and(|token| token == text))
        });
        Ok(known.map(|(family, _)| *family))
    }

    /// The family whose `tokenizer.json` has these parts, so that a tokenizer has the same hash for both file formats.
    pub(super) fn from_json(
        normalizer: &Value,
        pre_tokenizer: &Value,
        ignore_merges: bool,
    ) -> Option<Family> {
        let bytes = |value: &Value, use_regex: bool| {
            // The default is true, as in the library.
            let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(true);
            kind(value) == Some("ByteLevel")
                && !flag("add_prefix_space")
                && flag("use_regex") == use_regex
        };
        let steps = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
        if normalizer.is_null() && !ignore_merges && bytes(pre_tokenizer, true) {
            return Some(Family::Gpt2);
        }
        let [first, second] = steps?.as_slice() else {
            return None;
        };
        let splits = |expression: &str| {
            kind(first) == Some("Split")
                && first.pointer("/pattern/Regex").and_then(Value::as_str) == Some(expression)
                && first.get("behavior").and_then(Value::as_str) == Some("Isolated")
                && first.get("invert") == Some(&Value::Bool(false))
                && bytes(second, false)
        };
        let digits = kind(first) == Some("Digits")
            && first.get("individual_digits") == Some(&Value::Bool(true))
            && bytes(second, true);
        match kind(normalizer) {
            None if normalizer.is_null() && digits && !ignore_merges => Some(Family::SmolLm),
            None if normalizer.is_null() && splits(LLAMA_EXPRESSION) && ignore_merges => {
                Some(Family::Llama3)
            }
            Some("NFC") if splits(QWEN_EXPRESSION) && !ignore_merges => Some(Family::Qwen2),
            _ => None,
        }
    }

    /// The canonical name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Family::Gpt2 => "gpt2",
            Family::SmolLm => "smollm",
            Family::Llama3 => "llama-bpe",
            Family::Qwen2 => "qwen2",
        }
    }

    /// Whether a word that is a token becomes that token, regardless of the merges.
    pub(super) fn ignore_merges(self) -> bool {
        self == Family::Llama3
    }

    /// Whether prompts begin with the `bos` token by default.
    pub(super) fn adds_bos(self) -> bool {
        self == Family::Llama3
    }

    /// The words of a text, each in the byte alphabet.
    pub(super) fn words(self, text: &str) -> Result<Vec<String>, tokenizers::Error> {
        let mut text = NormalizedString::from(text);
        if self == Family::Qwen2 {
            NFC.normalize(&mut text)?;
        }
        let mut words = PreTokenizedString::from(text);
        let bytes = |use_regex| ByteLevel::new(false, true, use_regex);
        match self {
            Family::Gpt2 => bytes(true).pre_tokenize(&mut words)?,
            Family::SmolLm => {
                Digits::new(true).pre_tokenize(&mut words)?;
                bytes(true).pre_tokenize(&mut words)?;
            }
            Family::Llama3 => {
                LLAMA_SPLIT
                    .as_ref()
                    .map_err(String::as_str)?
                    .pre_tokenize(&mut words)?;
                bytes(false).pre_tokenize(&mut words)?;
            }
            Family::Qwen2 => {
                QWEN_SPLIT
                    .as_ref()
                    .map_err(String::as_str)?
                    .pre_tokenize(&mut words)?;
                bytes(false).pre_tokenize(&mut words)?;
            }
        }
        let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(splits
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect())
    }
}
