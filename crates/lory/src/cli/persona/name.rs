//! Names of personas on the command line.

use crate::cli::exit::UsageError;

/// Parses `customer` or `customer@3`.
pub(crate) fn parse_ref(text: &str) -> anyhow::Result<(String, Option<u32>)> {
    let parts =
        registry::spec::parse(text).map_err(|error| UsageError(format!("{text}: {error}")))?;
    match parts.as_slice() {
        [part] if part.scale.is_none() => Ok((part.name.clone(), part.version)),
        _ => Err(UsageError(format!(
            "{text}: name one persona, such as customer or customer@3"
        ))
        .into()),
    }
}

/// Parses a name without a version.
pub(crate) fn parse_name(text: &str) -> anyhow::Result<String> {
    match parse_ref(text)? {
        (name, None) => Ok(name),
        (name, Some(_)) => Err(UsageError(format!(
            "{text}: this command changes {name} as a whole; give the name without a version"
        ))
        .into()),
    }
}
