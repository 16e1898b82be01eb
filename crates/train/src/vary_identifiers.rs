//! Data augmentation: copies of rows with other identifiers, so that an adapter learns to copy identifiers instead of
//! memorizing them.
//!
//! If a question and its answer share an identifier, both get the same new digits. Dates and times keep
//! theirs, and so does every number that the answer does not repeat.

use std::collections::BTreeMap;

use crate::measures::tokens_with_digit;
use crate::rng::Rng;
use dataset::{DataRow, RowContent};

/// The random stream of new digits; tasks add the copy and the index of the row.
pub(crate) const IDENTIFIER_STREAM: u64 = 0x7661_7279;
/// A token with fewer digits is a quantity, not an identifier.
const LEAST_DIGITS: usize = 3;

/// `row` with other digits in every identifier that its answer copies; `None` if there is no such identifier.
#[must_use]
pub fn vary_identifiers(row: &DataRow, rng: &mut Rng) -> Option<DataRow> {
    vary_identifiers_together([row], rng).map(|[row]| row)
}

/// `rows`, several answers to one question, each with the same other digits in every identifier that one of their answers
/// copies; `None` if there is no such identifier.
#[must_use]
pub fn vary_identifiers_together<const N: usize>(
    rows: [&DataRow; N],
    rng: &mut Rng,
) -> Option<[DataRow; N]> {
    let mut new: BTreeMap<String, String> = BTreeMap::new();
    for row in rows {
        let mut content = row.content.clone();
        let mut texts = texts(&mut content);
        let answer = texts.pop()?;
        for token in tokens_with_digit(answer).filter(|token| is_identifier(token)) {
            let holds = |text: &&mut String| tokens_with_digit(text).any(|other| other == token);
            if texts.iter().any(holds) {
                new.insert(token.to_owned(), redrawn(token, rng));
            }
        }
    }
    if new.is_empty() {
        return None;
    }
    Some(rows.map(|row| {
        let mut row = row.clone();
        for text in texts(&mut row.content) {
            *text = replaced(text, &new);
        }
        row
    }))
}

/// All texts of a row, the answer last; `None` if there is no question.
fn texts(content: &mut RowContent) -> Vec<&mut String> {
    match content {
        RowContent::Alpaca {
            instruction,
            input,
            output,
        } => vec![instruction, input, output],
        RowContent::Completion { prompt, completion } => vec![prompt, completion],
        RowContent::Messages(messages) => messages.iter_mut().map(|m| &mut m.content).collect(),
        RowContent::Text(_) => Vec::new(),
    }
}

fn is_identifier(token: &str) -> bool {
    let digits = token.chars().filter(char::is_ascii_digit).count();
    let groups: Vec<&str> = token.split(['.', '-', '/', ':']).collect();
    let number = |group: &&str| group.chars().all(|c| c.is_ascii_digit());
    let time = token.contains(':');
    let year =
        |group: &&str| group.len() == 4 && (group.starts_with("19") || group.starts_with("20"));
    let date = groups.len() <= 3 && groups.iter().all(number) && groups.iter().any(year);
    digits >= LEAST_DIGITS && !time && !date
}

/// The same form with other digits; one in front stays above 0.
fn redrawn(token: &str, rng: &mut Rng) -> String {
    let mut first = true;
    let mut digit = |c: char| {
        let lowest = u64::from(first && c != '0');
        first = false;
        char::from(b'0' + (lowest + rng.below(10 - lowest)) as u8)
    };
    token
        .chars()
        .map(|c| if c.is_ascii_digit() { digit(c) } else { c })
        .collect()
}

/// `text` with each of `new`'s keys replaced wherever it is a whole token.
fn replaced(text: &str, new: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(token) = tokens_with_digit(rest).next() {
        // A token is a slice of the text, so its place is the first one where it stands.
        let at = rest.find(token).unwrap_or(0);
        out += &rest[..at];
        out += new.get(token).map_or(token, String::as_str);
        rest = &rest[at + token.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataset::RowLocation;

    fn row(instruction: &str, input: &str, output: &str) -> DataRow {
        let location = RowLocation {
            file: "a.jsonl".into(),
            line: 1,
        };
        let content = RowContent::Alpaca {
            instruction: instruction.into(),
            input: input.into(),
            output: output.into(),
        };
        DataRow::new(location, content)
    }

    fn parts(row: &DataRow) -> [String; 3] {
        match &row.content {
            RowContent::Alpaca {
                instruction,
                input,
                output,
            } => [instruction, input, output].map(Clone::clone),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn copied_identifiers_change_in_question_and_answer_only() {
        let first = row(
            "Where is order #12345, 12 lamps of 2024-05-03 at 15:30? Not 99887.",
            "12345: ticket TK-007/a, 1,299.00 paid",
            "Order #12345 (TK-007/a) over 1,299.00 of 2024-05-03 leaves at 15:30 with 12 lamps; call 5550100.",
        );
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let row = vary_identifiers(&first, &mut Rng::new(seed, &[])).unwrap();
            let [instruction, input, output] = parts(&row);
            let id = input.split(':').next().unwrap().to_owned();
            assert!(id.len() == 5 && !id.starts_with('0'), "{id}");
            assert!(instruction.starts_with(&format!(
                "Where is order #{id}, 12 lamps of 2024-05-03 at 15:30? Not 99887"
            )));
            assert!(output.starts_with(&format!("Order #{id} (TK-")), "{output}");
            assert!(
                output.ends_with("of 2024-05-03 leaves at 15:30 with 12 lamps; call 5550100."),
                "{output}"
            );
            let ticket = input
                .split("ticket ")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap();
            assert!(
                output.contains(ticket) && ticket.ends_with("/a"),
                "{output}"
            );
            seen.insert(id);
        }
        assert!(seen.len() > 15, "{seen:?}");
    }

    #[test]
    fn two_answers_to_a_question_get_the_same_digits() {
        let question = "Where is order #12345 of invoice 777001?";
        let one = row(question, "", "Yay, #12345!");
        let other = row(question, "", "Order 12345, invoice 777001, is traced.");
        let [one, other] =
            vary_identifiers_together([&one, &other], &mut Rng::new(4, &[])).unwrap();
        let ([asked, _, yay], [same, _, traced]) = (parts(&one), parts(&other));
        assert_eq!(asked, same);
        let id = &yay["Yay, #".len()..yay.len() - 1];
        assert!(
            id != "12345" && asked.contains(&format!("#{id} of")),
            "{asked}"
        );
        assert!(traced.starts_with(&format!("Order {id}, ")), "{traced}");
        assert!(!traced.contains("777001"), "{traced}");
    }

    #[test]
    fn row_without_identifiers_is_not_varied() {
        let mut rng = Rng::new(1, &[]);
        assert_eq!(
            vary_identifiers(&row("Hello?", "", "Hello!"), &mut rng),
            None
        );
        assert_eq!(
            vary_identifiers(&row("By 12 May 2025?", "", "By 12 May 2025."), &mut rng),
            None
        );
        assert_eq!(
            vary_identifiers(&row("Order 4711", "", "Which one?"), &mut rng),
            None
        );
    }
}
