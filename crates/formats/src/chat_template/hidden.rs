//! What people wrote cannot become a control token: its text is hidden while the template runs, and encoded as text.

use super::Message;
use crate::tokenizer::{Special, Tokenizer, TokenizerError};

/// Private characters that may stand for control tokens' texts while the template runs.
const MARKS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{ffffd}';

/// The control tokens whose texts stand in a conversation, each with the character that stands for it in the rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden<'a>(Vec<(char, &'a str)>);

impl<'a> Hidden<'a> {
    /// Puts a private character in place of the text of every control token of `tokenizer` in `messages`.
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
            let taken = |mark: char| {
                let written = |message: &Message| message.content.contains(mark);
                hidden.iter().any(|(other, _)| *other == mark) || messages.iter().any(written)
            };
            let Some(mark) = MARKS.into_iter().find(|mark| !taken(*mark)) else {
                continue;
            };
            for message in messages.iter_mut() {
                message.content = message.content.replace(text, &mark.to_string());
            }
            hidden.push((mark, text.as_str()));
        }
        Hidden(hidden)
    }

    /// Encodes what a template rendered, or a part of it; what was hidden is encoded as the plain text that it was.
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
        let stands_for = |c: char| self.0.iter().find(|(mark, _)| *mark == c);
        while let Some((at, mark)) = rest.char_indices().find(|(_, c)| stands_for(*c).is_some()) {
            let begins = ids.is_empty();
            ids.extend(tokenizer.encode_part(&rest[..at], Special::Parse, begins)?);
            if let Some((_, text)) = stands_for(mark) {
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
    fn control_tokens_in_a_text_are_hidden_and_nothing_else() {
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
