//! `stream_options`, as OpenAI's wire formats have it.

use serde::Deserialize;

use crate::error::ApiError;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
    // vLLM's: the usage so far in each chunk. Only the last chunk has it here.
    #[serde(rename = "continuous_usage_stats")]
    _continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    /// Refuses options for a response that is not streamed.
    pub(crate) fn check(options: &Option<Self>, stream: Option<bool>) -> Result<(), ApiError> {
        if options.is_some() && stream != Some(true) {
            let message = "stream_options is only for requests with \"stream\": true";
            return Err(ApiError::unsupported("stream_options", message));
        }
        Ok(())
    }

    /// Whether a stream's last chunk has the usage.
    pub(crate) fn usage(options: &Option<Self>) -> bool {
        options.as_ref().and_then(|options| options.include_usage) == Some(true)
    }
}
