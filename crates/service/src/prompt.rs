//! A conversation as token ids: the persona's system prompt in front, the base's template around it, exactly as training
//! rows are made. What people wrote can never become a control token.

use formats::chat_template::{Hidden, Message, alpaca_prompt};
use formats::tokenizer::Special;

use crate::error::RequestError;
use crate::persona_resolution::ResolvedPersona;
use crate::request::{Conversation, GenerateRequest};
use crate::tools;
use base::Base;

/// The ids of the prompt, ending where the answer begins.
pub(super) fn tokens(
    base: &Base,
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
) -> Result<Vec<u32>, RequestError> {
    let field = request.names.prompt;
    let mut messages = match &request.conversation {
        Conversation::Prompt { prompt, input } => {
            let turn = Message::new("user", alpaca_prompt(prompt, input));
            with_system_prompt(persona, request, vec![turn])
        }
        Conversation::Messages(messages) => {
            let turns = tools::with_responses(messages.clone());
            with_system_prompt(persona, request, turns)
        }
        Conversation::Text(text) => {
            let encoded = base.tokenizer.encode(text, Special::AsText);
            let ids = encoded.map_err(|source| RequestError::Tokenize { field, source })?;
            return Ok(begun(base, ids));
        }
        Conversation::Tokens(ids) => return known(base, field, ids),
    };
    let hidden = Hidden::hide(&base.tokenizer, &mut messages);
    let rendered = base
        .template
        .render(&messages, true)
        .map_err(|source| RequestError::Template { field, source })?;
    let ids = hidden
        .encode(&base.tokenizer, &rendered)
        .map_err(|source| RequestError::Tokenize { field, source })?;
    Ok(begun(base, ids))
}

/// The prompt as text, for one that stands without a template; none of a conversation.
pub(super) fn text(base: &Base, request: &GenerateRequest) -> String {
    match &request.conversation {
        Conversation::Text(text) => text.clone(),
        Conversation::Tokens(ids) => base.tokenizer.decode(ids, true),
        Conversation::Prompt { .. } | Conversation::Messages(_) => String::new(),
    }
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

/// The persona's system prompt in front, where there is no other, and the tools behind it.
fn with_system_prompt(
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
    mut turns: Vec<Message>,
) -> Vec<Message> {
    if let Some(system) = &persona.system_prompt {
        turns.insert(0, Message::new("system", system));
    }
    if let Some(instructions) = request.tools.as_ref().and_then(tools::Tools::instructions) {
        match turns.first_mut().filter(|turn| turn.role == "system") {
            Some(system) => {
                system.content += "\n\n";
                system.content += &instructions;
            }
            None => turns.insert(0, Message::new("system", instructions)),
        }
    }
    turns
}
