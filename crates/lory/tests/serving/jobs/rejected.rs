//! Invalid files and jobs are rejected.

use testkit::server::TestServer;

use super::*;
use crate::setup;

#[test]
fn broken_files_are_rejected_with_their_lines() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let send = |fields: &[(&str, Option<&str>, &str)]| {
        server
            .http
            .send("POST", "/v1/files", &[FORM], &form(fields))
            .read_all()
    };
    let purpose = ("purpose", None, "fine-tune");
    let broken = format!(
        "{}{{\"instruction\": \"Hi\"}}\n{}nonsense\n",
        rows(2),
        rows(1)
    );
    let (status, code, param, message) =
        send(&[("file", Some("mine.jsonl"), &broken), purpose]).error();
    assert_eq!(
        (status, code.as_str(), param),
        (400, "invalid_file", json!("file"))
    );
    assert!(
        message.starts_with("mine.jsonl: 2 lines are broken"),
        "{message}"
    );
    assert!(
        message.contains("mine.jsonl:3: ") && message.contains("mine.jsonl:5: "),
        "{message}"
    );
    assert!(
        !message.contains(fixture.folder.path().to_str().unwrap()),
        "{message}"
    );
    let good = rows(1);
    let file = ("file", Some("mine.jsonl"), good.as_str());
    for (fields, code, param) in [
        (vec![file], "missing_field", "purpose"),
        (vec![purpose], "missing_field", "file"),
        (
            vec![file, ("purpose", None, "assistants")],
            "unsupported_value",
            "purpose",
        ),
        (
            vec![file, purpose, ("expires_after[anchor]", None, "created_at")],
            "unknown_field",
            "expires_after[anchor]",
        ),
        (vec![file, file, purpose], "invalid_value", "file"),
    ] {
        let (status, found, about, message) = send(&fields).error();
        assert_eq!(
            (status, found.as_str(), about),
            (400, code, json!(param)),
            "{message}"
        );
    }
    assert_eq!(
        server.http.post("/v1/files", &json!({})).error().1,
        "invalid_body"
    );
    let files = server.http.get("/v1/files").json();
    assert_eq!(files["data"], json!([]));
    assert_eq!(
        std::fs::read_dir(fixture.path("jobs/files"))
            .unwrap()
            .count(),
        0
    );

    let id = server.upload(&good);
    let reply = server.http.get(&format!("/v1/files/{id}/content"));
    assert_eq!((reply.status, &reply.text), (200, &good));
    let file = server.http.get(&format!("/v1/files/{id}")).json();
    assert_eq!(
        (&file["filename"], &file["rows"], &file["bytes"]),
        (&json!("mine.jsonl"), &json!(1), &json!(good.len()))
    );
    let listed = server
        .http
        .get("/v1/files?purpose=fine-tune&limit=5&order=asc")
        .json();
    assert_eq!(
        (&listed["data"][0], &listed["has_more"]),
        (&file, &json!(false))
    );
}

