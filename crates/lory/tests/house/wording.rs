//! Plain English: words and names that were replaced do not come back.
//!
//! Each rule is a pattern with what to write instead. Sources, documents and the studio are searched whole: comments, strings
//! and names. A line that must keep a word, such as a name on disk, is in `KEPT`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use regex::Regex;

use crate::{files, report, root};

/// Patterns for sentences, whatever the case, and what to write.
const SENTENCES: &[(&str, &str)] = &[
    (r"\bwho(m|ever|mever)\b", "which, anyone who"),
    (r"\bthere(of|in|upon|to)\b", "of it, in it"),
    (r"\bof late\b", "recently"),
    (r"\blatterly\b", "recently"),
    (
        r"\b(lies|lie|lay|lying) (in|on|at|under|beside|there|outside|elsewhere|beyond|where)\b",
        "is in",
    ),
    (
        r"\b(stands?|stood|standing) (in|at|on|there|under|over|beside|beneath|before|behind|between|where)\b",
        "is in",
    ),
    (r"\bbeside\b", "next to, besides, while"),
    (r"\b(is|are|was|were) no [a-z]+", "is not a"),
    (
        r"\b(without|with none)[,;.)]",
        "name the default: \"if it is not set\", \"the default is\"",
    ),
    (r"\bheld to\b", "checked against"),
    (r"\b(goes|go|going|went) on from\b", "continues from"),
    (r"\bthere is a place\b", "if there is one"),
    (r"\bthe like\b", "say what"),
    (r"\b(and|of) (its|their) kin\b", "say what"),
    (r"\brehears\w*", "offline evaluation"),
    (
        r"\b(untold|telling|spoken|speaks?)\b",
        "emit, process_outputs, prompt_logprobs",
    ),
    (r"\bso (long|often|many times) as\b", "while"),
    (r"\bnought\b|\bnaught\b", "nothing, 0"),
    (r"\bis asked of\b|\basked of\b", "is requested from"),
    (r"\bcome(s)? to nothing\b|\bcame to nothing\b", "fails"),
    (r"\bby name of\b", "named, with the name of"),
    (r"\bmakes? (\w+ )+known\b", "inserts into the cache"),
    (r"\bholds (what|whatever|who)\b", "checks"),
    (r"\bfrom token to token\b", "inter-token latency"),
    (r"\bLook again\b", "Refresh"),
];

/// Patterns for names in sources, and the field's terms.
const NAMES: &[(&str, &str)] = &[
    (r"\bPatience\b|\bpatience_of\b", "wait options"),
    (r"\bShelf\b", "pool state"),
    (r"\bSeat\b", "permit"),
    (r"\bOutlet\b", "response sink"),
    (r"\bBoard\b", "shared stats"),
    (r"\bBorrower\b", "background client"),
    (r"\bSpeaker\b|\bSpokenToken\b", "model identity, token"),
    (r"\bAsk\b", "GenerateRequest"),
    (r"\b[Jj]udgements?\b", "votes, eval results"),
    (r"\bWHOLE\b|\bLEAST\b", "GRAD_MAX, UNDERFLOW, SUM_MAX"),
    (
        r"\bkept::|\bmod kept\b|\bKept(::|>|\)|,| \{)",
        "activation cache, quant cache",
    ),
    (r"\bwhole::|\bmod whole\b", "int16"),
    (r"\bturns::|\bmod turns\b", "ticket lock"),
    (
        r"\bmod (sharing|shares|pace|lookup|claim|voice|ask|patient|front|guard|look|tend|examine)\b",
        "see the table of names",
    ),
    (
        r"\bfn (speak|tell|said|known|rehearse|examine|tend)\b",
        "say what it returns or does",
    ),
];

/// Names of files and folders.
const FILES: &str = r"(^|/)(rehearse|examine|tend|look|beside|patient|front|guard|voice|ask|judgements|shares|pace|claim|kept|whole|turns|sharing|trial|listen)(\.|/|$)";

/// Parts of lines that may stay: names on disk, in formats and of other programs.
const KEPT: &[&str] = &[
    "\"judgements\"",
    "LORY_HOME/judgements",
    "`judgements`",
    "is no longer",
    "are no longer",
    "\"beside\"",
    "`beside`",
    "\"gate.beside",
];

/// The crate, or else the folder at the top.
fn part(path: &str) -> String {
    let mut parts = path.split('/');
    match (parts.next(), parts.next()) {
        (Some("crates"), Some(name)) => name.to_owned(),
        (Some(top), Some(_)) => top.to_owned(),
        _ => ".".to_owned(),
    }
}

#[test]
fn replaced_words_do_not_come_back() {
    let root = root();
    let mut paths = Vec::new();
    for top in ["crates", "docs", "bench", "personas", "packaging"] {
        paths.extend(files(
            &root.join(top),
            &[".rs", ".md", ".js", ".mjs", ".html", ".css", ".py", ".toml"],
        ));
    }
    paths.extend(
        [
            "README.md",
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "Cargo.toml",
        ]
        .map(|name| root.join(name)),
    );
    let compile = |case: &str, rules: &[(&str, &'static str)]| -> Vec<(Regex, &'static str)> {
        let one = |(pattern, instead): &(&str, &'static str)| {
            (Regex::new(&format!("{case}{pattern}")).unwrap(), *instead)
        };
        rules.iter().map(one).collect()
    };
    let sentences = compile("(?i)", SENTENCES);
    let names = compile("", NAMES);
    let file_names = Regex::new(FILES).unwrap();
    // One pattern for all, as most lines have nothing.
    let all: Vec<&str> = SENTENCES
        .iter()
        .chain(NAMES)
        .map(|(pattern, _)| *pattern)
        .collect();
    let any = Regex::new(&format!("(?i){}", all.join("|"))).unwrap();

    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in paths {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        if name.contains("tests/house/")
            || name.starts_with("bench/runs/")
            || name.contains("/adapter/")
        {
            continue;
        }
        let lines = found.entry(part(&name)).or_default();
        if file_names.is_match(&name) {
            lines.push(format!("{name}: the file's name"));
        }
        let rules: Vec<_> = match name.rsplit('.').next() {
            Some("rs" | "js" | "mjs") => sentences.iter().chain(&names).collect(),
            _ => sentences.iter().collect(),
        };
        for (i, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            if !any.is_match(line) {
                continue;
            }
            let text = KEPT
                .iter()
                .fold(line.to_owned(), |text, kept| text.replace(kept, ""));
            for (rule, instead) in &rules {
                let hit = rule
                    .find(&text)
                    .filter(|hit| !is_there_is_no(&text, hit.start()));
                if let Some(hit) = hit {
                    lines.push(format!(
                        "{name}:{}: \"{}\" ({instead}): {}",
                        i + 1,
                        hit.as_str(),
                        line.trim()
                    ));
                    break;
                }
            }
        }
    }
    let mut text = String::new();
    for (part, lines) in &found {
        let _ = writeln!(text, "{:5} {part}", lines.len());
    }
    for lines in found.values().filter(|lines| !lines.is_empty()) {
        let _ = write!(text, "\n{}\n", lines.join("\n"));
    }
    report("wording.txt", &text);
    let all: usize = found.values().map(Vec::len).sum();
    assert_eq!(all, 0, "replaced words are back:\n{text}");
}

/// "There is no file" is plain; "a name is no number" is not.
fn is_there_is_no(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end().to_lowercase();
    text[at..].to_lowercase().contains(" no ")
        && ["there", "where"].iter().any(|word| before.ends_with(word))
}
