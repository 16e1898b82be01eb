//! Variables of a system prompt: `{{name}}` is replaced by the persona's default or by the value in a request.
//!
//! If a persona declares no variables, braces in its system prompt are plain text. A value is inserted as it is, once: braces in
//! it are plain text, and so are control tokens, as in all user text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most variables of a persona.
pub const MAX_VARIABLES: usize = 32;
/// The longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// The longest value, in bytes.
pub const MAX_VALUE: usize = 4 << 10;

/// A variable, by what happens if a request does not set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a variable is a text, its default, or { required = true }"
)]
pub enum Variable {
    /// This text is used.
    Default(String),
    /// The request is rejected: every request must set it.
    Required(Required),
}

/// See [`Variable::Required`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Required {
    /// Always true.
    pub required: bool,
}

impl Variable {
    /// A variable that every request must set.
    #[must_use]
    pub fn required() -> Self {
        Variable::Required(Required { required: true })
    }
}

/// A persona's variables, by name.
pub type Variables = BTreeMap<String, Variable>;

/// Why a system prompt cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// The personas declare no such variable.
    #[error(
        "variables.{name}: not a variable of this persona; {}",
        list_names(known)
    )]
    Unknown {
        /// The name in the request, shortened.
        name: String,
        /// The declared names.
        known: Vec<String>,
    },
    /// A required variable was not given.
    #[error("variables.{name} is missing: the system prompt of {persona} needs it")]
    Missing {
        /// The variable.
        name: String,
        /// The persona that declares it.
        persona: String,
    },
    /// A value is too long.
    #[error("variables.{name} has {bytes} bytes; give at most {MAX_VALUE}")]
    TooLong {
        /// The variable.
        name: String,
        /// Its value's length.
        bytes: usize,
    },
}

impl VariableError {
    /// The variable.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            VariableError::Unknown { name, .. }
            | VariableError::Missing { name, .. }
            | VariableError::TooLong { name, .. } => name,
        }
    }
}

fn list_names(names: &[String]) -> String {
    match names {
        [] => "none can be given here".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    }
}

/// Checks the variables of a persona against its system prompt: the prompt uses each of them, and if there are any, no other
/// name.
///
/// # Errors
/// What is wrong, naming the variable.
pub fn check(prompt: Option<&str>, declared: &Variables) -> Result<(), String> {
    if declared.len() > MAX_VARIABLES {
        return Err(format!(
            "variables has {} of them; at most {MAX_VARIABLES}",
            declared.len()
        ));
    }
    let used: Vec<&str> = pieces(prompt.unwrap_or_default())
        .filter_map(|piece| match piece {
            PromptPiece::Variable(name) => Some(name),
            PromptPiece::Text(_) => None,
        })
        .collect();
    for (name, variable) in declared {
        if !is_name(name) {
            let shown: String = name.chars().take(MAX_NAME).collect();
            return Err(format!(
                "variables: {shown:?} is not a valid name; a name has 1 to {MAX_NAME} of a-z, 0-9 and _, and begins with a letter"
            ));
        }
        match variable {
            Variable::Default(text) if text.len() > MAX_VALUE => {
                return Err(format!("variables.{name} is longer than {MAX_VALUE} bytes"));
            }
            Variable::Required(Required { required: false }) => {
                return Err(format!(
                    "variables.{name}: required = false has no effect; give a text, its default"
                ));
            }
            _ => {}
        }
        if !used.contains(&name.as_str()) {
            return Err(format!(
                "variables.{name}: {{{{{name}}}}} is not in system_prompt"
            ));
        }
    }
    match used.iter().find(|name| !declared.contains_key(**name)) {
        Some(name) if !declared.is_empty() => Err(format!(
            "system_prompt: {{{{{name}}}}} is not a variable; declare it in variables"
        )),
        _ => Ok(()),
    }
}

/// The system prompt with every variable's value, the given one or its default. Ignores values that are given but not declared:
/// see [`check_given`].
///
/// # Errors
/// [`VariableError::Missing`].
pub(crate) fn fill(
    persona: &str,
    prompt: &str,
    declared: &Variables,
    given: &BTreeMap<String, String>,
) -> Result<String, VariableError> {
    if declared.is_empty() {
        return Ok(prompt.to_owned());
    }
    let mut filled = String::with_capacity(prompt.len());
    for piece in pieces(prompt) {
        let text = match piece {
            PromptPiece::Text(text) => text,
            PromptPiece::Variable(name) => match (given.get(name), declared.get(name)) {
                (Some(value), _) | (None, Some(Variable::Default(value))) => value,
                _ => {
                    return Err(VariableError::Missing {
                        name: name.to_owned(),
                        persona: persona.to_owned(),
                    });
                }
            },
        };
        filled.push_str(text);
    }
    Ok(filled)
}

/// Checks the values in a request against the variables that its personas declare together.
///
/// # Errors
/// [`VariableError::Unknown`], [`VariableError::TooLong`].
pub fn check_given<'a>(
    given: &BTreeMap<String, String>,
    declared: impl IntoIterator<Item = &'a Variables> + Clone,
) -> Result<(), VariableError> {
    for (name, value) in given {
        let mut any = declared.clone().into_iter();
        if !any.any(|variables| variables.contains_key(name)) {
            let mut known: Vec<String> = declared
                .into_iter()
                .flatten()
                .map(|(n, _)| n.clone())
                .collect();
            known.sort_unstable();
            known.dedup();
            return Err(VariableError::Unknown {
                name: name.chars().take(MAX_NAME).collect(),
                known,
            });
        }
        if value.len() > MAX_VALUE {
            return Err(VariableError::TooLong {
                name: name.clone(),
                bytes: value.len(),
            });
        }
    }
    Ok(())
}

