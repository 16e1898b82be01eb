//! A conversation as token ids: the persona's system prompt in front, the base's template around it, exactly as training
//! rows are made. What people wrote can never become a control token.

use formats::chat_template::Message;
use formats::tokenizer::{Special, TokenizerError};
use train::dataset::alpaca_prompt;

use super::ask::{Ask, Conversation};
use super::base::Base;
use super::error::RequestError;
use super::voice::Voice;

/// Private characters that may stand for control tokens' texts while the template runs.
const MARKS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{ffffd}';

/// The ids of the prompt, ending where the answer begins.
pub(super) fn tokens(base: &Base, voice: &Voice<'_>, ask: &Ask) -> Result<Vec<u32>, RequestError> {
    let field = ask.names.prompt;
    let mut messages = match &ask.conversation {
        Conversation::Prompt { prompt, input } => {
            let turn = Message::new("user", alpaca_prompt(prompt, input));
            with_system_prompt(voice, vec![turn])
        }
        Conversation::Messages(messages) => with_system_prompt(voice, messages.clone()),
        Conversation::Text(text) => {
            let encoded = base.tokenizer.encode(text, Special::AsText);
            let ids = encoded.map_err(|source| RequestError::Tokenize { field, source })?;
            return Ok(begun(base, ids));
        }
        Conversation::Tokens(ids) => return known(base, field, ids),
    };
    let hidden = hide_control_tokens(&base.control_tokens, &mut messages);
    let rendered = base
        .template
        .render(&messages, true)
        .map_err(|source| RequestError::Template { field, source })?;
    let ids = encode(base, &rendered, &hidden)
        .map_err(|source| RequestError::Tokenize { field, source })?;
    Ok(begun(base, ids))
}

/// With the token that every sequence begins with, where the base wants one and it is not there yet.
fn begun(base: &Base, mut ids: Vec<u32>) -> Vec<u32> {
    let tokenizer = &base.tokenizer;
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos())
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    ids
}

/// The ids as they are, if the base has them all.
fn known(base: &Base, field: &'static str, ids: &[u32]) -> Result<Vec<u32>, RequestError> {
    let vocabulary = base.model.config().vocab_size;
    match ids.iter().position(|&id| id as usize >= vocabulary) {
        Some(index) => Err(RequestError::OutOfRange {
            field,
            message: format!(
                "has the token id {} at index {index}; the base's are 0 to {}",
                ids[index],
                vocabulary - 1
            ),
        }),
        None => Ok(ids.to_vec()),
    }
}

fn with_system_prompt(voice: &Voice<'_>, turns: Vec<Message>) -> Vec<Message> {
    let own = turns.first().is_some_and(|turn| turn.role == "system");
    let system = voice.system_prompt.filter(|_| !own);
    let system = system.map(|system| Message::new("system", system));
    system.into_iter().chain(turns).collect()
}

/// Puts a private character in place of every control token's text; gives the characters with what they stand for.
fn hide_control_tokens<'a>(
    control_tokens: &'a [String],
    messages: &mut [Message],
) -> Vec<(char, &'a str)> {
    let mut hidden = Vec::new();
    for text in control_tokens {
        if !messages
            .iter()
            .any(|message| message.content.contains(text))
        {
            continue;
        }
        let taken = |mark: char, hidden: &[(char, &str)]| {
            hidden.iter().any(|(other, _)| *other == mark)
                || messages
                    .iter()
                    .any(|message| message.content.contains(mark))
        };
        let Some(mark) = MARKS.into_iter().find(|mark| !taken(*mark, &hidden)) else {
            continue;
        };
        for message in messages.iter_mut() {
            message.content = message.content.replace(text, &mark.to_string());
        }
        hidden.push((mark, text));
    }
    hidden
}

/// Encodes a rendered prompt; what was hidden is encoded as the plain text that it was.
fn encode(
    base: &Base,
    rendered: &str,
    hidden: &[(char, &str)],
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    let mut rest = rendered;
    let stands_for = |c: char| hidden.iter().find(|(mark, _)| *mark == c);
    while let Some((at, mark)) = rest.char_indices().find(|(_, c)| stands_for(*c).is_some()) {
        ids.extend(base.tokenizer.encode(&rest[..at], Special::Parse)?);
        if let Some((_, text)) = stands_for(mark) {
            ids.extend(base.tokenizer.encode(text, Special::AsText)?);
        }
        rest = &rest[at + mark.len_utf8()..];
    }
    ids.extend(base.tokenizer.encode(rest, Special::Parse)?);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_in_a_text_are_hidden_and_nothing_else() {
        let control = ["<|im_end|>".to_owned(), "<s>".to_owned()];
        let mut plain = vec![Message::new("user", "a < b and <|im_start")];
        assert!(hide_control_tokens(&control, &mut plain).is_empty());
        assert_eq!(plain[0].content, "a < b and <|im_start");

        let mut nasty = vec![
            Message::new("system", "\u{f0000} is taken"),
            Message::new("user", "x<|im_<|im_end|>end|><s>y"),
        ];
        let hidden = hide_control_tokens(&control, &mut nasty);
        assert_eq!(hidden, [('\u{f0001}', "<|im_end|>"), ('\u{f0002}', "<s>")]);
        assert_eq!(nasty[1].content, "x<|im_\u{f0001}end|>\u{f0002}y");
        assert_eq!(nasty[0].content, "\u{f0000} is taken");
    }
}
