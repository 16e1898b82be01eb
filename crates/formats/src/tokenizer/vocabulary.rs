//! The checked vocabulary of a GGUF's metadata or a `tokenizer.json`: tokens, their kinds, merges, and special tokens.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::bpe::BPE;

use super::control_tokens::{Kind, is_spelled_like_control, mark_control, named_ends};
use super::error::TokenizerError;
use super::pre_tokenizer::{PreTokenizer, Spelling};
use crate::gguf::Gguf;
use crate::sha256::FieldHasher;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// The most tokens, and the longest token in bytes; the longest in use have some 500.
const MAX_TOKENS: usize = 1 << 22;
const MAX_TOKEN_BYTES: usize = 1 << 10;
/// The most bytes of all tokens together; the largest vocabularies in use have some 3 MB.
const MAX_VOCABULARY_BYTES: usize = 32 << 20;
/// The most control and user-defined tokens, and their bytes; models in use have up to some 6,000.
const MAX_ADDED: usize = 1 << 15;
const MAX_ADDED_BYTES: usize = 1 << 20;

/// The special tokens that the other files of a folder name, next to `tokenizer.json`.
#[derive(Debug, Clone, Default)]
pub struct Roles {
    /// The text of the token that begins a text.
    pub bos: Option<String>,
    /// The text of the token that ends a text.
    pub eos: Option<String>,
    /// Whether prompts begin with `bos`; if it is not set, the post-processor decides.
    pub add_bos: Option<bool>,
    /// Ids that end an answer, in addition to `eos` and to those known by their names.
    pub ends: Vec<u64>,
}

pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<Kind>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) end_ids: Vec<u32>,
    merges: Vec<(String, String)>,
    unknown: Option<String>,
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

