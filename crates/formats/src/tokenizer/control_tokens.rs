//! What the tokens of a vocabulary are, and which of them are control tokens although a file does not say so.

use std::collections::HashSet;

/// Control tokens that end an answer in the supported families, whether or not a file names them.
const END_TOKENS: [&str; 11] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|endofturn|>",
    STRUCK_OUT,
];
/// Ends an answer in some families; in others it is a piece of HTML.
const STRUCK_OUT: &str = "</s>";

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text in the byte alphabet.
    Normal,
    /// A control token, which has no text (type 3).
    Control,
    /// Its own text, which always becomes this token (type 4).
    UserDefined,
}

/// Marks control tokens that a file does not mark: those that end an answer by their name, those that have a role (`named`) and are
/// spelled like a control token, and those spelled `<|...|>` that no merge makes, so that no text has them.
pub(super) fn mark_control(
    tokens: &[String],
    kinds: &mut [Kind],
    named: &[u32],
    merges: &[(String, String)],
) {
    let mut unmerged = HashSet::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds.iter_mut()).enumerate() {
        let is_named = named.contains(&(id as u32));
        let is_end = END_TOKENS.contains(&token.as_str()) && token != STRUCK_OUT;
        if is_end || (is_named && is_spelled_like_control(token)) {
            *kind = Kind::Control;
        } else if *kind == Kind::Normal && token.starts_with("<|") && token.ends_with("|>") {
            unmerged.insert(token.as_str());
        }
    }
    if unmerged.is_empty() || merges.is_empty() {
        return;
    }
    for (left, right) in merges {
        if left.starts_with('<') && right.ends_with('>') {
            unmerged.remove(format!("{left}{right}").as_str());
        }
    }
    for (token, kind) in tokens.iter().zip(kinds) {
        if unmerged.contains(token.as_str()) {
            *kind = Kind::Control;
        }
    }
}

/// Whether a token is written in signs, as control tokens are: `<...>`, `[...]` or `|...|`.
pub(super) fn is_spelled_like_control(token: &str) -> bool {
    let signs = [('<', '>'), ('[', ']'), ('|', '|')];
    let in_signs = |(open, close)| token.starts_with(open) && token.ends_with(close);
    token.len() > 2 && signs.into_iter().any(in_signs)
}

/// The control tokens that end an answer: those known by name, and `eos`.
pub(super) fn named_ends(tokens: &[String], kinds: &[Kind], eos: Option<u32>) -> Vec<u32> {
    let named = (0u32..).zip(tokens.iter().zip(kinds));
    let named = named.filter(|(_, (token, kind))| {
        **kind == Kind::Control && END_TOKENS.contains(&token.as_str())
    });
    named.map(|(id, _)| id).chain(eos).collect()
}
