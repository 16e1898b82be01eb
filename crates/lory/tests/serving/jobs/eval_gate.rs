//! The eval gate, and publishing of kept adapters.

use super::*;
use testkit::tiny::adapter;

#[test]
fn the_gate_publishes_only_adapters_that_meet_the_thresholds() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "judged");
    wanted["gate"] = json!({"loss_at_most": 0.001, "tone_at_least": 0, "copied_at_least": 0});
    let id = server.created(&wanted);
    let job = loop {
        let job = server.job(&id);
        if job["finished_at"].is_number() {
            break job;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(
        (&job["status"], &job["error"]["code"]),
        (&json!("failed"), &json!("gate_refused"))
    );
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("judged: validation loss is"), "{message}");
    assert!(
        message.contains("wanted is at most 0.0010 (loss_at_most)"),
        "{message}"
    );
    let missed: Vec<&Value> = job["lory"]["gate"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["passed"] == false)
        .collect();
    assert_eq!(
        (missed.len(), &missed[0]["key"]),
        (1, &json!("loss_at_most"))
    );
    // The adapter is kept and is not served. The message has no path of the server.
    assert!(message.ends_with("; the adapter is kept"), "{message}");
    let weights = format!("jobs/jobs/{id}/adapter/adapter_model.safetensors");
    assert!(fixture.path(&weights).exists(), "{message}");
    let asked = json!({"prompt": "Hi", "user_type": "judged"});
    assert_eq!(server.http.post("/generate", &asked).status, 404);

    wanted["gate"] =
        json!({"loss_at_most": 50, "tone_at_least": 0, "copied_at_least": 0, "drift_at_most": 50});
    wanted["validation_file"] = json!(server.upload(&rows(4)));
    let job = server.succeeded(&server.created(&wanted));
    let checked = job["lory"]["gate"].as_array().unwrap();
    assert!(
        checked.len() == 4 && checked.iter().all(|check| check["passed"] == true),
        "{checked:?}"
    );
    assert_eq!(job["fine_tuned_model"], "judged@1");
}

#[test]
fn a_kept_adapter_is_published_on_request() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "held");
    wanted["publish"] = json!(false);
    let id = server.created(&wanted);
    let job = server.succeeded(&id);
    assert_eq!(
        (&job["fine_tuned_model"], &job["lory"]["kept"]),
        (&Value::Null, &json!(true))
    );
    let asked = json!({"prompt": "Hi", "user_type": "held"});
    assert_eq!(server.http.post("/generate", &asked).status, 404);

    // The first version of a persona must be current.
    let publish = |id: &str, body: Value| {
        let path = format!("/v1/fine_tuning/jobs/{id}/publish");
        server.http.post(&path, &body)
    };
    let waiting = publish(&id, json!({"current": false}));
    assert!(
        waiting.status == 400 && waiting.text.contains("must be current"),
        "{}",
        waiting.text
    );
    let published = publish(&id, json!({})).json();
    assert_eq!(
        (&published["fine_tuned_model"], &published["lory"]["kept"]),
        (&json!("held@1"), &json!(false))
    );
    assert_eq!(publish(&id, json!({})).error().1, "job_state");
    let first = server.hash("held");

    // What a gate refused can be published too, and becomes a version that is not current; also in the next process.
    wanted["seed"] = json!(8);
    wanted["gate"] = json!({"loss_at_most": 0.001, "tone_at_least": 0, "copied_at_least": 0});
    let id = server.created(&wanted);
    while server.job(&id)["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(server);
    let server = fixture.start();
    let path = format!("/v1/fine_tuning/jobs/{id}/publish");
    let job = server.http.post(&path, &json!({"current": false})).json();
    assert_eq!(
        (&job["status"], &job["fine_tuned_model"]),
        (&json!("failed"), &json!("held@2"))
    );
    assert_eq!(server.hash("held"), first);
    assert_ne!(server.hash("held@2"), first);
}

#[test]
fn an_adapter_is_compared_with_baselines() {
    let fixture = JobsFixture::new();
    // A persona whose tone check every answer passes.
    let text = "system_prompt = \"You are loud.\"\n[eval]\nany_of = ['']\n";
    fixture.home.persona("loud", text, Some(&adapter(13)));
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "apart");
    let gate = |more: Value| {
        let mut gate = json!({"tone_at_least": 0, "copied_at_least": 0});
        for (name, value) in more.as_object().unwrap() {
            gate[name] = value.clone();
        }
        gate
    };
    wanted["gate"] = gate(json!({"distinct_at_least": 0, "other_tone_at_most": 0.5}));
    let id = server.created(&wanted);
    while server.job(&id)["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let job = server.job(&id);
    assert_eq!(job["error"]["code"], "gate_refused", "{job:#}");
    let checked = |job: &Value, key: &str| {
        let checks = job["lory"]["gate"].as_array().unwrap();
        let found = checks.iter().find(|check| check["key"] == key);
        found.map(|check| (check["value"].clone(), check["passed"].clone()))
    };
    assert_eq!(
        checked(&job, "other_tone_at_most"),
        Some((json!(1.0), json!(false)))
    );
    let (distance, passed) = checked(&job, "distinct_at_least").unwrap();
    assert!((0.0..=1.0).contains(&distance.as_f64().unwrap()) && passed == true);

    // Named baselines.
    wanted["gate"] = gate(json!({"distinct_at_least": 0, "beside": ["formal@2"]}));
    let job = server.succeeded(&server.created(&wanted));
    let (from_one, _) = checked(&job, "distinct_at_least").unwrap();
    assert!(from_one.as_f64() >= distance.as_f64());
    assert!(checked(&job, "other_tone_at_most").is_none());
    // The adapter hardly differs from the persona that it starts from.
    wanted["gate"] = gate(json!({"distinct_at_least": 0.5, "beside": ["warm"]}));
    wanted["model"] = json!("warm");
    wanted["system_prompt"] = json!("You are warm.");
    wanted["hyperparameters"] = json!({"n_epochs": 1, "lr": 1e-9});
    let id = server.created(&wanted);
    while server.job(&id)["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.job(&id)["error"]["code"], "gate_refused");

    for (more, param) in [
        (json!({"distinct_at_least": 2}), "gate.distinct_at_least"),
        (json!({"other_tone_at_most": -1}), "gate.other_tone_at_most"),
        (json!({"beside": ["formal"]}), "gate.beside"),
        (json!({"distinct_at_least": 0, "beside": []}), "gate.beside"),
        (
            json!({"distinct_at_least": 0, "beside": ["nobody"]}),
            "gate.beside[0]",
        ),
        (
            json!({"distinct_at_least": 0, "beside": ["formal", "apart"]}),
            "gate.beside[1]",
        ),
        (
            json!({"distinct_at_least": 0, "beside": ["formal", "formal@2"]}),
            "gate.beside[1]",
        ),
        (
            json!({"distinct_at_least": 0, "beside": ["formal+warm"]}),
            "gate.beside[0]",
        ),
        (
            json!({"other_tone_at_most": 1, "beside": ["formal"]}),
            "gate.other_tone_at_most",
        ),
    ] {
        wanted["gate"] = gate(more);
        let (status, _, about, message) = server.create(&wanted).error();
        assert_eq!((status, about), (400, json!(param)), "{message}");
    }
}
