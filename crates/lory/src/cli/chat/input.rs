//! Where lines of input come from: a line editor on a terminal, else stdin.
//!
//! The editor is rustyline: it adds one crate to the build on Unix and three on Windows (reedline adds eleven, and stops if a terminal does not answer its question for
//! the cursor's position). Pasted text of several lines is one message where the terminal brackets it.

use std::path::PathBuf;

use anyhow::Context as _;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};

use super::commands;

/// The most inputs in the history.
const MAX_HISTORY: usize = 1000;

/// What the user did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// Entered a text.
    Text(String),
    /// Pressed Ctrl-C at the prompt.
    Interrupted,
    /// Pressed Ctrl-D, or stdin ended.
    End,
}

/// The source of the lines.
pub(super) enum InputSource {
    /// A terminal.
    Terminal(Box<TerminalInput>),
    /// A pipe or a file.
    Stdin,
}

/// The line editor with its history.
pub(super) struct TerminalInput {
    editor: Editor<ChatHelper, FileHistory>,
    /// The file of the history; none if it cannot be written.
    history: Option<PathBuf>,
}

impl InputSource {
    /// The editor, with the history from this file and these names of personas to complete.
    pub fn terminal(history: Option<PathBuf>, names: Vec<String>) -> anyhow::Result<InputSource> {
        let config = Config::builder().max_history_size(MAX_HISTORY)?.build();
        let mut editor = Editor::with_config(config).context("cannot open the terminal")?;
        editor.set_helper(Some(ChatHelper { names }));
        if let Some(path) = &history {
            // It is missing at first.
            let _ = editor.load_history(path);
        }
        Ok(InputSource::Terminal(Box::new(TerminalInput {
            editor,
            history,
        })))
    }

    /// Whether a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, InputSource::Terminal(_))
    }

    /// Waits for the next input.
    ///
    /// # Errors
    /// The terminal or stdin cannot be read.
    pub fn next(&mut self, prompt: &(String, String)) -> anyhow::Result<Entry> {
        match self {
            InputSource::Terminal(terminal) => terminal.next(prompt),
            InputSource::Stdin => next_line(&mut std::io::stdin().lock()),
        }
    }
}

impl TerminalInput {
    fn next(&mut self, prompt: &(String, String)) -> anyhow::Result<Entry> {
        let text = loop {
            match self.editor.readline(prompt) {
                Ok(text) => break text,
                Err(ReadlineError::Interrupted) => return Ok(Entry::Interrupted),
                Err(ReadlineError::Eof) => return Ok(Entry::End),
                // The window changed.
                Err(ReadlineError::Signal(_)) => {}
                Err(error) => return Err(error).context("cannot read the terminal"),
            }
        };
        if !text.trim().is_empty() {
            self.remember(&text);
        }
        Ok(Entry::Text(join_lines(&text)))
    }

    /// Adds an input to the history, and to its file.
    fn remember(&mut self, text: &str) {
        let _ = self.editor.add_history_entry(text);
        let Some(path) = &self.history else {
            return;
        };
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.append_history(path));
        if let Err(error) = written {
            eprintln!("the history is not kept: {}: {error}", path.display());
            self.history = None;
        }
    }
}

/// The next input from a pipe: a line, and those after it while lines end in a backslash.
fn next_line(input: &mut dyn std::io::BufRead) -> anyhow::Result<Entry> {
    let mut text = String::new();
    loop {
        let before = text.len();
        input.read_line(&mut text).context("cannot read stdin")?;
        if text.len() == before {
            return Ok(match text.is_empty() {
                true => Entry::End,
                // The line that would continue is missing.
                false => Entry::Text(join_lines(text.trim_end_matches('\n'))),
            });
        }
        let line = text.trim_end_matches(['\n', '\r']).len();
        text.truncate(line);
        if !is_continued(&text) {
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            return Ok(Entry::Text(join_lines(text)));
        }
        text.push('\n');
    }
}

/// Whether the text ends in a backslash that is not escaped by another one.
fn is_continued(text: &str) -> bool {
    let backslashes = text.len() - text.trim_end_matches('\\').len();
    backslashes % 2 == 1
}

/// Removes the backslashes that continue a line.
fn join_lines(text: &str) -> String {
    let lines = text.split('\n').map(|line| match is_continued(line) {
        true => &line[..line.len() - 1],
        false => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Continues a line that ends in a backslash, and completes commands and names.
struct ChatHelper {
    names: Vec<String>,
}

impl ChatHelper {
    /// Where the word at the end of `line` begins, and what can replace it.
    fn completions(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind(char::is_whitespace).map_or(0, |space| space + 1);
        let word = &line[start..];
        let fits = |name: &&str| name.starts_with(word);
        let candidates = match line.split_whitespace().next() {
            _ if start == 0 && line.starts_with('/') => {
                let names = commands::names().filter(fits);
                names.map(|name| format!("{name} ")).collect()
            }
            Some("/tone" | "/blend") => {
                let names = self.names.iter().map(String::as_str).filter(fits);
                names.map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        (start, candidates)
    }
}

impl Helper for ChatHelper {}

impl Highlighter for ChatHelper {}

impl Hinter for ChatHelper {
    type Hint = String;
}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_continued(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for ChatHelper {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.completions(&line[..position]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(mut input: &[u8]) -> Vec<String> {
        let next = || match next_line(&mut input).unwrap() {
            Entry::Text(text) => Some(text),
            Entry::Interrupted | Entry::End => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn piped_lines_are_inputs() {
        assert_eq!(entries(b""), Vec::<String>::new());
        assert_eq!(entries(b"one\r\ntwo\n\nthree"), ["one", "two", "", "three"]);
        assert_eq!(entries("\u{feff}one\n".as_bytes()), ["one"]);
    }

    #[test]
    fn a_backslash_continues_a_line() {
        assert_eq!(
            entries(b"one\\\ntwo \\\r\nthree\nfour"),
            ["one\ntwo \nthree", "four"]
        );
        assert_eq!(entries(b"the end\\"), ["the end"]);
        // An escaped one does not.
        assert_eq!(entries(b"C:\\\\\ntwo"), ["C:\\\\", "two"]);
    }

    #[test]
    fn invalid_utf8_is_an_error() {
        let error = next_line(&mut &b"\xff\n"[..]).unwrap_err();
        assert!(error.to_string().contains("stdin"), "{error}");
    }

    #[test]
    fn commands_and_names_are_completed() {
        let helper = ChatHelper {
            names: vec!["customer".to_owned(), "partner".to_owned()],
        };
        assert_eq!(helper.completions("/to"), (0, vec!["/tone ".to_owned()]));
        assert_eq!(
            helper.completions("/tone p"),
            (6, vec!["partner".to_owned()])
        );
        assert_eq!(
            helper.completions("/blend partner 0.5 c"),
            (19, vec!["customer".to_owned()])
        );
        assert_eq!(helper.completions("/tone ").1.len(), 2);
        assert_eq!(helper.completions("where is p").1, Vec::<String>::new());
    }
}
