//! Reads JSON bodies. Errors name the position of invalid JSON, or the field that is wrong.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::Stream as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::body_budget::ReservedBytes;
use crate::error::ApiError;
use crate::settings::{MAX_BODY, MAX_VALUES, VALUE_BYTES};
use crate::work::Work;

/// Bodies of up to this many bytes are parsed on the threads that serve.
const PARSED_AT_ONCE: usize = 64 << 10;

/// A JSON body.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned + Send + 'static, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        // A web page may send text or form data anywhere without asking; JSON it may not.
        if let Some(found) = request.headers().get(header::CONTENT_TYPE) {
            let found = found.to_str().unwrap_or("something else");
            let essence = found.split(';').next().unwrap_or_default().trim();
            if !essence.eq_ignore_ascii_case("application/json") {
                return Err(ApiError::media_type(essence));
            }
        }
        let work = Work::of(request.extensions())?;
        let (bytes, mut reserved) = receive(&work, request).await?;
        let small = bytes.len() <= PARSED_AT_ONCE;
        let read = move || {
            let values = count_values(&bytes);
            if values > MAX_VALUES {
                return Err(ApiError::too_many_values(values));
            }
            reserved.grow(values * VALUE_BYTES)?;
            Ok((parse(&bytes)?, reserved))
        };
        let parsed = match small {
            true => read(),
            // Parsing takes some 10 ms a megabyte, too long for the threads that serve.
            false => work.prepare(move |_| read()).await?,
        };
        let (parsed, reserved) = parsed?;
        work.body().keep(reserved);
        Ok(Body(parsed))
    }
}

/// How many values (texts, numbers, lists, objects, names of fields) a text of JSON has at most.
fn count_values(json: &[u8]) -> usize {
    let (mut values, mut in_text, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b':' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    values
}

/// Receives the body, within the limits of one body and of all bodies.
async fn receive(work: &Work, request: Request) -> Result<(Vec<u8>, ReservedBytes), ApiError> {
    let mut reserved = work.server().bodies.reserve(work.key().clone());
    let (mut bytes, mut received, mut refused) = (Vec::new(), 0, None);
    let body = request.into_body();
    // The `Content-Length`, if there is one.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(ApiError::too_large());
    }
    let mut pieces = body.into_data_stream();
    while let Some(piece) = poll_fn(|context| Pin::new(&mut pieces).poll_next(context)).await {
        let piece = piece.map_err(|error| {
            let message = format!("the body ended early: {error}");
            ApiError::bad_request("invalid_body", message, None)
        })?;
        received += piece.len();
        if received > MAX_BODY {
            return Err(ApiError::too_large());
        }
        // The rest is read and thrown away: a client that still sends might not read the error.
        if refused.is_none() {
            match reserved.grow(piece.len()) {
                Ok(()) => bytes.extend_from_slice(&piece),
                Err(error) => {
                    refused = Some(error);
                    bytes = Vec::new();
                    reserved = work.server().bodies.reserve(work.key().clone());
                }
            }
        }
    }
    match refused {
        None => Ok((bytes, reserved)),
        Some(error) => Err(error),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Some clients on Windows send a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        describe(&path, error.inner())
    })?;
    reader.end().map_err(|error| describe(".", &error))?;
    Ok(value)
}

