//! The error for a path or a method that no route has. Most come from a wrong base URL of a client, which the message names.

use axum::http::{Method, StatusCode, Uri};

use super::ApiError;

/// Routes below `/v1` that clients append to their base URL.
const CLIENT_ROUTES: [&str; 5] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/files",
    "/models",
];

/// The error for an unknown route.
pub(crate) async fn not_found(method: Method, uri: Uri) -> ApiError {
    let advice = advice(uri.path()).map_or_else(String::new, |advice| format!("; {advice}"));
    let message = format!("{method} {} does not exist{advice}", shown_path(&uri));
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

/// The error for a route that does not have this method.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!(
            "{} does not support {method}; the header Allow lists what it supports",
            shown_path(&uri)
        ),
    )
}

fn shown_path(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

/// What to change in a client that requests `path`.
fn advice(path: &str) -> Option<&'static str> {
    let is_client_route = |path: &str| {
        let path = path.strip_suffix('/').unwrap_or(path);
        let below = |route: &&str| {
            path.strip_prefix(*route)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        CLIENT_ROUTES.iter().any(below)
    };
    match path {
        "/v1" | "/v1/" => {
            Some("this is the base URL for clients, which append the rest, such as /models")
        }
        _ if path.starts_with("/v1/responses") => Some(
            "OpenAI's Responses API is not available: set the client to chat completions (POST /v1/chat/completions)",
        ),
        _ if path.starts_with("/v1/messages") => Some(
            "Anthropic's API is not available: use a client of OpenAI's chat completions (POST /v1/chat/completions)",
        ),
        _ if path.starts_with("/api/") => Some(
            "Ollama's API is not available: use a client of OpenAI's API, whose base URL ends in /v1",
        ),
        _ if path.contains("//") => {
            Some("it has two slashes in a row: remove the one at the end of the client's base URL")
        }
        _ if path.starts_with("/v1/v1/") => {
            Some("it has /v1 twice: remove it from the client's base URL")
        }
        _ if is_client_route(path) => Some("the client's base URL must end in /v1"),
        _ if path.ends_with('/') => Some("remove the slash at its end"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn path_of_a_wrong_base_url_is_answered_with_what_to_change() {
        for (path, expected) in [
            ("/chat/completions", "must end in /v1"),
            ("/models/customer", "must end in /v1"),
            ("/v1/v1/chat/completions", "/v1 twice"),
            ("/v1//chat/completions", "two slashes"),
            ("/v1/models/", "slash at its end"),
            ("/v1/", "the base URL"),
            ("/v1/responses", "set the client to chat completions"),
            ("/v1/messages", "Anthropic"),
            ("/api/chat", "Ollama"),
        ] {
            let found = advice(path).unwrap_or_default();
            assert!(found.contains(expected), "{path}: {found}");
        }
        for path in ["/modelsx", "/v2/chat", "/favicon.ico"] {
            assert_eq!(advice(path), None);
        }
    }
}