/// A part of a system prompt.
#[derive(Debug, PartialEq)]
enum PromptPiece<'a> {
    Text(&'a str),
    /// The name in a pair of braces.
    Variable(&'a str),
}

/// The prompt, split at names in pairs of braces. Braces around anything else are text.
fn pieces(prompt: &str) -> impl Iterator<Item = PromptPiece<'_>> {
    let mut rest = prompt;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut from = 0;
        while let Some(at) = rest[from..].find("{{").map(|at| from + at) {
            let inside = &rest[at + 2..];
            let name = inside.find("}}").map(|end| (end, inside[..end].trim()));
            match name.filter(|(_, name)| is_name(name)) {
                Some((end, name)) if at == 0 => {
                    rest = &inside[end + 2..];
                    return Some(PromptPiece::Variable(name));
                }
                Some(_) => {
                    let (text, after) = rest.split_at(at);
                    rest = after;
                    return Some(PromptPiece::Text(text));
                }
                // The second brace may begin a pair.
                None => from = at + 1,
            }
        }
        Some(PromptPiece::Text(std::mem::take(&mut rest)))
    })
}

fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=MAX_NAME).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, Option<&str>)]) -> Variables {
        let one = |(name, default): &(&str, Option<&str>)| {
            let variable = default.map_or_else(Variable::required, |text| {
                Variable::Default(text.to_owned())
            });
            ((*name).to_owned(), variable)
        };
        list.iter().map(one).collect()
    }

    fn given(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        list.iter().map(owned).collect()
    }

    #[test]
    fn values_are_inserted_once() {
        let declared = variables(&[("shop", Some("a shop")), ("tier", None)]);
        let prompt = "You serve {{ shop }} {x} {{{tier}}} of {{shop}}.";
        check(Some(prompt), &declared).unwrap();
        let fill = |list| fill("p", prompt, &declared, &given(list));
        assert_eq!(
            fill(&[("tier", "gold")]).unwrap(),
            "You serve a shop {x} {gold} of a shop."
        );
        // A value that looks like a variable is plain text.
        assert_eq!(
            fill(&[("tier", "{{shop}}"), ("shop", "{{tier}}")]).unwrap(),
            "You serve {{tier}} {x} {{{shop}}} of {{tier}}."
        );
        let error = fill(&[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "variables.tier is missing: the system prompt of p needs it"
        );
    }

    #[test]
    fn braces_are_text_if_no_variable_is_declared() {
        let prompt = "Answer as {{json}}: {{ }} {{A b}} {{";
        check(Some(prompt), &Variables::new()).unwrap();
        let filled = fill("p", prompt, &Variables::new(), &BTreeMap::new());
        assert_eq!(filled.unwrap(), prompt);
    }

    #[test]
    fn declared_and_used_variables_must_agree() {
        let refused = |prompt: &str, list: &[(&str, Option<&str>)]| {
            check(Some(prompt), &variables(list)).unwrap_err()
        };
        assert!(refused("{{a}} {{b}}", &[("a", Some(""))]).contains("{{b}} is not a variable"));
        assert!(refused("{{a}}", &[("a", None), ("b", None)]).contains("{{b}} is not in"));
        assert!(refused("{{A}}", &[("A", None)]).contains("is not a valid name"));
        let long = "x".repeat(MAX_VALUE + 1);
        assert!(refused("{{a}}", &[("a", Some(&long))]).contains("longer than 4096"));
        let off = Variables::from([(
            "a".to_owned(),
            Variable::Required(Required { required: false }),
        )]);
        assert!(
            check(Some("{{a}}"), &off)
                .unwrap_err()
                .contains("has no effect")
        );
        let many: Variables = (0..=MAX_VARIABLES)
            .map(|n| (format!("v{n}"), Variable::required()))
            .collect();
        assert!(check(Some(""), &many).unwrap_err().contains("at most 32"));
        assert!(check(None, &variables(&[("a", None)])).is_err());
    }

    #[test]
    fn unknown_or_long_values_are_rejected() {
        let (one, other) = (variables(&[("a", None)]), variables(&[("b", Some("x"))]));
        let both = [&one, &other];
        check_given(&given(&[("a", "1"), ("b", "2")]), both).unwrap();
        let unknown = check_given(&given(&[("c", "1")]), both)
            .unwrap_err()
            .to_string();
        assert_eq!(
            unknown,
            "variables.c: not a variable of this persona; there are: a, b"
        );
        let none = check_given(&given(&[("c", "1")]), [])
            .unwrap_err()
            .to_string();
        assert!(none.ends_with("none can be given here"), "{none}");
        let long = given(&[("a", &"x".repeat(MAX_VALUE + 1))]);
        assert!(
            check_given(&long, both)
                .unwrap_err()
                .to_string()
                .contains("4097 bytes")
        );
    }

    #[test]
    fn variables_serialize_as_they_were_read() {
        let text = r#"{"a":"x","b":{"required":true}}"#;
        let read: Variables = serde_json::from_str(text).unwrap();
        assert_eq!(read, variables(&[("a", Some("x")), ("b", None)]));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let wrong = serde_json::from_str::<Variables>(r#"{"a":5}"#).unwrap_err();
        assert!(wrong.to_string().contains("its default, or"), "{wrong}");
    }
}
