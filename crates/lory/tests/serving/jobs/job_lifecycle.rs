//! Jobs from the upload to the published version, with pauses and restarts.

use super::*;

#[test]
fn a_job_publishes_a_version_that_serves() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "sunny");
    wanted["metadata"] = json!({"for": "a test"});
    wanted["system_prompt"] = json!("You are sunny.");
    let created = server.create(&wanted).json();
    assert_eq!(created["object"], "fine_tuning.job");
    assert_eq!(created["fine_tuned_model"], Value::Null);
    assert_eq!(created["user_provided_suffix"], "sunny");
    let id = created["id"].as_str().unwrap();
    let job = server.succeeded(id);
    assert_eq!(job["fine_tuned_model"], "sunny@1");
    assert_eq!(job["method"]["type"], "supervised");
    assert_eq!(job["hyperparameters"]["n_epochs"], 3);
    assert!(job["finished_at"].as_u64() >= job["created_at"].as_u64());
    let steps = job["lory"]["plan"]["plan"]["steps"].as_u64().unwrap();
    assert_eq!(job["lory"]["progress"]["step"].as_u64().unwrap(), steps);

    // Answers to held-out questions.
    let samples = job["lory"]["samples"].as_array().unwrap();
    assert!((1..=3).contains(&samples.len()), "{job:#}");
    let question = samples[0]["question"].as_str().unwrap();
    assert!(question.starts_with("Where is order ") && samples[0]["answer"].is_string());

    let first = server.hash("sunny@1");
    let shown = server.http.get("/v1/personas/sunny").json();
    assert_eq!(
        shown["settings"]["system_prompt"], "You are sunny.",
        "{shown}"
    );
    let chat =
        json!({"model": "sunny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    assert_eq!(server.http.post("/v1/chat/completions", &chat).status, 200);

    // Each step is logged once, the newest first, and the tokens add up.
    let events = server.list(id, "events");
    let taken: Vec<u64> = events
        .iter()
        .filter(|event| event["data"]["train_loss"].is_number())
        .map(|event| event["data"]["step"].as_u64().unwrap())
        .collect();
    assert_eq!(taken, (1..=steps).rev().collect::<Vec<_>>());
    let tokens = |event: &Value| event["data"]["tokens"].as_u64();
    let tokens: u64 = events.iter().filter_map(tokens).sum();
    assert_eq!(job["trained_tokens"].as_u64(), Some(tokens));
    assert_eq!(events[0]["message"], "The job has successfully completed");
    let last = events.last().unwrap()["message"].as_str().unwrap();
    assert!(last.starts_with("Created fine-tuning job"), "{last}");

    // One checkpoint per epoch; the best one is published.
    let states = server.list(id, "checkpoints");
    assert_eq!(states.len(), 3);
    let best = |state: &&Value| state["fine_tuned_model_checkpoint"] == "sunny@1";
    let best: Vec<&Value> = states.iter().filter(best).collect();
    assert_eq!(best.len(), 1);
    let losses = states
        .iter()
        .map(|s| s["metrics"]["full_valid_loss"].as_f64().unwrap());
    let lowest = losses.fold(f64::MAX, f64::min);
    assert_eq!(best[0]["metrics"]["full_valid_loss"], lowest);
    let path = format!(
        "/v1/fine_tuning/jobs/{id}/checkpoints?limit=1&after={}",
        states[0]["id"].as_str().unwrap()
    );
    let page = server.http.get(&path).json();
    assert_eq!(page["data"][0]["id"], states[1]["id"]);
    assert_eq!(page["has_more"], true);

    // Training continues from it: a second version, with the persona's system prompt.
    let mut more = body(&file, "sunny");
    more["model"] = json!("sunny");
    let id = server.created(&more);
    let job = server.succeeded(&id);
    assert_eq!(job["fine_tuned_model"], "sunny@2");
    assert_eq!(job["lory"]["started_from"], "sunny@1");
    assert_eq!(job["lory"]["system_prompt"], "You are sunny.");
    assert_ne!(server.hash("sunny"), first);
    assert_eq!(server.hash("sunny@1"), first);

    let found = server
        .http
        .get("/v1/fine_tuning/jobs?metadata[for]=a%20test")
        .json();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let all = server.http.get("/v1/fine_tuning/jobs?limit=1").json();
    assert_eq!(
        (&all["data"][0]["id"], &all["has_more"]),
        (&json!(id), &json!(true))
    );
    let metrics = server.http.get("/metrics").text;
    assert!(
        metrics.contains("lory_training_jobs{status=\"succeeded\"} 2"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("lory_training_tokens_total 0"),
        "{metrics}"
    );
}

#[test]
fn a_job_without_a_suffix_gets_a_generated_name() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(8));
    let id = server.created(&json!({
        "model": "base", "training_file": file,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": "auto", "rank": 2}}},
    }));
    let job = server.succeeded(&id);
    assert_eq!(job["user_provided_suffix"], Value::Null);
    let model = job["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with("ft-") && model.ends_with("@1"), "{model}");
    server.hash(model);
}

#[test]
fn dpo_jobs_train_on_pairs() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let pair = |i: usize| {
        format!(
            "{{\"prompt\":\"Where is {i}?\",\"chosen\":\"Yay, {i}.\",\"rejected\":\"It is {i}.\"}}\n"
        )
    };
    let pairs: String = (0..12).map(pair).collect();
    let file = server.upload(&pairs);
    let mut wanted = json!({
        "model": "warm", "training_file": file, "suffix": "warmer",
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": 4}}},
    });
    let job = server.succeeded(&server.created(&wanted));
    assert_eq!(job["method"]["dpo"]["hyperparameters"]["beta"], 0.2);
    assert_eq!(job["lory"]["started_from"], "warm@1");
    let accuracy = |event: &Value| event["data"]["preference_accuracy"].is_number();
    let id = job["id"].as_str().unwrap();
    assert!(server.list(id, "events").iter().any(accuracy));
    assert_eq!(job["fine_tuned_model"], "warmer@1");

    wanted["method"] = json!({"type": "supervised"});
    let (status, _, param, message) = server.create(&wanted).error();
    assert_eq!((status, param), (400, json!("training_file")));
    assert!(message.contains("use the method dpo"), "{message}");
}

