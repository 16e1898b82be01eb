//! `lory.toml`: every flag of `lory serve`, by its name without the dashes. The keys are taken from the definition of the command
//! line, so each flag is a key, and nothing else is.
//!
//! ```toml
//! port = 9000
//! kv-memory = "2GiB"
//! no-prefix-cache = true
//! cors-origin = ["https://shop.example"]
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _};
use toml::Value;
use toml::de::DeTable;

use crate::cli::commands::Cli;

/// The file in the working folder that is read by default.
const FILE: &str = "lory.toml";
/// The command that reads a file.
const COMMAND: &str = "serve";
/// Flags that are not keys of the file.
const NOT_IN_FILES: [&str; 4] = ["config", "print-config", "help", "version"];
/// An unknown key at least this similar to a flag (Jaro-Winkler, 0 to 1) gets the flag as a suggestion.
const SIMILAR: f64 = 0.8;
/// The largest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The file is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        path: PathBuf,
        line: usize,
        message: String,
    },
}

/// The command line, combined with the file.
pub(crate) struct Parsed {
    pub cli: Cli,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// All settings of `lory serve` in the format of the file, with their sources; none for other commands.
    pub settings: Option<String>,
}

/// The definition of the command line. A switch of `lory serve` accepts `=false`, because a file may have turned it on.
pub(crate) fn command() -> clap::Command {
    Cli::command().mut_subcommand(COMMAND, |serve| {
        serve.mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_name("true|false")
                .value_parser(clap::value_parser!(bool))
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true),
            _ => arg,
        })
    })
}

/// Parses the command line, and the file of `lory serve` if there is one. Like clap, prints help and errors of the command line
/// and ends the process.
pub(crate) fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Parsed, ConfigError> {
    let mut line: Vec<OsString> = line.into_iter().collect();
    let mut settings = BTreeMap::new();
    let mut file = None;
    if line.get(1).is_some_and(|first| first == COMMAND) {
        file =
            config_flag(&line).or_else(|| Some(PathBuf::from(FILE)).filter(|path| path.is_file()));
    }
    if let Some(path) = &file {
        let text = read(path)?;
        settings = keys(path, &text)?;
        let own: Vec<OsString> = line[2..].to_vec();
        line.truncate(2);
        for (name, setting) in &mut settings {
            setting.overridden = is_given(&own, name);
            if !setting.overridden {
                line.extend(setting.arguments.iter().map(OsString::from));
            }
        }
        line.extend(own);
    }
    let generates = line.get(1).is_some_and(|first| first == "generate");
    let matches = command()
        .try_get_matches_from(line)
        .unwrap_or_else(|error| {
            if let Some(path) = file.as_ref().filter(|_| error.use_stderr()) {
                eprintln!("with the settings from {}:", path.display());
            }
            if !is_second_word_of_prompt(generates, &error) {
                error.exit()
            }
            let _ = error.print();
            eprintln!(
                "hint: put quotes around the prompt, as in lory generate \"Where is my order?\""
            );
            std::process::exit(error.exit_code())
        });
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let settings = matches
        .subcommand_matches(COMMAND)
        .map(|serve| with_sources(serve, file.as_deref(), &settings));
    Ok(Parsed {
        cli,
        file,
        settings,
    })
}

/// Whether `lory generate` got an argument that is neither a flag nor the prompt.
fn is_second_word_of_prompt(generates: bool, error: &clap::Error) -> bool {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument,
        _ => return false,
    };
    generates && error.kind() == ErrorKind::UnknownArgument && !argument.starts_with('-')
}

/// One flag in the file.
struct Setting {
    line: usize,
    /// The command line sets it too.
    overridden: bool,
    /// The same setting as arguments.
    arguments: Vec<String>,
}

/// The file named by `--config`.
fn config_flag(line: &[OsString]) -> Option<PathBuf> {
    let mut rest = line.iter().skip(2);
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().map(PathBuf::from);
        }
        let text = argument
            .to_str()
            .and_then(|text| text.strip_prefix("--config="));
        if let Some(path) = text {
            return Some(PathBuf::from(path));
        }
    }
    None
}

/// Whether a command line has the flag.
fn is_given(line: &[OsString], name: &str) -> bool {
    let is = |argument: &OsString| {
        let text = argument.to_str().and_then(|text| text.strip_prefix("--"));
        text.is_some_and(|text| text.split('=').next() == Some(name))
    };
    line.iter().any(is)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let io = |source| ConfigError::Io {
        path: path.to_owned(),
        source,
    };
    if path.metadata().map_err(io)?.len() > MAX_BYTES {
        let message = format!("a file of settings has at most {MAX_BYTES} bytes");
        return Err(io(std::io::Error::other(message)));
    }
    std::fs::read_to_string(path).map_err(io)
}

