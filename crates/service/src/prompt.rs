//! Renders a conversation to token ids, with the persona's system prompt and the base's template, exactly like training rows.
//! Text from users can never become a control token, except in a text without a template whose client asks for it.

use formats::chat_template::{
    Hidden, Message, TemplateError, add_tool_instructions, alpaca_prompt,
};
use formats::tokenizer::Special;

use crate::error::RequestError;
use crate::persona_resolution::ResolvedPersona;
use crate::request::{Conversation, GenerateRequest};
use crate::tools;
use base::Base;

/// A conversation with fewer tokens of the context for each message is long.
const MESSAGE_TOKENS: usize = 8;
/// A conversation with more bytes for each token of the context is long.
const TOKEN_BYTES: usize = 4;

/// A text of up to this many bytes for each token of the context is tokenized without a look at its size.
const USUAL_TOKEN_BYTES: usize = 8;
/// The tokens at the end of a part of a text that may differ from those of the whole text.
const CUT_TOKENS: usize = 64;

/// Whether these texts may fit into `limit` tokens. Tokenizing takes hundreds of bytes of memory for each byte of text, so this comes
/// before: it looks at sizes, and at the beginning of a text that is suspiciously long.
fn may_fit<'t>(
    base: &Base,
    field: &'static str,
    texts: impl Iterator<Item = &'t str> + Clone,
    special: Special,
    limit: usize,
) -> Result<bool, RequestError> {
    let bytes: usize = texts.clone().map(str::len).sum();
    let usual = limit.saturating_mul(USUAL_TOKEN_BYTES);
    if bytes <= usual {
        return Ok(true);
    }
    if bytes > limit.saturating_mul(base.tokenizer.longest_token()) {
        return Ok(false);
    }
    for text in texts {
        let mut part = usual / 4;
        while part < text.len() && part <= usual {
            let beginning = &text[..text.floor_char_boundary(part)];
            let ids = base.tokenizer.encode(beginning, special);
            let ids = ids.map_err(|source| RequestError::Tokenize { field, source })?;
            if ids.len() > limit.saturating_add(CUT_TOKENS) {
                return Ok(false);
            }
            part *= 2;
        }
    }
    Ok(true)
}

/// The token ids of the prompt, up to where the answer begins.
pub(super) fn tokens(
    base: &Base,
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
    limit: usize,
) -> Result<Vec<u32>, RequestError> {
    let field = request.names.prompt;
    let mut messages = match &request.conversation {
        Conversation::Prompt { prompt, input } => {
            let turn = Message::new("user", alpaca_prompt(prompt, input));
            with_system_prompt(persona, request, vec![turn])
        }
        Conversation::Messages(messages) => {
            let turns = tools::merge_tool_responses(messages.clone());
            with_system_prompt(persona, request, turns)
        }
        Conversation::Text { text, special } => {
            if !may_fit(base, field, std::iter::once(text.as_str()), *special, limit)? {
                let bytes = text.len();
                return Err(RequestError::PromptTooLarge {
                    field,
                    bytes,
                    limit,
                });
            }
            let encoded = base.tokenizer.encode(text, *special);
            let ids = encoded.map_err(|source| RequestError::Tokenize { field, source })?;
            return Ok(with_bos(base, ids));
        }
        Conversation::Tokens(ids) if ids.len() > limit => {
            let tokens = ids.len();
            return Err(RequestError::PromptTooLong {
                field,
                tokens,
                limit,
            });
        }
        Conversation::Tokens(ids) => return checked_ids(base, field, ids),
    };
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    let too_long = RequestError::ConversationTooLong {
        field,
        messages: messages.len(),
        bytes,
        limit,
    };
    // A message takes a token at least.
    let texts = messages.iter().map(|message| message.content.as_str());
    if messages.len() > limit || !may_fit(base, field, texts, Special::AsText, limit)? {
        return Err(too_long);
    }
    let is_long = messages.len() > limit / MESSAGE_TOKENS || bytes > limit * TOKEN_BYTES;
    let hidden = Hidden::hide(&base.tokenizer, &mut messages);
    let rendered = match base.template.render(&messages, true) {
        Ok(rendered) => rendered,
        Err(TemplateError::OutOfFuel) if is_long => return Err(too_long),
        Err(source) => return Err(blame(base, persona, request, &messages, source)),
    };
    let ids = hidden
        .encode(&base.tokenizer, &rendered)
        .map_err(|source| RequestError::Tokenize { field, source })?;
    Ok(with_bos(base, ids))
}

