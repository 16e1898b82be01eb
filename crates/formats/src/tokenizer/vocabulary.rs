//! The vocabulary in a GGUF's metadata, checked: tokens, their kinds, merges, and the tokens with a role.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;

use super::TokenizerError;
use super::family::Family;
use crate::gguf::Gguf;
use crate::sha256::FieldHasher;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Most tokens, and longest token in bytes.
const MAX_TOKENS: usize = 1 << 22;
const MAX_TOKEN_BYTES: usize = 1 << 14;

/// Control tokens that end an answer in the families that are run, whatever roles a file gives.
const END_TOKENS: [&str; 8] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_turn|>",
    "</s>",
];

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text in the byte alphabet.
    Normal,
    /// Stands for no text (type 3).
    Control,
    /// Stands for its own text, which is always this token (type 4).
    UserDefined,
}

pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<Kind>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) end_ids: Vec<u32>,
    merges: Vec<String>,
}

impl Vocabulary {
    pub(super) fn from_gguf(gguf: &Gguf, family: Family) -> Result<Vocabulary, TokenizerError> {
        let missing = |key| TokenizerError::Missing {
            origin: gguf.origin().to_owned(),
            key,
        };
        let tokens = gguf
            .get_str_array(TOKENS)?
            .ok_or_else(|| missing(TOKENS))?
            .to_vec();
        let merges = gguf
            .get_str_array(MERGES)?
            .ok_or_else(|| missing(MERGES))?
            .to_vec();
        let invalid = |key, problem| invalid(gguf, key, problem);
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(invalid(
                TOKENS,
                format!("{} tokens; 1 to {MAX_TOKENS} are read", tokens.len()),
            ));
        }
        if let Some(long) = tokens
            .iter()
            .position(|token| token.len() > MAX_TOKEN_BYTES)
        {
            let length = tokens[long].len();
            return Err(invalid(
                TOKENS,
                format!("token {long} has {length} bytes; at most {MAX_TOKEN_BYTES} are read"),
            ));
        }
        let kinds = match gguf.get_i32_array(TYPES)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(types) if types.len() == tokens.len() => types
                .iter()
                .map(|kind| match kind {
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    _ => Kind::Normal,
                })
                .collect(),
            Some(types) => {
                let problem = format!("{} types for {} tokens", types.len(), tokens.len());
                return Err(invalid(TYPES, problem));
            }
        };
        let role = |key: &'static str| -> Result<Option<u32>, TokenizerError> {
            match gguf.get_u32(key)? {
                Some(id) if id as usize >= tokens.len() => Err(invalid(
                    key,
                    format!("{id}, but there are only {} tokens", tokens.len()),
                )),
                id => Ok(id),
            }
        };
        let bos = role("tokenizer.ggml.bos_token_id")?;
        let eos = role("tokenizer.ggml.eos_token_id")?;
        let add_bos = gguf
            .get_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(family.adds_bos());
        let named = (0u32..)
            .zip(tokens.iter().zip(&kinds))
            .filter(|(_, (token, kind))| {
                **kind == Kind::Control && END_TOKENS.contains(&token.as_str())
            });
        let mut end_ids: Vec<u32> = named.map(|(id, _)| id).chain(eos).collect();
        end_ids.extend(role("tokenizer.ggml.eot_token_id")?);
        end_ids.extend(role("tokenizer.ggml.eom_token_id")?);
        end_ids.sort_unstable();
        end_ids.dedup();
        Ok(Vocabulary {
            tokens,
            kinds,
            bos,
            eos,
            add_bos,
            end_ids,
            merges,
        })
    }

    /// The merger. Everything that it relies on is checked here, where the message can name the merge.
    pub(super) fn bpe(&self, gguf: &Gguf, family: Family) -> Result<BPE, TokenizerError> {
        let mut vocab: HashMap<&str, u32> = HashMap::with_capacity(self.tokens.len());
        for ((id, token), kind) in (0u32..).zip(&self.tokens).zip(&self.kinds) {
            // Where a whole word may become its token, text must never become a control token.
            if *kind == Kind::Control && family.ignore_merges() {
                continue;
            }
            vocab.entry(token).or_insert(id);
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut joined = String::new();
        for (index, merge) in self.merges.iter().enumerate() {
            let error = |problem: String| {
                invalid(
                    gguf,
                    MERGES,
                    format!("merge {index} ({merge:?}): {problem}"),
                )
            };
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| error("two tokens with a space between are needed".to_owned()))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            if let Some(unknown) = [left, right, &joined]
                .into_iter()
                .find(|token| !vocab.contains_key(token))
            {
                return Err(error(format!("{unknown:?} is not among the tokens")));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        let vocab: Vec<(String, u32)> = vocab
            .into_iter()
            .map(|(token, id)| (token.to_owned(), id))
            .collect();
        BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<HashMap<_, _, _>>(), merges)
            .ignore_merges(family.ignore_merges())
            .build()
            .map_err(|error| invalid(gguf, MERGES, error.to_string()))
    }

    /// Everything that decides about ids.
    pub(super) fn hash(&self, family: Family) -> String {
        let mut hasher = FieldHasher::new();
        hasher
            .field(b"byte-level bpe")
            .field(family.name().as_bytes());
        for (token, kind) in self.tokens.iter().zip(&self.kinds) {
            hasher.field(token.as_bytes()).field(&[*kind as u8]);
        }
        hasher.field(b"merges");
        for merge in &self.merges {
            hasher.field(merge.as_bytes());
        }
        let role = |id: Option<u32>| id.map_or([0xff; 8], |id| u64::from(id).to_le_bytes());
        hasher
            .field(&role(self.bos))
            .field(&role(self.eos))
            .field(&[self.add_bos.into()]);
        for id in &self.end_ids {
            hasher.field(&id.to_le_bytes());
        }
        hasher.finish()
    }
}

fn invalid(gguf: &Gguf, key: &'static str, problem: String) -> TokenizerError {
    TokenizerError::Invalid {
        origin: gguf.origin().to_owned(),
        key,
        problem,
    }
}