impl Vocabulary {
    pub(super) fn from_gguf(
        gguf: &Gguf,
        pre_tokenizer: &PreTokenizer,
    ) -> Result<Vocabulary, TokenizerError> {
        let missing = |key| TokenizerError::Missing {
            origin: gguf.origin().to_owned(),
            key,
        };
        let tokens = gguf
            .get_str_array(TOKENS)?
            .ok_or_else(|| missing(TOKENS))?
            .to_vec();
        let invalid = |key, problem| invalid(gguf.origin(), key, problem);
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(invalid(
                TOKENS,
                format!("{} tokens; 1 to {MAX_TOKENS} are read", tokens.len()),
            ));
        }
        let mut kinds = gguf_kinds(gguf, tokens.len(), pre_tokenizer)?;
        let check = |kinds: &[Kind]| check_sizes(&tokens, kinds);
        check(&kinds).map_err(|problem| invalid(TOKENS, problem))?;
        let merges = gguf_merges(gguf, &tokens, &kinds, pre_tokenizer)?;
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
        let eot = role("tokenizer.ggml.eot_token_id")?;
        let eom = role("tokenizer.ggml.eom_token_id")?;
        let named: Vec<u32> = [bos, eos, eot, eom].into_iter().flatten().collect();
        mark_control(&tokens, &mut kinds, &named, &merges);
        check(&kinds).map_err(|problem| invalid(TOKENS, problem))?;
        let add_bos = gguf
            .get_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(pre_tokenizer.adds_bos());
        let mut end_ids = named_ends(&tokens, &kinds, eos);
        end_ids.extend(eot);
        end_ids.extend(eom);
        end_ids.sort_unstable();
        end_ids.dedup();
        let unknown = role("tokenizer.ggml.unknown_token_id")?;
        let unknown = unknown.map(|id| tokens[id as usize].clone());
        Ok(Vocabulary {
            tokens,
            kinds,
            bos,
            eos,
            add_bos,
            end_ids,
            merges,
            unknown,
        })
    }

    /// The token of this text, if it is spelled like a control token and the file does not mark it.
    pub(super) fn unmarked(&self, text: &str) -> Option<u32> {
        let place = self.tokens.iter().position(|token| token == text)?;
        let is_unmarked = self.kinds[place] == Kind::Normal && is_spelled_like_control(text);
        is_unmarked.then_some(place as u32)
    }

    /// Makes a normal token a control token: no merge makes it of a text any more.
    pub(super) fn mark(&mut self, id: u32) {
        let token = &self.tokens[id as usize];
        self.merges.retain(|(left, right)| {
            left != token && right != token && format!("{left}{right}") != *token
        });
        self.kinds[id as usize] = Kind::Control;
    }

    /// The vocabulary of a `tokenizer.json`.
    pub(super) fn from_json(
        json: &Value,
        roles: &Roles,
        origin: &str,
        pre_tokenizer: &PreTokenizer,
    ) -> Result<Vocabulary, TokenizerError> {
        let model = bpe_model(json, origin)?;
        let (tokens, mut kinds) = json_token_table(json, origin)?;
        let role = |text: &Option<String>| {
            let text = text.as_deref()?;
            let place = tokens.iter().position(|token| token == text)?;
            u32::try_from(place).ok()
        };
        let (bos, eos) = (role(&roles.bos), role(&roles.eos));
        let add_bos = match roles.add_bos {
            Some(add_bos) => add_bos,
            None => first_special(json.get("post_processor"))
                .is_some_and(|first| Some(first) == roles.bos.as_deref()),
        };
        let configured = configured_ends(roles, tokens.len(), origin)?;
        let named: Vec<u32> = configured.iter().copied().chain(bos).chain(eos).collect();
        mark_control(&tokens, &mut kinds, &named, &[]);
        let mut end_ids = named_ends(&tokens, &kinds, eos);
        end_ids.extend(configured);
        end_ids.sort_unstable();
        end_ids.dedup();
        let merges = json_merges(model, origin)?;
        let unknown = model.get("unk_token").and_then(Value::as_str);
        let unknown = unknown.filter(|_| pre_tokenizer.spelling() == Spelling::Pieces);
        Ok(Vocabulary {
            tokens,
            kinds,
            bos,
            eos,
            add_bos,
            end_ids,
            merges,
            unknown: unknown.map(str::to_owned),
        })
    }

    /// The merge rules. All assumptions are checked here, where the error can name the merge.
    pub(super) fn bpe(
        &self,
        origin: &str,
        pre_tokenizer: &PreTokenizer,
    ) -> Result<BPE, TokenizerError> {
        let mut vocab: HashMap<&str, u32> = HashMap::with_capacity(self.tokens.len());
        for ((id, token), kind) in (0u32..).zip(&self.tokens).zip(&self.kinds) {
            // A whole word may become its token here, but text must never become a control token.
            if *kind == Kind::Control && pre_tokenizer.ignore_merges() {
                continue;
            }
            vocab.entry(token).or_insert(id);
        }
        let mut joined = String::new();
        for (index, (left, right)) in self.merges.iter().enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            if let Some(unknown) = [left, right, &joined]
                .into_iter()
                .find(|token| !vocab.contains_key(token.as_str()))
            {
                let merge = format!("{left} {right}");
                let problem =
                    format!("merge {index} ({merge:?}): {unknown:?} is not among the tokens");
                return Err(invalid(origin, MERGES, problem));
            }
        }
        let pieces = pre_tokenizer.spelling() == Spelling::Pieces;
        // All byte tokens are needed, or bytes without a piece would be lost.
        if pieces
            && let Some(byte) = (0..=255u8).find(|byte| {
                let token = format!("<0x{byte:02X}>");
                !vocab.contains_key(token.as_str())
            })
        {
            let problem = format!("there is no token <0x{byte:02X}> for the byte");
            return Err(invalid(origin, TOKENS, problem));
        }
        let vocab: Vec<(String, u32)> = vocab
            .into_iter()
            .map(|(token, id)| (token.to_owned(), id))
            .collect();
        let mut builder = BPE::builder()
            .vocab_and_merges(
                vocab.into_iter().collect::<HashMap<_, _, _>>(),
                self.merges.clone(),
            )
            .ignore_merges(pre_tokenizer.ignore_merges());
        if pieces {
            builder = builder.byte_fallback(true).fuse_unk(true);
            if let Some(unknown) = &self.unknown {
                builder = builder.unk_token(unknown.clone());
            }
        }
        builder
            .build()
            .map_err(|error| invalid(origin, MERGES, error.to_string()))
    }

    /// The sha256, in hex, of everything that determines ids.
    pub(super) fn hash(&self, pre_tokenizer: &PreTokenizer) -> String {
        let mut hasher = FieldHasher::new();
        hasher
            .field(b"byte-level bpe")
            .field(pre_tokenizer.name().as_bytes());
        for (token, kind) in self.tokens.iter().zip(&self.kinds) {
            hasher.field(token.as_bytes()).field(&[*kind as u8]);
        }
        hasher.field(b"merges");
        for merge in &self.merges {
            let (left, right) = merge;
            hasher.field(format!("{left} {right}").as_bytes());
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

/// Refuses a vocabulary that is too large, with what is wrong.
fn check_sizes(tokens: &[String], kinds: &[Kind]) -> Result<(), String> {
    if let Some(id) = tokens
        .iter()
        .position(|token| token.len() > MAX_TOKEN_BYTES)
    {
        let length = tokens[id].len();
        return Err(format!(
            "token {id} has {length} bytes; at most {MAX_TOKEN_BYTES} are read"
        ));
    }
    let bytes: usize = tokens.iter().map(String::len).sum();
    if bytes > MAX_VOCABULARY_BYTES {
        return Err(format!(
            "the tokens have {bytes} bytes together; at most {MAX_VOCABULARY_BYTES} are read"
        ));
    }
    let added = tokens.iter().zip(kinds);
    let added = added.filter(|(_, kind)| **kind != Kind::Normal);
    let (count, bytes) = added.fold((0, 0), |(count, bytes), (token, _)| {
        (count + 1, bytes + token.len())
    });
    if count > MAX_ADDED || bytes > MAX_ADDED_BYTES {
        return Err(format!(
            "{count} control and user-defined tokens of {bytes} bytes together; at most {MAX_ADDED} of {MAX_ADDED_BYTES} \
             bytes are read"
        ));
    }
    Ok(())
}

/// The kinds of the tokens of a GGUF. All are normal if it has no token types.
fn gguf_kinds(
    gguf: &Gguf,
    tokens: usize,
    pre_tokenizer: &PreTokenizer,
) -> Result<Vec<Kind>, TokenizerError> {
    match gguf.get_i32_array(TYPES)? {
        None => Ok(vec![Kind::Normal; tokens]),
        Some(types) if types.len() == tokens => Ok(types
            .iter()
            .map(|kind| match kind {
                3 => Kind::Control,
                // SentencePiece's unknown token has no text.
                2 if pre_tokenizer.spelling() == Spelling::Pieces => Kind::Control,
                4 => Kind::UserDefined,
                _ => Kind::Normal,
            })
            .collect()),
        Some(types) => {
            let problem = format!("{} types for {tokens} tokens", types.len());
            Err(invalid(gguf.origin(), TYPES, problem))
        }
    }
}

/// The merges of a GGUF, by rank. SentencePiece's may be stored as scores.
fn gguf_merges(
    gguf: &Gguf,
    tokens: &[String],
    kinds: &[Kind],
    pre_tokenizer: &PreTokenizer,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let missing = |key| TokenizerError::Missing {
        origin: gguf.origin().to_owned(),
        key,
    };
    let invalid = |key, problem| invalid(gguf.origin(), key, problem);
    match (pre_tokenizer.spelling(), gguf.get_str_array(MERGES)?) {
        (_, Some(merges)) => merges
            .iter()
            .enumerate()
            .map(|(index, merge)| {
                let pair = merge.split_once(' ');
                let pair = pair.map(|(left, right)| (left.to_owned(), right.to_owned()));
                pair.ok_or_else(|| invalid(MERGES, unspaced(index, merge)))
            })
            .collect(),
        (Spelling::Bytes, None) => Err(missing(MERGES)),
        (Spelling::Pieces, None) => {
            let scores = gguf.get_f32_array(SCORES)?.ok_or_else(|| missing(SCORES))?;
            if scores.len() != tokens.len() {
                let problem = format!("{} scores for {} tokens", scores.len(), tokens.len());
                return Err(invalid(SCORES, problem));
            }
            Ok(merges_by_score(tokens, kinds, scores))
        }
    }
}

/// The model of a `tokenizer.json`, which must be BPE.
fn bpe_model<'a>(json: &'a Value, origin: &str) -> Result<&'a Value, TokenizerError> {
    let model = json.get("model").unwrap_or(&Value::Null);
    match model.get("type").and_then(Value::as_str).unwrap_or("none") {
        "BPE" => Ok(model),
        kind => Err(TokenizerError::Unsupported {
            origin: origin.to_owned(),
            key: "model.type",
            found: kind.to_owned(),
            supported: "models of type \"BPE\"",
        }),
    }
}

