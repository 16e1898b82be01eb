//! Paths in messages for people who must not learn where this machine keeps its files.

use std::path::Path;

/// The last two parts of a path: enough to recognize a persona's or an adapter's file.
#[must_use]
pub fn short_path(path: &Path) -> String {
    let mut parts: Vec<_> = path
        .components()
        .rev()
        .take(2)
        .map(|part| part.as_os_str().to_string_lossy())
        .collect();
    parts.reverse();
    parts.join("/")
}

/// `text` with `path` shortened as by [`short_path`]. A text that does not have it stays.
#[must_use]
pub fn shortened(text: &str, path: &Path) -> String {
    match path.is_absolute() {
        true => text.replace(&path.display().to_string(), &short_path(path)),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_two_parts_are_shown() {
        let path = Path::new("/srv/lory home/personas/warm/adapter_config.json");
        let text = format!("{}: rank: is 0", path.display());
        assert_eq!(
            shortened(&text, path),
            "warm/adapter_config.json: rank: is 0"
        );
        assert_eq!(shortened("no file", path), "no file");
        let folder = path.parent().unwrap();
        assert_eq!(
            shortened(&text, folder),
            "personas/warm/adapter_config.json: rank: is 0"
        );
        assert_eq!(shortened("a/b: wrong", Path::new("a/b")), "a/b: wrong");
    }
}
