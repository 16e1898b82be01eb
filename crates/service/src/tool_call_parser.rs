//! Reads tool calls out of an answer while it is generated. It relies on the answer's grammar, which enforces the format of
//! [`crate::tools`] byte by byte.

const OPEN: &str = "<tool_call>";
const HEAD: &str = "\n{\"name\": \"";
const NAMED: &str = "\", \"arguments\": ";
const CLOSE: &str = "}\n</tool_call>";

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text outside tool calls.
    Text(String),
    /// A tool call with this name begins.
    ToolCall(String),
    /// More arguments of the latest call.
    Arguments(String),
}

/// Splits an answer into text and tool calls.
#[derive(Debug, Default)]
pub(super) struct ToolCallParser {
    state: State,
    held: String,
    /// The nesting of the arguments that were emitted.
    depth: Depth,
}

/// The nesting at the end of a JSON text.
#[derive(Debug, Default)]
struct Depth {
    /// Objects and lists that are open.
    open: usize,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    fn pass(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = self.in_string,
                '"' => self.in_string = !self.in_string,
                '{' | '[' if !self.in_string => self.open += 1,
                '}' | ']' if !self.in_string => self.open = self.open.saturating_sub(1),
                _ => {}
            }
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After a call: a line break before the next call is not text.
    Between,
    Head,
    Arguments,
}

impl ToolCallParser {
    /// Takes more text; returns the pieces that are certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Bytes that are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What is held back, when no more text comes.
    pub fn finish(&mut self) -> Option<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            _ if held.is_empty() => None,
            State::Text | State::Between => Some(Piece::Text(held)),
            // A call without a complete name is dropped.
            State::Head => None,
            // After a complete value only the end of the call can follow.
            State::Arguments => (self.depth.open > 0).then_some(Piece::Arguments(held)),
        }
    }

    /// Advances to the next state; false if more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Between if self.held.starts_with('\n') => {
                let next = &self.held[1..];
                if let Some(rest) = next.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Head;
                    return true;
                }
                if OPEN.starts_with(next) {
                    return false;
                }
                self.state = State::Text;
                true
            }
            State::Between if self.held.is_empty() => false,
            State::Between | State::Text => {
                self.state = State::Text;
                let found = self.pass(OPEN, pieces, Piece::Text);
                if found {
                    self.state = State::Head;
                }
                found
            }
            State::Head => {
                let Some(rest) = self.held.strip_prefix(HEAD) else {
                    return false;
                };
                let Some((name, rest)) = rest.split_once(NAMED) else {
                    return false;
                };
                pieces.push(Piece::ToolCall(name.to_owned()));
                self.held = rest.to_owned();
                self.depth = Depth::default();
                self.state = State::Arguments;
                true
            }
            State::Arguments => {
                let found = self.pass(CLOSE, pieces, Piece::Arguments);
                if found {
                    self.state = State::Between;
                }
                found
            }
        }
    }

    /// Emits everything before `mark` and drops the mark; returns whether it was found. A tail that may become the mark is held back.
    fn pass(&mut self, mark: &str, pieces: &mut Vec<Piece>, piece: fn(String) -> Piece) -> bool {
        let (let_through, found) = match self.held.find(mark) {
            Some(at) => {
                let rest = self.held.split_off(at + mark.len());
                let mut through = std::mem::replace(&mut self.held, rest);
                through.truncate(at);
                (through, true)
            }
            None => {
                let tails = self.held.char_indices().map(|(at, _)| at);
                let mut tails = tails.filter(|at| mark.starts_with(&self.held[*at..]));
                let at = tails.next().unwrap_or(self.held.len());
                let rest = self.held.split_off(at);
                (std::mem::replace(&mut self.held, rest), false)
            }
        };
        if !let_through.is_empty() {
            if self.state == State::Arguments {
                self.depth.pass(&let_through);
            }
            pieces.push(piece(let_through));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{ToolCall, render_turn};

    /// All text and all calls of an answer that comes in these parts.
    fn read<'a>(parts: impl IntoIterator<Item = &'a str>) -> (String, Vec<ToolCall>) {
        let mut reader = ToolCallParser::default();
        let (mut text, mut calls) = (String::new(), Vec::<ToolCall>::new());
        let mut pieces = Vec::new();
        for part in parts {
            pieces.extend(reader.push(part));
        }
        pieces.extend(reader.finish());
        for piece in pieces {
            match piece {
                Piece::Text(more) => text += &more,
                Piece::ToolCall(name) => calls.push(ToolCall {
                    name,
                    arguments: String::new(),
                }),
                Piece::Arguments(more) => calls.last_mut().unwrap().arguments += &more,
            }
        }
        (text, calls)
    }

    #[test]
    fn result_does_not_depend_on_how_the_text_is_split() {
        let call = |name: &str, arguments: &str| ToolCall {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let cases = [
            ("no call at all <tool", vec![]),
            (
                "",
                vec![call("weather", "{\"city\": \"Zürich }\\n</tool_call>\"}")],
            ),
            (
                "First. ",
                vec![call("a", "{}"), call("b", "{\"x\": [1, {\"y\": \"}\"}]}")],
            ),
        ];
        for (text, calls) in cases {
            let whole = match (text, calls.as_slice()) {
                ("First. ", calls) => format!("First. {}", render_turn("", calls)),
                (text, calls) => render_turn(text, calls),
            };
            let expected = (text.to_owned(), calls);
            assert_eq!(read([whole.as_str()]), expected);
            let characters: Vec<String> = whole.chars().map(String::from).collect();
            assert_eq!(read(characters.iter().map(String::as_str)), expected);
            for (cut, _) in whole.char_indices() {
                let (a, b) = whole.split_at(cut);
                assert_eq!(read([a, b]), expected, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn truncated_call_keeps_its_arguments_so_far() {
        let call = |arguments: &str| {
            vec![ToolCall {
                name: "f".to_owned(),
                arguments: arguments.to_owned(),
            }]
        };
        let whole = render_turn("", &call("{\"a\": [\"}\\\"\"]}"));
        let end = whole.find("}\n</").unwrap();
        for (cut, _) in whole.char_indices() {
            let (text, calls) = read([&whole[..cut]]);
            let begun = whole.find("{\"a\"").unwrap();
            if cut < OPEN.len() {
                assert_eq!((text.as_str(), calls), (&whole[..cut], Vec::new()));
            } else if cut < begun {
                // The name is not certain before what follows it.
                assert_eq!((text.as_str(), calls), ("", Vec::new()));
            } else {
                let arguments = &calls[0].arguments;
                assert_eq!(*arguments, whole[begun..cut.min(end)]);
            }
        }
    }
}
