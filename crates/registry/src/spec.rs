//! Persona specs, the syntax that names personas: `customer`, `customer@3`, `customer*0.7+partner*0.3`.
//!
//! ```text
//! spec = part { "+" part }        at most 8 parts, each persona and version once
//! part = name [ "@" version ] [ "*" scale ]
//! ```
//!
//! Knows only text; `personas` looks up whether a persona exists. Spaces around a part are ignored, other white space is not.

use std::fmt;

use formats::persona_name::{MAX_PERSONA_NAME, is_persona_name};
use serde::{Deserialize, Serialize};

/// The longest spec, in bytes.
pub const MAX_SPEC: usize = 1024;
/// The most parts of a blend.
pub const MAX_PARTS: usize = 8;
/// A scale is from -`MAX_SCALE` to `MAX_SCALE`.
pub const MAX_SCALE: f32 = 4.0;

/// One persona of a blend, as a spec names it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlendPart {
    /// Its name.
    pub name: String,
    /// The requested version; by default the current one.
    pub version: Option<u32>,
    /// The requested weight; by default 1.
    pub scale: Option<f32>,
}

impl fmt::Display for BlendPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(version) = self.version {
            write!(f, "@{version}")?;
        }
        if let Some(scale) = self.scale {
            write!(f, "*{scale}")?;
        }
        Ok(())
    }
}

/// A persona, or one version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonaRef {
    /// The persona's name.
    pub name: String,
    /// Its version; by default the current one.
    pub version: Option<u32>,
}

