//! Watches a growing text for stop strings. Knows no tokens.

/// Passes text on until a stop string is complete, and holds back a tail that may become one.
///
/// The stop string that is complete first wins (of several that end together, the longest), so the result does not depend on
/// how the text is split into pieces.
#[derive(Debug)]
pub(super) struct StopWatcher {
    stops: Vec<String>,
    held: String,
}

impl StopWatcher {
    /// Watches for `stops`, none of them empty.
    pub fn new(stops: &[String]) -> StopWatcher {
        StopWatcher {
            stops: stops.to_vec(),
            held: String::new(),
        }
    }

    /// Takes more text; returns the text to emit, and whether a stop string was found. After that, nothing more is emitted.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| {
                let start = self.held.find(stop.as_str())?;
                Some((start + stop.len(), start))
            })
            .min();
        if let Some((_, start)) = first {
            let cut = self.held.split_off(start);
            return (std::mem::replace(&mut self.held, cut), true);
        }
        let rest = self.held.split_off(self.held.len() - self.pending());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Bytes that are held back, or were cut off by a stop string.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What is held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest tail that begins a stop string.
    fn pending(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let held = &self.held;
        let mut tails = held
            .char_indices()
            .map(|(start, _)| start)
            .filter(|start| held.len() - start < longest);
        tails
            .find(|start| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&held[*start..]))
            })
            .map_or(0, |start| held.len() - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow, obvious version: character by character, the first moment that a stop string ends the text.
    fn naive(stops: &[String], text: &str) -> (String, bool) {
        for (end, c) in text.char_indices().map(|(i, c)| (i + c.len_utf8(), c)) {
            let _ = c;
            let so_far = &text[..end];
            let ended = stops
                .iter()
                .filter(|stop| so_far.ends_with(stop.as_str()))
                .map(String::len)
                .max();
            if let Some(length) = ended {
                return (so_far[..end - length].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn watched(stops: &[String], pieces: &[&str]) -> (String, bool) {
        let mut watcher = StopWatcher::new(stops);
        let mut shown = String::new();
        for piece in pieces {
            let (text, stopped) = watcher.push(piece);
            shown += &text;
            if stopped {
                return (shown, true);
            }
        }
        (shown + &watcher.finish(), false)
    }

    #[test]
    fn any_cut_gives_what_the_whole_gives() {
        let stops = |stops: &[&str]| -> Vec<String> {
            stops.iter().map(|stop| (*stop).to_owned()).collect()
        };
        let cases = [
            (stops(&[]), "plain text"),
            (stops(&["END"]), "some ENEND text"),
            (stops(&["END"]), "some ENxEN"),
            (stops(&["abcd", "bc"]), "xabcdx"),
            (stops(&["bc", "abc"]), "xabcx"),
            (stops(&["aab"]), "aaaaab!"),
            (stops(&["😊", "é"]), "grüße 😊 und so"),
            (stops(&["\n\n"]), "one\ntwo\n\nthree"),
            (stops(&["x"]), "x"),
        ];
        for (stops, text) in &cases {
            let expected = naive(stops, text);
            assert_eq!(watched(stops, &[text]), expected, "{stops:?} {text:?}");
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            assert_eq!(watched(stops, &characters), expected, "{stops:?} {text:?}");
            for (cut, _) in text.char_indices() {
                let (a, b) = text.split_at(cut);
                assert_eq!(watched(stops, &[a, b]), expected, "{stops:?} {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn only_a_possible_stop_string_is_held_back() {
        let mut watcher = StopWatcher::new(&["END".to_owned()]);
        assert_eq!(watcher.push("so far E"), ("so far ".to_owned(), false));
        assert_eq!(watcher.push("N"), (String::new(), false));
        assert_eq!(watcher.push("ough"), ("ENough".to_owned(), false));
        assert_eq!(watcher.push("E"), (String::new(), false));
        assert_eq!(watcher.finish(), "E");
    }
}
