//! Training marks and the columns next to a question: what is honoured, what is left out, and what is counted as not used.

use std::collections::BTreeMap;

use dataset::stop::NEVER;
use dataset::{Columns, DataRow, Dataset, DatasetScan, RowContent, RowRange, read_range};

fn scan(lines: &[&str]) -> DatasetScan {
    let text = lines.join("\n");
    let scan = Dataset::scan_from(text.as_bytes(), "rows.jsonl", &Columns::default()).unwrap();
    let broken: Vec<String> = scan.broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken, [""; 0]);
    scan
}

fn turns(row: &DataRow) -> Vec<(String, String)> {
    let turns = row.turns(None).unwrap();
    turns.into_iter().map(|m| (m.role, m.content)).collect()
}

fn turn(role: &str, content: &str) -> (String, String) {
    (role.to_owned(), content.to_owned())
}

fn counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs
        .iter()
        .map(|(name, rows)| ((*name).to_owned(), *rows))
        .collect()
}

#[test]
fn rows_with_a_false_label_are_left_out_and_counted() {
    let scan = scan(&[
        r#"{"prompt":"q","completion":"Go and look yourself.","label":false}"#,
        r#"{"prompt":"q","completion":"On its way.","label":true}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"kto_tag":false}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"kto_tag":true}"#,
        // A class of texts does not say whether an answer is good.
        r#"{"text":"fine film","label":0}"#,
    ]);
    let outputs: Vec<&str> = scan.data.rows.iter().map(DataRow::output).collect();
    assert_eq!(outputs, ["On its way.", "a", "fine film"]);
    assert_eq!(scan.fields.skipped, counts(&[("label: false", 2)]));
    assert_eq!(
        scan.fields.honoured,
        counts(&[("kto_tag", 1), ("label", 1)])
    );
    assert_eq!(scan.fields.dropped, counts(&[("label", 1)]));
    assert_eq!(scan.fields.skipped_rows(), 2);
}

#[test]
fn file_of_rows_that_are_all_left_out_is_refused_with_the_reason() {
    let text = r#"{"prompt":"q","completion":"a","label":false}"#;
    let error = Dataset::parse(text.as_bytes(), "rows.jsonl").unwrap_err();
    assert_eq!(
        error.to_string(),
        "rows.jsonl: all of its 1 rows are left out by their marks (label: false)"
    );
}

