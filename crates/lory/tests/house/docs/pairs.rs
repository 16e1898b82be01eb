//! Which identifiers a sentence places in which file: "`ident` in `path.rs`", "`path.rs`'s `ident`", "`ident` (`path.rs`)".

use std::sync::LazyLock;

use regex::Regex;

/// Words that join an identifier to the place that it is in.
static JOINED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^( [\w-]+){0,3} (in|of|from)( the [\w-]+( [\w-]+)?( in| of)?)? $").unwrap()
});
/// What is between the identifiers of a list.
static LISTED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(,|,? and|,? or)( the)? $").unwrap());
/// What opens a bracket with the place of the identifier in front of it.
static BRACKET: &str = " (";
/// What is between a place and an identifier in it.
static OWNED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^('s|'s [\w-]+| \((it|which) [\w-]+| (uses|has|defines|lists)( the)?) $").unwrap()
});

/// The pairs of an identifier and a place in one paragraph. `is_place` says which code is the path of a file or folder, a crate
/// or a module; `is_identifier`, which is a name within one.
pub(super) fn pairs(
    paragraph: &str,
    is_place: impl Fn(&str) -> bool,
    is_identifier: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    // Prose and code in turn: pieces[1] is the first code.
    let pieces: Vec<&str> = paragraph.split('`').collect();
    let code = |i: usize| pieces.get(i).copied().unwrap_or("");
    let mut found = Vec::new();
    for place in (1..pieces.len()).step_by(2) {
        if !is_place(code(place)) {
            continue;
        }
        let before = code(place - 1);
        if place >= 3 && (JOINED.is_match(before) || before == BRACKET) {
            let mut at = place - 2;
            while is_identifier(code(at)) {
                found.push((code(at).to_owned(), code(place).to_owned()));
                if at < 3 || before == BRACKET || !LISTED.is_match(code(at - 1)) {
                    break;
                }
                at -= 2;
            }
        }
        if OWNED.is_match(code(place + 1)) && is_identifier(code(place + 2)) {
            found.push((code(place + 2).to_owned(), code(place).to_owned()));
        }
    }
    found
}

#[test]
fn pairs_of_identifiers_and_places_are_found_in_sentences() {
    let found = |text: &str| -> Vec<String> {
        let is_place = |code: &str| code.contains('.') || code == "kernels";
        let is_identifier = |code: &str| code.starts_with(char::is_alphabetic) && !is_place(code);
        let pairs = pairs(text, is_place, is_identifier);
        let pairs = pairs.into_iter();
        pairs
            .map(|(name, place)| format!("{name}@{place}"))
            .collect()
    };
    assert_eq!(
        found("the test `a_row` in `kernels`, and"),
        ["a_row@kernels"]
    );
    assert_eq!(found("`F` of `a.rs` is"), ["F@a.rs"]);
    assert_eq!(found("`F` (`a.rs`) and `G` (`b.rs`)"), ["F@a.rs", "G@b.rs"]);
    assert_eq!(
        found("variants of `F`, `G` and `H` in `a.rs`"),
        ["H@a.rs", "G@a.rs", "F@a.rs"]
    );
    assert_eq!(found("a field of `F` in the table in `a.rs`"), ["F@a.rs"]);
    assert_eq!(found("`a.rs`'s `F` calls"), ["F@a.rs"]);
    assert_eq!(found("`a.rs` (it uses `F`)"), ["F@a.rs"]);
    assert_eq!(found("where `a.rs` uses `F`, and"), ["F@a.rs"]);
    assert_eq!(found("add `F`, then a test in `a.rs`"), [""; 0]);
    assert_eq!(
        found("`F` in `a.rs` with its size, and map it in `b.rs`"),
        ["F@a.rs"]
    );
}