fn describe(path: &str, error: &serde_json::Error) -> ApiError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let said = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(said, _)| said);
    if said == "number out of range" && path != "." {
        let message = format!("{path}: {said} (line {line}, column {column})");
        return ApiError::bad_request("invalid_value", message, Some(path.to_owned()));
    }
    if said.starts_with("recursion limit") {
        // The parser's own limit, which keeps hostile bodies from using up the stack.
        let message = format!(
            "the body is nested more than 127 levels deep at line {line} column {column}; send fewer levels"
        );
        return ApiError::bad_request("invalid_json", message, None);
    }
    let is_surrogate =
        said.starts_with("lone leading surrogate") || said == "unexpected end of hex escape";
    if is_surrogate && path != "." {
        let message = format!(
            "{path}: has half of a surrogate pair (an emoji that was cut, such as \\ud83d) at line {line} column {column}; send whole \
             characters"
        );
        return ApiError::bad_request("invalid_json", message, Some(path.to_owned()));
    }
    if error.classify() != Category::Data {
        let message = format!("the body is not JSON: {said} at line {line} column {column}");
        return ApiError::bad_request("invalid_json", message, None);
    }
    let quoted = |prefix: &str| {
        let rest = said.strip_prefix(prefix)?.strip_prefix('`')?;
        rest.split('`').next()
    };
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    if let Some(field) = quoted("unknown field ") {
        // The path ends in the field, or in what holds it, depending on how far the parser was.
        let param = if path == "." || path.is_empty() || path == field {
            field.to_owned()
        } else if path.ends_with(&format!(".{field}")) {
            path.to_owned()
        } else {
            format!("{path}.{field}")
        };
        let known = said
            .split_once(", ")
            .map_or(String::new(), |(_, known)| format!("; {known}"));
        let message = format!("unknown field {param:?}{known}");
        return ApiError::bad_request("unknown_field", message, Some(param));
    }
    if let Some(field) = quoted("missing field ") {
        let holder = if path == "." { parent } else { path };
        let param = if holder.is_empty() {
            field.to_owned()
        } else {
            format!("{holder}.{field}")
        };
        let message = format!("{param} is missing");
        return ApiError::bad_request("missing_field", message, Some(param));
    }
    let said = without_rust_types(said);
    let (code, param) = if said.starts_with("invalid type") {
        ("invalid_type", path)
    } else {
        ("invalid_value", path)
    };
    if path == "." {
        let message = format!("the body has the wrong shape: {said}");
        return ApiError::bad_request(code, message, None);
    }
    let message = format!("{param}: {said} (line {line}, column {column})");
    ApiError::bad_request(code, message, Some(param.to_owned()))
}

/// A message of serde's without the names of Rust types.
fn without_rust_types(said: &str) -> String {
    let mut said = said.to_owned();
    for (from, to) in [
        ("expected f32", "expected a number"),
        ("expected f64", "expected a number"),
        ("expected usize", "expected a whole number from 0"),
        ("expected u64", "expected a whole number from 0"),
        ("expected i64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected a sequence", "expected a list"),
        ("expected struct", "expected an object, a"),
        ("expected a map", "expected an object"),
        (": map,", ": an object,"),
        (": sequence,", ": a list,"),
    ] {
        said = said.replace(from, to);
    }
    said
}

/// `stop`: a text or a list of texts. An empty text means none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Texts(pub Vec<String>);

impl utoipa::PartialSchema for Texts {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::OneOfBuilder::new()
            .item(<String as utoipa::PartialSchema>::schema())
            .item(<Vec<String> as utoipa::PartialSchema>::schema())
            .into()
    }
}

impl utoipa::ToSchema for Texts {}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Texts;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(match text {
                    "" => Vec::new(),
                    text => vec![text.to_owned()],
                }))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `logit_bias`: biases by token id, such as `{"50256": -100}`, in the order of the ids.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Biases(pub Vec<(u32, f32)>);

impl utoipa::PartialSchema for Biases {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        <BTreeMap<String, f32> as utoipa::PartialSchema>::schema()
    }
}

