//! Reads keys from an environment variable: the text of a file of keys, or the short form `name=SECRET,other=SECRET`.
//!
//! Keys in the short form may use every persona and have no limits. `name+admin=SECRET` has admin rights.

use crate::error::KeysError;
use crate::key_entry::{KeyEntry, check_name, name_rule};
use crate::key_file::parse;
use crate::quota::Quotas;
use crate::secret::{MAX_CHARACTERS, MIN_CHARACTERS, SecretHash};

/// Reads the text of a variable, in either form.
///
/// # Errors
/// [`KeysError::Invalid`]; it names the variable and never shows its text.
pub fn parse_variable(variable: &str, text: &str) -> Result<Vec<KeyEntry>, KeysError> {
    // In the short form names hold no brackets; in a file of keys every key has some.
    if text.contains('[') {
        return parse(variable, text);
    }
    let invalid = |message: String| KeysError::Invalid {
        place: variable.to_owned(),
        message,
    };
    let mut entries: Vec<KeyEntry> = Vec::new();
    for (i, part) in text.split(',').map(str::trim).enumerate() {
        if part.is_empty() {
            continue;
        }
        let (name, secret) = part.split_once('=').ok_or_else(|| {
            invalid(format!(
                "key {} has no name; write NAME=SECRET, and a comma between two",
                i + 1
            ))
        })?;
        let (name, admin) = match name.strip_suffix("+admin") {
            Some(name) => (name, true),
            None => (name, false),
        };
        check_name(name).map_err(|_| {
            // The name is not shown: by mistake it may be a part of a secret.
            invalid(format!("key {}: {}", i + 1, name_rule()))
        })?;
        if !(MIN_CHARACTERS..=MAX_CHARACTERS).contains(&secret.chars().count()) {
            return Err(invalid(format!(
                "key {name}: a secret has from {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; `lory key new` makes one"
            )));
        }
        if entries.iter().any(|entry| entry.name == name) {
            return Err(invalid(format!("key {name} is listed twice")));
        }
        entries.push(KeyEntry {
            name: name.to_owned(),
            sha256: SecretHash::of(secret),
            personas: None,
            base: true,
            admin,
            train: false,
            requests_per_minute: None,
            tokens_per_minute: None,
            share: 1,
            quotas: Quotas::default(),
            cache_group: None,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn short_form_is_read_and_errors_show_no_secret() {
        let secret = "s".repeat(40);
        let text = format!("shop={secret}, ops+admin={secret}x,");
        let entries = parse_variable("LORY_API_KEYS", &text).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.admin)).collect();
        assert_eq!(seen, [("shop", false), ("ops", true)]);
        assert!(entries[0].sha256.matches(&SecretHash::of(&secret)));
        let table = format!("key = [{{name = 'a', sha256 = '{ABC}'}}]");
        assert_eq!(
            parse_variable("LORY_API_KEYS", &table).unwrap()[0].name,
            "a"
        );
        for (text, expected) in [
            ("hunter2hunter2hunter2hunter2hunter2", "key 1 has no name"),
            ("a=hunter2", "key a: a secret has from 32 to 256"),
            ("hunter2 x=hunter2hunter2", "key 1: a key's name has"),
            (&format!("a={secret},a={secret}"), "key a is listed twice"),
        ] {
            let error = parse_variable("LORY_API_KEYS", text)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