#[test]
fn a_resumed_job_ends_with_the_same_bytes() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let long = |suffix: &str| {
        let mut long = body(&file, suffix);
        long["hyperparameters"]["n_epochs"] = json!(20);
        long
    };
    let whole = server.created(&long("whole"));
    server.succeeded(&whole);

    let id = server.created(&long("parts"));
    for step in [3, 40] {
        server.at_step(&id, step);
        let paused = server.turn(&id, "pause");
        assert_eq!(
            (paused.status, &paused.json()["status"]),
            (200, &json!("paused"))
        );
        // It cannot be paused twice.
        let (status, code, _, message) = server.turn(&id, "pause").error();
        assert_eq!((status, code.as_str()), (409, "job_state"));
        assert!(message.contains("is paused"), "{message}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(server.job(&id)["status"], "paused");
        assert_eq!(server.turn(&id, "resume").json()["status"], "queued");
    }
    let job = server.succeeded(&id);
    assert_eq!(server.hash("parts"), server.hash("whole"));
    let events = server.list(&id, "events");
    let is_resume = |event: &&Value| {
        event["message"]
            .as_str()
            .unwrap()
            .contains("resumed at step")
    };
    // The page has the newest hundred; the second pause is in it.
    assert!(events.iter().any(|event| is_resume(&event)));
    assert_eq!(server.turn(&id, "resume").status, 409);
    assert_eq!(job["trained_tokens"], server.job(&whole)["trained_tokens"]);
}

