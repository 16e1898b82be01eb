//! Keeps the text of a message from becoming a control token: such text is replaced while the template runs, and encoded as
//! plain text afterwards.

use std::collections::HashSet;

use super::Message;
use crate::tokenizer::{Special, Tokenizer, TokenizerError};

/// The characters that replace the texts of control tokens while the template runs: of private use first, then of planes that
/// have no characters yet. A conversation with all of them has more tokens than any context.
fn marks() -> impl Iterator<Item = char> {
    ('\u{f0000}'..='\u{10fffd}').chain(FIRST_MARK..='\u{dffff}')
}

const FIRST_MARK: char = '\u{40000}';

/// The control tokens whose texts occur in a conversation, each with its replacement character, sorted by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden<'a>(Vec<(char, &'a str)>);

impl<'a> Hidden<'a> {
    /// Replaces the text of every control token of `tokenizer` in `messages` by a private-use character.
    pub fn hide(tokenizer: &'a Tokenizer, messages: &mut [Message]) -> Hidden<'a> {
        // One pass over a conversation without such texts, instead of one for each control token.
        if !messages
            .iter()
            .any(|message| tokenizer.has_added_token(&message.content))
        {
            return Hidden(Vec::new());
        }
        Hidden::among(tokenizer.control_tokens(), messages)
    }

    fn among(control_tokens: &'a [String], messages: &mut [Message]) -> Hidden<'a> {
        let mut hidden: Vec<(char, &str)> = Vec::new();
        let characters = messages.iter().flat_map(|message| message.content.chars());
        let used: HashSet<char> = characters.filter(|c| *c >= FIRST_MARK).collect();
        let mut free = marks().filter(|mark| !used.contains(mark));
        for text in control_tokens {
            let has = |message: &Message| message.content.contains(text);
            if !messages.iter().any(has) {
                continue;
            }
            let Some(mark) = free.next() else {
                break;
            };
            for message in messages.iter_mut() {
                message.content = message.content.replace(text, &mark.to_string());
            }
            hidden.push((mark, text.as_str()));
        }
        hidden.sort_unstable();
        Hidden(hidden)
    }

    /// The text that a character replaces.
    fn replaced(&self, mark: char) -> Option<&'a str> {
        if mark < FIRST_MARK {
            return None;
        }
        let found = self.0.binary_search_by_key(&mark, |(mark, _)| *mark);
        found.ok().map(|index| self.0[index].1)
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
        while let Some((at, mark, text)) = rest
            .char_indices()
            .find_map(|(at, c)| Some((at, c, self.replaced(c)?)))
        {
            let begins = ids.is_empty();
            ids.extend(tokenizer.encode_part(&rest[..at], Special::Parse, begins)?);
            let begins = ids.is_empty();
            ids.extend(tokenizer.encode_part(text, Special::AsText, begins)?);
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

    #[test]
    fn conversation_with_every_private_use_character_still_hides_control_tokens() {
        let control: Vec<String> = (0..500).map(|i| format!("<|c{i:03}|>")).collect();
        let taken: String = ('\u{f0000}'..='\u{10fffd}').collect();
        let mut messages = vec![Message::new("user", taken.clone() + &control.concat())];
        let hidden = Hidden::among(&control, &mut messages);
        assert_eq!(hidden.0.len(), 500);
        assert_eq!(hidden.replaced('\u{40000}'), Some("<|c000|>"));
        assert_eq!(hidden.replaced('\u{f0000}'), None);
        let marks: String = hidden.0.iter().map(|(mark, _)| *mark).collect();
        assert_eq!(messages[0].content, taken + &marks);
    }
}