/// The error of a conversation that the template does not render: of the message that it refuses, of the conversation, or of the
/// template, which is not the client's fault.
fn blame(
    base: &Base,
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
    messages: &[Message],
    source: TemplateError,
) -> RequestError {
    let field = request.names.prompt;
    let name = base.name.clone();
    let renders = |messages: &[Message]| base.template.render(messages, true).is_ok();
    let has_system = messages.len() > 1 && messages[0].role == "system";
    if has_system && renders(&messages[1..]) {
        let (field, whose) = if persona.system_prompt.is_some() {
            let persona = &persona.identity.name;
            (None, format!("the system prompt of {persona}"))
        } else if request.takes_system_prompt() {
            (Some("tools".to_owned()), "their description".to_owned())
        } else {
            (Some(format!("{field}[0]")), "this".to_owned())
        };
        return RequestError::NoSystemRole {
            field,
            whose,
            base: name,
            source: Box::new(source),
        };
    }
    match source {
        TemplateError::Refused(_) => RequestError::Template { field, source },
        source => RequestError::TemplateFailed { base: name, source },
    }
}

/// The token ids with which the prompts of all conversations with this system prompt begin: those of the operator and of the
/// template. They end after the first character of the user's turn at the latest. Empty if the template refuses such a conversation.
pub(super) fn operator_prefix(base: &Base, system: Option<&str>) -> Vec<u32> {
    // No user begins a turn with a control character, except to learn that the prefix is cached.
    let mut messages = vec![Message::new("user", "\u{1}")];
    if let Some(system) = system {
        messages.insert(0, Message::new("system", system));
    }
    let hidden = Hidden::hide(&base.tokenizer, &mut messages);
    let rendered = base.template.render(&messages, true).ok();
    let ids = rendered.and_then(|rendered| hidden.encode(&base.tokenizer, &rendered).ok());
    ids.map_or_else(Vec::new, |ids| with_bos(base, ids))
}

/// The text of a prompt without a template; empty for a conversation.
pub(super) fn text(base: &Base, request: &GenerateRequest) -> String {
    match &request.conversation {
        Conversation::Text { text, .. } => text.clone(),
        Conversation::Tokens(ids) => base.tokenizer.decode(ids, true),
        Conversation::Prompt { .. } | Conversation::Messages(_) => String::new(),
    }
}

/// Adds the BOS token if the base wants one and it is missing.
fn with_bos(base: &Base, mut ids: Vec<u32>) -> Vec<u32> {
    let tokenizer = &base.tokenizer;
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos())
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    ids
}

/// The ids, if all are in the vocabulary.
fn checked_ids(base: &Base, field: &'static str, ids: &[u32]) -> Result<Vec<u32>, RequestError> {
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

/// Puts the persona's system prompt first, followed by the tools.
fn with_system_prompt(
    persona: &ResolvedPersona<'_>,
    request: &GenerateRequest,
    mut turns: Vec<Message>,
) -> Vec<Message> {
    if let Some(system) = &persona.system_prompt {
        turns.insert(0, Message::new("system", system));
    }
    if let Some(instructions) = request.tools.as_ref().and_then(tools::Tools::instructions) {
        add_tool_instructions(&mut turns, &instructions);
    }
    turns
}
