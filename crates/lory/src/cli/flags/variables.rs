//! `--variable`: values for the variables of a persona's system prompt.

/// Parses NAME=VALUE.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("must be NAME=VALUE, such as shop=\"the shoe shop\"")?;
    Ok((name.to_owned(), value.to_owned()))
}