#[test]
fn jobs_survive_a_restart_with_the_same_bytes() {
    let fixture = JobsFixture::new();
    let (id, resting, waiting, expected);
    {
        let server = fixture.start();
        let file = server.upload(&rows(24));
        let mut long = body(&file, "one");
        long["hyperparameters"]["n_epochs"] = json!(20);
        server.succeeded(&server.created(&long));
        expected = server.hash("one");
        long["suffix"] = json!("two");
        id = server.created(&long);
        resting = server.created(&body(&file, "resting"));
        server.once(&resting, |job| job["status"] == "queued");
        assert_eq!(server.turn(&resting, "pause").status, 200);
        waiting = server.created(&body(&file, "waiting"));
        server.at_step(&id, 5);
    }
    let server = fixture.start();
    server.succeeded(&id);
    assert_eq!(server.hash("two"), expected);
    server.succeeded(&waiting);
    assert_eq!(server.job(&resting)["status"], "paused");
    server.turn(&resting, "resume");
    server.succeeded(&resting);
    // A second process cannot run the same queue.
    let location = RegistryLocation::Folder(fixture.path("registry"));
    let registry = Registry::open(&location, &fixture.path("cache")).unwrap();
    let catalog = Catalog::open(Personas::default(), registry).unwrap();
    let other = Service::open(&fixture.home.base(), catalog, &Settings::default()).unwrap();
    let settings = JobSettings {
        dir: fixture.path("jobs"),
        known_base: None,
        results: None,
        train_memory: u64::MAX,
    };
    let refused = Jobs::start(Arc::new(other), &settings).err().unwrap();
    assert!(
        refused
            .to_string()
            .contains("another process runs the jobs")
    );
}

#[test]
fn answers_do_not_change_while_a_job_trains() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let ask = |seed: u64| {
        let body = json!({
            "prompt": "Where is my order?", "user_type": "warm", "max_new_tokens": 24, "temperature": 1, "seed": seed,
        });
        server.http.generate(body)["response"].clone()
    };
    let alone: Vec<Value> = (0..6).map(ask).collect();
    let id = server.created(&endless(&file, "next_to_job"));
    let before = server.at_step(&id, 2)["lory"]["progress"]["step"].as_u64();
    for _ in 0..5 {
        let next_to_job: Vec<Value> = (0..6).map(ask).collect();
        assert_eq!(next_to_job, alone);
    }
    server.at_step(&id, before.unwrap() + 2);
    assert_eq!(server.turn(&id, "cancel").status, 200);
}

#[test]
fn a_cancelled_job_is_cleaned_up_and_the_next_one_runs() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let running = server.created(&endless(&file, "never"));
    let waiting = server.created(&endless(&file, "never-either"));
    let next = server.created(&body(&file, "next"));
    server.at_step(&running, 3);
    server.once(&waiting, |job| job["status"] == "queued");
    // Its file is still needed.
    let kept = server.http.delete(&format!("/v1/files/{file}"));
    let (status, code, _, message) = kept.error();
    assert_eq!((status, code.as_str()), (409, "file_in_use"));
    assert!(message.contains("still needs the file"), "{message}");
    for id in [&waiting, &running] {
        assert_eq!(server.turn(id, "cancel").json()["status"], "cancelled");
        assert_eq!(server.turn(id, "cancel").error().1, "job_state");
    }
    server.succeeded(&next);
    assert_eq!(server.job(&running)["status"], "cancelled");
    assert!(!fixture.path(&format!("jobs/jobs/{running}/state")).exists());
    let asked = json!({"prompt": "Hi", "user_type": "never"});
    assert_eq!(server.http.post("/generate", &asked).status, 404);
    let gone = server.http.delete(&format!("/v1/files/{file}"));
    assert_eq!(
        gone.json(),
        json!({"id": file, "object": "file", "deleted": true})
    );
    assert_eq!(server.http.get(&format!("/v1/files/{file}")).status, 404);
}
