//! The linter's findings and their locations.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataset::stop::NEVER;
use dataset::{Columns, DataRow, Dataset, RowContent, RowLocation, holds_pairs, scan_pairs};
use formats::chat_template::ChatTemplate;
use formats::gguf::Gguf;
use formats::tokenizer::Tokenizer;
use train::example::{Encoder, LossMask, TooLong};
use train::lint::{LintOptions, LintProblem, LintReport};

fn lint(rows: &[DataRow], others: &[DataRow], options: &LintOptions) -> LintReport {
    train::lint::lint(rows, others, options, &NEVER).unwrap()
}

fn rows(file: &str, pairs: &[(&str, &str)]) -> Vec<DataRow> {
    let row = |(i, (prompt, completion)): (usize, &(&str, &str))| {
        let location = RowLocation {
            file: file.into(),
            line: i + 1,
        };
        let content = RowContent::Completion {
            prompt: (*prompt).into(),
            completion: (*completion).into(),
        };
        DataRow::new(location, content)
    };
    pairs.iter().enumerate().map(row).collect()
}

fn summary(report: &LintReport) -> Vec<(LintProblem, usize, &str)> {
    report
        .findings
        .iter()
        .map(|f| (f.problem, f.line, f.about.as_str()))
        .collect()
}

#[test]
fn each_duplicate_row_is_found_once() {
    let rows = rows(
        "a.jsonl",
        &[
            ("Where is order #1234?", "It left us today: 1234"),
            ("Where is order #1234?", "It left us today: 1234 "),
            ("where is order #998-B", "It left us today: 998"),
            ("Has my parcel 55 gone?", "It left us today: 55"),
            ("Where is order #7?", "Let me have a look at 7."),
            (
                "Do you sell red hats for dogs and cats?",
                "Yes, we have red hats in three sizes.",
            ),
            (
                "Do you sell red hats for dogs and cows?",
                "Yes, we have red hats in three sizes!",
            ),
        ],
    );
    let report = lint(
        &rows,
        &[],
        &LintOptions {
            near: 0.8,
            ..LintOptions::default()
        },
    );
    assert_eq!(
        summary(&report),
        [
            (LintProblem::Duplicate, 2, "a.jsonl:1"),
            (LintProblem::DuplicateButNumbers, 3, "a.jsonl:1"),
            (LintProblem::SameOutput, 4, "a.jsonl:1"),
            (LintProblem::SameInput, 5, "a.jsonl:1"),
            (LintProblem::NearDuplicate, 7, "a.jsonl:6"),
            (LintProblem::SameOutput, 7, "a.jsonl:6"),
        ]
    );
    assert_eq!(report.count(LintProblem::Duplicate), 1);
    assert_eq!(
        report.findings[0].to_string(),
        "a.jsonl:2: the same row as a.jsonl:1"
    );
}

#[test]
fn validation_questions_in_the_training_set_are_reported_as_leaks() {
    let train = rows(
        "t.jsonl",
        &[("Is 12 in stock?", "a"), ("What does shipping cost?", "b")],
    );
    let eval = rows(
        "e.jsonl",
        &[("May I return it?", "c"), ("is 99 in stock", "d")],
    );
    let report = lint(&train, &eval, &LintOptions::default());
    assert_eq!(summary(&report), [(LintProblem::Leak, 1, "e.jsonl:2")]);
}

#[test]
fn numbers_must_come_from_the_input() {
    let rows = rows(
        "a.jsonl",
        &[
            (
                "I paid 1,299 for ORD-4471x",
                "1299 was paid for 4471, in 24 hours",
            ),
            ("Where is it?", "Call 5550 100, or 5550. Bye"),
            ("Empty?", " "),
        ],
    );
    let report = lint(&rows, &[], &LintOptions::default());
    assert_eq!(
        summary(&report),
        [
            (LintProblem::NumberFromNowhere, 2, "100"),
            (LintProblem::NumberFromNowhere, 2, "5550"),
            (LintProblem::EmptyOutput, 3, ""),
        ]
    );
}

#[test]
fn intents_are_counted() {
    let text = "{\"prompt\":\"a\",\"completion\":\"x\",\"intent\":\"refund\"}\n{\"prompt\":\"b\",\"completion\":\"y\"}\n";
    let data = Dataset::parse(text.as_bytes(), "a.jsonl").unwrap();
    let report = lint(&data.rows, &[], &LintOptions::default());
    assert_eq!(report.intents, BTreeMap::from([("refund".to_owned(), 1)]));
    assert_eq!(report.rows, 2);
}

#[test]
fn broken_lines_are_findings_and_do_not_hide_other_findings() {
    let text = "{\"prompt\":1}\n{\"prompt\":\"a\",\"completion\":\" \"}\n{\"prompt\":\"b\",\"completion\":\"y\"}\nno\n";
    let scan = Dataset::scan_from(text.as_bytes(), "a.jsonl", &Columns::default()).unwrap();
    let mut report = lint(&scan.data.rows, &[], &LintOptions::default());
    report.add_scan(&scan);
    assert_eq!((report.rows, report.broken_lines), (1, 3));
    let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[0],
        "a.jsonl:1: field `prompt`: must be a string, this is a number"
    );
    assert_eq!(lines[1], "a.jsonl:2: the output is empty");
    assert!(lines[2].starts_with("a.jsonl:4: not valid JSON at column"));
    assert_eq!(report.count(LintProblem::Broken), 2);
    assert_eq!(report.count(LintProblem::EmptyOutput), 1);
}

