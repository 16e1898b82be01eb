//! Samples: the answers of an adapter while it trains.

use super::*;

impl RunningServer {
    fn samples(&self, id: &str) -> Vec<Value> {
        let path = format!("/v1/fine_tuning/jobs/{id}/samples");
        let list = self.http.get(&path).json();
        assert_eq!(
            (&list["object"], &list["has_more"]),
            (&json!("list"), &json!(false))
        );
        list["data"].as_array().unwrap().clone()
    }

    fn warnings(&self, id: &str) -> Vec<String> {
        let warns = |event: &&Value| event["level"] == "warn";
        let message = |event: &Value| event["message"].as_str().unwrap().to_owned();
        self.list(id, "events")
            .iter()
            .filter(warns)
            .map(message)
            .collect()
    }
}

#[test]
fn sampling_does_not_change_the_adapter() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "asked");
    wanted["system_prompt"] = json!("You are sunny.");
    wanted["sample_prompts"] = json!(["Where is order 7?", "Hi"]);
    let asked = server.created(&wanted);
    let job = server.succeeded(&asked);
    assert_eq!(job["lory"]["sample_prompts"], wanted["sample_prompts"]);
    let steps = job["lory"]["progress"]["steps"].as_u64().unwrap();
    let answers = server.samples(&asked);
    let order: Vec<(u64, &str)> = answers
        .iter()
        .map(|one| {
            (
                one["step"].as_u64().unwrap(),
                one["prompt"].as_str().unwrap(),
            )
        })
        .collect();
    let at = |epoch: u64| epoch * steps / 3;
    let expected: Vec<(u64, &str)> = (0..=3)
        .flat_map(|epoch| [(at(epoch), "Where is order 7?"), (at(epoch), "Hi")])
        .collect();
    assert_eq!(order, expected);
    assert!(
        answers
            .iter()
            .all(|one| one["object"] == "fine_tuning.job.sample")
    );

    // At step 0 the answer is that of the base with the system prompt; at the best step it is that of the published version.
    let answer = |model: &str, turns: Value| {
        let chat = json!({"model": model, "messages": turns, "max_tokens": 64, "temperature": 0});
        let reply = server.http.post("/v1/chat/completions", &chat).json();
        reply["choices"][0]["message"]["content"].clone()
    };
    let question = json!({"role": "user", "content": "Where is order 7?"});
    let base = answer(
        "tiny",
        json!([{"role": "system", "content": "You are sunny."}, question]),
    );
    assert_eq!(answers[0]["answer"], base);
    let states = server.list(&asked, "checkpoints");
    let kept = |state: &&Value| state["fine_tuned_model_checkpoint"] == "asked@1";
    let kept = states.iter().find(kept).unwrap()["step_number"].clone();
    let there = answers.iter().find(|one| one["step"] == kept).unwrap();
    assert_eq!(there["answer"], answer("asked", json!([question])));
    assert_ne!(there["answer"], base);

    // Held-out questions, or none, lead to the same adapter.
    wanted["suffix"] = json!("by-itself");
    wanted.as_object_mut().unwrap().remove("sample_prompts");
    let by_itself = server.created(&wanted);
    wanted["suffix"] = json!("silent");
    wanted["sample_prompts"] = json!([]);
    let silent = server.created(&wanted);
    let job = server.succeeded(&by_itself);
    assert_eq!(job["lory"]["sample_prompts"], Value::Null);
    let answers = server.samples(&by_itself);
    let first = answers.iter().filter(|one| one["step"] == 0).count();
    assert!((1..=3).contains(&first), "{answers:?}");
    assert_eq!(answers.len(), 4 * first);
    let samples = &job["lory"]["samples"][0];
    assert_eq!(answers[0]["prompt"], samples["question"]);
    server.succeeded(&silent);
    assert!(server.samples(&silent).is_empty());
    assert_eq!(server.hash("asked"), server.hash("silent"));
    assert_eq!(server.hash("by-itself"), server.hash("silent"));

    // Samples survive a restart.
    let before = server.samples(&asked);
    drop(server);
    assert_eq!(fixture.start().samples(&asked), before);
}