/// The flags that are keys of the file, by name.
fn flags(serve: &clap::Command) -> BTreeMap<&str, &Arg> {
    let named = |arg: &'_ Arg| {
        arg.get_long()
            .is_some_and(|name| !NOT_IN_FILES.contains(&name))
    };
    serve
        .get_arguments()
        .filter(|arg| named(arg))
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .collect()
}

/// Every key of the file, checked like the flag of its name.
fn keys(path: &Path, text: &str) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let invalid = |offset: usize, message: String| ConfigError::Invalid {
        path: path.to_owned(),
        line: line_of(text, offset),
        message,
    };
    let parsed = |error: toml::de::Error| {
        let offset = error.span().map_or(0, |span| span.start);
        invalid(offset, error.message().to_owned())
    };
    let table = DeTable::parse(text).map_err(parsed)?;
    let values: toml::Table = toml::from_str(text).map_err(parsed)?;
    let mut definition = command();
    let Some(serve) = definition.find_subcommand_mut(COMMAND) else {
        return Ok(BTreeMap::new());
    };
    let serve = serve.clone();
    let flags = flags(&serve);
    let mut settings = BTreeMap::new();
    for key in table.get_ref().keys() {
        let name: &str = key.get_ref();
        let here = key.span().start;
        let Some(flag) = flags.get(name) else {
            let nearest = flags
                .keys()
                .map(|flag| (strsim::jaro_winkler(flag, name), *flag))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let hint = match nearest {
                Some((similarity, flag)) if similarity >= SIMILAR => {
                    format!("did you mean `{flag}`?")
                }
                _ => "the keys are the flags of `lory serve --help`".to_owned(),
            };
            return Err(invalid(here, format!("unknown key `{name}`; {hint}")));
        };
        let arguments =
            arguments(flag, name, &values[name]).map_err(|message| invalid(here, message))?;
        // Checked alone, so that an error belongs to this key. Rules between flags are checked with the whole command line.
        let alone = std::iter::once(COMMAND).chain(arguments.iter().map(String::as_str));
        if let Err(error) = serve.clone().try_get_matches_from(alone)
            && error.kind() != ErrorKind::MissingRequiredArgument
        {
            let message = error.to_string();
            let message = message.lines().next().unwrap_or_default();
            let message = message.strip_prefix("error: ").unwrap_or(message);
            return Err(invalid(here, message.to_owned()));
        }
        let line = line_of(text, here);
        let setting = Setting {
            line,
            overridden: false,
            arguments,
        };
        settings.insert(name.to_owned(), setting);
    }
    Ok(settings)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A key as arguments of the command line.
fn arguments(flag: &Arg, name: &str, value: &Value) -> Result<Vec<String>, String> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{name}={text}")),
        Value::Integer(number) => Ok(format!("--{name}={number}")),
        Value::Float(number) => Ok(format!("--{name}={number}")),
        Value::Boolean(_) => Err(format!("{name} takes a value, not true or false")),
        _ => Err(format!("{name} takes one value, not a list or a table")),
    };
    match value {
        Value::Boolean(on) if is_switch(flag) => Ok(vec![format!("--{name}={on}")]),
        _ if is_switch(flag) => Err(format!("{name} is true or false")),
        Value::Array(values) if matches!(flag.get_action(), ArgAction::Append) => {
            values.iter().map(one).collect()
        }
        value => Ok(vec![one(value)?]),
    }
}

fn is_switch(flag: &Arg) -> bool {
    flag.get_num_args()
        .is_some_and(|count| count.min_values() == 0)
}

/// All settings in the format of the file, each with its source.
fn with_sources(
    serve: &ArgMatches,
    file: Option<&Path>,
    settings: &BTreeMap<String, Setting>,
) -> String {
    let mut definition = command();
    definition.build();
    let Some(command) = definition.find_subcommand(COMMAND) else {
        return String::new();
    };
    let mut out = String::new();
    for (name, flag) in flags(command) {
        let id = flag.get_id().as_str();
        let values: Vec<Value> = serve
            .get_raw(id)
            .into_iter()
            .flatten()
            .map(|raw| value(flag, &raw.to_string_lossy()))
            .collect();
        let setting = settings.get(name);
        let source = match (serve.value_source(id), setting, file) {
            (None, ..) => "not set".to_owned(),
            (Some(ValueSource::DefaultValue), ..) => "the default".to_owned(),
            (_, Some(setting), Some(file)) if !setting.overridden => {
                format!("{}:{}", file.display(), setting.line)
            }
            _ => "the command line".to_owned(),
        };
        let line = match (values.as_slice(), flag.get_action()) {
            ([], _) => format!("# {name} ="),
            (values, ArgAction::Append) => format!("{name} = {}", Value::Array(values.to_vec())),
            ([value, ..], _) => format!("{name} = {value}"),
        };
        out += &format!("{line:<40} # {source}\n");
    }
    out
}