#[test]
fn invalid_jobs_are_rejected_by_field() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(8));
    let with = |changes: Value| {
        let mut body = body(&file, "x");
        for (name, value) in changes.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    for (changes, status, code, param) in [
        (
            json!({"training_file": "file-none"}),
            404,
            "file_not_found",
            "training_file",
        ),
        (
            json!({"validation_file": "file-none"}),
            404,
            "file_not_found",
            "validation_file",
        ),
        (json!({"model": "nobody"}), 400, "invalid_value", "model"),
        (
            json!({"model": "warm+formal"}),
            400,
            "invalid_value",
            "model",
        ),
        (
            json!({"suffix": "Not A Name"}),
            400,
            "invalid_value",
            "suffix",
        ),
        (json!({"suffix": "tiny"}), 400, "invalid_value", "suffix"),
        (
            json!({"hyperparameters": {"rank": 0}}),
            400,
            "invalid_value",
            "hyperparameters.rank",
        ),
        (
            json!({"hyperparameters": {"ranks": 1}}),
            400,
            "invalid_value",
            "hyperparameters.ranks",
        ),
        (
            json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {}}}}),
            400,
            "invalid_value",
            "hyperparameters",
        ),
        (
            json!({"method": {"type": "reinforcement"}}),
            400,
            "invalid_value",
            "method.type",
        ),
        (
            json!({"integrations": [{"type": "wandb"}]}),
            400,
            "invalid_value",
            "integrations",
        ),
        (
            json!({"metadata": {"k": "v".repeat(513)}}),
            400,
            "invalid_value",
            "metadata",
        ),
        (
            json!({"gate": {"tone_at_least": 2}}),
            400,
            "invalid_value",
            "gate.tone_at_least",
        ),
        (
            json!({"gate": {"any_of": ["("]}}),
            400,
            "invalid_value",
            "gate.any_of",
        ),
        (
            json!({"gate": {"tone": 1}}),
            400,
            "unknown_field",
            "gate.tone",
        ),
        (
            json!({"sample_prompts": ["a", "b", "c", "d", "e"]}),
            400,
            "invalid_value",
            "sample_prompts",
        ),
        (
            json!({"sample_prompts": ["a", " "]}),
            400,
            "invalid_value",
            "sample_prompts[1]",
        ),
        (
            json!({"sample_prompts": ["a".repeat(4097)]}),
            400,
            "invalid_value",
            "sample_prompts[0]",
        ),
        (
            json!({"sample_prompts": ["x7 ".repeat(1000)]}),
            400,
            "invalid_value",
            "sample_prompts[0]",
        ),
        (json!({"epochs": 1}), 400, "unknown_field", "epochs"),
    ] {
        let (found, found_code, about, message) = server.create(&with(changes)).error();
        assert_eq!(
            (found, found_code.as_str(), about),
            (status, code, json!(param)),
            "{message}"
        );
    }
    for (path, status, code) in [
        ("/v1/fine_tuning/jobs/ftjob-none", 404, "job_not_found"),
        (
            "/v1/fine_tuning/jobs/ftjob-none/events",
            404,
            "job_not_found",
        ),
        (
            "/v1/fine_tuning/jobs/ftjob-none/samples",
            404,
            "job_not_found",
        ),
        (
            "/v1/fine_tuning/jobs/ftjob-none/samples?limit=1",
            400,
            "unknown_field",
        ),
        ("/v1/fine_tuning/jobs?limit=0", 400, "invalid_value"),
        ("/v1/fine_tuning/jobs?limit=101", 400, "invalid_value"),
        ("/v1/fine_tuning/jobs?page=2", 400, "unknown_field"),
        ("/v1/fine_tuning/jobs?after=ftjob-none", 400, "invalid_page"),
        ("/v1/files/file-none/rows", 404, "file_not_found"),
    ] {
        let (found, found_code, ..) = server.http.get(path).error();
        assert_eq!((found, found_code.as_str()), (status, code), "{path}");
    }
    // Too long rows are found when the files are validated.
    let mut refuse = with(json!({}));
    refuse["hyperparameters"] = json!({"max_length": 4, "too_long": "refuse"});
    let id = server.created(&refuse);
    let job = loop {
        let job = server.job(&id);
        if job["status"] == "failed" {
            break job;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let message = job["error"]["message"].as_str().unwrap();
    assert_eq!(job["error"]["code"], "invalid_training_file");
    assert!(message.contains("mine.jsonl:1"), "{message}");
    // A server without a jobs folder refuses files.
    let none = TestServer::start(setup::service(&Settings::default()));
    let (status, code, _, message) = none.get("/v1/files").error();
    assert_eq!((status, code.as_str()), (409, "no_jobs"), "{message}");
}

#[test]
fn a_full_queue_refuses_jobs() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(4));
    let ids: Vec<String> = (0..jobs::MAX_OPEN_JOBS)
        .map(|_| server.created(&endless(&file, "long")))
        .collect();
    let (status, code, _, message) = server.create(&endless(&file, "long")).error();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    assert!(
        message.starts_with("the limit of 64 unfinished jobs is reached"),
        "{message}"
    );
    assert_eq!(server.turn(&ids[9], "cancel").status, 200);
    server.created(&endless(&file, "long"));
}

#[test]
fn training_next_to_a_base_on_a_card_is_rejected_with_the_reason() {
    let Some(device) = testkit::gpu::vulkan() else {
        return;
    };
    let fixture = JobsFixture::new();
    let server = fixture.start_on(device);
    let file = server.upload(&rows(4));
    let (status, code, _, message) = server.create(&body(&file, "sunny")).error();
    assert_eq!((status, code.as_str()), (409, "no_jobs"));
    assert!(message.contains("vulkan:0"), "{message}");
    assert!(message.contains("--device cpu"), "{message}");
}
