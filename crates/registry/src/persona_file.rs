//! Reads and checks `persona.toml`; every error names its line.
//!
//! ```toml
//! description = "Warm, friendly customer care"
//! version = 1
//! system_prompt = "You are the support assistant of an online shop."
//! max_new_tokens = 120
//! stop = ["\n\n"]
//! scale = 1.0
//!
//! [variables]         # the defaults of {{name}} in the system prompt, for requests that do not set it
//! shop = "an online shop"
//! tenant = { required = true }
//!
//! [sampling]          # all keys are optional
//! temperature = 0.0
//! top_p = 0.9
//! top_k = 40
//! min_p = 0.05
//! repetition_penalty = 1.1
//! seed = 7
//!
//! [train]             # `data`, `eval`, and the trainer's own settings
//! data = "train.jsonl"
//! eval = "eval.jsonl"
//! rank = 16
//!
//! [train.preference]  # the answers of another persona are the rejected ones
//! against = "partner"
//!
//! [eval]
//! any_of = ['[😊🎉]']
//! none_of = ['(?i)\bhereby\b']
//! tone_at_least = 0.95
//! copied_at_least = 0.9
//! distinct_at_least = 0.5   # this and the other bounds of `EvalSpec` are optional
//! ```

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use sampling::SamplingParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::error::PersonaError;
use crate::persona::{EvalSpec, TrainSpec};
use crate::settings::{MAX_NEW_TOKENS, MAX_STOPS, MAX_SYSTEM_PROMPT};
use crate::spec::MAX_SCALE;
use crate::toml_source::TomlSource;
use crate::variables::{self, Variables};

/// The file's name.
pub const FILE: &str = "persona.toml";

const MAX_BYTES: u64 = 1 << 20;
/// The largest bound of a measure that is not a share.
const MAX_BOUND: f32 = 100.0;

