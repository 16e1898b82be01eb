//! Commands for people to copy.

use base::hub;

/// The text as one word of a shell's command line.
pub(crate) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./@%+:,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// ` --base BASE`, or nothing for the default base.
pub(crate) fn base_flag(base: &str) -> String {
    match hub::KNOWN_BASES[0].id == base {
        true => String::new(),
        false => format!(" --base {}", quoted(base)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("a/b-c_1.gguf"), "a/b-c_1.gguf");
        assert_eq!(quoted("my file"), "'my file'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(base_flag(hub::KNOWN_BASES[0].id), "");
        assert_eq!(base_flag("my base"), " --base 'my base'");
    }
}
