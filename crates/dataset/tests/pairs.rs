//! Rows with their own rejected answers: shapes, and what is broken.

use std::path::Path;

use dataset::stop::NEVER;
use dataset::{
    Columns, DataRow, DatasetError, MAX_BYTES, PreferencePair, RowContent, check_pairs, each_pair,
    holds_pairs, scan_pairs,
};

fn one(line: &str) -> Result<PreferencePair, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, format!("\n\n{line}")).unwrap();
    let mut scan = scan_pairs(&path, &Columns::default()).map_err(|error| error.to_string())?;
    match scan.chosen.broken.pop() {
        Some(error) => Err(error.to_string()),
        None => Ok(PreferencePair {
            chosen: scan.chosen.data.rows.remove(0),
            rejected: scan.rejected.into_values().next().unwrap(),
        }),
    }
}

#[test]
fn every_shape_of_preference_row_is_read() {
    let turns = |row: &DataRow| match &row.content {
        RowContent::Messages(messages) => messages
            .iter()
            .map(|m| format!("{}: {}", m.role, m.content))
            .collect::<Vec<_>>(),
        _ => panic!("not messages"),
    };
    for line in [
        r#"{"prompt":"q","chosen":"a","rejected":"b","score":3}"#,
        r#"{"prompt":[{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":"b"}"#,
        r#"{"input":{"messages":[{"role":"user","content":"q"}],"tools":[]},"preferred_output":[{"role":"assistant","content":"a"}],"non_preferred_output":[{"role":"assistant","content":"b"}]}"#,
        r#"{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#,
    ] {
        let pair = one(line).unwrap();
        assert_eq!(turns(&pair.chosen), ["user: q", "assistant: a"]);
        assert_eq!(turns(&pair.rejected), ["user: q", "assistant: b"]);
    }
    let system = r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"chosen":"a","rejected":"b"}"#;
    assert_eq!(turns(&one(system).unwrap().chosen)[0], "system: s");

    let text = "\n{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n{\"prompt\":\"r\",\"chosen\":\"c\",\"rejected\":\"c \"}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let columns = Columns::default();
    let checked = check_pairs(file.path(), &columns, MAX_BYTES, &NEVER).unwrap();
    assert_eq!(checked.rows, 2);
    let mut pairs = Vec::new();
    let visit = &mut |pair: PreferencePair| {
        pairs.push(pair);
        Ok::<_, DatasetError>(())
    };
    each_pair(file.path(), &columns, &NEVER, visit).unwrap();
    assert_eq!(pairs.len(), 2);
    assert!(!pairs[0].is_same() && pairs[1].is_same());
    assert_eq!(pairs[0].rejected.output(), "b");
}

