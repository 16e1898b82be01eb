//! Checks the JSON schemas of a request and prepares them for the grammar compiler.

use serde_json::{Value, json};

use super::schema_limits;
use crate::error::RequestError;

/// The most bytes of all schemas of a request together, as compact JSON.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// Adds the style of the JSON to a schema: that of Python's `json.dumps`, which models know best. With fixed white space, an
/// answer cannot consist of endless white space.
pub fn with_json_style(schema: &Value, strict: bool) -> Value {
    let mut object = match schema {
        Value::Object(object) => object.clone(),
        _ => return schema.clone(),
    };
    object.insert(
        "x-guidance".to_owned(),
        json!({
            "whitespace_flexible": false,
            "item_separator": ", ",
            "key_separator": ": ",
            "lenient": !strict,
        }),
    );
    Value::Object(object)
}

/// The text of a schema with its style, on one line.
pub fn compact(schema: &Value, strict: bool) -> String {
    with_json_style(schema, strict).to_string()
}

/// The text of a schema. `bytes` counts the bytes of all schemas of the request.
///
/// # Errors
/// [`RequestError::Schema`], if it is not an object, or it or all schemas together exceed a limit.
pub fn checked_schema(
    field: &str,
    schema: &Value,
    strict: bool,
    bytes: &mut usize,
) -> Result<String, RequestError> {
    let refused = |message: String| RequestError::Schema {
        field: field.to_owned(),
        message,
    };
    if !schema.is_object() {
        return Err(refused("a schema is a JSON object".to_owned()));
    }
    *bytes += schema.to_string().len();
    if *bytes > MAX_SCHEMA_BYTES {
        return Err(refused(format!(
            "the schemas of the request have {bytes} bytes up to this one; at most {MAX_SCHEMA_BYTES} are compiled"
        )));
    }
    schema_limits::check(schema).map_err(refused)?;
    Ok(compact(schema, strict))
}
