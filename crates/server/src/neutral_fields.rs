//! Fields that clients of OpenAI and of other servers send, and that change nothing: each is accepted with the values that mean what Lory does
//! anyway, and refused by name with others.

use serde_json::{Value, json};

use crate::error::ApiError;

/// Whether `value` of `field` changes nothing.
fn is_neutral(field: &str, value: &Value) -> bool {
    match field {
        "function_call" | "reasoning_effort" => value == "none",
        "service_tier" => value == "auto" || value == "default",
        "modalities" => value == &json!(["text"]),
        "verbosity" => value == "medium",
        "store"
        | "add_special_tokens"
        | "continue_final_message"
        | "early_stopping"
        | "echo"
        | "include_stop_str_in_output"
        | "return_token_ids"
        | "return_tokens_as_token_ids"
        | "use_beam_search" => value == &json!(false),
        "add_generation_prompt" | "skip_special_tokens" => value == &json!(true),
        "best_of" | "length_penalty" => value.as_f64() == Some(1.0),
        "min_tokens" => value.as_f64() == Some(0.0),
        "cache_prompt" | "spaces_between_special_tokens" => value.is_boolean(),
        "bad_words"
        | "chat_template_kwargs"
        | "documents"
        | "extra_body"
        | "functions"
        | "stop_token_ids" => is_empty(value),
        "suffix" => value == "",
        _ => false,
    }
}

/// Refuses the first of `fields` whose value would change something.
pub(crate) fn check(fields: &[(&str, &Option<Value>)]) -> Result<(), ApiError> {
    let refused = fields.iter().find(|(field, value)| {
        value
            .as_ref()
            .is_some_and(|value| !is_neutral(field, value))
    });
    let Some((field, _)) = refused else {
        return Ok(());
    };
    let instead = match *field {
        "functions" | "function_call" => "use tools and tool_choice",
        "guided_json" | "structured_outputs" => "use response_format",
        _ => "leave it out",
    };
    let message = format!("{field} is not supported; {instead}");
    Err(ApiError::unsupported(field, message))
}

/// Whether a value is a list or an object without elements.
pub(crate) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The neutral fields that requests for chat and for text completions both take, as the pairs that [`check`] reads.
macro_rules! shared_neutral_fields {
    ($request:expr) => {
        [
            ("bad_words", &$request.bad_words),
            ("cache_prompt", &$request.cache_prompt),
            ("early_stopping", &$request.early_stopping),
            ("extra_body", &$request.extra_body),
            ("guided_choice", &$request.guided_choice),
            ("guided_grammar", &$request.guided_grammar),
            ("guided_json", &$request.guided_json),
            ("guided_regex", &$request.guided_regex),
            (
                "include_stop_str_in_output",
                &$request.include_stop_str_in_output,
            ),
            ("length_penalty", &$request.length_penalty),
            ("min_tokens", &$request.min_tokens),
            ("prompt_logprobs", &$request.prompt_logprobs),
            ("return_token_ids", &$request.return_token_ids),
            (
                "return_tokens_as_token_ids",
                &$request.return_tokens_as_token_ids,
            ),
            ("skip_special_tokens", &$request.skip_special_tokens),
            (
                "spaces_between_special_tokens",
                &$request.spaces_between_special_tokens,
            ),
            ("stop_token_ids", &$request.stop_token_ids),
            ("structured_outputs", &$request.structured_outputs),
            ("truncate_prompt_tokens", &$request.truncate_prompt_tokens),
            ("use_beam_search", &$request.use_beam_search),
        ]
    };
}
pub(crate) use shared_neutral_fields;