#[test]
fn messages_that_repeat_the_chosen_answer_are_not_the_question() {
    let turns = |row: &DataRow| {
        row.turns(None)
            .unwrap()
            .into_iter()
            .map(|turn| turn.content)
            .collect::<Vec<_>>()
    };
    let [user, chosen, rejected] = [("user", "q"), ("assistant", "a"), ("assistant", "b")]
        .map(|(role, content)| format!(r#"{{"role":"{role}","content":"{content}"}}"#));
    let whole = format!(r#""chosen":[{user},{chosen}],"rejected":[{user},{rejected}]"#);
    for line in [
        // UltraFeedback, binarized.
        format!(r#"{{"prompt":"q",{whole},"messages":[{user},{chosen}],"score_chosen":7.5}}"#),
        format!(r#"{{{whole},"messages":[{user},{chosen}]}}"#),
        format!(r#"{{{whole},"messages":[{user},{rejected}]}}"#),
        format!(r#"{{{whole},"conversations":[{user},{{"role":"assistant","content":"c"}}]}}"#),
        format!(r#"{{"messages":[{user},{chosen}],"chosen":[{chosen}],"rejected":"b"}}"#),
    ] {
        let pair = one(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(turns(&pair.chosen), ["q", "a"], "{line}");
        assert_eq!(turns(&pair.rejected), ["q", "b"], "{line}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        format!(r#"{{{whole},"messages":[{user},{chosen}]}}"#),
    )
    .unwrap();
    let checked = check_pairs(file.path(), &Columns::default(), MAX_BYTES, &NEVER).unwrap();
    assert_eq!(checked.fields.dropped["messages"], 1);
}

#[test]
fn pairs_of_ms_swift_are_read() {
    let turns = |row: &DataRow| {
        let turns = row.turns(None).unwrap().into_iter();
        turns.map(|turn| turn.content).collect::<Vec<_>>()
    };
    for line in [
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected_response":"b"}"#,
        r#"{"system":"s","query":"q","response":"a","rejected_response":"b"}"#,
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), line).unwrap();
        assert!(
            holds_pairs(file.path(), &Columns::default()).unwrap(),
            "{line}"
        );
        let pair = one(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(turns(&pair.chosen), ["s", "q", "a"], "{line}");
        assert_eq!(turns(&pair.rejected), ["s", "q", "b"], "{line}");
    }
    let error =
        one(r#"{"messages":[{"role":"user","content":"q"}],"rejected_response":"b"}"#).unwrap_err();
    assert!(
        error.contains("field `messages`: must end with the answer to prefer"),
        "{error}"
    );
}

#[test]
fn empty_tools_of_a_pair_are_as_none() {
    let pair = |tools: &str| {
        one(&format!(
            r#"{{"input":{{"messages":[{{"role":"user","content":"q"}}],"tools":{tools},"parallel_tool_calls":true}},"preferred_output":[{{"role":"assistant","content":"a"}}],"non_preferred_output":[{{"role":"assistant","content":"b"}}]}}"#
        ))
        .unwrap()
    };
    for tools in ["[]", "null", r#""[]""#, r#""""#, "{}", "[{}]"] {
        assert_eq!(pair(tools).chosen.tools, None, "{tools}");
    }
    for tools in [r#"[{"name":"f"}]"#, r#""[{\"name\":\"f\"}]""#] {
        assert!(pair(tools).rejected.tools.is_some(), "{tools}");
    }
}

#[test]
fn broken_pair_is_reported_by_line_and_field() {
    for (line, expected) in [
        ("7", "a row must be a JSON object, this is a number"),
        (
            r#"{"prompt":"q","chosen":"a"}"#,
            "field `rejected`: is missing",
        ),
        (
            r#"{"prompt":"q","rejected":"a"}"#,
            "field `chosen`: is missing",
        ),
        (
            r#"{"prompt":7,"chosen":"a","rejected":"b"}"#,
            "field `prompt`: must be a string, or a list",
        ),
        (
            r#"{"prompt":"q","chosen":" ","rejected":"b"}"#,
            "field `chosen`: is empty",
        ),
        (
            r#"{"prompt":"q","chosen":[],"rejected":"b"}"#,
            "field `chosen`: the list is empty",
        ),
        (
            r#"{"chosen":"a","rejected":"b"}"#,
            "field `prompt`: is missing, and",
        ),
        (
            r#"{"prompt":[{"role":"assistant","content":"x"}],"chosen":"a","rejected":"b"}"#,
            "field `prompt`: must end with the user's turn",
        ),
        (
            r#"{"prompt":"q","chosen":[{"role":"user","content":"x"}],"rejected":"b"}"#,
            "field `chosen`: must be one assistant's answer to the prompt, this is 1 messages of the roles user",
        ),
        (
            r#"{"prompt":"q","chosen":"a","rejected":[{"role":"tool","content":"x"}]}"#,
            "field `rejected`: must be one assistant's answer to the prompt, this is 1 messages of the roles user",
        ),
        (
            r#"{"prompt":"q","chosen":"a","rejected":[{"role":"assistant"}]}"#,
            "field `rejected[0].content`: is missing",
        ),
        (
            r#"{"prompt":"q","chosen":"a","rejected":[{"role":"assistant","content":""}]}"#,
            "field `rejected[0].content`: the answer is empty",
        ),
        (
            r#"{"input":{},"preferred_output":"a","non_preferred_output":"b"}"#,
            "field `input.messages`: is missing, and `preferred_output` and",
        ),
        ("{\"prompt\":", "not valid JSON at column 10"),
    ] {
        let error = one(line).unwrap_err();
        assert!(error.contains("/p.jsonl:3: "), "{error}");
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn first_row_decides_whether_a_file_has_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let holds = |text: &str| {
        std::fs::write(&path, text).unwrap();
        holds_pairs(&path, &Columns::default()).unwrap()
    };
    assert!(holds("\u{feff}\n \n{\"chosen\":1,\"rejected\":2}\n"));
    assert!(holds("{\"preferred_output\":1,\"non_preferred_output\":2}"));
    assert!(!holds(
        "{\"prompt\":\"chosen\",\"completion\":\"rejected\"}\n"
    ));
    assert!(!holds("") && !holds("{") && !holds("[1]\n{\"chosen\":1,\"rejected\":2}"));
    let error = holds_pairs(Path::new("/nowhere"), &Columns::default())
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("cannot read /nowhere"), "{error}");
}