/// The contents of `persona.toml`.
#[derive(Debug, Clone)]
pub(crate) struct PersonaFile {
    pub version: u32,
    pub description: String,
    pub system_prompt: Option<String>,
    pub variables: Variables,
    pub sampling: SamplingParams,
    pub max_new_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub scale: f32,
    pub train: Option<TrainSpec>,
    pub eval: Option<EvalSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPersonaFile {
    #[serde(default = "first_version")]
    version: Spanned<u32>,
    #[serde(default)]
    description: String,
    system_prompt: Option<Spanned<String>>,
    variables: Option<Spanned<Variables>>,
    #[serde(default, with = "crate::sampling_settings")]
    sampling: SamplingParams,
    max_new_tokens: Option<Spanned<usize>>,
    #[serde(default)]
    stop: Vec<Spanned<String>>,
    scale: Option<Spanned<f32>>,
    train: Option<Spanned<toml::Table>>,
    eval: Option<RawEval>,
}

fn first_version() -> Spanned<u32> {
    Spanned::new(0..0, 1)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEval {
    #[serde(default)]
    any_of: Vec<Spanned<String>>,
    #[serde(default)]
    none_of: Vec<Spanned<String>>,
    tone_at_least: Option<Spanned<f32>>,
    copied_at_least: Option<Spanned<f32>>,
    complete_at_least: Option<Spanned<f32>>,
    loss_at_most: Option<Spanned<f32>>,
    distinct_at_least: Option<Spanned<f32>>,
    other_tone_at_most: Option<Spanned<f32>>,
    drift_at_most: Option<Spanned<f32>>,
    repetition_at_most: Option<Spanned<f32>>,
    length_at_least: Option<Spanned<f32>>,
    length_at_most: Option<Spanned<f32>>,
}

/// Reads the file at `path`.
pub(crate) fn read(path: &Path) -> Result<PersonaFile, PersonaError> {
    let io = |source| PersonaError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = formats::disk::open(path).map_err(io)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let invalid = |line, message| PersonaError::Invalid {
        path: path.to_owned(),
        line,
        message,
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(
            1,
            format!("the file is larger than {MAX_BYTES} bytes"),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        invalid(line, "not UTF-8 text".to_owned())
    })?;
    parse(&text, path)
}

/// Reads the `text` of the file at `path`; files that it names are in the same folder.
pub(crate) fn parse(text: &str, path: &Path) -> Result<PersonaFile, PersonaError> {
    let source = TomlSource { path, text };
    let raw: RawPersonaFile = toml::from_str(text).map_err(|error| source.toml_error(&error))?;
    if *raw.version.get_ref() == 0 {
        return Err(source.error(raw.version.span(), "version must be a whole number from 1"));
    }
    if let Some(prompt) = &raw.system_prompt
        && prompt.get_ref().len() > MAX_SYSTEM_PROMPT
    {
        let message = format!("system_prompt is longer than {MAX_SYSTEM_PROMPT} bytes");
        return Err(source.error(prompt.span(), message));
    }
    let variables = raw
        .variables
        .unwrap_or_else(|| Spanned::new(0..0, Variables::new()));
    let prompt = raw.system_prompt.as_ref().map(|prompt| &**prompt.get_ref());
    variables::check(prompt, variables.get_ref())
        .map_err(|message| source.error(variables.span(), message))?;
    if let Some(most) = &raw.max_new_tokens
        && !(1..=MAX_NEW_TOKENS).contains(most.get_ref())
    {
        let message = format!(
            "max_new_tokens must be from 1 to {MAX_NEW_TOKENS}, not {}",
            most.get_ref()
        );
        return Err(source.error(most.span(), message));
    }
    if let Some(stop) = raw.stop.get(MAX_STOPS) {
        return Err(source.error(stop.span(), format!("stop has more than {MAX_STOPS} texts")));
    }
    if let Some(stop) = raw.stop.iter().find(|stop| stop.get_ref().is_empty()) {
        return Err(source.error(stop.span(), "stop: an empty text would end every answer"));
    }
    raw.sampling.check().map_err(|error| {
        let span = source.value_span("sampling", error.parameter);
        source.error(span, error.to_string())
    })?;
    let eval = raw
        .eval
        .map(|table| parse_eval(&source, table))
        .transpose()?;
    Ok(PersonaFile {
        version: raw.version.into_inner(),
        description: raw.description,
        system_prompt: raw.system_prompt.map(Spanned::into_inner),
        variables: variables.into_inner(),
        sampling: raw.sampling,
        max_new_tokens: raw.max_new_tokens.map(Spanned::into_inner),
        stop: raw.stop.into_iter().map(Spanned::into_inner).collect(),
        scale: source
            .number("scale", raw.scale, -MAX_SCALE..=MAX_SCALE)?
            .unwrap_or(1.0),
        train: raw
            .train
            .map(|table| parse_train(&source, table))
            .transpose()?,
        eval,
    })
}

fn parse_eval(source: &TomlSource<'_>, table: RawEval) -> Result<EvalSpec, PersonaError> {
    let within = |name: &str, value, most| -> Result<Option<f64>, PersonaError> {
        Ok(source.number(name, value, 0.0..=most)?.map(exact))
    };
    let share = |name: &str, value| within(name, value, 1.0);
    let number = |name: &str, value| within(name, value, MAX_BOUND);
    Ok(EvalSpec {
        any_of: source.patterns("any_of", table.any_of)?,
        none_of: source.patterns("none_of", table.none_of)?,
        tone_at_least: share("tone_at_least", table.tone_at_least)?
            .unwrap_or(EvalSpec::TONE_AT_LEAST),
        copied_at_least: share("copied_at_least", table.copied_at_least)?
            .unwrap_or(EvalSpec::COPIED_AT_LEAST),
        complete_at_least: share("complete_at_least", table.complete_at_least)?,
        loss_at_most: number("loss_at_most", table.loss_at_most)?,
        distinct_at_least: share("distinct_at_least", table.distinct_at_least)?,
        other_tone_at_most: share("other_tone_at_most", table.other_tone_at_most)?,
        drift_at_most: number("drift_at_most", table.drift_at_most)?,
        repetition_at_most: share("repetition_at_most", table.repetition_at_most)?,
        length_at_least: number("length_at_least", table.length_at_least)?,
        length_at_most: number("length_at_most", table.length_at_most)?,
    })
}

/// The decimal number as written: 0.95 in the file is 0.95, not the nearest f32.
fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn parse_train(
    source: &TomlSource<'_>,
    table: Spanned<toml::Table>,
) -> Result<TrainSpec, PersonaError> {
    let span = table.span();
    let mut settings = table.into_inner();
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let mut file = |key: &str| match settings.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(name)) if !name.is_empty() => Ok(Some(folder.join(name))),
        Some(_) => {
            let message = format!("[train] {key} must name a file in the folder of {FILE}");
            Err(source.error(span.clone(), message))
        }
    };
    let (data, eval) = (file("data")?, file("eval")?);
    let Some(data) = data else {
        let message =
            "[train] needs `data`, the file of the training rows, such as data = \"train.jsonl\"";
        return Err(source.error(span, message));
    };
    let source = Some((source.path.to_owned(), Arc::from(source.text)));
    Ok(TrainSpec {
        data,
        eval,
        settings,
        source,
    })
}

