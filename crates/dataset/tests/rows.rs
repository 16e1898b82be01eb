//! Reading data files: row shapes, renamed columns, broken lines, hostile bytes, the split.

use std::collections::BTreeMap;

use dataset::{
    Columns, DataRow, Dataset, DatasetError, DatasetScan, MAX_BROKEN, MAX_BYTES, MAX_LINE,
    MAX_TURNS, RowContent, held_out,
};

fn parse(text: &str) -> Result<Dataset, DatasetError> {
    Dataset::parse(text.as_bytes(), "rows.jsonl")
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn scan(text: &[u8]) -> DatasetScan {
    Dataset::scan_from(text, "rows.jsonl", &Columns::default()).unwrap()
}

fn columns(pairs: &[(&str, &str)]) -> Columns {
    let mut columns = Columns::default();
    for (field, column) in pairs {
        columns.set(field, column).unwrap();
    }
    columns
}

fn renamed(text: &str, pairs: &[(&str, &str)]) -> Result<Dataset, DatasetError> {
    Dataset::scan_from(text.as_bytes(), "rows.jsonl", &columns(pairs))?.whole()
}

#[test]
fn reads_every_shape_and_ignores_other_columns() {
    let data = parse(concat!(
        "\u{feff}{\"instruction\":\"Track\",\"input\":\"#12\",\"output\":\"On its way\",\"intent\":\"track\",\"text\":\"x\"}\r\n",
        "\n",
        "{\"instruction\":\"Hi\",\"input\":null,\"output\":\"Hello\"}\n",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"name\":\"x\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n",
        "{\"prompt\":\"p\",\"completion\":\"c\",\"source\":7}\n",
        "{\"text\":\"plain\"}",
    ))
    .unwrap();
    let read: Vec<(usize, String, &str)> = data
        .rows
        .iter()
        .map(|row| (row.location.line, row.input(), row.output()))
        .collect();
    assert_eq!(
        read,
        [
            (1, "Track\n\n#12".to_owned(), "On its way"),
            (3, "Hi".to_owned(), "Hello"),
            (4, "q".to_owned(), "a"),
            (5, "p".to_owned(), "c"),
            (6, String::new(), "plain"),
        ]
    );
    assert_eq!(data.rows[0].intent.as_deref(), Some("track"));
    assert_eq!(data.hash.len(), 64);
}

#[test]
fn both_conversation_formats_give_the_same_turns() {
    let data = parse(concat!(
        r#"{"id":"7","conversations":[{"from":"system","value":"s"},{"from":"human","value":"a"},{"from":"gpt","value":"b","weight":1},{"from":"user","value":"c"},{"from":"assistant","value":"d"}]}"#,
        "\n",
        r#"{"conversations":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#,
        "\n",
        r#"{"messages":[{"from":"system","value":"s"},{"role":"human","content":"a"},{"role":"gpt","content":"b"},{"from":"user","value":"c"},{"from":"assistant","value":"d"}]}"#,
    ))
    .unwrap();
    let RowContent::Messages(turns) = &data.rows[0].content else {
        panic!("{:?}", data.rows[0]);
    };
    let turns: Vec<(&str, &str)> = turns
        .iter()
        .map(|turn| (turn.role.as_str(), turn.content.as_str()))
        .collect();
    let expected = [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ];
    assert_eq!(turns, expected);
    assert_eq!(data.rows[0].content, data.rows[1].content);
    assert_eq!(data.rows[0].content, data.rows[2].content);
}

/// The turns of one row, and the fields that are dropped.
fn turns_of(line: &str) -> (Vec<String>, Vec<String>) {
    let scan = scan(line.as_bytes());
    let broken: Vec<String> = scan.broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken, [""; 0], "{line}");
    let turns = scan.data.rows[0].turns(None).unwrap().into_iter();
    let turns = turns.map(|turn| format!("{}: {}", turn.role, turn.content));
    (turns.collect(), scan.fields.dropped.into_keys().collect())
}

