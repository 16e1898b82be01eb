//! Texts side by side if the terminal is wide enough, else one below the other.

use console::measure_text_width;

/// The least width of a column.
const MIN_WIDTH: usize = 26;
const GAP: &str = "  │  ";
const GAP_WIDTH: usize = 5;

/// The width of the terminal, else `COLUMNS`, else 100.
pub(crate) fn terminal_width() -> usize {
    let terminal = console::Term::stdout()
        .size_checked()
        .map(|(_, columns)| usize::from(columns));
    let from_variable = || {
        std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse().ok())
    };
    terminal
        .or_else(from_variable)
        .unwrap_or(100)
        .clamp(20, 400)
}

/// Lays out (title, text) pairs in `width` columns.
pub(crate) fn side_by_side(texts: &[(String, String)], width: usize) -> String {
    let count = texts.len().max(1);
    let room = width.saturating_sub(GAP_WIDTH * (count - 1)) / count;
    if count > 1 && room < MIN_WIDTH {
        let blocks = texts.iter().map(|(title, text)| {
            format!(
                "{title}\n{}\n{}\n",
                "─".repeat(measure_text_width(title)),
                wrapped(text, width).join("\n")
            )
        });
        return blocks.collect::<Vec<_>>().join("\n");
    }
    let titles: Vec<Vec<String>> = texts
        .iter()
        .map(|(title, _)| wrapped(title, room))
        .collect();
    let tallest = titles.iter().map(Vec::len).max().unwrap_or(0);
    let columns: Vec<Vec<String>> = titles
        .into_iter()
        .zip(texts)
        .map(|(mut lines, (_, text))| {
            lines.resize(tallest, String::new());
            lines.push("─".repeat(room));
            lines.extend(wrapped(text, room));
            lines
        })
        .collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = String::new();
    for row in 0..height {
        let cells = columns.iter().map(|lines| {
            let cell = lines.get(row).map_or("", String::as_str);
            format!(
                "{cell}{}",
                " ".repeat(room.saturating_sub(measure_text_width(cell)))
            )
        });
        out += cells.collect::<Vec<_>>().join(GAP).trim_end();
        out.push('\n');
    }
    out
}

/// Breaks `text` into lines of at most `width` columns, between words where it can.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let used = measure_text_width(&line);
            if !line.is_empty() && used + 1 + measure_text_width(word) <= width {
                line.push(' ');
            } else if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            // A word longer than a line is cut.
            for c in word.chars() {
                line.push(c);
                if measure_text_width(&line) > width && line.chars().count() > 1 {
                    line.pop();
                    lines.push(std::mem::replace(&mut line, c.to_string()));
                }
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn a_wide_terminal_shows_columns() {
        let words = "one two three four five six seven eight";
        let out = side_by_side(&texts(&[("base", words), ("customer", "😊 short")]), 60);
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines[0].starts_with("base") && lines[0].contains("│  customer"),
            "{out}"
        );
        assert!(
            lines[2].starts_with("one two three four five six")
                && lines[2].ends_with("│  😊 short"),
            "{out}"
        );
        assert!(lines[3].starts_with("seven eight"), "{out}");
        assert!(
            lines.iter().all(|line| measure_text_width(line) <= 60),
            "{out}"
        );
        // The bars between columns are aligned.
        let bars: Vec<usize> = lines
            .iter()
            .filter_map(|line| Some(measure_text_width(line.split_once('│')?.0)))
            .collect();
        assert!(
            bars.len() == lines.len() && bars.windows(2).all(|pair| pair[0] == pair[1]),
            "{bars:?}"
        );
    }

    #[test]
    fn titles_of_different_heights_share_one_rule() {
        let out = side_by_side(
            &texts(&[("base", "a"), ("a title of more than one line", "b")]),
            60,
        );
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines[0].contains("│  a title of more than one") && lines[1].ends_with("│  line"),
            "{out}"
        );
        assert!(
            lines[2].starts_with("───") && lines[2].ends_with("───"),
            "{out}"
        );
        assert!(
            lines[3].starts_with("a ") && lines[3].ends_with("│  b"),
            "{out}"
        );
    }

    #[test]
    fn a_narrow_terminal_shows_texts_below_each_other() {
        let out = side_by_side(&texts(&[("base", "a b"), ("customer", "c d")]), 40);
        assert_eq!(out, "base\n────\na b\n\ncustomer\n────────\nc d\n");
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(wrapped("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("a\n\nb", 4), ["a", "", "b"]);
        assert_eq!(wrapped("😊😊😊", 2), ["😊", "😊", "😊"]);
        assert!(wrapped("", 4).is_empty());
        assert_eq!(wrapped("😊", 1), ["😊"]);
    }
}