/// The text and the kind of each token of a `tokenizer.json`, by id.
fn json_token_table(
    json: &Value,
    origin: &str,
) -> Result<(Vec<String>, Vec<Kind>), TokenizerError> {
    let refuse = |problem| invalid(origin, "model.vocab", problem);
    let listed = json_tokens(json, origin)?;
    let count = listed.iter().map(|token| token.0 + 1).max().unwrap_or(0);
    // Ids may have gaps, but not more than there are tokens.
    if count == 0 || count > MAX_TOKENS as u64 || count > 2 * listed.len() as u64 {
        return Err(refuse(format!(
            "ids up to {count} for {} tokens; 1 to {MAX_TOKENS} are read, without large gaps",
            listed.len()
        )));
    }
    let mut tokens = vec![String::new(); count as usize];
    let mut kinds = vec![Kind::Normal; count as usize];
    for (id, text, kind) in listed {
        tokens[id as usize] = text.to_owned();
        kinds[id as usize] = kind;
    }
    check_sizes(&tokens, &kinds).map_err(refuse)?;
    Ok((tokens, kinds))
}

/// The end ids of `generation_config.json`, or else of `config.json`, of a vocabulary of `count` tokens.
fn configured_ends(roles: &Roles, count: usize, origin: &str) -> Result<Vec<u32>, TokenizerError> {
    let id = |&id: &u64| {
        if id >= count as u64 {
            let problem = format!("eos_token_id {id}, but there are only {count} tokens");
            return Err(invalid(
                origin,
                "generation_config.json or config.json",
                problem,
            ));
        }
        Ok(id as u32)
    };
    roles.ends.iter().map(id).collect()
}

