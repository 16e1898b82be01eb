//! What commands write to stdout.

pub(crate) mod shell;
pub(crate) mod side_by_side;
pub(crate) mod table;

use std::io::Write as _;

/// Writes to stdout and flushes it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON object on a line.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}
