//! Shapes of rows and pairs in published data sets.

use std::path::Path;

use dataset::{Columns, DataRow, Dataset, holds_pairs, scan_pairs};

fn written(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn null_columns_count_as_absent() {
    let text = "{\"messages\":null,\"instruction\":\"When do you open?\",\"input\":null,\"output\":\"At nine.\"}\n\
                {\"instruction\":null,\"prompt\":\"p\",\"completion\":\"c\",\"label\":null}\n";
    let data = Dataset::parse(text.as_bytes(), "rows.jsonl").unwrap();
    let outputs: Vec<&str> = data.rows.iter().map(DataRow::output).collect();
    assert_eq!(outputs, ["At nine.", "c"]);
}

#[test]
fn conversational_prompts_and_completions_are_read() {
    let user = r#"[{"role":"user","content":"q"}]"#;
    let answer = r#"[{"role":"assistant","content":"a"}]"#;
    let text = format!(
        "{{\"prompt\":{user},\"completion\":{answer}}}\n{{\"prompt\":\"q\",\"completion\":{answer}}}\n{{\"prompt\":{user},\"completion\":\"a\"}}\n"
    );
    let data = Dataset::parse(text.as_bytes(), "rows.jsonl").unwrap();
    for row in &data.rows {
        assert_eq!((row.input().as_str(), row.output()), ("q", "a"));
        assert_eq!(row.turns(None).unwrap().len(), 2);
    }
}

#[test]
fn published_pairs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let [user, chosen, rejected] = [("user", "q"), ("assistant", "a"), ("assistant", "b")]
        .map(|(role, content)| format!(r#"{{"role":"{role}","content":"{content}"}}"#));
    for line in [
        // A text as the prompt, and whole conversations.
        format!(r#"{{"prompt":"q","chosen":[{user},{chosen}],"rejected":[{user},{rejected}]}}"#),
        format!(r#"{{"prompt":[{user}],"chosen":[{user},{chosen}],"rejected":[{user},{rejected}]}}"#),
        // LLaMA-Factory, in both spellings.
        r#"{"conversations":[{"from":"human","value":"q"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#.to_owned(),
        r#"{"instruction":"q","input":"","chosen":"a","rejected":"b"}"#.to_owned(),
        r#"{"messages":null,"prompt":"q","chosen":"a","rejected":"b"}"#.to_owned(),
        r#"{"question":"q","chosen":"a","rejected":"b"}"#.to_owned(),
        // HH-RLHF's transcripts, with and without a prompt.
        r#"{"chosen":"\n\nHuman: q\n\nAssistant: a","rejected":"\n\nHuman: q\n\nAssistant: b"}"#.to_owned(),
        r#"{"prompt":"\n\nHuman: q\n\nAssistant:","chosen":" a","rejected":" b"}"#.to_owned(),
    ] {
        let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
        assert!(holds_pairs(&path, &Columns::default()).unwrap(), "{line}");
        let scan = scan_pairs(&path, &Columns::default()).unwrap();
        let broken: Vec<String> = scan.chosen.broken.iter().map(ToString::to_string).collect();
        assert_eq!(broken, [""; 0], "{line}");
        let rejected = scan.rejected.values().next().unwrap();
        for (row, answer) in [(&scan.chosen.data.rows[0], "a"), (rejected, "b")] {
            assert_eq!((row.input().as_str(), row.output().trim()), ("q", answer), "{line}");
        }
    }
    let line = r#"{"system":"s","history":[["h","i"]],"prompt":"q","chosen":"a","rejected":"b"}"#;
    let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
    let scan = scan_pairs(&path, &Columns::default()).unwrap();
    let roles: Vec<String> = scan.chosen.data.rows[0]
        .turns(Some("other"))
        .unwrap()
        .into_iter()
        .map(|turn| turn.content)
        .collect();
    assert_eq!(roles, ["s", "h", "i", "q", "a"]);
    let table = written(
        folder.path(),
        "pairs.csv",
        b"prompt,chosen,rejected\nq,a,b\n",
    );
    assert!(holds_pairs(&table, &Columns::default()).unwrap());
}

/// The contents of the turns of the chosen answer of a pair, and the message if it is broken.
fn chosen_turns(line: &str) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
    let chosen = scan_pairs(&path, &Columns::default()).unwrap().chosen;
    let rows = chosen.data.rows.iter();
    let turns = rows.flat_map(|row| row.turns(None).unwrap());
    let broken = chosen.broken.first().map(ToString::to_string);
    (
        turns.map(|turn| turn.content).collect(),
        broken.unwrap_or_default(),
    )
}

#[test]
fn question_next_to_a_system_prompt_is_the_prompt_of_a_pair() {
    let line = r#"{"system":"Be kind","question":"Which lamp is best?","chosen":"The blue lamp.","rejected":"Go away."}"#;
    let (turns, broken) = chosen_turns(line);
    assert_eq!(
        turns,
        ["Be kind", "Which lamp is best?", "The blue lamp."],
        "{broken}"
    );
}

#[test]
fn pair_without_a_turn_of_the_user_is_broken_and_names_the_fields() {
    for line in [
        r#"{"system":"Be kind","query":"Which?","chosen":"Blue.","rejected":"No."}"#,
        r#"{"system":"s","chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]}"#,
        r#"{"prompt":[{"role":"system","content":"s"}],"chosen":"a","rejected":"b"}"#,
    ] {
        let (turns, broken) = chosen_turns(line);
        assert_eq!(turns, [""; 0]);
        assert!(
            broken.contains("no turn of the user") && broken.contains("`prompt`, `question`"),
            "{line}: {broken}"
        );
    }
}

#[test]
fn transcripts_of_several_turns_share_their_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let shared =
        "\\n\\nHuman: Hi\\n\\nAssistant: Hello!\\n\\nHuman: A list?\\n\\n1. one\\n\\nAssistant: ";
    let line = format!(r#"{{"chosen":"{shared}Yes.","rejected":"{shared}No."}}"#);
    let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
    let scan = scan_pairs(&path, &Columns::default()).unwrap();
    let turns = scan.chosen.data.rows[0].turns(None).unwrap();
    let turns: Vec<(&str, &str)> = turns
        .iter()
        .map(|turn| (turn.role.as_str(), turn.content.as_str()))
        .collect();
    let expected = [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "A list?\n\n1. one"),
        ("assistant", "Yes."),
    ];
    assert_eq!(turns, expected);
    let line =
        r#"{"chosen":"\n\nHuman: q\n\nAssistant: ","rejected":"\n\nHuman: q\n\nAssistant: b"}"#;
    let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
    let scan = scan_pairs(&path, &Columns::default()).unwrap();
    let message = scan.chosen.broken[0].to_string();
    assert!(
        message.ends_with("field `chosen`: the answer is empty"),
        "{message}"
    );
}

#[test]
fn pairs_under_other_column_names_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let line = r#"{"question":"q","good":"a","bad":"b"}"#;
    let path = written(folder.path(), "pairs.jsonl", line.as_bytes());
    let mut columns = Columns::default();
    assert!(!holds_pairs(&path, &columns).unwrap());
    for (field, column) in [
        ("prompt", "question"),
        ("chosen", "good"),
        ("rejected", "bad"),
    ] {
        columns.set(field, column).unwrap();
    }
    assert!(holds_pairs(&path, &columns).unwrap());
    let scan = scan_pairs(&path, &columns).unwrap();
    assert_eq!(scan.chosen.data.rows[0].output(), "a");
    // A column that is read as another field is not an answer.
    let mut columns = Columns::default();
    columns.set("completion", "chosen").unwrap();
    let path = written(
        folder.path(),
        "rows.jsonl",
        br#"{"prompt":"q","chosen":"a","rejected":"b"}"#,
    );
    assert!(!holds_pairs(&path, &columns).unwrap());
}