impl TrainSpec {
    /// Reads the table's other keys as the trainer's settings `T`.
    ///
    /// # Errors
    /// [`PersonaError::Invalid`] with the line of the first key that `T` does not take.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, PersonaError> {
        let Some((path, text)) = &self.source else {
            let source = TomlSource {
                path: Path::new("[train]"),
                text: "",
            };
            let value = toml::Value::Table(self.settings.clone());
            return value.try_into().map_err(|error| source.toml_error(&error));
        };
        // Parsed again, because only the text has the lines.
        let source = TomlSource { path, text };
        let mut table = DeTable::parse(text)
            .map_err(|error| source.toml_error(&error))?
            .into_inner();
        let (span, value) = match table.remove("train") {
            Some(value) => (value.span(), value.into_inner()),
            None => (0..0, DeValue::Table(DeTable::new())),
        };
        let mut value = value;
        if let DeValue::Table(table) = &mut value {
            table.remove("data");
            table.remove("eval");
        }
        T::deserialize(ValueDeserializer::from(Spanned::new(span, value)))
            .map_err(|error| source.toml_error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variables::Variable;

    fn read_text(text: &str) -> Result<PersonaFile, PersonaError> {
        parse(text, Path::new("personas/x/persona.toml"))
    }

    #[test]
    fn empty_file_is_a_persona_with_defaults() {
        let settings = read_text("").unwrap();
        assert_eq!((settings.version, settings.scale), (1, 1.0));
        assert_eq!(settings.sampling, SamplingParams::default());
        assert!(
            settings.system_prompt.is_none() && settings.train.is_none() && settings.eval.is_none()
        );
    }

    #[test]
    fn byte_order_mark_is_accepted() {
        assert_eq!(read_text("\u{feff}version = 3").unwrap().version, 3);
        let error = read_text("\u{feff}version = 3\nx = 1").err().unwrap();
        assert!(
            error.to_string().contains("persona.toml:2: unknown field"),
            "{error}"
        );
    }

    #[test]
    fn every_setting_is_read() {
        let text = r#"
description = "d"
version = 3
system_prompt = "s {{a}} {{b}}"
max_new_tokens = 12
stop = ["a", "b"]
scale = -0.5
variables = { a = "x", b = { required = true } }
[sampling]
temperature = 0
top_p = 0.5
top_k = 4
min_p = 0.1
repetition_penalty = 1.5
seed = 9
[train]
data = "t.jsonl"
eval = "e.jsonl"
rank = 8
[eval]
any_of = ['x+']
none_of = ['y']
tone_at_least = 0.8
drift_at_most = 0.35
"#;
        let settings = read_text(text).unwrap();
        assert_eq!(
            (settings.version, settings.scale, settings.max_new_tokens),
            (3, -0.5, Some(12))
        );
        assert_eq!(settings.stop, ["a", "b"]);
        assert_eq!(settings.variables["a"], Variable::Default("x".to_owned()));
        assert_eq!(settings.variables["b"], Variable::required());
        let sampling = settings.sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.seed),
            (Some(0.0), Some(4), Some(9))
        );
        let train = settings.train.unwrap();
        assert_eq!(train.data, Path::new("personas/x/t.jsonl"));
        assert_eq!(train.eval.as_deref(), Some(Path::new("personas/x/e.jsonl")));
        #[derive(Deserialize, PartialEq, Debug)]
        #[serde(deny_unknown_fields)]
        struct Rank {
            rank: u8,
        }
        assert_eq!(train.settings::<Rank>().unwrap(), Rank { rank: 8 });
        let eval = settings.eval.unwrap();
        assert_eq!((eval.tone_at_least, eval.copied_at_least), (0.8, 0.9));
        assert_eq!((eval.drift_at_most, eval.loss_at_most), (Some(0.35), None));
    }

    #[test]
    fn errors_name_file_and_line() {
        let stops = format!("stop = [{}]", "'a',".repeat(17));
        for (text, line, part) in [
            ("x = 1", 1, "unknown field `x`"),
            ("\n[sampling]\ntop_q = 1", 3, "unknown field `top_q`"),
            (
                "\n[sampling]\ntemperature = 2.5",
                3,
                "temperature must be from 0 to 2, not 2.5",
            ),
            ("[sampling]\ntemperature = nan", 2, "temperature must be"),
            ("[sampling]\ntop_p = 0", 2, "top_p must be"),
            ("[sampling]\ntop_k = -1", 2, "top_k: invalid value"),
            ("[sampling]\nseed = 'x'", 2, "invalid type"),
            ("version = 0", 1, "version must be"),
            ("a\n", 1, ""),
            ("\nscale = 5", 2, "scale must be from -4 to 4"),
            ("max_new_tokens = 0", 1, "max_new_tokens must be"),
            ("stop = ['']", 1, "an empty text"),
            (
                "system_prompt = '{{a}} {{b}}'\n[variables]\na = 'x'",
                2,
                "{{b}} is not a variable",
            ),
            ("\n[variables]\na = 5", 3, "its default, or"),
            (stops.as_str(), 1, "more than 16"),
            ("\n\n[train]\nrank = 8", 3, "needs `data`"),
            ("[train]\ndata = 7", 1, "must name a file"),
            (
                "[eval]\nany_of = ['a',\n'(b']",
                3,
                "`(b` is not a regular expression: unclosed group",
            ),
            ("[eval]\ntone_at_least = 95", 2, "from 0 to 1"),
            (
                "[eval]\n\nlength_at_most = 101",
                3,
                "length_at_most must be from 0 to 100",
            ),
            ("description = 'a'\ndescription = 'b'", 2, "duplicate"),
        ] {
            let error = read_text(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("personas/x/persona.toml:{line}: ")),
                "{text}: {error}"
            );
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn invalid_training_setting_is_rejected_with_its_line() {
        #[derive(Deserialize, Debug)]
        #[serde(deny_unknown_fields)]
        struct Rank {
            #[expect(dead_code, reason = "only read")]
            rank: u8,
        }
        let train = read_text("[train]\ndata = 't'\nrank = 8\nranks = 9\n")
            .unwrap()
            .train
            .unwrap();
        let error = train.settings::<Rank>().unwrap_err().to_string();
        assert!(
            error.starts_with("personas/x/persona.toml:4: unknown field `ranks`"),
            "{error}"
        );
    }

    #[test]
    fn file_that_is_not_utf8_is_rejected_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, b"version = 1\n# \xff\n").unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .ends_with("persona.toml:2: not UTF-8 text")
        );
        std::fs::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("larger than"));
    }
}
