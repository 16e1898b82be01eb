//! Token counts of a response, in OpenAI's shape.

use serde::Serialize;
use service::End;
use utoipa::ToSchema;

/// The tokens of a request. Each prompt counts once, however many answers it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
struct PromptDetails {
    /// Tokens that were not computed again, because an earlier request started with them.
    cached_tokens: u64,
}

impl Usage {
    /// The usage of answers by number, `choices` for each prompt.
    pub fn of(ends: &[Option<End>], choices: usize) -> Usage {
        let mut usage = Usage::default();
        for (choice, end) in ends.iter().enumerate() {
            let Some(end) = end else { continue };
            if choice % choices == 0 {
                usage.prompt_tokens += end.prompt_tokens as u64;
                usage.prompt_tokens_details.cached_tokens += end.cached_tokens as u64;
            }
            usage.completion_tokens += end.completion_tokens as u64;
        }
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_counts_once_however_many_answers_it_has() {
        let end = |prompt_tokens, cached_tokens, completion_tokens| {
            Some(End {
                reason: service::FinishReason::Stop,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
                timings: engine::Timings {
                    queue: Duration::ZERO,
                    first_token: None,
                    total: Duration::ZERO,
                },
            })
        };
        let ends = [end(10, 2, 3), end(10, 8, 4), end(20, 0, 5), end(20, 16, 6)];
        let usage = json!(Usage::of(&ends, 2));
        assert_eq!(
            usage,
            json!({
                "prompt_tokens": 30, "completion_tokens": 18, "total_tokens": 48,
                "prompt_tokens_details": {"cached_tokens": 2},
            })
        );
    }
}