impl fmt::Display for PersonaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What is wrong with a spec, and at which character.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("persona spec at character {position}: {message}")]
pub struct SpecError {
    /// The character, from 1.
    pub position: usize,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Reads a spec.
///
/// # Errors
/// The first thing wrong with it.
pub fn parse(text: &str) -> Result<Vec<BlendPart>, SpecError> {
    if text.len() > MAX_SPEC {
        let message = format!("a spec has at most {MAX_SPEC} bytes, not {}", text.len());
        return Err(SpecError {
            position: 1,
            message,
        });
    }
    let mut parts: Vec<BlendPart> = Vec::new();
    let mut start = 0;
    for piece in text.split('+') {
        // People count characters, not bytes.
        let at = |offset: usize| text[..start + offset].chars().count() + 1;
        if parts.len() == MAX_PARTS {
            let message = format!("a blend has at most {MAX_PARTS} parts");
            return Err(SpecError {
                position: at(0),
                message,
            });
        }
        let part = parse_part(piece, &at)?;
        let same = |other: &&BlendPart| other.name == part.name && other.version == part.version;
        if let Some(other) = parts.iter().find(same) {
            let message = format!("`{}` is there twice; give it one weight", other.name);
            return Err(SpecError {
                position: at(0),
                message,
            });
        }
        parts.push(part);
        start += piece.len() + 1;
    }
    Ok(parts)
}

/// Reads one part; `at` turns an offset in `piece` into a position in the whole.
fn parse_part(piece: &str, at: &dyn Fn(usize) -> usize) -> Result<BlendPart, SpecError> {
    let error = |offset, message| {
        Err(SpecError {
            position: at(offset),
            message,
        })
    };
    let indent = piece.len() - piece.trim_start_matches(' ').len();
    let trimmed = piece.trim_matches(' ');
    let (named, scale) = match trimmed.split_once('*') {
        Some((named, scale)) => (named, Some((indent + named.len() + 1, scale))),
        None => (trimmed, None),
    };
    let (name, version) = match named.split_once('@') {
        Some((name, version)) => (name, Some((indent + name.len() + 1, version))),
        None => (named, None),
    };
    // Spaces around `*` are ignored like those around `+`.
    let name = if version.is_none() {
        name.trim_end_matches(' ')
    } else {
        name
    };
    if name.is_empty() {
        return error(indent, "a persona's name is missing".to_owned());
    }
    if !is_persona_name(name) {
        return error(
            indent,
            format!(
                "`{}` is not a valid persona name; a name has 1 to {MAX_PERSONA_NAME} of a-z, 0-9, - and _, and begins with a letter or \
                 a digit",
                shortened(name)
            ),
        );
    }
    let version = match version {
        None => None,
        Some((offset, text)) => {
            let text = text.trim_end_matches(' ');
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            match text.parse::<u32>() {
                Ok(version) if digits && version > 0 => Some(version),
                _ => {
                    let message = format!(
                        "`{}` is not a version; write a whole number from 1, as in {name}@3",
                        shortened(text)
                    );
                    return error(offset, message);
                }
            }
        }
    };
    let scale = match scale {
        None => None,
        Some((offset, text)) => match parse_weight(text.trim_matches(' ')) {
            Ok(scale) => Some(scale),
            Err(message) => return error(offset, message),
        },
    };
    Ok(BlendPart {
        name: name.to_owned(),
        version,
        scale,
    })
}

/// Reads a weight: a plain decimal number in range.
fn parse_weight(text: &str) -> Result<f32, String> {
    let number = text.strip_prefix('-').unwrap_or(text);
    let plain = number.bytes().any(|byte| byte.is_ascii_digit())
        && number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse::<f32>() {
        Ok(scale) if plain && scale.abs() <= MAX_SCALE => Ok(scale),
        Ok(_) if plain => Err(format!(
            "the weight {} is out of range; it must be from -{MAX_SCALE} to {MAX_SCALE}",
            shortened(text)
        )),
        _ => Err(format!(
            "`{}` is not a weight; write a number such as 0.7",
            shortened(text)
        )),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, version: Option<u32>, scale: Option<f32>) -> BlendPart {
        BlendPart {
            name: name.to_owned(),
            version,
            scale,
        }
    }

    #[test]
    fn names_versions_and_weights_are_parsed() {
        let cases: [(&str, &[BlendPart]); 6] = [
            ("customer", &[part("customer", None, None)]),
            ("customer@3", &[part("customer", Some(3), None)]),
            (
                "customer@3*0.7+partner*0.3",
                &[
                    part("customer", Some(3), Some(0.7)),
                    part("partner", None, Some(0.3)),
                ],
            ),
            (
                " a * 1 + b@2 * -4.0 ",
                &[part("a", None, Some(1.0)), part("b", Some(2), Some(-4.0))],
            ),
            (
                "a@1+a@2+a",
                &[
                    part("a", Some(1), None),
                    part("a", Some(2), None),
                    part("a", None, None),
                ],
            ),
            ("9-x_y*.5", &[part("9-x_y", None, Some(0.5))]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["customer", "customer@3*0.7+partner*-0.3"] {
            let again: Vec<String> = parse(text)
                .unwrap()
                .iter()
                .map(BlendPart::to_string)
                .collect();
            assert_eq!(again.join("+"), text);
        }
    }

    #[test]
    fn invalid_spec_is_rejected_with_its_position() {
        let long = "a".repeat(65);
        let nine = ["a"; 9]
            .iter()
            .enumerate()
            .map(|(i, a)| format!("{a}{i}"))
            .collect::<Vec<_>>()
            .join("+");
        for (text, position, part) in [
            ("", 1, "name is missing"),
            ("a+", 3, "name is missing"),
            ("+a", 1, "name is missing"),
            ("a++b", 3, "name is missing"),
            ("Customer", 1, "`Customer` is not a valid persona name"),
            ("a+über", 3, "`über` is not a valid persona name"),
            ("-a", 1, "begins with a letter"),
            ("../a", 1, "is not a valid persona name"),
            (long.as_str(), 1, "1 to 64"),
            ("a\n", 1, "is not a valid persona name"),
            ("\u{a0}a", 1, "is not a valid persona name"),
            ("a@1\t", 3, "is not a version"),
            ("a*1\r", 3, "is not a weight"),
            ("a@", 3, "is not a version"),
            ("a@0", 3, "is not a version"),
            ("a@-1", 3, "is not a version"),
            ("a@4294967296", 3, "is not a version"),
            ("a@1.5", 3, "is not a version"),
            ("a*", 3, "is not a weight"),
            ("a*NaN", 3, "`NaN` is not a weight"),
            ("a*inf", 3, "is not a weight"),
            ("a*1e1", 3, "is not a weight"),
            ("a*1.2.3", 3, "is not a weight"),
            ("a*4.01", 3, "out of range"),
            ("b+a*-5", 5, "from -4 to 4"),
            ("a*0.5+a*0.5", 7, "`a` is there twice"),
            (nine.as_str(), 25, "at most 8 parts"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.position, position, "{text}: {error}");
            assert!(error.message.contains(part), "{text}: {error}");
            assert!(error.to_string().starts_with("persona spec at character"));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        for text in [
            "é+é", "a*é", "a@é*é", "\u{0}", "a*--1", "a@+1", "**", "@@", "a@1@2", "a*1*2", "…+…",
        ] {
            let _ = parse(text).map_err(|error| error.to_string());
        }
    }
}
