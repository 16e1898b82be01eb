//! Values as cells of a table.

use std::time::{Duration, UNIX_EPOCH};

/// The first 12 digits of a hash.
pub(crate) fn short_hash(hash: &str) -> String {
    hash.get(..12).unwrap_or(hash).to_owned()
}

/// A time in seconds since 1970 as RFC 3339, in UTC.
pub(crate) fn date(seconds: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        // A time after the year 9999 is printed in seconds.
        Some(time) if seconds < 253_402_300_800 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => seconds.to_string(),
    }
}