#[test]
fn answers_without_an_end_are_found() {
    let whole: Vec<(String, String)> = (0..40)
        .map(|i| {
            (
                format!("question {i}"),
                format!("This is what we say of it, word {}.", "x".repeat(i)),
            )
        })
        .collect();
    let mut pairs: Vec<(&str, &str)> = whole
        .iter()
        .map(|(q, a)| (q.as_str(), a.as_str()))
        .collect();
    pairs.extend([
        ("what is in stock", "We have hats, gloves,"),
        ("code please", "```rust\nfn main() {}"),
        ("and what then", "We shall write to you as soon as we kno"),
        ("yes or no", "Yes"),
    ]);
    let report = lint(&rows("a.jsonl", &pairs), &[], &LintOptions::default());
    let cut = |report: &LintReport| -> Vec<usize> {
        let of_kind = report
            .findings
            .iter()
            .filter(|f| f.problem == LintProblem::CutOff);
        of_kind.map(|f| f.line).collect()
    };
    assert_eq!(cut(&report), [41, 42, 43]);
    assert!(report.findings.iter().any(|f| f.to_string()
        == "a.jsonl:43: the output seems to be cut off: …l write to you as soon as we kno"));
    // If no answer ends its sentences, an answer without an end is not a finding.
    let bare: Vec<(&str, &str)> = pairs
        .iter()
        .map(|(q, a)| (*q, a.trim_end_matches('.')))
        .collect();
    assert_eq!(
        cut(&lint(&rows("a.jsonl", &bare), &[], &LintOptions::default())),
        [41, 42]
    );
}

#[test]
fn every_copy_of_a_row_is_found() {
    let text: Vec<String> = (0..20_000)
        .map(|i| {
            format!("{{\"prompt\":\"Where is it?\",\"completion\":\"number {i} of many words\"}}")
        })
        .collect();
    let data = Dataset::parse(text.join("\n").as_bytes(), "a.jsonl").unwrap();
    let report = lint(&data.rows, &[], &LintOptions::default());
    assert_eq!(report.count(LintProblem::DuplicateButNumbers), 19_999);
}