#[test]
fn weights_of_messages_are_marks_of_their_answers() {
    let answer = |text: &str, mark: &str| {
        format!(
            r#"{{"role":"user","content":"q"}},{{"role":"assistant","content":"{text}"{mark}}}"#
        )
    };
    let row = |answers: &[String]| format!(r#"{{"messages":[{}]}}"#, answers.join(","));
    let lines = [
        row(&[answer("a", r#","weight":0"#), answer("b", r#","weight":1"#)]),
        // What follows the last answer that may be trained is of no use.
        row(&[
            answer("a", r#","train":true"#),
            answer("b", r#","train":false"#),
        ]),
        row(&[answer("a", ""), answer("b", r#","weight":0"#)]),
        row(&[answer("a", r#","weight":0"#)]),
        row(&[answer("a", r#","weight":0.5"#)]),
        row(&[answer("a", "")]),
    ];
    let scan = scan(&lines.each_ref().map(String::as_str));
    let rows = &scan.data.rows;
    let read: Vec<(&str, &[Option<bool>])> = rows
        .iter()
        .map(|row| (row.output(), row.marks.as_slice()))
        .collect();
    let (on, off): (Option<bool>, Option<bool>) = (Some(true), Some(false));
    assert_eq!(
        read,
        [
            ("b", [off, on].as_slice()),
            ("a", &[on]),
            ("a", &[]),
            ("a", &[]),
            ("a", &[]),
        ]
    );
    assert_eq!(
        scan.fields.skipped,
        counts(&[("weight: 0 on every answer", 1)])
    );
    assert_eq!(scan.fields.honoured, counts(&[("train", 1), ("weight", 2)]));
    assert_eq!(scan.fields.dropped, counts(&[("messages.weight", 1)]));
}

#[test]
fn marks_of_other_trainers_are_honoured_or_counted() {
    let row = |mark: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"q",{mark}}},{{"role":"assistant","content":"a",{mark}}},{{"role":"user","content":"r"}},{{"role":"assistant","content":"b"}}]}}"#
        )
    };
    for (mark, name, trained) in [
        (r#""loss":false"#, "loss", false),
        (r#""loss":true"#, "loss", true),
        (r#""loss":0"#, "loss", false),
        (r#""loss_weight":0.0"#, "loss_weight", false),
        (r#""loss_scale":0"#, "loss_scale", false),
        (r#""training":false"#, "training", false),
        (r#""masked":true"#, "masked", false),
        (r#""masked":false"#, "masked", true),
    ] {
        let scan = scan(&[&row(mark)]);
        assert_eq!(scan.data.rows[0].marks, [Some(trained), None], "{mark}");
        assert_eq!(scan.fields.honoured, counts(&[(name, 1)]), "{mark}");
        // Nobody trains the user's messages, so only a mark that wants it is not used.
        let wanted = format!("messages.{name}");
        let dropped: &[_] = match trained {
            true => &[(wanted.as_str(), 1)],
            false => &[],
        };
        assert_eq!(scan.fields.dropped, counts(dropped), "{mark}");
    }
    // Rows without an answer to train do not count in a range either.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let answer = |mark: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":"a{mark}"}}]}}"#
        )
    };
    let rows = [answer(r#"","loss":false,"x":""#), answer("b"), answer("c")];
    std::fs::write(&path, rows.join("\n")).unwrap();
    let range = RowRange {
        first: 1,
        limit: 1,
        max_bytes: usize::MAX,
    };
    let read = read_range(&path, &Columns::default(), range, &NEVER).unwrap();
    assert_eq!(read[0].output(), "ac");
    // What these mean is not clear, or not possible.
    for (mark, name) in [
        (r#""mask":1"#, "messages.mask"),
        (r#""loss_weight":0.5"#, "messages.loss_weight"),
        (
            r#""train_detail":[{"begin_offset":0}]"#,
            "messages.train_detail",
        ),
    ] {
        let scan = scan(&[&row(mark)]);
        assert_eq!(scan.data.rows[0].marks, [], "{mark}");
        assert_eq!(scan.fields.dropped, counts(&[(name, 1)]), "{mark}");
    }
}

#[test]
fn conversation_may_be_written_as_json_in_a_text() {
    let messages = r#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]"#;
    let line = serde_json::json!({ "messages": messages }).to_string();
    assert_eq!(
        turns(&scan(&[&line]).data.rows[0]),
        [turn("user", "q"), turn("assistant", "a")]
    );
}

#[test]
fn messages_after_the_last_answer_are_left_out_and_counted() {
    let scan = scan(&[
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"Thanks!"}]}"#,
        r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"},{"from":"observation","value":"r"},{"from":"human","value":"s"}]}"#,
        r#"{"prompt":"q","completion":[{"role":"assistant","content":"a"},{"role":"user","content":"s"}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
    ]);
    for row in &scan.data.rows {
        assert_eq!(turns(row), [turn("user", "q"), turn("assistant", "a")]);
    }
    let after = |field: &str| format!("{field} after the last answer");
    assert_eq!(
        scan.fields.dropped,
        counts(&[
            (&after("messages"), 1),
            (&after("conversations"), 1),
            (&after("completion"), 1)
        ])
    );
}

#[test]
fn tool_calls_are_trained_as_a_request_renders_them() {
    let user = r#"{"role":"user","content":"Where is 5512?"}"#;
    let call =
        "<tool_call>\n{\"name\": \"order_status\", \"arguments\": {\"id\": 5512}}\n</tool_call>";
    for (message, expected) in [
        (
            r#"{"role":"assistant","content":"Let me look.","tool_calls":[{"type":"function","function":{"name":"order_status","arguments":"{\"id\":5512}"}}]}"#,
            format!("Let me look.\n{call}"),
        ),
        (
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"order_status","arguments":{"id":5512}}}]}"#,
            call.to_owned(),
        ),
        (
            r#"{"role":"assistant","function_call":{"name":"order_status","arguments":"{\"id\":5512}"}}"#,
            call.to_owned(),
        ),
        (
            r#"{"from":"function_call","value":"{\"name\":\"order_status\",\"arguments\":{\"id\":5512}}"}"#,
            call.to_owned(),
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"function":{"name":"order_status","arguments":" "}}]}"#,
            "<tool_call>\n{\"name\": \"order_status\", \"arguments\": {}}\n</tool_call>".to_owned(),
        ),
    ] {
        let scan = scan(&[&format!(r#"{{"messages":[{user},{message}]}}"#)]);
        assert_eq!(scan.data.rows[0].output(), expected);
        assert_eq!(scan.fields.honoured, counts(&[("tool_calls", 1)]));
        assert_eq!(scan.fields.dropped, counts(&[]));
    }
    // Responses become turns of the user, as in requests.
    let responses = r#"{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},{"role":"tool","content":"1","tool_call_id":"x"},{"from":"observation","value":"2"},{"role":"assistant","content":"Both."}"#;
    let scan = scan(&[&format!(r#"{{"messages":[{user},{responses}]}}"#)]);
    let read = turns(&scan.data.rows[0]);
    assert_eq!(
        read[2],
        turn(
            "user",
            "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
        )
    );
    assert_eq!(read[3], turn("assistant", "Both."));
}

#[test]
fn nulls_that_arrow_adds_to_tools_and_their_calls_are_left_out() {
    let row = |arguments: &str, tools: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":"","tool_calls":[{{"function":{{"name":"w","arguments":{arguments}}}}}]}}],"tools":{tools}}}"#
        )
    };
    let tools = |parameters: &str| {
        format!(r#"[{{"type":"function","function":{{"name":"w","parameters":{parameters}}}}}]"#)
    };
    let schema = r#"{"type":"object","properties":{"c":{"type":"string","enum":null},"d":null,"e":{"type":"integer","default":null},"f":{"type":["string","null"]}}}"#;
    let filled = r#"{"c":"Rome","d":null,"e":null,"f":null,"g":null}"#;
    let text = tools(schema).replace('"', "\\\"");
    let lines = [
        row(filled, &tools(schema)),
        row(filled, &format!("\"{text}\"")),
        row(filled, "null"),
        row(r#""{\"c\": null}""#, &tools(schema)),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let scan = scan(&lines);
    let outputs: Vec<&str> = scan.data.rows.iter().map(|row| row.output()).collect();
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"w\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let known = call(r#"{"c": "Rome", "f": null}"#);
    let unknown = call(r#"{"c": "Rome", "d": null, "e": null, "f": null, "g": null}"#);
    let written = call(r#"{"c": null}"#);
    assert_eq!(outputs, [&known, &known, &unknown, &written]);
    let instructions = scan.data.rows[0].tools.as_deref().unwrap();
    let expected = r#""properties": {"c": {"type": "string"}, "e": {"type": "integer", "default": null}, "f": {"type": ["string", "null"]}}"#;
    assert!(instructions.contains(expected), "{instructions}");
    assert_eq!(
        scan.fields.honoured,
        counts(&[
            ("tool_calls", 4),
            ("tools", 3),
            ("tool_calls: null arguments", 3)
        ])
    );
}

#[test]
fn broken_tool_call_is_reported_by_field() {
    let error = |message: &str| {
        let text = format!(r#"{{"messages":[{{"role":"user","content":"q"}},{message}]}}"#);
        Dataset::parse(text.as_bytes(), "rows.jsonl")
            .unwrap_err()
            .to_string()
    };
    assert!(error(r#"{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}"#)
        .starts_with("rows.jsonl:1: field `messages[1].tool_calls[0].function.arguments`: is not a JSON object"));
    assert!(
        error(r#"{"role":"assistant","tool_calls":[{"function":{}}]}"#)
            .contains("field `messages[1].tool_calls[0].function.name`: is missing")
    );
    assert!(
        error(r#"{"role":"assistant","tool_calls":7}"#)
            .contains("field `messages[1].tool_calls`: must be a list of calls, this is a number")
    );
    assert!(
        error(r#"{"from":"function_call","value":"look it up"}"#)
            .contains("field `messages[1].value`: must be a call")
    );
}

#[test]
fn system_and_history_columns_become_turns() {
    let rows = scan(&[
        r#"{"instruction":"And 7?","input":"","output":"Tomorrow.","system":"Be kind.","history":[["Is 6 here?","Yes."]]}"#,
        r#"{"prompt":"Hi","completion":"Hello.","system":"Be kind."}"#,
        r#"{"conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":"Hello."}],"system":"Be kind."}"#,
        r#"{"messages":[{"role":"system","content":"Own."},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}],"system":"Other."}"#,
        r#"{"instruction":"Hi","output":"Hello.","system":"","history":[]}"#,
        r#"{"instruction":"Hi","output":"Hello.","system":7,"history":"long"}"#,
    ]);
    let read = |i: usize| turns(&rows.data.rows[i]);
    assert_eq!(
        read(0),
        [
            turn("system", "Be kind."),
            turn("user", "Is 6 here?"),
            turn("assistant", "Yes."),
            turn("user", "And 7?"),
            turn("assistant", "Tomorrow."),
        ]
    );
    let short = [
        turn("system", "Be kind."),
        turn("user", "Hi"),
        turn("assistant", "Hello."),
    ];
    assert_eq!(read(1), short);
    assert_eq!(read(2), short);
    assert_eq!(read(3)[0], turn("system", "Own."));
    for i in [4, 5] {
        assert!(matches!(
            rows.data.rows[i].content,
            RowContent::Alpaca { .. }
        ));
    }
    assert_eq!(
        rows.fields.honoured,
        counts(&[("history", 1), ("system", 3)])
    );
    assert_eq!(
        rows.fields.dropped,
        counts(&[("history", 1), ("system", 2)])
    );
}

#[test]
fn tools_of_a_row_follow_its_system_prompt() {
    let tool = r#"{"type":"function","function":{"name":"order_status","description":"Finds it.","parameters":{"type":"object"}}}"#;
    let in_text = tool.replace('"', "\\\"");
    let rows = scan(&[
        &format!(r#"{{"prompt":"Hi","completion":"Hello.","tools":[{tool}]}}"#),
        &format!(r#"{{"prompt":"Hi","completion":"Hello.","tools":"[{in_text}]"}}"#),
        r#"{"prompt":"Hi","completion":"Hello.","tools":[]}"#,
        r#"{"prompt":"Hi","completion":"Hello.","tools":"a hammer"}"#,
    ]);
    let [list, text, empty, other] = &rows.data.rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(list.tools, text.tools);
    assert!(empty.tools.is_none() && other.tools.is_none());
    let turns = list.turns(Some("Be kind.")).unwrap();
    let system = &turns[0].content;
    assert!(
        system.starts_with("Be kind.\n\n# Tools\n\nYou may call"),
        "{system}"
    );
    assert!(system.contains("\"name\": \"order_status\", \"description\": \"Finds it.\""));
    assert_eq!(list.turns(None).unwrap()[0].role, "system");
    assert_eq!(rows.fields.honoured, counts(&[("tools", 2)]));
    assert_eq!(rows.fields.dropped, counts(&[("tools", 1)]));
}

#[test]
fn fields_that_training_does_not_use_are_counted() {
    let scan = scan(&[
        r#"{"messages":[{"role":"user","content":"q","name":"eve"},{"role":"assistant","content":"a","reasoning_content":"hm","refusal":null}],"id":7,"text":"stray"}"#,
        r#"{"prompt":"p","completion":"c","id":8,"source":null}"#,
    ]);
    assert_eq!(
        scan.fields.dropped,
        counts(&[
            ("id", 2),
            ("messages.name", 1),
            ("messages.reasoning_content", 1),
            ("text", 1)
        ])
    );
    assert_eq!(
        scan.fields.lines(),
        [
            "fields that training does not use, with their rows: id (2), messages.name (1), messages.reasoning_content (1), text (1)"
        ]
    );
}
