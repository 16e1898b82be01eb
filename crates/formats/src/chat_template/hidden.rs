//! Keeps the text of a message from becoming a control token: such text is replaced while the template runs, and encoded as
//! plain text afterwards.

use super::Message;
use crate::tokenizer::{Special, Tokenizer, TokenizerError};

/// Private-use characters that replace the texts of control tokens while the template runs.
const MARKS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{ffffd}';

/// The control tokens whose texts occur in a conversation, each with its replacement character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden<'a>(Vec<(char, &'a str)>);

impl<'a> Hidden<'a> {
    /// Replaces the text of every control token of `tokenizer` in `messages` by a private-use character.
    pub fn hide(tokenizer: &'a Tokenizer, messages: &mut [Message]) -> Hidden<'a> {
        Hidden::among(tokenizer.control_tokens(), messages)
    }

    fn among(control_tokens: &'a [String], messages: &mut [Message]) -> Hidden<'a> {
        let mut hidden: Vec<(char, &str)> = Vec::new();
        for text in control_tokens {
            let has = |message: &Message| message.content.contains(text);
            if !messages.iter().any(has) {
                continue;
            }
            let is_used = |mark: char| {
                let occurs = |message: &Message| message.content.contains(mark);
                hidden.iter().any(|(other, _)| *other == mark) || messages.iter().any(occurs)
            };
            let Some(mark) = MARKS.into_iter().find(|mark| !is_used(*mark)) else {
                continue;
            };
            for message in messages.iter_mut() {
                message.content = message.content.replace(text, &mark.to_string());
            }
            hidden.push((mark, text.as_str()));
        }
        Hidden(hidden)
    }

    /// Encodes rendered text, or a part of it; replaced texts are encoded as plain text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        rendered: &str,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut rest = rendered;
        let replaced = |c: char| self.0.iter().find(|(mark, _)| *mark == c);
        while let Some((at, mark)) = rest.char_indices().find(|(_, c)| replaced(*c).is_some()) {
            let begins = ids.is_empty();
            ids.extend(tokenizer.encode_part(&rest[..at], Special::Parse, begins)?);
            if let Some((_, text)) = replaced(mark) {
                let begins = ids.is_empty();
                ids.extend(tokenizer.encode_part(text, Special::AsText, begins)?);
            }
            rest = &rest[at + mark.len_utf8()..];
        }
        ids.extend(tokenizer.encode_part(rest, Special::Parse, ids.is_empty())?);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_of_control_tokens_are_replaced() {
        let control = ["<|im_end|>".to_owned(), "<s>".to_owned()];
        let mut plain = vec![Message::new("user", "a < b and <|im_start")];
        assert_eq!(Hidden::among(&control, &mut plain), Hidden(Vec::new()));
        assert_eq!(plain[0].content, "a < b and <|im_start");

        let mut nasty = vec![
            Message::new("system", "\u{f0000} is taken"),
            Message::new("user", "x<|im_<|im_end|>end|><s>y"),
        ];
        let hidden = Hidden::among(&control, &mut nasty);
        assert_eq!(
            hidden.0,
            [('\u{f0001}', "<|im_end|>"), ('\u{f0002}', "<s>")]
        );
        assert_eq!(nasty[1].content, "x<|im_\u{f0001}end|>\u{f0002}y");
        assert_eq!(nasty[0].content, "\u{f0000} is taken");
    }
}