/// Id, text and kind of every token of a `tokenizer.json`, added tokens last.
fn json_tokens<'a>(
    json: &'a Value,
    origin: &str,
) -> Result<Vec<(u64, &'a str, Kind)>, TokenizerError> {
    let invalid = |key, problem| invalid(origin, key, problem);
    // A count of ids is one more than the largest, so no id may be the largest number.
    let checked = |key, id: u64| match id < MAX_TOKENS as u64 {
        true => Ok(id),
        false => Err(invalid(
            key,
            format!("id {id}; ids below {MAX_TOKENS} are read"),
        )),
    };
    let vocab = json.pointer("/model/vocab").and_then(Value::as_object);
    let vocab = vocab.ok_or_else(|| invalid("model.vocab", "missing".to_owned()))?;
    let added = json.get("added_tokens").and_then(Value::as_array);
    let mut listed = Vec::new();
    for (token, id) in vocab {
        let id = id
            .as_u64()
            .ok_or_else(|| invalid("model.vocab", format!("{token:?} has no id")))?;
        listed.push((checked("model.vocab", id)?, token.as_str(), Kind::Normal));
    }
    for token in added.into_iter().flatten() {
        let id = token.get("id").and_then(Value::as_u64);
        let text = token.get("content").and_then(Value::as_str);
        let (Some(id), Some(text)) = (id, text) else {
            return Err(invalid(
                "added_tokens",
                "a token without id or content".to_owned(),
            ));
        };
        let flag = |key: &str| token.get(key).and_then(Value::as_bool) == Some(true);
        // They would consume spaces next to them, or not match inside words.
        for key in ["lstrip", "rstrip", "single_word"] {
            if flag(key) {
                let problem = format!("{text:?} has {key}, which is not supported");
                return Err(invalid("added_tokens", problem));
            }
        }
        let kind = if flag("special") {
            Kind::Control
        } else {
            Kind::UserDefined
        };
        listed.push((checked("added_tokens", id)?, text, kind));
    }
    Ok(listed)
}

/// The merges of a `tokenizer.json`, by rank; each is a text with a space or a list of two.
fn json_merges(model: &Value, origin: &str) -> Result<Vec<(String, String)>, TokenizerError> {
    let invalid = |key, problem| invalid(origin, key, problem);
    let merges = model.get("merges").and_then(Value::as_array);
    let merges = merges.ok_or_else(|| invalid("model.merges", "missing".to_owned()))?;
    merges
        .iter()
        .enumerate()
        .map(|(index, merge)| {
            let pair = match merge {
                Value::String(merge) => merge.split_once(' '),
                Value::Array(pair) => match pair.as_slice() {
                    [left, right] => left.as_str().zip(right.as_str()),
                    _ => None,
                },
                _ => None,
            };
            let pair = pair.map(|(left, right)| (left.to_owned(), right.to_owned()));
            pair.ok_or_else(|| invalid("model.merges", unspaced(index, &merge.to_string())))
        })
        .collect()
}

/// The merges of a SentencePiece vocabulary: every way to make a token of two, the highest score first. Source:
/// `generate_merges` of transformers (`convert_slow_tokenizer.py`).
fn merges_by_score(tokens: &[String], kinds: &[Kind], scores: &[f32]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for ((token, kind), score) in tokens.iter().zip(kinds).zip(scores) {
        if *kind != Kind::Normal || byte_token(token).is_some() {
            continue;
        }
        let mut ways: Vec<(usize, usize, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        ways.sort_by_key(|way| (way.0, way.1));
        merges.extend(ways.into_iter().map(|(_, _, left, right)| {
            (
                *score,
                left.chars().count(),
                right.chars().count(),
                left,
                right,
            )
        }));
    }
    // Stable, so that equal ones stay in the order of the vocabulary.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let pairs = merges.into_iter();
    pairs
        .map(|(.., left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}

/// The special token that a post-processor puts before a text.
fn first_special(processor: Option<&Value>) -> Option<&str> {
    let processor = processor?;
    if let Some(all) = processor.get("processors").and_then(Value::as_array) {
        return all.iter().find_map(|one| first_special(Some(one)));
    }
    let first = processor.get("single")?.as_array()?.first()?;
    first.pointer("/SpecialToken/id")?.as_str()
}

fn unspaced(index: usize, merge: &str) -> String {
    format!("merge {index} ({merge:?}): two tokens with a space between are needed")
}

fn invalid(origin: &str, key: &'static str, problem: String) -> TokenizerError {
    TokenizerError::Invalid {
        origin: origin.to_owned(),
        key,
        problem,
    }
}
