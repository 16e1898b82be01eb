//! Identifiers: order numbers, dates and sums that an answer must copy from the question unchanged.

use std::collections::BTreeSet;

/// The identifiers that an answer must copy: the tokens with a digit that occur both in the question (instruction and
/// input) and in the reference answer, in the question's order, each once.
#[must_use]
pub fn identifiers(question: &str, reference: &str) -> Vec<String> {
    let expected: BTreeSet<&str> = tokens_with_digit(reference).collect();
    let mut seen = BTreeSet::new();
    tokens_with_digit(question)
        .filter(|token| expected.contains(token) && seen.insert(*token))
        .map(str::to_owned)
        .collect()
}

/// Whether every one of `identifiers` occurs in `answer` as a whole token.
#[must_use]
pub fn complete(identifiers: &[String], answer: &str) -> bool {
    let in_answer: BTreeSet<&str> = tokens_with_digit(answer).collect();
    identifiers
        .iter()
        .all(|identifier| in_answer.contains(identifier.as_str()))
}

/// Whether `answer` copies identifiers correctly: one of `identifiers` with three or more digits (any one, if none is so
/// long) occurs in it as a whole token, and every number of three or more digits in it is one that the question has. An
/// answer may leave out a date; it may not leave all out, or name another order.
#[must_use]
pub fn copied(identifiers: &[String], question: &str, answer: &str) -> bool {
    let long = |token: &str| token.chars().filter(char::is_ascii_digit).count() >= 3;
    let in_answer: BTreeSet<&str> = tokens_with_digit(answer).collect();
    let any_long = identifiers.iter().any(|identifier| long(identifier));
    let named = identifiers
        .iter()
        .filter(|identifier| !any_long || long(identifier))
        .any(|identifier| in_answer.contains(identifier.as_str()));
    let asked: BTreeSet<&str> = tokens_with_digit(question).collect();
    (identifiers.is_empty() || named)
        && in_answer
            .iter()
            .all(|token| !long(token) || asked.contains(token))
}

/// The tokens of `text` that hold a digit: split at white space, brackets, quotes and long dashes, then trimmed of
/// surrounding punctuation and of a possessive `'s`.
pub(crate) fn tokens_with_digit(text: &str) -> impl Iterator<Item = &str> {
    let splits = |c: char| c.is_whitespace() || "()[]{}<>\"“”„«»—–|`*".contains(c);
    text.split(splits)
        .map(|token| {
            let token = token.trim_matches(|c: char| !c.is_alphanumeric());
            token
                .strip_suffix("'s")
                .or_else(|| token.strip_suffix("’s"))
                .unwrap_or(token)
        })
        .filter(|token| token.chars().any(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_in_question_and_reference() {
        let question = "Where is order #12345? I paid $1,299.00 on 2024-05-03 (invoice INV-77/a), 3 weeks ago.";
        let reference =
            "Order **#12345**: invoice “INV-77/a” of 2024-05-03 over €1,299.00 arrives in 2 days.";
        assert_eq!(
            identifiers(question, reference),
            ["12345", "1,299.00", "2024-05-03", "INV-77/a"]
        );
        assert_eq!(identifiers("A1 A1, a1's", "a1 A1"), ["A1", "a1"]);
        assert!(identifiers("How are you?", "Fine, 100%").is_empty());
    }

    #[test]
    fn identifiers_match_whole_tokens_only() {
        let ids = ["12345".to_owned(), "INV-7".to_owned()];
        assert!(complete(&ids, "Your order #12345 (INV-7) is on its way!"));
        assert!(complete(&ids, "12345’s invoice—INV-7."));
        assert!(!complete(&ids, "Your order #123456 (INV-7)"));
        assert!(!complete(&ids, "Your order 12345-6, INV-7"));
        assert!(!complete(&ids, "Your order #12345 (INV-71)"));
        assert!(!complete(&ids, ""));
        assert!(complete(&[], ""));
    }

    #[test]
    fn copied_requires_an_exact_identifier_and_no_other_number() {
        let question = "Order #12345 of 3 May, paid 1,299.00, is late";
        let ids = identifiers(question, "#12345 of 3 May over 1,299.00");
        let right = |answer: &str| copied(&ids, question, answer);
        assert!(right("#12345 arrives soon, within 4 business hours."));
        assert!(right("Your 1,299.00 is safe."));
        assert!(!right("The order of 3 May is late."));
        assert!(!right("Your order is late."));
        assert!(!right("Order #12354 is late."));
        assert!(!right("Order #12345 over 1,299.50 is late."));
        assert!(!right("Orders #12345 and #67890."));
        // Without a long number, any one will do.
        let question = "Slip B7 of 3 May";
        let ids = identifiers(question, "B7, 3 May");
        assert!(copied(&ids, question, "About B7"));
        assert!(copied(&ids, question, "About the 3 of May"));
        assert!(!copied(&ids, question, "About May"));
        assert!(copied(&[], "Hello?", "Hello!"));
        assert!(!copied(&[], "Hello?", "Order 12345"));
    }
}