#[test]
fn columns_of_published_data_sets_are_read_under_their_own_names() {
    for (line, turns, dropped) in [
        // Dolly.
        (
            r#"{"instruction":"q","context":"c","response":"a","category":"closed_qa"}"#,
            &["user: q\n\nc", "assistant: a"][..],
            &["category"][..],
        ),
        (
            r#"{"instruction":"q","context":"","response":"a"}"#,
            &["user: q", "assistant: a"],
            &[],
        ),
        (
            r#"{"instruction":"q","input":"i","context":"c","output":"a","response":"r"}"#,
            &["user: q\n\ni", "assistant: a"],
            &["context", "response"],
        ),
        (
            r#"{"instruction":"q","context":["c"],"output":"a"}"#,
            &["user: q", "assistant: a"],
            &["context"],
        ),
        // MetaMath and ms-swift.
        (
            r#"{"query":"q","response":"a","history":[["h","i"]],"system":"s","type":"MATH"}"#,
            &[
                "system: s",
                "user: h",
                "assistant: i",
                "user: q",
                "assistant: a",
            ],
            &["type"],
        ),
        (
            r#"{"messages":[{"role":"user","content":"q"},{"role":"tool_call","content":"{\"name\":\"f\",\"arguments\":{}}"},{"role":"tool_response","content":"42"},{"role":"assistant","content":"a"}]}"#,
            &[
                "user: q",
                "assistant: <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
                "user: <tool_response>\n42\n</tool_response>",
                "assistant: a",
            ],
            &[],
        ),
        // LMSYS-Chat, WildChat and Capybara.
        (
            r#"{"conversation":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"turn":1}"#,
            &["user: q", "assistant: a"],
            &["turn"],
        ),
        (
            r#"{"conversation":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
            &["user: q", "assistant: a"],
            &[],
        ),
        (
            r#"{"conversation":[{"input":"q","output":"a"},{"input":"r","output":"b","id":1}]}"#,
            &["user: q", "assistant: a", "user: r", "assistant: b"],
            &["conversations.id"],
        ),
    ] {
        let (read, unused) = turns_of(line);
        assert_eq!(read, turns, "{line}");
        assert_eq!(unused, dropped, "{line}");
    }
    // A column that is mapped has that meaning only.
    let error = renamed(
        r#"{"instruction":"q","response":"a"}"#,
        &[("text", "response")],
    );
    assert!(error.is_ok_and(|data| data.rows[0].content == RowContent::Text("a".to_owned())));
}

#[test]
fn system_message_may_be_in_the_middle_of_a_conversation() {
    let line = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"developer","content":"s"},{"role":"user","content":"r"},{"role":"assistant","content":"b"}]}"#;
    let expected = [
        "user: q",
        "assistant: a",
        "system: s",
        "user: r",
        "assistant: b",
    ];
    assert_eq!(turns_of(line).0, expected);
}

#[test]
fn columns_can_be_renamed() {
    let text =
        "{\"question\":\"q\",\"context\":\"c\",\"answer\":\"a\",\"text\":\"no\",\"kind\":\"k\"}\n";
    let names = [
        ("instruction", "question"),
        ("input", "context"),
        ("output", "answer"),
        ("intent", "kind"),
    ];
    let data = renamed(text, &names).unwrap();
    assert_eq!(data.rows[0].input(), "q\n\nc");
    assert_eq!(data.rows[0].output(), "a");
    assert_eq!(data.rows[0].intent.as_deref(), Some("k"));
    // A column that is mapped to another field no longer supplies the field of its name.
    let swapped = [("prompt", "completion"), ("completion", "prompt")];
    let data = renamed("{\"prompt\":\"a\",\"completion\":\"q\"}", &swapped).unwrap();
    assert_eq!(
        (data.rows[0].input().as_str(), data.rows[0].output()),
        ("q", "a")
    );
    let dialog =
        "{\"dialog\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}]}";
    let data = renamed(dialog, &[("conversations", "dialog")]).unwrap();
    assert_eq!(data.rows[0].output(), "a");

    let refusal =
        |text: &str, pairs: &[(&str, &str)]| renamed(text, pairs).unwrap_err().to_string();
    assert_eq!(
        refusal(
            "{\"question\":\"q\",\"answer\":3}",
            &[("instruction", "question"), ("output", "answer")]
        ),
        "rows.jsonl:1: field `answer`: (read as `output`) must be a string, this is a number"
    );
    assert!(
        refusal("{\"q\":\"q\"}", &[("text", "body")]).contains("found `q`")
            && refusal("{\"q\":\"q\"}", &[("text", "body")]).contains("with `body` read as `text`")
    );
    assert!(
        refusal(
            "{\"dialog\":[{\"from\":\"bot\",\"value\":\"q\"}]}",
            &[("conversations", "dialog")]
        )
        .contains("field `dialog[0].from`: (read as `conversations`) role `bot`")
    );
}