/// A raw value as a boolean or an integer if it is one, else as a string.
fn value(flag: &Arg, raw: &str) -> Value {
    if is_switch(flag) {
        return Value::Boolean(raw == "true");
    }
    match raw.parse::<i64>() {
        Ok(number) if number.to_string() == raw => Value::Integer(number),
        _ => Value::String(raw.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_or_error(text: &str) -> String {
        match keys(Path::new("lory.toml"), text) {
            Ok(settings) => {
                let arguments = settings
                    .values()
                    .flat_map(|setting| setting.arguments.clone());
                arguments.collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn keys_become_flags() {
        let text = "port = 9000\nkv-memory = '2GiB'\nno-prefix-cache = true\ncors-origin = ['https://a', 'https://b']\n";
        let line = "--cors-origin=https://a --cors-origin=https://b --kv-memory=2GiB --no-prefix-cache=true --port=9000";
        assert_eq!(arguments_or_error(text), line);
        assert_eq!(arguments_or_error(""), "");
        // The other half of the pair may be on the command line.
        assert_eq!(arguments_or_error("tls-cert = 'a.pem'"), "--tls-cert=a.pem");
    }

    #[test]
    fn byte_order_mark_is_accepted() {
        assert_eq!(arguments_or_error("\u{feff}port = 9000"), "--port=9000");
    }

    #[test]
    fn an_error_names_the_line() {
        for (text, expected) in [
            (
                "\n\nmax-bach = 4",
                "lory.toml:3: unknown key `max-bach`; did you mean `max-batch`?",
            ),
            (
                "max_batch = 4",
                "lory.toml:1: unknown key `max_batch`; did you mean `max-batch`?",
            ),
            (
                "zebra = 4",
                "lory.toml:1: unknown key `zebra`; the keys are the flags of `lory serve --help`",
            ),
            ("config = 'x'", "lory.toml:1: unknown key `config`; "),
            ("[server]\nport = 1", "lory.toml:1: unknown key `server`; "),
            (
                "port = 1\nmax-batch = 0",
                "lory.toml:2: invalid value '0' for '--max-batch <N>': 0 is not in 1..=4096",
            ),
            (
                "port = 'x'",
                "lory.toml:1: invalid value 'x' for '--port <PORT>'",
            ),
            (
                "port = true",
                "lory.toml:1: port takes a value, not true or false",
            ),
            ("port = [1]", "lory.toml:1: port takes one value"),
            (
                "no-prefix-cache = 1",
                "lory.toml:1: no-prefix-cache is true or false",
            ),
            ("port = 1\nport = 2", "lory.toml:2: "),
            ("port = ", "lory.toml:1: "),
        ] {
            let found = arguments_or_error(text);
            assert!(found.starts_with(expected), "{text}: {found}");
        }
    }

    #[test]
    fn every_flag_of_serve_is_a_key() {
        let mut definition = command();
        definition.build();
        let serve = definition.find_subcommand(COMMAND).unwrap();
        let flags = flags(serve);
        let left_out: Vec<_> = serve
            .get_arguments()
            .filter_map(Arg::get_long)
            .filter(|name| !flags.contains_key(name))
            .collect();
        assert_eq!(
            left_out.iter().filter(|name| **name != "version").count(),
            3,
            "{left_out:?}"
        );
        assert!(serve.get_arguments().all(|arg| arg.get_long().is_some()));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_has_a_description_and_an_example() {
        fn check(command: &clap::Command) {
            let subcommands = command.get_subcommands();
            for sub in subcommands.filter(|sub| sub.get_name() != "help") {
                let name = sub.get_name();
                assert!(sub.get_about().is_some(), "{name} has no description");
                let after = sub.get_after_help().map(ToString::to_string);
                let has_example = after.is_some_and(|text| text.contains("Example"));
                assert!(has_example, "{name} has no example");
                check(sub);
            }
        }
        check(&command());
    }
}