#[test]
fn a_resumed_job_samples_each_step_once() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let long = |suffix: &str| {
        let mut long = body(&file, suffix);
        long["hyperparameters"]["n_epochs"] = json!(12);
        long["sample_prompts"] = json!(["Hi"]);
        long
    };
    let whole = server.created(&long("whole"));
    server.succeeded(&whole);
    let expected = server.samples(&whole);
    assert!(expected.len() > 10, "{expected:?}");
    let id = server.created(&long("parts"));
    for step in [8, 30] {
        server.at_step(&id, step);
        server.turn(&id, "pause");
        // A kill may leave answers of steps that are repeated.
        let path = fixture.path(&format!("jobs/jobs/{id}/samples.json"));
        std::thread::sleep(Duration::from_millis(100));
        let mut kept: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        kept.push(json!({"step": 1000, "prompt": "Hi", "answer": "from a life that was not"}));
        std::fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
        server.turn(&id, "resume");
    }
    server.succeeded(&id);
    assert_eq!(server.samples(&id), expected);
    assert_eq!(server.hash("parts"), server.hash("whole"));
}

#[test]
fn a_job_that_is_sampling_can_be_paused_and_cancelled() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(24));
    let mut wanted = body(&file, "first");
    wanted["sample_prompts"] = json!(["Hi"]);
    let arbiter = server.jobs.service().compute_arbiter();
    // A serving step that does not end, so that no layer can run.
    let step = arbiter.begin_step();
    let sampling = |job: &Value| job["lory"]["progress"]["phase"] == "sampling";
    let first = server.created(&wanted);
    server.once(&first, sampling);
    wanted["suffix"] = json!("second");
    let second = server.created(&wanted);
    assert_eq!(server.turn(&first, "pause").status, 200);
    server.once(&second, sampling);
    wanted["suffix"] = json!("third");
    let third = server.created(&wanted);
    assert_eq!(server.turn(&second, "cancel").status, 200);
    server.once(&third, sampling);
    drop(step);
    server.succeeded(&third);
    assert_eq!(server.turn(&first, "resume").status, 200);
    server.succeeded(&first);
    assert_eq!(server.samples(&first), server.samples(&third));
    assert!(server.samples(&second).is_empty());
    assert!(server.warnings(&first).is_empty());
}

#[test]
fn a_failed_sample_does_not_fail_the_job() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let mut wanted = body(&file, "wordy");
    // Each fits into the context, but not both together.
    wanted["system_prompt"] = json!("go ".repeat(110));
    wanted["sample_prompts"] = json!(["go ".repeat(140)]);
    let id = server.created(&wanted);
    let job = server.succeeded(&id);
    assert_eq!(job["fine_tuned_model"], "wordy@1");
    assert!(server.samples(&id).is_empty());
    let warned = server.warnings(&id);
    assert!(
        warned.len() == 4 && warned[3].starts_with("Sampling after step 0 failed: "),
        "{warned:?}"
    );
}

#[test]
fn records_of_earlier_releases_still_open() {
    let fixture = JobsFixture::new();
    let id = {
        let server = fixture.start();
        let file = server.upload(&rows(12));
        let id = server.created(&body(&file, "old"));
        server.succeeded(&id);
        id
    };
    let folder = fixture.path(&format!("jobs/jobs/{id}"));
    std::fs::remove_file(folder.join("samples.json")).unwrap();
    let path = folder.join("job.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for field in ["sample_prompts", "samples", "kept", "publish"] {
        assert!(record.as_object_mut().unwrap().remove(field).is_some());
    }
    std::fs::write(&path, record.to_string()).unwrap();
    let server = fixture.start();
    assert_eq!(server.job(&id)["fine_tuned_model"], "old@1");
    assert!(server.samples(&id).is_empty());
}