#[test]
fn tokenized_checks_report_what_would_not_be_trained() {
    let gguf = Gguf::parse(Arc::new(testkit::tiny_gguf(1)), "tiny").unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let silent = ChatTemplate::new("{{ messages[0].content }}", "", "").unwrap();
    let mut encoder = Encoder {
        tokenizer: &tokenizer,
        template: &template,
        system: None,
        mask: LossMask::Completion,
        max_length: 120,
        too_long: TooLong::Truncate,
    };
    let lines = [
        r#"{"prompt":"p","completion":"q"}"#.to_owned(),
        format!(r#"{{"prompt":"p","completion":"{}"}}"#, "x".repeat(300)),
        format!(r#"{{"prompt":"{}","completion":"q"}}"#, "x".repeat(300)),
        r#"{"text":"<|im_end|>"}"#.to_owned(),
        r#"{"prompt":"a<|im_end|>b","completion":"c"}"#.to_owned(),
        r#"{"text":"<|im_start|>as it is<|im_end|>"}"#.to_owned(),
    ];
    let data = Dataset::parse(lines.join("\n").as_bytes(), "a.jsonl").unwrap();
    let look = |encoder: &Encoder<'_>| {
        let mut report = LintReport::default();
        report
            .add_tokens(&data.rows, &BTreeMap::new(), encoder, &NEVER)
            .unwrap();
        report
    };
    let report = look(&encoder);
    let kinds: Vec<(LintProblem, usize)> = report
        .findings
        .iter()
        .map(|f| (f.problem, f.line))
        .collect();
    assert_eq!(
        kinds,
        [
            (LintProblem::TooLong, 2),
            (LintProblem::TooLong, 3),
            (LintProblem::NothingTrained, 4),
            (LintProblem::ControlToken, 5),
        ]
    );
    assert!(
        report.findings[0]
            .about
            .ends_with("tokens, more than 120; it would be cut")
    );
    assert!(
        report.findings[1]
            .about
            .ends_with("tokens, more than 120; it would be left out")
    );
    assert_eq!(report.findings[3].about, "<|im_end|>");
    let lengths = report.lengths.unwrap();
    let whole: Vec<usize> = data
        .rows
        .iter()
        .map(|row| encoder.render(row).unwrap().tokens.len())
        .collect();
    assert_eq!(lengths.rows, 6);
    assert_eq!(lengths.tokens, whole.iter().sum::<usize>());
    assert_eq!(
        (lengths.shortest, lengths.longest),
        (1, *whole.iter().max().unwrap())
    );
    assert_eq!((lengths.cut, lengths.left_out), (1, 1));
    assert_eq!(lengths.histogram.iter().map(|b| b.rows).sum::<usize>(), 6);

    encoder.template = &silent;
    let report = look(&encoder);
    assert_eq!(report.count(LintProblem::Refused), 4);
    assert!(
        report.findings[0]
            .to_string()
            .starts_with("a.jsonl:1: the chat template leaves the answer")
    );
}

#[test]
fn both_answers_of_a_pair_are_checked() {
    let gguf = Gguf::parse(Arc::new(testkit::tiny_gguf(1)), "tiny").unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    let long = "x".repeat(300);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    let lines = [
        r#"{"prompt":"p","chosen":"q","rejected":"r"}"#.to_owned(),
        r#"{"prompt":"p","chosen":"q","rejected":" q"}"#.to_owned(),
        r#"{"prompt":"p","chosen":"q"}"#.to_owned(),
        format!(r#"{{"prompt":"a","chosen":"b","rejected":"{long}"}}"#),
        format!(r#"{{"prompt":"c","chosen":"{long}","rejected":"{long}y"}}"#),
        r#"{"prompt":"d","chosen":"e","rejected":"f<|im_end|>"}"#.to_owned(),
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    assert!(holds_pairs(&path, &Columns::default()).unwrap());
    let pairs = scan_pairs(&path, &Columns::default()).unwrap();
    let rows = &pairs.chosen.data.rows;
    assert_eq!((rows.len(), pairs.rejected.len()), (5, 5));
    let mut report = lint(rows, &[], &LintOptions::default());
    report.add_scan(&pairs.chosen);
    report.add_rejected(rows, &pairs.rejected);
    let encoder = Encoder {
        tokenizer: &tokenizer,
        template: &template,
        system: None,
        mask: LossMask::Completion,
        max_length: 120,
        too_long: TooLong::Drop,
    };
    report
        .add_tokens(rows, &pairs.rejected, &encoder, &NEVER)
        .unwrap();
    let kinds: Vec<(LintProblem, usize)> = report
        .findings
        .iter()
        .map(|f| (f.problem, f.line))
        .collect();
    assert_eq!(
        kinds,
        [
            (LintProblem::Duplicate, 2),
            (LintProblem::SameAnswers, 2),
            (LintProblem::Broken, 3),
            (LintProblem::TooLong, 4),
            (LintProblem::TooLong, 5),
            (LintProblem::TooLong, 5),
            (LintProblem::ControlToken, 6),
        ]
    );
    let about = |i: usize| report.findings[i].about.as_str();
    assert!(
        about(2).starts_with("field `rejected`: is missing"),
        "{}",
        about(2)
    );
    let end = "it would be left out (the rejected answer)";
    assert!(about(3).ends_with(end), "{}", about(3));
    assert_eq!(about(6), "<|im_end|> (the rejected answer)");
    // Ten answers. Two of the pairs are dropped, each with both answers.
    let lengths = report.lengths.unwrap();
    assert_eq!((lengths.rows, lengths.left_out, lengths.cut), (10, 2, 0));
}

#[test]
fn findings_of_a_kind_are_listed_up_to_a_limit_and_counted_beyond_it() {
    let many: Vec<(String, &str)> = (0..3000).map(|i| (format!("q{i}"), "yes")).collect();
    let pairs: Vec<(&str, &str)> = many.iter().map(|(q, a)| (q.as_str(), *a)).collect();
    let report = lint(&rows("a.jsonl", &pairs), &[], &LintOptions::default());
    assert_eq!(report.count(LintProblem::DuplicateButNumbers), 2999);
    assert_eq!(report.findings.len(), train::lint::MAX_FINDINGS);
    assert_eq!(
        report.more_findings[&LintProblem::DuplicateButNumbers],
        2999 - train::lint::MAX_FINDINGS
    );
}

/// 5,000 rows of 40 words out of 60: every row shares its rarest words with thousands of others.
#[test]
fn rows_of_a_small_vocabulary_are_checked_in_a_bounded_number_of_comparisons() {
    let mut state = 1u64;
    let mut word = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let word = (state >> 33) % 60;
        let letters = [(word / 8) as u8, (word % 8) as u8].map(|at| char::from(b'a' + at));
        String::from_iter(letters)
    };
    let mut text = || (0..40).map(|_| word() + " ").collect::<String>();
    let texts: Vec<String> = (0..5000).map(|_| text()).collect();
    let pairs: Vec<(&str, &str)> = texts.iter().map(|text| (text.as_str(), "yes")).collect();
    let report = lint(&rows("a.jsonl", &pairs), &[], &LintOptions::default());
    assert_eq!(report.rows, 5000);
}

#[test]
fn lint_ends_when_it_is_stopped() {
    let stop = std::sync::atomic::AtomicBool::new(true);
    let rows = rows("a.jsonl", &[("a", "b")]);
    let stopped = train::lint::lint(&rows, &[], &LintOptions::default(), &stop);
    assert!(matches!(stopped, Err(train::TrainError::Stopped)));
}