#[test]
fn broken_row_is_reported_by_file_line_and_field() {
    let good = "{\"prompt\":\"p\",\"completion\":\"c\"}\n";
    let long: Vec<String> = (0..=MAX_TURNS)
        .map(|_| "{\"role\":\"user\",\"content\":\"x\"}".to_owned())
        .collect();
    let long = format!("{{\"messages\":[{}]}}", long.join(","));
    let cases = [
        (
            "{\"instruction\":\"a\",\"output\":\"  \"}",
            "field `output`: the answer is empty",
        ),
        ("{\"instruction\":\"a\"}", "field `output`: is missing"),
        (
            "{\"instruction\":\"a\",\"category\":\"b\",\"Gold Answer\":\"c\"}",
            "field `output`: is missing; if it is in the column `Gold Answer`, rename that to `output`, or map it in `columns`: output='Gold Answer'",
        ),
        (
            "{\"prompt\":\"a\",\"source\":\"b\",\"response\":\"c\"}",
            "if it is in the column `response`, rename that to `completion`, or map it in `columns`: completion=response",
        ),
        (
            "{\"instruction\":\"a\",\"category\":\"b\",\"source\":\"c\",\"xyz\":\"d\"}",
            "field `output`: is missing; the row has category, source, xyz; rename the column that it is in to `output`",
        ),
        (
            "{\"prompt\":\"a\",\"completion\":\"b\"},",
            "trailing characters; remove the comma behind the row",
        ),
        ("{'prompt': 'a'}", "JSON has double quotes"),
        (
            "{\"text\":\"a\",\"score\":NaN}",
            "field `score` is NaN, which JSON does not have; write null, or leave the field out",
        ),
        (
            "{\"text\":\"a\",\"scores\":[1,-Infinity]}",
            "field `scores[1]` is -Infinity, which JSON does not have",
        ),
        (
            "{\"text\":\"a\",\"score\":Infinity}",
            "field `score` is Infinity, which JSON does not have",
        ),
        (
            "Where is my parcel?",
            "a row is a JSON object, such as {\"prompt\"",
        ),
        (
            "{\"Text\":\"a\",\"source\":\"b\"}",
            "rename columns, or map them in `columns`: text=Text",
        ),
        (
            "{\"data\":[{\"prompt\":\"a\",\"completion\":\"b\"}]}",
            "if `data` is the list of rows, write that list alone",
        ),
        (
            "{\"dialog\":[{\"role\":\"user\",\"content\":\"a\"}]}",
            "rename columns, or map them in `columns`: conversations=dialog",
        ),
        (
            "{\"Question\":\"a\",\"topic\":\"b\",\"Answer\":\"c\"}",
            "rename columns, or map them in `columns`: instruction=Question output=Answer",
        ),
        (
            "{\"conversation\":[{\"input\":\"a\",\"output\":\" \"}]}",
            "field `conversation[0].output`: (read as `conversations`) the answer is empty",
        ),
        (
            "{\"instruction\":\"a\",\"output\":3}",
            "field `output`: must be a string, this is a number",
        ),
        (
            "{\"instruction\":\"a\",\"input\":[],\"output\":\"b\"}",
            "field `input`: must be a string or null",
        ),
        ("{\"prompt\":\"a\"}", "field `completion`: is missing"),
        ("{\"text\":\"\"}", "field `text`: is empty"),
        (
            "{\"text\":\"a\\u0000b\"}",
            "field `text`: has a NUL at character 2",
        ),
        ("{\"messages\":[]}", "field `messages`: the list is empty"),
        ("{\"messages\":{}}", "field `messages`: must be a list"),
        (
            "{\"messages\":[{\"role\":\"critic\",\"content\":\"x\"}]}",
            "field `messages[0].role`: role `critic`",
        ),
        (
            "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}",
            "has no message of the assistant",
        ),
        (
            "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}",
            "field `messages[0].content`: must be a string",
        ),
        (
            "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
            "has no message of the assistant",
        ),
        (
            "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\"}]}",
            "field `messages[0].content`: the answer",
        ),
        (
            "{\"conversations\":[{\"from\":\"human\"}]}",
            "field `conversations[0].value`: is missing",
        ),
        (
            "{\"conversations\":[\"x\"]}",
            "field `conversations[0]`: must be an object",
        ),
        (&long, "field `messages`: has 1001 turns; at most 1000"),
        ("{\"q\":1}", "found `q`"),
        ("{\"\\u001b[2J\":1}", "found `\u{fffd}[2J`"),
        ("[1,2]", "a row must be a JSON object, this is a list"),
        ("{\"prompt\":", "not valid JSON at column 10"),
        ("{\"prompt\":", "a row must be whole on its line"),
        ("[", "write one object a line, without the list's brackets"),
        (
            "{\"text\":\"\\ud800\"}",
            "field `text` has half of a surrogate pair",
        ),
        (
            "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud83d\\ud83d\"}]}",
            "field `messages[0].content` has half of a surrogate pair",
        ),
        ("{\"text\":\"a\u{0}b\"}", "not valid JSON"),
        ("\u{0}\u{0}", "not valid JSON at column 1"),
    ];
    for (row, expected) in cases {
        let message = error(&format!("{good}{row}\n"));
        assert!(message.starts_with("rows.jsonl:2: "), "{message}");
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn broken_lines_are_counted_and_the_other_rows_are_read() {
    let text = "nope\n{\"text\":\"a\"}\n\n{\"text\":1}\r\n{\"text\":\"b\"}\n";
    let scan = scan(text.as_bytes());
    let lines: Vec<usize> = scan.data.rows.iter().map(|row| row.location.line).collect();
    assert_eq!(lines, [2, 5]);
    assert_eq!(scan.broken_lines, 2);
    let message = scan.whole().unwrap_err().to_string();
    assert!(
        message.starts_with("rows.jsonl: 2 lines are broken:\n  rows.jsonl:1: not valid JSON"),
        "{message}"
    );
    assert!(message.contains("\n  rows.jsonl:4: field `text`: must be a string"));

    let many = Dataset::scan_from(
        "x\n".repeat(1500).as_bytes(),
        "rows.jsonl",
        &Columns::default(),
    );
    let many = many.unwrap();
    assert_eq!((many.broken.len(), many.broken_lines), (MAX_BROKEN, 1500));
    let message = many.whole().unwrap_err().to_string();
    assert!(message.starts_with("rows.jsonl: 1500 lines are broken:"));
    assert!(message.ends_with("and 1490 more"), "{message}");
    assert_eq!(message.lines().count(), 12);
}

#[test]
fn limits_and_hostile_bytes_are_rejected_by_line() {
    let text = |length: usize| format!("{{\"text\":\"{}\"}}", "x".repeat(length - 11));
    assert_eq!(text(MAX_LINE).len(), MAX_LINE);
    for end in ["", "\n", "\r\n"] {
        let all = format!("{}{end}", text(MAX_LINE));
        assert_eq!(parse(&all).unwrap().rows.len(), 1);
        // The lines after an overlong line are read.
        for too_long in [1, 2, 3, 70_000, 3 * MAX_LINE] {
            let all = format!("{}{end}\n{}", text(MAX_LINE + too_long), text(20));
            let scan = scan(all.as_bytes());
            assert_eq!((scan.data.rows.len(), scan.broken_lines), (1, 1));
            let message = scan.broken[0].to_string();
            assert!(message.starts_with("rows.jsonl:1: the line is longer than 1048576 bytes"));
        }
    }
    let bytes = b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n";
    let message = scan(bytes).whole().unwrap_err().to_string();
    assert!(
        message.starts_with("rows.jsonl:2: not UTF-8 text at byte 10"),
        "{message}"
    );
    let utf16 = Dataset::parse(&b"\xff\xfe{\0\"\0"[..], "rows.jsonl").unwrap_err();
    assert_eq!(
        utf16.to_string(),
        "rows.jsonl: the file is UTF-16; save it as UTF-8"
    );
    let deep = error(&format!("{{\"text\":{}}}", "[".repeat(10_000)));
    assert!(
        deep.contains("not valid JSON at column ") && deep.contains("127 levels of nesting"),
        "{deep}"
    );
    assert!(error("\n \n").contains("holds no rows"));
    assert!(error("").contains("holds no rows"));
}

fn numbered(numbers: impl Iterator<Item = usize>) -> Vec<DataRow> {
    let lines: Vec<String> = numbers
        .map(|i| format!("{{\"prompt\":\"p{i}\",\"completion\":\"c\"}}"))
        .collect();
    parse(&lines.join("\n")).unwrap().rows
}

#[test]
fn split_side_of_a_row_does_not_depend_on_other_rows() {
    let sides = |rows: &[DataRow]| -> BTreeMap<String, bool> {
        let inputs = rows.iter().map(DataRow::input);
        inputs.zip(held_out(rows, 0.1)).collect()
    };
    let rows = numbered(0..300);
    let known = sides(&rows);
    let count = known.values().filter(|held_out| **held_out).count();
    assert!((15..50).contains(&count), "{count}");
    // In another order, with rows added, with rows taken away, on other lines.
    for other in [
        numbered((0..300).rev()),
        numbered((0..900).map(|i| i * 7 % 900)),
        numbered(100..300),
    ] {
        let found = sides(&other);
        let same = found.iter().filter(|(row, _)| known.contains_key(*row));
        let mut compared = 0;
        for (row, held_out) in same {
            assert_eq!(known[row], *held_out, "{row}");
            compared += 1;
        }
        assert!(compared >= 200);
    }
}

#[test]
fn copies_of_a_row_are_on_one_side_of_the_split() {
    let text = |i: usize| {
        format!(
            "{{\"prompt\":\"Where is order {i}?\",\"completion\":\"On its way\"}}\n\
             {{\"prompt\":\"where  is ORDER {i}?\",\"completion\":\"On its way \"}}\n\
             {{\"instruction\":\"Where is order {i}?\",\"output\":\"On its way\"}}\n"
        )
    };
    let rows = parse(&(0..200).map(text).collect::<String>()).unwrap().rows;
    let sides = held_out(&rows, 0.3);
    assert!(sides.iter().any(|held_out| *held_out));
    for copies in sides.chunks(3) {
        assert!(copies.iter().all(|side| *side == copies[0]));
    }
}

#[test]
fn no_side_of_the_split_is_empty() {
    let lines: Vec<String> = (0..500)
        .map(|i| format!("{{\"prompt\":\"p{}\",\"completion\":\"c\"}}", i % 400))
        .collect();
    let (train, held) = parse(&lines.join("\n")).unwrap().split(0.2);
    assert_eq!(train.len() + held.len(), 500);
    assert!((60..140).contains(&held.len()), "{}", held.len());
    assert!(
        held.iter()
            .all(|row| train.iter().all(|other| other.input() != row.input()))
    );
    let (train, held) = parse(&lines[..2].join("\n")).unwrap().split(0.01);
    assert_eq!((train.len(), held.len()), (1, 1));
    let (train, held) = parse(&lines[..1].join("\n")).unwrap().split(0.5);
    assert_eq!((train.len(), held.len()), (1, 0));
    let (train, held) = parse(&lines.join("\n")).unwrap().split(0.0);
    assert_eq!((train.len(), held.len()), (500, 0));
}

/// The example rows and settings in the documentation are valid.
#[test]
fn documented_files_are_read() {
    let page = include_str!("../../../docs/data.md");
    let blocks = |language: &str| -> Vec<&str> {
        let start = format!("```{language}\n");
        let parts = page.split(start.as_str()).skip(1);
        parts
            .map(|part| part.split("```").next().unwrap())
            .collect()
    };
    let rows: Vec<DataRow> = blocks("jsonl")
        .iter()
        .flat_map(|block| parse(block).unwrap().rows)
        .collect();
    let with = |shape: fn(&RowContent) -> bool| rows.iter().any(|row| shape(&row.content));
    assert!(with(|content| matches!(content, RowContent::Alpaca { .. })));
    assert!(with(|content| matches!(
        content,
        RowContent::Completion { .. }
    )));
    assert!(with(|content| matches!(content, RowContent::Messages(_))));
    assert!(with(|content| matches!(content, RowContent::Text(_))));
    let renamed = blocks("json");
    let names = columns(&[("instruction", "question"), ("output", "answer")]);
    let data = Dataset::scan_from(renamed[0].as_bytes(), "page", &names).unwrap();
    assert_eq!(data.whole().unwrap().rows.len(), 1);
}

#[test]
fn a_file_is_checked_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |i: usize| format!("{{\"prompt\":\"{i}\",\"completion\":\"a\"}}\n");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let checked = Dataset::check(&path, &Columns::default(), MAX_BYTES, &dataset::stop::NEVER);
        let read = Dataset::read(&path);
        (
            checked.map_err(|error| error.to_string()),
            read.map_err(|error| error.to_string()),
        )
    };
    let (checked, read) = check(&(0..50).map(row).collect::<String>());
    let (checked, read) = (checked.unwrap(), read.unwrap());
    assert_eq!(checked.rows, 50);
    let sides: Vec<bool> = read
        .rows
        .iter()
        .map(|row| checked.hold_out.is_held_out(row, 0.1))
        .collect();
    assert_eq!(sides, held_out(&read.rows, 0.1));
    for broken in ["", "no\n", &format!("{}no\n{{}}\n", row(1))] {
        let (checked, read) = check(broken);
        assert_eq!(checked.unwrap_err(), read.unwrap_err());
    }
}
