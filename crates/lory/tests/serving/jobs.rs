//! Files and training jobs, from the upload to the version that answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lory::access::Keys;
use lory::access::secret::Digest;
use lory::catalog::Catalog;
use lory::http::{ServerSettings, Slot};
use lory::jobs::{JobSettings, Jobs};
use lory::service::{Service, Settings};
use registry::{Location, Personas, Registry};
use serde_json::{Value, json};

use crate::openapi::complaints;
use crate::scene::{House, Reply, Server};

/// A house with a registry and a place for jobs.
struct School {
    house: House,
    folder: tempfile::TempDir,
}

/// A school that is open: a server, and the queue behind it.
struct Open {
    server: Server,
    jobs: Arc<Jobs>,
}

impl School {
    fn new() -> School {
        School {
            house: House::new().with_context(512),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Open {
        self.open_as(ServerSettings::default())
    }

    fn open_as(&self, server: ServerSettings) -> Open {
        let location = Location::Folder(self.path("registry"));
        let registry = Registry::open(&location, &self.path("cache")).unwrap();
        let personas = self.house.base().parent().unwrap().join("personas");
        let catalog = Catalog::open(Personas::open(&personas).unwrap(), registry).unwrap();
        let service = Service::open(&self.house.base(), catalog, &Settings::default());
        let service = Arc::new(service.unwrap());
        let settings = JobSettings {
            dir: self.path("jobs"),
            known: None,
        };
        let jobs = Arc::new(Jobs::start(Arc::clone(&service), &settings).unwrap());
        let slot = Slot::loading();
        slot.train(Ok(Arc::clone(&jobs)));
        slot.fill(service);
        Open {
            server: Server::start_as(slot, server),
            jobs,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.jobs.shutdown();
    }
}

/// So many rows of questions with numbers and cheerful answers.
fn rows(count: usize) -> String {
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
    };
    (100..100 + count).map(row).collect()
}

fn form(fields: &[(&str, Option<&str>, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (name, filename, text) in fields {
        let filename = filename.map_or(String::new(), |name| format!("; filename=\"{name}\""));
        body += &format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{text}\r\n"
        );
    }
    (body + "--XX--\r\n").into_bytes()
}

const FORM: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=XX");

impl Open {
    fn upload(&self, text: &str) -> String {
        let body = form(&[
            ("purpose", None, "fine-tune"),
            ("file", Some("mine.jsonl"), text),
        ]);
        let reply = self
            .server
            .send("POST", "/v1/files", &[FORM], &body)
            .whole();
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    fn create(&self, body: &Value) -> Reply {
        self.server.post("/v1/fine_tuning/jobs", body)
    }

    fn created(&self, body: &Value) -> String {
        let reply = self.create(body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    fn job(&self, id: &str) -> Value {
        self.server
            .get(&format!("/v1/fine_tuning/jobs/{id}"))
            .json()
    }

    fn turn(&self, id: &str, what: &str) -> Reply {
        let path = format!("/v1/fine_tuning/jobs/{id}/{what}");
        self.server.send("POST", &path, &[], b"").whole()
    }

    /// The job, once `when` holds of it.
    #[track_caller]
    fn once(&self, id: &str, when: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let job = self.job(id);
            if when(&job) {
                return job;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{job:#}");
            assert_ne!(job["status"], "failed", "{job:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn succeeded(&self, id: &str) -> Value {
        self.once(id, |job| job["status"] == "succeeded")
    }

    /// The job, once it has done so many steps.
    #[track_caller]
    fn at_step(&self, id: &str, step: u64) -> Value {
        self.once(id, |job| {
            job["lory"]["progress"]["step"].as_u64().unwrap() >= step
        })
    }

    fn list(&self, id: &str, what: &str) -> Vec<Value> {
        let path = format!("/v1/fine_tuning/jobs/{id}/{what}?limit=100");
        let list = self.server.get(&path).json();
        list["data"].as_array().unwrap().clone()
    }

    /// The hash of the adapter that answers for `who`.
    fn hash(&self, who: &str) -> String {
        let answer = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 2});
        let answer = self.server.generate(answer);
        let hash = &answer["persona"]["adapters"][0]["sha256"];
        hash.as_str().unwrap().to_owned()
    }
}

fn body(file: &str, suffix: &str) -> Value {
    json!({
        "model": "tiny", "training_file": file, "suffix": suffix, "seed": 7,
        "hyperparameters": {"n_epochs": 3, "batch_size": 4, "rank": 4, "lr": 0.01},
    })
}

/// More steps than a test waits for.
fn endless(file: &str, suffix: &str) -> Value {
    let mut body = body(file, suffix);
    body["hyperparameters"]["n_epochs"] = json!(10_000);
    body
}

#[test]
fn a_job_becomes_a_version_that_answers() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let mut wanted = body(&file, "sunny");
    wanted["metadata"] = json!({"for": "a test"});
    wanted["system_prompt"] = json!("You are sunny.");
    let created = open.create(&wanted).json();
    assert_eq!(created["object"], "fine_tuning.job");
    assert_eq!(created["fine_tuned_model"], Value::Null);
    assert_eq!(created["user_provided_suffix"], "sunny");
    let id = created["id"].as_str().unwrap();
    let job = open.succeeded(id);
    assert_eq!(job["fine_tuned_model"], "sunny@1");
    assert_eq!(job["method"]["type"], "supervised");
    assert_eq!(job["hyperparameters"]["n_epochs"], 3);
    assert!(job["finished_at"].as_u64() >= job["created_at"].as_u64());
    let steps = job["lory"]["plan"]["plan"]["steps"].as_u64().unwrap();
    assert_eq!(job["lory"]["progress"]["step"].as_u64().unwrap(), steps);

    // Answers to questions that training did not see.
    let samples = job["lory"]["samples"].as_array().unwrap();
    assert!((1..=3).contains(&samples.len()), "{job:#}");
    let question = samples[0]["question"].as_str().unwrap();
    assert!(question.starts_with("Where is order ") && samples[0]["answer"].is_string());

    let first = open.hash("sunny@1");
    let shown = open.server.get("/v1/personas/sunny").json();
    assert_eq!(
        shown["settings"]["system_prompt"], "You are sunny.",
        "{shown}"
    );
    let chat =
        json!({"model": "sunny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    assert_eq!(open.server.post("/v1/chat/completions", &chat).status, 200);

    // Every step once, the newest first; tokens add up.
    let events = open.list(id, "events");
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

    // One state an epoch; the best of them is the one that was published.
    let states = open.list(id, "checkpoints");
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
    let page = open.server.get(&path).json();
    assert_eq!(page["data"][0]["id"], states[1]["id"]);
    assert_eq!(page["has_more"], true);

    // On from there: a second version, with the persona's own system prompt.
    let mut more = body(&file, "sunny");
    more["model"] = json!("sunny");
    let id = open.created(&more);
    let job = open.succeeded(&id);
    assert_eq!(job["fine_tuned_model"], "sunny@2");
    assert_eq!(job["lory"]["started_from"], "sunny@1");
    assert_eq!(job["lory"]["system_prompt"], "You are sunny.");
    assert_ne!(open.hash("sunny"), first);
    assert_eq!(open.hash("sunny@1"), first);

    let found = open
        .server
        .get("/v1/fine_tuning/jobs?metadata[for]=a%20test")
        .json();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let all = open.server.get("/v1/fine_tuning/jobs?limit=1").json();
    assert_eq!(
        (&all["data"][0]["id"], &all["has_more"]),
        (&json!(id), &json!(true))
    );
    let metrics = open.server.get("/metrics").text;
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
fn answers_about_jobs_are_as_the_document_says() {
    let school = School::new();
    let open = school.open();
    let document = open.server.get("/openapi.json").json();
    let check = |method: &str, route: &str, value: &Value| {
        let answer = &document["paths"][route][method]["responses"]["200"];
        let schema = &answer["content"]["application/json"]["schema"];
        assert!(!schema.is_null(), "{method} {route}");
        let found = complaints(&document, schema, value, route);
        assert!(found.is_empty(), "{found:?} in {value}");
    };
    let file = open.upload(&rows(12));
    let created = open.create(&body(&file, "shown")).json();
    check("post", "/v1/fine_tuning/jobs", &created);
    let id = created["id"].as_str().unwrap();
    open.succeeded(id);
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
    ] {
        let answer = open.server.get(&path);
        assert_eq!(answer.status, 200, "{}", answer.text);
        check("get", route, &answer.json());
    }
}

#[test]
fn a_job_without_a_suffix_has_a_name_of_its_own() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(8));
    let id = open.created(&json!({
        "model": "base", "training_file": file,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": "auto", "rank": 2}}},
    }));
    let job = open.succeeded(&id);
    assert_eq!(job["user_provided_suffix"], Value::Null);
    let model = job["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with("ft-") && model.ends_with("@1"), "{model}");
    open.hash(model);
}

#[test]
fn preferences_are_trained_on_pairs() {
    let school = School::new();
    let open = school.open();
    let pair = |i: usize| {
        format!(
            "{{\"prompt\":\"Where is {i}?\",\"chosen\":\"Yay, {i}.\",\"rejected\":\"It is {i}.\"}}\n"
        )
    };
    let pairs: String = (0..12).map(pair).collect();
    let file = open.upload(&pairs);
    let mut wanted = json!({
        "model": "warm", "training_file": file, "suffix": "warmer",
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": 4}}},
    });
    let job = open.succeeded(&open.created(&wanted));
    assert_eq!(job["method"]["dpo"]["hyperparameters"]["beta"], 0.2);
    assert_eq!(job["lory"]["started_from"], "warm@1");
    let accuracy = |event: &Value| event["data"]["preference_accuracy"].is_number();
    let id = job["id"].as_str().unwrap();
    assert!(open.list(id, "events").iter().any(accuracy));
    assert_eq!(job["fine_tuned_model"], "warmer@1");

    wanted["method"] = json!({"type": "supervised"});
    let (status, _, param, message) = open.create(&wanted).error();
    assert_eq!((status, param), (400, json!("training_file")));
    assert!(message.contains("ask for the method dpo"), "{message}");
}

#[test]
fn a_paused_job_goes_on_to_the_same_bytes() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let long = |suffix: &str| {
        let mut long = body(&file, suffix);
        long["hyperparameters"]["n_epochs"] = json!(20);
        long
    };
    let whole = open.created(&long("whole"));
    open.succeeded(&whole);

    let id = open.created(&long("parts"));
    for step in [3, 40] {
        open.at_step(&id, step);
        let paused = open.turn(&id, "pause");
        assert_eq!(
            (paused.status, &paused.json()["status"]),
            (200, &json!("paused"))
        );
        // A second time there is nothing to pause.
        let (status, code, _, message) = open.turn(&id, "pause").error();
        assert_eq!((status, code.as_str()), (409, "job_state"));
        assert!(message.contains("is paused"), "{message}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(open.job(&id)["status"], "paused");
        assert_eq!(open.turn(&id, "resume").json()["status"], "queued");
    }
    let job = open.succeeded(&id);
    assert_eq!(open.hash("parts"), open.hash("whole"));
    let said = open.list(&id, "events");
    let goes_on = |event: &&Value| {
        event["message"]
            .as_str()
            .unwrap()
            .contains("goes on at step")
    };
    // The page has the newest hundred; the second pause is in it.
    assert!(said.iter().any(|event| goes_on(&event)));
    assert_eq!(open.turn(&id, "resume").status, 409);
    assert_eq!(job["trained_tokens"], open.job(&whole)["trained_tokens"]);
}

#[test]
fn jobs_outlast_the_server_and_end_with_the_same_bytes() {
    let school = School::new();
    let (id, resting, waiting, expected);
    {
        let open = school.open();
        let file = open.upload(&rows(24));
        let mut long = body(&file, "one");
        long["hyperparameters"]["n_epochs"] = json!(20);
        open.succeeded(&open.created(&long));
        expected = open.hash("one");
        long["suffix"] = json!("two");
        id = open.created(&long);
        resting = open.created(&body(&file, "resting"));
        open.once(&resting, |job| job["status"] == "queued");
        assert_eq!(open.turn(&resting, "pause").status, 200);
        waiting = open.created(&body(&file, "waiting"));
        open.at_step(&id, 5);
    }
    let open = school.open();
    open.succeeded(&id);
    assert_eq!(open.hash("two"), expected);
    open.succeeded(&waiting);
    assert_eq!(open.job(&resting)["status"], "paused");
    open.turn(&resting, "resume");
    open.succeeded(&resting);
    // Nobody else runs the same queue meanwhile.
    let location = Location::Folder(school.path("registry"));
    let registry = Registry::open(&location, &school.path("cache")).unwrap();
    let catalog = Catalog::open(Personas::default(), registry).unwrap();
    let other = Service::open(&school.house.base(), catalog, &Settings::default()).unwrap();
    let settings = JobSettings {
        dir: school.path("jobs"),
        known: None,
    };
    let refused = Jobs::start(Arc::new(other), &settings).err().unwrap();
    assert!(
        refused
            .to_string()
            .contains("another process runs the jobs")
    );
}

#[test]
fn answers_are_the_same_beside_a_job_and_both_go_on() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let ask = |seed: u64| {
        let body = json!({
            "prompt": "Where is my order?", "user_type": "warm", "max_new_tokens": 24, "temperature": 1, "seed": seed,
        });
        open.server.generate(body)["response"].clone()
    };
    let alone: Vec<Value> = (0..6).map(ask).collect();
    let id = open.created(&endless(&file, "beside"));
    let before = open.at_step(&id, 2)["lory"]["progress"]["step"].as_u64();
    for _ in 0..5 {
        let beside: Vec<Value> = (0..6).map(ask).collect();
        assert_eq!(beside, alone);
    }
    open.at_step(&id, before.unwrap() + 2);
    assert_eq!(open.turn(&id, "cancel").status, 200);
}

#[test]
fn a_cancelled_job_leaves_nothing_and_the_next_one_runs() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let running = open.created(&endless(&file, "never"));
    let waiting = open.created(&endless(&file, "never-either"));
    let next = open.created(&body(&file, "next"));
    open.at_step(&running, 3);
    open.once(&waiting, |job| job["status"] == "queued");
    // Its file is needed.
    let kept = open
        .server
        .send("DELETE", &format!("/v1/files/{file}"), &[], b"")
        .whole();
    let (status, code, _, message) = kept.error();
    assert_eq!((status, code.as_str()), (409, "file_in_use"));
    assert!(message.contains("still needs the file"), "{message}");
    for id in [&waiting, &running] {
        assert_eq!(open.turn(id, "cancel").json()["status"], "cancelled");
        assert_eq!(open.turn(id, "cancel").error().1, "job_state");
    }
    open.succeeded(&next);
    assert_eq!(open.job(&running)["status"], "cancelled");
    assert!(!school.path(&format!("jobs/jobs/{running}/state")).exists());
    let asked = json!({"prompt": "Hi", "user_type": "never"});
    assert_eq!(open.server.post("/generate", &asked).status, 404);
    let gone = open
        .server
        .send("DELETE", &format!("/v1/files/{file}"), &[], b"")
        .whole();
    assert_eq!(
        gone.json(),
        json!({"id": file, "object": "file", "deleted": true})
    );
    assert_eq!(open.server.get(&format!("/v1/files/{file}")).status, 404);
}

#[test]
fn the_gate_lets_through_what_measures_up() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let mut wanted = body(&file, "judged");
    wanted["gate"] = json!({"loss_at_most": 0.001, "tone_at_least": 0, "copied_at_least": 0});
    let id = open.created(&wanted);
    let job = loop {
        let job = open.job(&id);
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
    // Kept where the message says, and nobody can ask it.
    let folder = message.rsplit("is kept in ").next().unwrap();
    assert!(
        PathBuf::from(folder)
            .join("adapter_model.safetensors")
            .exists(),
        "{folder}"
    );
    let asked = json!({"prompt": "Hi", "user_type": "judged"});
    assert_eq!(open.server.post("/generate", &asked).status, 404);

    wanted["gate"] =
        json!({"loss_at_most": 50, "tone_at_least": 0, "copied_at_least": 0, "drift_at_most": 50});
    wanted["validation_file"] = json!(open.upload(&rows(4)));
    let job = open.succeeded(&open.created(&wanted));
    let checked = job["lory"]["gate"].as_array().unwrap();
    assert!(
        checked.len() == 4 && checked.iter().all(|check| check["passed"] == true),
        "{checked:?}"
    );
    assert_eq!(job["fine_tuned_model"], "judged@1");
}

#[test]
fn what_a_job_kept_is_published_when_somebody_says_so() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(24));
    let mut wanted = body(&file, "held");
    wanted["publish"] = json!(false);
    let id = open.created(&wanted);
    let job = open.succeeded(&id);
    assert_eq!(
        (&job["fine_tuned_model"], &job["lory"]["kept"]),
        (&Value::Null, &json!(true))
    );
    let asked = json!({"prompt": "Hi", "user_type": "held"});
    assert_eq!(open.server.post("/generate", &asked).status, 404);

    // The first version of a persona cannot wait.
    let publish = |id: &str, body: Value| {
        let path = format!("/v1/fine_tuning/jobs/{id}/publish");
        open.server.post(&path, &body)
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
    let first = open.hash("held");

    // What a gate refused can be published too, and waits beside the one in service; also by the next process.
    wanted["seed"] = json!(8);
    wanted["gate"] = json!({"loss_at_most": 0.001, "tone_at_least": 0, "copied_at_least": 0});
    let id = open.created(&wanted);
    while open.job(&id)["finished_at"].is_null() {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(open);
    let open = school.open();
    let path = format!("/v1/fine_tuning/jobs/{id}/publish");
    let job = open.server.post(&path, &json!({"current": false})).json();
    assert_eq!(
        (&job["status"], &job["fine_tuned_model"]),
        (&json!("failed"), &json!("held@2"))
    );
    assert_eq!(open.hash("held"), first);
    assert_ne!(open.hash("held@2"), first);
}

#[test]
fn a_broken_file_is_refused_with_its_lines() {
    let school = School::new();
    let open = school.open();
    let send = |fields: &[(&str, Option<&str>, &str)]| {
        open.server
            .send("POST", "/v1/files", &[FORM], &form(fields))
            .whole()
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
        !message.contains(school.folder.path().to_str().unwrap()),
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
        open.server.post("/v1/files", &json!({})).error().1,
        "invalid_body"
    );
    let files = open.server.get("/v1/files").json();
    assert_eq!(files["data"], json!([]));
    assert_eq!(
        std::fs::read_dir(school.path("jobs/files"))
            .unwrap()
            .count(),
        0
    );

    let id = open.upload(&good);
    let reply = open.server.get(&format!("/v1/files/{id}/content"));
    assert_eq!((reply.status, &reply.text), (200, &good));
    let file = open.server.get(&format!("/v1/files/{id}")).json();
    assert_eq!(
        (&file["filename"], &file["rows"], &file["bytes"]),
        (&json!("mine.jsonl"), &json!(1), &json!(good.len()))
    );
    let listed = open
        .server
        .get("/v1/files?purpose=fine-tune&limit=5&order=asc")
        .json();
    assert_eq!(
        (&listed["data"][0], &listed["has_more"]),
        (&file, &json!(false))
    );
}

#[test]
fn what_is_wrong_with_a_job_is_named() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(8));
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
        (json!({"epochs": 1}), 400, "unknown_field", "epochs"),
    ] {
        let (found, found_code, about, message) = open.create(&with(changes)).error();
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
        ("/v1/fine_tuning/jobs?limit=0", 400, "invalid_value"),
        ("/v1/fine_tuning/jobs?limit=101", 400, "invalid_value"),
        ("/v1/fine_tuning/jobs?page=2", 400, "unknown_field"),
        ("/v1/fine_tuning/jobs?after=ftjob-none", 400, "invalid_page"),
        ("/v1/files/file-none/rows", 404, "file_not_found"),
    ] {
        let (found, found_code, ..) = open.server.get(path).error();
        assert_eq!((found, found_code.as_str()), (status, code), "{path}");
    }
    // Rows that turn out to be too long are found when they are read.
    let mut refuse = with(json!({}));
    refuse["hyperparameters"] = json!({"max_length": 4, "too_long": "refuse"});
    let id = open.created(&refuse);
    let job = loop {
        let job = open.job(&id);
        if job["status"] == "failed" {
            break job;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let message = job["error"]["message"].as_str().unwrap();
    assert_eq!(job["error"]["code"], "invalid_training_file");
    assert!(message.contains("mine.jsonl:1"), "{message}");
    // A server without a place for jobs says so.
    let none = Server::start(crate::scene::service(&Settings::default()));
    let (status, code, _, message) = none.get("/v1/files").error();
    assert_eq!((status, code.as_str()), (409, "no_jobs"), "{message}");
}

#[test]
fn the_queue_has_an_end() {
    let school = School::new();
    let open = school.open();
    let file = open.upload(&rows(4));
    let ids: Vec<String> = (0..lory::jobs::MAX_OPEN)
        .map(|_| open.created(&endless(&file, "long")))
        .collect();
    let (status, code, _, message) = open.create(&endless(&file, "long")).error();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    assert!(
        message.starts_with("64 jobs are waiting or running"),
        "{message}"
    );
    assert_eq!(open.turn(&ids[9], "cancel").status, 200);
    open.created(&endless(&file, "long"));
}

#[test]
fn rows_findings_and_plans_are_shown_beforehand() {
    let school = School::new();
    let open = school.open();
    let text = rows(6) + &rows(1) + "{\"instruction\":\"Again?\",\"output\":\"See \"}\n";
    let file = open.upload(&text);
    let shown = open
        .server
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
    let short = open
        .server
        .get(&format!("/v1/files/{file}/rows?max_length=5&limit=1"))
        .json();
    assert_eq!(short["data"][0]["answer"]["fate"], "left_out");

    let lint = open.server.get(&format!("/v1/files/{file}/lint")).json();
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
            .contains(school.folder.path().to_str().unwrap()),
        "{lint}"
    );

    let plan = open
        .server
        .post("/v1/fine_tuning/plan", &body(&file, "planned"));
    assert_eq!(plan.status, 200, "{}", plan.text);
    let plan = plan.json();
    assert!(plan["plan"]["steps"].as_u64().unwrap() > 0, "{plan}");
    assert!(plan["memory_needed"].as_u64().unwrap() > 0, "{plan}");
    assert!(plan["seconds"].as_f64().unwrap() > 0.0, "{plan}");
    let jobs = open.server.get("/v1/fine_tuning/jobs").json();
    assert_eq!(jobs["data"], json!([]));
}

#[test]
fn a_key_that_may_train_sees_its_own() {
    let school = School::new();
    let file = school.path("keys.toml");
    let table = |name: &str, more: &str| {
        let sha256 = Digest::of(&format!("secret-{name}"));
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
    };
    let text = table("one", "train = true\npersonas = ['acme-*']\nbase = true")
        + &table("two", "train = true")
        + &table("asks", "")
        + &table("ops", "admin = true");
    std::fs::write(&file, text).unwrap();
    let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
    let open = school.open_as(ServerSettings {
        keys,
        ..ServerSettings::default()
    });
    let send = |key: &str, method: &str, path: &str, kind: &str, body: &[u8]| {
        let bearer = format!("Bearer secret-{key}");
        let headers = [("Authorization", &*bearer), ("Content-Type", kind)];
        open.server.send(method, path, &headers, body).whole()
    };
    let json_kind = "application/json";
    let get = |key: &str, path: &str| send(key, "GET", path, json_kind, b"");
    assert_eq!(open.server.get("/v1/files").error().1, "missing_api_key");
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
    // Not for a persona that it may not use, nor on a file of another key.
    assert_eq!(create("one", "other").error().1, "persona_not_allowed");
    assert_eq!(create("two", "acme-a").error().1, "file_not_found");
    let job = create("one", "acme-a").json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/fine_tuning/jobs/{job}");
    assert_eq!(get("two", &path).error().1, "job_not_found");
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
    // What the gate refused is published by who may administer.
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
}
