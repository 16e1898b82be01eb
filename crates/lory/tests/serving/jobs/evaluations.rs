//! Requested evaluations.

use super::*;
use testkit::tiny::adapter;

/// Adds a persona with evaluation rows, whose tone check every answer passes.
pub(super) fn with_rows(fixture: &JobsFixture) {
    let text = "system_prompt = \"You are quick.\"\nmax_new_tokens = 8\n[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\n[eval]\nany_of = ['']\ncopied_at_least = 0.0\n";
    fixture.home.persona("quick", text, Some(&adapter(13)));
    let folder = fixture.home.base().parent().unwrap().join("personas/quick");
    for name in ["train.jsonl", "eval.jsonl"] {
        std::fs::write(folder.join(name), rows(5)).unwrap();
    }
}

impl RunningServer {
    fn evaluate(&self, body: &Value) -> Value {
        let reply = self.http.post("/v1/evaluations", body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }

    /// Waits until `when` holds for the evaluation.
    #[track_caller]
    fn evaluation(&self, asked: &Value, when: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/evaluations/{}", asked["id"].as_str().unwrap());
        let began = Instant::now();
        loop {
            let found = self.http.get(&path).json();
            if when(&found) {
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{found:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn measured(&self, body: &Value) -> Value {
        let over = |found: &Value| found["finished_at"].is_number();
        let found = self.evaluation(&self.evaluate(body), over);
        assert_eq!(found["status"], "succeeded", "{found:#}");
        found
    }
}

fn is(status: &str) -> impl Fn(&Value) -> bool {
    move |found| found["status"] == status
}

#[test]
fn personas_are_evaluated_on_request() {
    let fixture = JobsFixture::new();
    with_rows(&fixture);
    let server = fixture.start();
    let document = server.http.get("/openapi.json").json();
    let check = |method: &str, route: &str, value: &Value| {
        let answer = &document["paths"][route][method]["responses"]["200"];
        let schema = &answer["content"]["application/json"]["schema"];
        let found = complaints(&document, schema, value, route);
        assert!(
            !schema.is_null() && found.is_empty(),
            "{found:?} in {value}"
        );
    };
    let file = server.upload(&rows(12));
    let wanted = json!({"personas": ["warm", "formal@2"], "file": file, "max_rows": 3});
    let asked = server.evaluate(&wanted);
    check("post", "/v1/evaluations", &asked);
    assert_eq!(asked["personas"], json!(["warm@1", "formal@2"]));
    assert!(asked["id"].as_str().unwrap().starts_with("eval-"));
    let found = server.evaluation(&asked, is("succeeded"));
    // Parts: each persona's rows for itself and for the base, the common questions, the losses, and each drift.
    let parts = 2 * 3 * 2 + 1 + 2;
    assert_eq!(found["progress"], json!({"done": parts, "of": parts}));
    let result = &found["result"];
    assert_eq!(result["personas"][0]["persona"]["answers"], 3);
    assert_eq!(result["common_questions"], 3);
    for (rows, under) in [("warm", "formal"), ("formal", "warm"), ("warm", "tiny")] {
        assert!(
            result["losses"][rows][under].as_f64().unwrap() > 0.0,
            "{result:#}"
        );
    }
    assert!(result["distinct"]["warm"]["formal"].is_number());
    assert_eq!(result["samples"][0]["question"], "Where is order 100?");

    // The result is listed with those of `lory eval`.
    let listed = server.http.get("/v1/evaluations").json();
    check("get", "/v1/evaluations", &listed);
    assert_eq!(listed["data"][0]["id"], result["id"]);
    let path = format!("/v1/evaluations/{}", result["id"].as_str().unwrap());
    assert_eq!(&server.http.get(&path).json(), result);
    let path = format!("/v1/evaluations/{}/cancel", asked["id"].as_str().unwrap());
    let over = server.http.send("POST", &path, &[], b"").read_all();
    assert_eq!(over.error().1, "evaluation_state");

    // Next to a training job the result is the same, and both finish.
    let job = server.created(&endless(&file, "beside"));
    let before = server.at_step(&job, 2)["lory"]["progress"]["step"].as_u64();
    let again = server.measured(&wanted);
    for name in ["losses", "tones", "distinct", "personas", "samples", "gate"] {
        assert_eq!(again["result"][name], result[name], "{name}");
    }
    server.at_step(&job, before.unwrap() + 1);
    assert_eq!(server.turn(&job, "cancel").status, 200);

    // Its own rows and thresholds, which a published version has too.
    let own = server.measured(&json!({"personas": ["quick"]}));
    assert_eq!(own["result"]["personas"][0]["persona"]["answers"], 5);
    assert_eq!(own["result"]["gate"][0]["key"], "tone_at_least");
    assert_eq!(own["result"]["missed"], json!([]));
}

#[test]
fn versions_of_one_persona_are_labelled_apart() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    for seed in [1, 2] {
        let mut wanted = body(&file, "twice");
        wanted["seed"] = json!(seed);
        server.succeeded(&server.created(&wanted));
    }
    let found =
        server.measured(&json!({"personas": ["twice@1", "twice"], "file": file, "max_rows": 2}));
    let result = &found["result"];
    let named: Vec<(&Value, &Value)> = result["personas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (&one["name"], &one["version"]))
        .collect();
    assert_eq!(
        named,
        [(&json!("twice"), &json!(1)), (&json!("twice"), &json!(2))]
    );
    let losses = &result["losses"]["twice@1"];
    assert_ne!(losses["twice@1"], losses["twice@2"]);
    assert!(losses["twice@2"].is_number(), "{result:#}");
    assert!(result["samples"][0]["answers"]["twice@2"].is_string());
}

#[test]
fn evaluations_can_be_cancelled_and_queued_ones_survive_a_restart() {
    let fixture = JobsFixture::new();
    let (stopped, running, waiting);
    {
        let server = fixture.start();
        let file = server.upload(&rows(12));
        let wanted = json!({"personas": ["warm"], "file": file});
        let arbiter = server.jobs.service().compute_arbiter();
        // A serving step that does not end, so that no layer can run.
        let _step = arbiter.begin_step();
        stopped = server.evaluate(&wanted);
        running = server.evaluate(&wanted);
        waiting = server.evaluate(&wanted);
        let gone = server.evaluate(&wanted);
        server.evaluation(&stopped, |found| found["progress"]["of"] != 0);
        for one in [&gone, &stopped] {
            let path = format!("/v1/evaluations/{}/cancel", one["id"].as_str().unwrap());
            let reply = server.http.send("POST", &path, &[], b"").read_all();
            assert_eq!(
                (reply.status, &reply.json()["status"]),
                (200, &json!("cancelled"))
            );
        }
        server.evaluation(&running, is("running"));
        assert_eq!(
            server.evaluation(&waiting, is("queued"))["progress"]["of"],
            0
        );
        let path = format!("/v1/files/{file}");
        let (status, code, _, message) = server.http.delete(&path).error();
        assert_eq!((status, code.as_str()), (409, "file_in_use"));
        assert!(message.starts_with("eval-"), "{message}");
        // While it is still waiting for compute.
        server.jobs.shutdown();
    }
    let server = fixture.start();
    let found = server.evaluation(&running, is("failed"));
    assert_eq!(found["error"]["code"], "interrupted");
    assert!(found["finished_at"].is_number());
    let measured = server.evaluation(&waiting, is("succeeded"));
    server.evaluation(&stopped, is("cancelled"));
    let listed = server.http.get("/v1/evaluations").json();
    let ids: Vec<&Value> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(ids, [&measured["result"]["id"]]);
}

#[test]
fn invalid_evaluations_are_rejected_by_field() {
    let fixture = JobsFixture::new();
    with_rows(&fixture);
    let server = fixture.start();
    let file = server.upload(&rows(4));
    let pairs = server.upload("{\"prompt\":\"Hi\",\"chosen\":\"Yay.\",\"rejected\":\"No.\"}\n");
    let many: Vec<&str> = vec!["warm"; 9];
    for (body, status, code, param) in [
        (json!({"personas": []}), 400, "invalid_value", "personas"),
        (json!({"personas": many}), 400, "invalid_value", "personas"),
        (
            json!({"personas": ["nobody"]}),
            400,
            "invalid_value",
            "personas[0]",
        ),
        (
            json!({"personas": ["quick", "warm"]}),
            400,
            "invalid_value",
            "personas[1]",
        ),
        (
            json!({"personas": ["warm", "warm@1"], "file": file}),
            400,
            "invalid_value",
            "personas[1]",
        ),
        (
            json!({"personas": ["warm+formal"]}),
            400,
            "invalid_value",
            "personas[0]",
        ),
        (
            json!({"personas": ["warm*0.5"]}),
            400,
            "invalid_value",
            "personas[0]",
        ),
        (
            json!({"personas": ["tiny"]}),
            400,
            "invalid_value",
            "personas[0]",
        ),
        (
            json!({"personas": ["quick"], "max_rows": 0}),
            400,
            "invalid_value",
            "max_rows",
        ),
        (
            json!({"personas": ["quick"], "max_rows": 501}),
            400,
            "invalid_value",
            "max_rows",
        ),
        (
            json!({"personas": ["quick"], "file": "file-none"}),
            404,
            "file_not_found",
            "file",
        ),
        (
            json!({"personas": ["quick"], "file": pairs}),
            400,
            "invalid_value",
            "file",
        ),
        (
            json!({"personas": ["quick"], "rows": 3}),
            400,
            "unknown_field",
            "rows",
        ),
    ] {
        let (found, found_code, about, message) =
            server.http.post("/v1/evaluations", &body).error();
        assert_eq!(
            (found, found_code.as_str(), about),
            (status, code, json!(param)),
            "{message}"
        );
    }
    for path in ["/v1/evaluations/eval-none", "/v1/evaluations/7"] {
        assert_eq!(server.http.get(path).error().1, "evaluation_not_found");
    }
    // Rows without questions are found when they are read.
    let texts = server.upload("{\"text\":\"It is late.\"}\n");
    let asked = server.evaluate(&json!({"personas": ["quick"], "file": texts}));
    let found = server.evaluation(&asked, is("failed"));
    assert_eq!(found["error"]["code"], "evaluation_failed");
    let message = found["error"]["message"].as_str().unwrap();
    assert!(message.contains("plain texts"), "{message}");
    // A full queue refuses evaluations.
    let arbiter = server.jobs.service().compute_arbiter();
    let _step = arbiter.begin_step();
    let wanted = json!({"personas": ["quick"]});
    let limit = jobs::MAX_OPEN_EVALUATIONS;
    let all: Vec<Value> = (0..limit).map(|_| server.evaluate(&wanted)).collect();
    let (status, code, ..) = server.http.post("/v1/evaluations", &wanted).error();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    let path = format!("/v1/evaluations/{}/cancel", all[9]["id"].as_str().unwrap());
    assert_eq!(
        server.http.send("POST", &path, &[], b"").read_all().status,
        200
    );
    server.evaluate(&wanted);
}
