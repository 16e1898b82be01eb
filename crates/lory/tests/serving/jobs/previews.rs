//! Previews of files and jobs, and what a key can see.

use super::*;

#[test]
fn responses_match_the_openapi_document() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let document = server.http.get("/openapi.json").json();
    let check = |method: &str, route: &str, value: &Value| {
        let answer = &document["paths"][route][method]["responses"]["200"];
        let schema = &answer["content"]["application/json"]["schema"];
        assert!(!schema.is_null(), "{method} {route}");
        let found = complaints(&document, schema, value, route);
        assert!(found.is_empty(), "{found:?} in {value}");
    };
    let file = server.upload(&rows(12));
    let created = server.create(&body(&file, "shown")).json();
    check("post", "/v1/fine_tuning/jobs", &created);
    let id = created["id"].as_str().unwrap();
    server.succeeded(id);
    for (route, path) in [
        ("/v1/files", "/v1/files".to_owned()),
        ("/v1/files/{file_id}", format!("/v1/files/{file}")),
        ("/v1/files/{file_id}/rows", format!("/v1/files/{file}/rows")),
        ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs".to_owned()),
        (
            "/v1/fine_tuning/jobs/{job_id}",
            format!("/v1/fine_tuning/jobs/{id}"),
        ),
        (
            "/v1/fine_tuning/jobs/{job_id}/events",
            format!("/v1/fine_tuning/jobs/{id}/events"),
        ),
        (
            "/v1/fine_tuning/jobs/{job_id}/checkpoints",
            format!("/v1/fine_tuning/jobs/{id}/checkpoints"),
        ),
        (
            "/v1/fine_tuning/jobs/{job_id}/samples",
            format!("/v1/fine_tuning/jobs/{id}/samples"),
        ),
    ] {
        let answer = server.http.get(&path);
        assert_eq!(answer.status, 200, "{}", answer.text);
        check("get", route, &answer.json());
    }
}

#[test]
fn rows_lint_findings_and_plans_are_previewed() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let text = rows(6) + &rows(1) + "{\"instruction\":\"Again?\",\"output\":\"See \"}\n";
    let file = server.upload(&text);
    let shown = server
        .http
        .get(&format!(
            "/v1/files/{file}/rows?first=2&limit=2&system_prompt=Be%20kind."
        ))
        .json();
    assert_eq!(shown["total"], 8);
    let row = &shown["data"][0];
    assert_eq!(
        (&row["row"], &row["line"], &row["answer"]["fate"]),
        (&json!(2), &json!(2), &json!("whole"))
    );
    let parts = row["answer"]["parts"].as_array().unwrap();
    let of = |trained: bool| -> String {
        let of = parts.iter().filter(|part| part["trained"] == trained);
        of.map(|part| part["text"].as_str().unwrap()).collect()
    };
    assert!(
        of(false).contains("Be kind.") && of(false).contains("Where is order 101?"),
        "{row}"
    );
    assert!(of(true).contains("Yay, order 101."), "{row}");
    let short = server
        .http
        .get(&format!("/v1/files/{file}/rows?max_length=5&limit=1"))
        .json();
    assert_eq!(short["data"][0]["answer"]["fate"], "left_out");

    let lint = server.http.get(&format!("/v1/files/{file}/lint")).json();
    let findings = lint["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|f| f["problem"] == "duplicate" && f["line"] == 7 && f["file"] == "mine.jsonl"),
        "{lint}"
    );
    assert!(
        !lint
            .to_string()
            .contains(fixture.folder.path().to_str().unwrap()),
        "{lint}"
    );

    let plan = server
        .http
        .post("/v1/fine_tuning/plan", &body(&file, "planned"));
    assert_eq!(plan.status, 200, "{}", plan.text);
    let plan = plan.json();
    assert!(plan["plan"]["steps"].as_u64().unwrap() > 0, "{plan}");
    assert!(plan["memory_needed"].as_u64().unwrap() > 0, "{plan}");
    assert!(plan["seconds"].as_f64().unwrap() > 0.0, "{plan}");
    let jobs = server.http.get("/v1/fine_tuning/jobs").json();
    assert_eq!(jobs["data"], json!([]));
}

