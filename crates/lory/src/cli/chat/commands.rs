//! What a line of input means: a message, or a command that begins with a slash.

use std::path::PathBuf;

use registry::spec;

/// A line of input.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// White space only.
    Blank,
    /// A message to the model.
    Message(String),
    /// A command to the program.
    Command(Command),
}

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    /// Lists the tones.
    ListTones,
    /// Answers as this persona, version or blend, or as the base.
    Tone(String),
    /// Shows the system text.
    ShowSystem,
    /// Replaces the system text.
    System(String),
    /// Goes back to the persona's system prompt.
    ResetSystem,
    /// Answers the last message again.
    Retry,
    /// Removes the last message and its answer.
    Undo,
    /// Removes all messages.
    Clear,
    /// Writes the conversation to a file of training rows.
    Save(PathBuf),
    /// Lists the commands.
    Help,
    /// Ends the program.
    Quit,
}

/// The commands: name, arguments, what they do.
const COMMANDS: [(&str, &str, &str); 9] = [
    ("/tone", "[NAME]", "answer as a persona, or list the tones"),
    (
        "/blend",
        "NAME WEIGHT ...",
        "mix tones: /blend customer 0.7 partner 0.3",
    ),
    (
        "/system",
        "[TEXT|reset]",
        "set the system text, show it, or go back to the persona's",
    ),
    (
        "/retry",
        "",
        "answer the last message again, with the tone of now",
    ),
    ("/undo", "", "remove the last message and its answer"),
    ("/clear", "", "remove all messages; the tone stays"),
    (
        "/save",
        "FILE.jsonl",
        "append the conversation to a file, as a row to train on",
    ),
    ("/help", "", "list the commands"),
    ("/quit", "", "end the conversation, as Ctrl-D does"),
];

/// The names of the commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, ..)| *name)
}

/// The text of `/help`.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (name, arguments, about) in COMMANDS {
        text += &format!("  {:<24} {about}\n", format!("{name} {arguments}"));
    }
    text + "A line that ends in a backslash continues on the next one. A space in front sends a message that begins with a slash.\n\
            Ctrl-C stops an answer; what was answered so far stays in the conversation.\n"
}

/// Reads a line of input, which may have several lines of text.
///
/// # Errors
/// The command is unknown, or its arguments are invalid; the message says what to write.
pub(super) fn parse(line: &str) -> Result<Input, String> {
    if line.trim().is_empty() {
        return Ok(Input::Blank);
    }
    if !line.starts_with('/') {
        return Ok(Input::Message(line.trim().to_owned()));
    }
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let command = match (name, rest) {
        ("/tone", "") => Command::ListTones,
        ("/tone", name) => Command::Tone(name.to_owned()),
        ("/blend", weights) => Command::Tone(blend(weights)?),
        ("/system", "") => Command::ShowSystem,
        ("/system", "reset") => Command::ResetSystem,
        ("/system", text) => Command::System(text.to_owned()),
        ("/save", file) => Command::Save(rows_file(file)?),
        ("/retry", "") => Command::Retry,
        ("/undo", "") => Command::Undo,
        ("/clear", "") => Command::Clear,
        ("/help", "") => Command::Help,
        ("/quit", "") => Command::Quit,
        ("/retry" | "/undo" | "/clear" | "/help" | "/quit", _) => {
            return Err(format!("{name} takes no arguments"));
        }
        _ => {
            let known: Vec<&str> = names().collect();
            return Err(format!(
                "unknown command {name}; the commands are {}; put a space in front to send it as a message",
                known.join(", ")
            ));
        }
    };
    Ok(Input::Command(command))
}

/// The spec of a blend, from pairs of a name and a weight.
fn blend(text: &str) -> Result<String, String> {
    const EXAMPLE: &str = "write names and weights, such as /blend customer 0.7 partner 0.3";
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() || words.len() % 2 == 1 {
        return Err(EXAMPLE.to_owned());
    }
    let parts: Vec<String> = words
        .chunks_exact(2)
        .map(|pair| format!("{}*{}", pair[0], pair[1]))
        .collect();
    let spec = parts.join("+");
    match spec::parse(&spec) {
        Ok(_) => Ok(spec),
        Err(error) => Err(format!("{}; {EXAMPLE}", error.message)),
    }
}

/// The file of `/save`. Its ending is checked, so that no other file gets a row.
fn rows_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("jsonl" | "ndjson") => Ok(path),
        _ => Err("name a file that ends in .jsonl, such as /save mine.jsonl".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        match parse(line).unwrap() {
            Input::Command(command) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_without_a_slash_are_messages() {
        assert_eq!(parse(" \n\t").unwrap(), Input::Blank);
        for (line, message) in [
            ("Hello there ", "Hello there"),
            (" /etc/hosts is missing", "/etc/hosts is missing"),
            ("one\n/two", "one\n/two"),
        ] {
            assert_eq!(parse(line).unwrap(), Input::Message(message.to_owned()));
        }
    }

    #[test]
    fn commands_are_read_with_their_arguments() {
        assert_eq!(command("/tone"), Command::ListTones);
        assert_eq!(
            command("/tone  partner@2 "),
            Command::Tone("partner@2".to_owned())
        );
        assert_eq!(
            command("/blend customer 0.7 partner 0.3"),
            Command::Tone("customer*0.7+partner*0.3".to_owned())
        );
        assert_eq!(
            command("/system You are brief.\nAnd kind."),
            Command::System("You are brief.\nAnd kind.".to_owned())
        );
        assert_eq!(command("/system"), Command::ShowSystem);
        assert_eq!(command("/system reset"), Command::ResetSystem);
        assert_eq!(
            command("/save my rows.jsonl"),
            Command::Save("my rows.jsonl".into())
        );
        for (name, expected) in [
            ("/retry", Command::Retry),
            ("/undo", Command::Undo),
            ("/clear", Command::Clear),
            ("/help", Command::Help),
            ("/quit ", Command::Quit),
        ] {
            assert_eq!(command(name), expected);
        }
    }

    #[test]
    fn invalid_commands_are_rejected_with_what_to_write() {
        for (line, part) in [
            (
                "/sing",
                "unknown command /sing; the commands are /tone, /blend",
            ),
            ("/", "the commands are"),
            ("/Tone partner", "unknown command /Tone"),
            ("/blend", "such as /blend customer 0.7 partner 0.3"),
            ("/blend customer", "such as /blend"),
            ("/blend customer much", "`much` is not a weight"),
            ("/blend customer 9", "from -4 to 4"),
            (
                "/blend Customer 1",
                "`Customer` is not a valid persona name",
            ),
            ("/blend a 0.5 a 0.5", "`a` is there twice"),
            ("/save", "ends in .jsonl"),
            ("/save notes.txt", "ends in .jsonl"),
            ("/undo 2", "/undo takes no arguments"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn every_command_is_known_and_has_help() {
        for name in names() {
            assert!(help().contains(name), "{name}");
            let known = parse(name).is_ok_and(|input| matches!(input, Input::Command(_)));
            let wants_arguments = matches!(name, "/blend" | "/save");
            assert_eq!(known, !wants_arguments, "{name}");
        }
    }
}
