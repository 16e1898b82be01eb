//! Aliases of `--model-alias` in requests about models. Requests for answers are in `model_names.rs`, jobs that continue an adapter in
//! `continued_adapters.rs`.

use super::*;

const ALIASES: [&str; 5] = [
    "nice=warm",
    "nice-1=warm@1",
    "Strict/2=formal@2",
    "gpt=tiny",
    "mix=warm@1*0.50 + formal@2*0.5",
];

#[test]
fn alias_in_a_vote_is_a_vote_on_what_it_means() {
    let fixture = JobsFixture::new();
    let server = fixture.start_with_aliases(&ALIASES);
    let vote = |a: &str, b: &str| {
        let body = json!({"a": a, "b": b, "winner": "a"});
        server.http.post("/v1/votes", &body)
    };
    for (a, b, wins) in [
        ("nice-1", "Strict/2", 1),
        ("warm@1", "Strict/2", 2),
        (" nice-1 ", "Strict/2", 3),
    ] {
        let tally = vote(a, b).json();
        let found = (&tally["a"], &tally["b"], &tally["a_wins"]);
        assert_eq!(
            found,
            (&json!("formal@2"), &json!("warm@1"), &json!(0)),
            "{tally}"
        );
        assert_eq!(tally["b_wins"], wins, "{tally}");
    }
    let tally = vote("mix", "gpt").json();
    assert_eq!(
        (&tally["a"], &tally["b"]),
        (&json!("tiny"), &json!("warm@1*0.5+formal@2*0.5"))
    );
    let tally = vote("LORY/Tiny", "warm@1*0.5+formal@2*0.5").json();
    assert_eq!(tally["a"], "tiny");
    for (a, b, param, expected) in [
        (
            "nice",
            "tiny",
            "a",
            "a: warm has no version, and its current one may change; name one, such as warm@1",
        ),
        (
            "tiny",
            "nice-1@1",
            "b",
            "b: no model is named \"nice-1@1\"; the models are tiny",
        ),
        ("nice-1", "warm@1", "b", "b is the same as a"),
        ("warm@1", " warm@1", "b", "b is the same as a"),
    ] {
        let (status, _, about, message) = vote(a, b).error();
        assert_eq!((status, about), (400, json!(param)), "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn alias_in_an_evaluation_or_a_gate_means_its_persona() {
    let fixture = JobsFixture::new();
    let server = fixture.start_with_aliases(&ALIASES);
    let file = server.upload(&rows(12));
    let body = json!({"personas": ["nice", "Strict/2"], "file": file, "max_rows": 1});
    let asked = server.http.post("/v1/evaluations", &body).json();
    assert_eq!(asked["personas"], json!(["warm@1", "formal@2"]), "{asked}");
    for (personas, index, expected) in [
        (json!(["nice", "warm"]), 1, "warm@1 is listed twice"),
        (json!(["gpt"]), 0, "is the base, which is always measured"),
        (json!(["mix"]), 0, "is a blend"),
        (json!(["nice*0.5"]), 0, "no model is named"),
        (json!(["warm", "nice-1@1"]), 1, "no model is named"),
    ] {
        let body = json!({"personas": personas, "file": file});
        let (status, _, param, message) = server.http.post("/v1/evaluations", &body).error();
        assert_eq!(
            (status, param),
            (400, json!(format!("personas[{index}]"))),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");

        let mut job = super::body(&file, "more");
        job["gate"] = json!({"distinct_at_least": 0, "beside": personas});
        let (status, _, param, message) = server.create(&job).error();
        assert_eq!(
            (status, param),
            (400, json!(format!("gate.beside[{index}]"))),
            "{message}"
        );
        let expected = match expected {
            "is the base, which is always measured" => "is the base; name a persona",
            "warm@1 is listed twice" => "warm is listed twice",
            other => other,
        };
        assert!(message.contains(expected), "{message}");
    }
    // The persona that a job publishes is not compared with itself, whatever it is called.
    let mut job = super::body(&file, "warm");
    job["gate"] = json!({"distinct_at_least": 0, "beside": ["nice"]});
    let (_, _, param, message) = server.create(&job).error();
    assert_eq!(param, "gate.beside[0]", "{message}");
    assert!(
        message.contains("is the persona that the job publishes"),
        "{message}"
    );
}