#[test]
fn a_training_key_sees_only_its_own_files_and_jobs() {
    let fixture = JobsFixture::new();
    let file = fixture.path("keys.toml");
    let table = |name: &str, more: &str| {
        let sha256 = SecretHash::of(&format!("secret-{name}"));
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
    };
    let text = table("one", "train = true\npersonas = ['acme-*']\nbase = true")
        + &table("two", "train = true")
        + &table("asks", "")
        + &table("ops", "admin = true");
    std::fs::write(&file, text).unwrap();
    let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
    let server = fixture.start_with(ServerSettings {
        keys,
        ..ServerSettings::default()
    });
    let send = |key: &str, method: &str, path: &str, kind: &str, body: &[u8]| {
        let bearer = format!("Bearer secret-{key}");
        let headers = [("Authorization", &*bearer), ("Content-Type", kind)];
        server.http.send(method, path, &headers, body).read_all()
    };
    let json_kind = "application/json";
    let get = |key: &str, path: &str| send(key, "GET", path, json_kind, b"");
    assert_eq!(server.http.get("/v1/files").error().1, "missing_api_key");
    assert_eq!(get("asks", "/v1/files").error().1, "training_not_allowed");
    assert_eq!(get("asks", "/v1/fine_tuning/jobs").error().0, 403);
    let text = rows(8);
    let upload = form(&[
        ("purpose", None, "fine-tune"),
        ("file", Some("a.jsonl"), &text),
    ]);
    let reply = send("one", "POST", "/v1/files", FORM.1, &upload);
    let file = reply.json()["id"].as_str().unwrap().to_owned();
    let create = |key: &str, suffix: &str| {
        let body = body(&file, suffix).to_string();
        send(
            key,
            "POST",
            "/v1/fine_tuning/jobs",
            json_kind,
            body.as_bytes(),
        )
    };
    // Not for a persona that the key may not use, nor on a file of another key.
    assert_eq!(create("one", "other").error().1, "persona_not_allowed");
    assert_eq!(create("two", "acme-a").error().1, "file_not_found");
    let job = create("one", "acme-a").json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/fine_tuning/jobs/{job}");
    assert_eq!(get("two", &path).error().1, "job_not_found");
    let samples = format!("{path}/samples");
    assert_eq!(get("two", &samples).error().1, "job_not_found");
    assert_eq!(get("one", &samples).status, 200);
    assert_eq!(
        send("two", "POST", &format!("{path}/cancel"), json_kind, b"").status,
        404
    );
    assert_eq!(get("two", "/v1/files").json()["data"], json!([]));
    assert_eq!(get("ops", "/v1/files").json()["data"][0]["id"], json!(file));
    for key in ["one", "ops"] {
        assert_eq!(get(key, &path).status, 200);
        assert_eq!(
            get(key, "/v1/fine_tuning/jobs").json()["data"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }
    // Only an admin key publishes what the gate refused.
    let mut refused = body(&file, "acme-b");
    refused["gate"] = json!({"loss_at_most": 0.001, "tone_at_least": 0, "copied_at_least": 0});
    let text = refused.to_string();
    let jobs = "/v1/fine_tuning/jobs";
    let job = send("one", "POST", jobs, json_kind, text.as_bytes()).json();
    let path = format!("{jobs}/{}", job["id"].as_str().unwrap());
    while get("one", &path).json()["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let publish = |key: &str| send(key, "POST", &format!("{path}/publish"), json_kind, b"{}");
    assert_eq!(publish("two").error().1, "job_not_found");
    assert_eq!(publish("one").error().1, "admin_only");
    assert_eq!(publish("ops").json()["fine_tuned_model"], json!("acme-b@1"));
    // Evaluations: only of personas that the key may use, on its own files, and visible to it alone.
    let evaluations = "/v1/evaluations";
    let evaluate = |key: &str, who: &str| {
        let body = json!({"personas": [who], "file": file, "max_rows": 1}).to_string();
        send(key, "POST", evaluations, json_kind, body.as_bytes())
    };
    assert_eq!(evaluate("asks", "warm").error().1, "training_not_allowed");
    assert_eq!(evaluate("one", "warm").error().1, "persona_not_allowed");
    assert_eq!(evaluate("two", "warm").error().1, "file_not_found");
    let asked = evaluate("one", "acme-b").json();
    let path = format!("{evaluations}/{}", asked["id"].as_str().unwrap());
    assert_eq!(get("two", &path).error().1, "evaluation_not_found");
    let cancel = send("two", "POST", &format!("{path}/cancel"), json_kind, b"");
    assert_eq!(cancel.error().1, "evaluation_not_found");
    while get("one", &path).json()["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let result = get("ops", &path).json()["result"].clone();
    assert_eq!(get("one", &path).json()["result"], result);
    assert_eq!(get("one", evaluations).error().1, "admin_only");
    let kept = format!("{evaluations}/{}", result["id"].as_str().unwrap());
    assert_eq!(get("one", &kept).error().1, "admin_only");
    assert_eq!(get("ops", &kept).json(), result);
}