impl utoipa::ToSchema for Biases {}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let by_text = BTreeMap::<String, f32>::deserialize(deserializer)?;
        let mut biases = BTreeMap::new();
        for (text, bias) in by_text {
            let id: u32 = text.parse().map_err(|_| {
                let text: String = text.chars().take(40).collect();
                D::Error::custom(format!(
                    "{text:?} is not a token id; the keys are token ids"
                ))
            })?;
            if biases.insert(id, bias).is_some() {
                return Err(D::Error::custom(format!(
                    "the token id {id} is given twice"
                )));
            }
        }
        Ok(Biases(biases.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[allow(dead_code, reason = "only parsing is tested")]
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        heat: Option<f32>,
        count: Option<usize>,
        stop: Option<Texts>,
        bias: Option<Biases>,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[allow(dead_code, reason = "only parsing is tested")]
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        role: String,
    }

    fn refused(body: &str) -> (String, String, Value) {
        let error = parse::<Outer>(body.as_bytes()).unwrap_err().body();
        let error = serde_json::json!(error);
        let text = |key: &str| error["error"][key].as_str().unwrap().to_owned();
        (
            text("code"),
            text("message"),
            error["error"]["param"].clone(),
        )
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        for (json, values) in [
            ("", 1),
            ("[1, 2, 3]", 4),
            (r#"{"a": "b,c:[{", "d": []}"#, 6),
            (r#"["\"", "\\", ","]"#, 4),
        ] {
            assert_eq!(count_values(json.as_bytes()), values, "{json}");
        }
    }

    #[test]
    fn byte_order_mark_before_a_body_is_skipped() {
        let body = parse::<Inner>(b"\xef\xbb\xbf{\"role\": \"user\"}").unwrap();
        assert_eq!(body.role, "user");
    }

    #[test]
    fn lone_surrogate_is_reported_with_its_field() {
        for text in [
            "\\ud83d",
            "\\ud83d and more",
            "\\ud83d\\n",
            "\\ud83d\\ud83d",
        ] {
            let body = format!(r#"{{"name": "a", "inner": [{{"role": "{text}"}}]}}"#);
            let (code, message, param) = refused(&body);
            assert_eq!(
                (code.as_str(), &param),
                ("invalid_json", &"inner[0].role".into())
            );
            assert!(
                message.starts_with("inner[0].role: has half of a surrogate pair"),
                "{message}"
            );
        }
    }

    #[test]
    fn invalid_json_is_reported_with_its_position() {
        for (body, place) in [
            ("{\"name\": \n oops}", "line 2 column 2"),
            ("", "line 1 column 0"),
            ("{\"name\": \"a\"", "line 1 column 12"),
            ("{\"name\": \"a\"} x", "line 1 column 15"),
        ] {
            let (code, message, param) = refused(body);
            assert_eq!(code, "invalid_json", "{message}");
            assert!(message.ends_with(place), "{message}");
            assert!(param.is_null());
        }
    }

    #[test]
    fn deep_nesting_is_reported_with_its_limit() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse::<Value>(nested(127).as_bytes()).is_ok());
        let error = parse::<Value>(nested(128).as_bytes()).unwrap_err().body();
        let error = serde_json::json!(error);
        assert_eq!(error["error"]["code"], "invalid_json");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("the body is nested more than 127 levels deep at line 1"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_field_is_reported_by_name() {
        for (body, code, param, said) in [
            (
                r#"{"name": 3}"#,
                "invalid_type",
                "name",
                "expected a string",
            ),
            (
                r#"{"name": "a", "heat": "hot"}"#,
                "invalid_type",
                "heat",
                "expected a number",
            ),
            (
                r#"{"name": "a", "count": -1}"#,
                "invalid_value",
                "count",
                "expected a whole number from 0",
            ),
            (
                r#"{"name": "a", "count": 1.5}"#,
                "invalid_type",
                "count",
                "whole number",
            ),
            (
                r#"{"name": "a", "stop": 5}"#,
                "invalid_type",
                "stop",
                "a text or a list",
            ),
            (
                r#"{"name": "a", "stop": ["x", 5]}"#,
                "invalid_type",
                "stop[1]",
                "expected a string",
            ),
            (
                r#"{"name": "a", "colour": 1}"#,
                "unknown_field",
                "colour",
                "expected one of",
            ),
            (
                r#"{"name": "a", "inner": [{"role": "r", "x": 1}]}"#,
                "unknown_field",
                "inner[0].x",
                "expected `role`",
            ),
            (
                r#"{"name": "a", "inner": [{"role": "r"}, {}]}"#,
                "missing_field",
                "inner[1].role",
                "is missing",
            ),
            (
                r#"{"name": "a", "heat": 1e400}"#,
                "invalid_value",
                "heat",
                "out of range",
            ),
            (r#"{"heat": 1}"#, "missing_field", "name", "is missing"),
            (
                r#"{"name": "a", "bias": {"5": 1, "x": 2}}"#,
                "invalid_value",
                "bias",
                "\"x\" is not a token id",
            ),
            (
                r#"{"name": "a", "bias": {"5": 1, "05": 2}}"#,
                "invalid_value",
                "bias",
                "twice",
            ),
            (
                r#"{"name": "a", "bias": {"5": "much"}}"#,
                "invalid_type",
                "bias.5",
                "expected a number",
            ),
            (
                r#"{"name": "a", "bias": [5]}"#,
                "invalid_type",
                "bias",
                "expected an object",
            ),
        ] {
            let (found, message, named) = refused(body);
            assert_eq!(
                (found.as_str(), named.as_str()),
                (code, Some(param)),
                "{message}"
            );
            assert!(
                message.contains(said) && message.contains(param),
                "{message}"
            );
        }
        let (code, message, _) = refused("[1]");
        assert_eq!(code, "invalid_type", "{message}");
    }
}
