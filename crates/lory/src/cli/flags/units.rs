//! Sizes and times with their units.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

/// Parses a size such as `256MiB` or `1.5GB`. Zero is an error.
pub(crate) fn memory_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        _ => Err("must be a size above zero, such as 256MiB or 1.5GB".to_owned()),
    }
}

/// Parses a size such as `500MB`. Zero is allowed.
pub(crate) fn size_or_zero(text: &str) -> Result<ByteSize, String> {
    text.parse()
        .map_err(|_| "must be a size, such as 500MB or 0".to_owned())
}

/// Parses a time such as `100ms` that must be in `range`; `rule` is the error.
pub(crate) fn duration_in(
    text: &str,
    range: RangeInclusive<Duration>,
    rule: &str,
) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if range.contains(&time) => Ok(time),
        _ => Err(rule.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(memory_size("256MiB").unwrap().as_u64(), 256 << 20);
        assert_eq!(memory_size("1.5 GB").unwrap().as_u64(), 1_500_000_000);
        assert_eq!(memory_size("4096").unwrap().as_u64(), 4096);
        for text in ["", "0", "0MiB", "-1MiB", "many", "1XB"] {
            assert!(memory_size(text).unwrap_err().contains("256MiB"), "{text}");
        }
        assert_eq!(size_or_zero("0").unwrap().as_u64(), 0);
        assert!(size_or_zero("-1MB").unwrap_err().contains("500MB"));
    }
}
