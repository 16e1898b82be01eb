//! What one key's jobs and evaluations can do to another key's, and to the operator's gates.

use formats::disk::slow_file::SlowFile;
use testkit::tiny::adapter;

use super::evaluations::with_rows;
use super::*;

/// A server whose keys may train; the secret of each is `secret-` and its name.
fn server_with_keys(fixture: &JobsFixture, keys: &[(&str, &str)]) -> RunningServer {
    let table = |(name, more): &(&str, &str)| {
        let sha256 = SecretHash::of(&format!("secret-{name}"));
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\ntrain = true\n{more}\n")
    };
    let file = fixture.path("keys.toml");
    std::fs::write(&file, keys.iter().map(table).collect::<String>()).unwrap();
    let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
    fixture.start_with(ServerSettings {
        keys,
        ..ServerSettings::default()
    })
}

const JOBS: &str = "/v1/fine_tuning/jobs";

impl RunningServer {
    fn send_as(&self, key: &str, method: &str, path: &str, body: &Value) -> Response {
        let bearer = format!("Bearer secret-{key}");
        let headers = [
            ("Authorization", &*bearer),
            ("Content-Type", "application/json"),
        ];
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.http
            .send(method, path, &headers, body.as_bytes())
            .read_all()
    }

    fn get_as(&self, key: &str, path: &str) -> Value {
        self.send_as(key, "GET", path, &Value::Null).json()
    }

    fn upload_as(&self, key: &str, text: &str) -> Response {
        let bearer = format!("Bearer secret-{key}");
        let form = form(&[
            ("purpose", None, "fine-tune"),
            ("file", Some("mine.jsonl"), text),
        ]);
        let headers = [("Authorization", &*bearer), FORM];
        self.http
            .send("POST", "/v1/files", &headers, &form)
            .read_all()
    }

    /// Waits until what `key` finds at `path` is finished.
    #[track_caller]
    fn finished_as(&self, key: &str, path: &str) -> Value {
        let began = Instant::now();
        loop {
            let found = self.get_as(key, path);
            if found["finished_at"].is_number() {
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{found:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn id(reply: &Response) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_flood_of_jobs_evicts_only_the_keys_own_and_leaves_room() {
    let fixture = JobsFixture::new();
    let quotas = "open_jobs = 2\nstored_jobs = 3";
    let server = server_with_keys(&fixture, &[("one", quotas), ("two", "")]);
    let file = id(&server.upload_as("two", &rows(24)));
    let mut kept = body(&file, "kept");
    kept["publish"] = json!(false);
    kept["hyperparameters"]["n_epochs"] = json!(1);
    let kept = format!("{JOBS}/{}", id(&server.send_as("two", "POST", JOBS, &kept)));
    assert_eq!(server.finished_as("two", &kept)["status"], "succeeded");

    let file = id(&server.upload_as("one", &rows(4)));
    let flood = endless(&file, "flood");
    for _ in 0..8 {
        let path = format!(
            "{JOBS}/{}",
            id(&server.send_as("one", "POST", JOBS, &flood))
        );
        let cancelled = server.send_as("one", "POST", &format!("{path}/cancel"), &Value::Null);
        assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    }
    let list = |key: &str| {
        let list = server.get_as(key, JOBS);
        list["data"].as_array().unwrap().len()
    };
    assert_eq!((list("one"), list("two")), (3, 1));
    for _ in 0..2 {
        id(&server.send_as("one", "POST", JOBS, &flood));
    }
    let full = server.send_as("one", "POST", JOBS, &flood);
    let (status, code, _, message) = full.error();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    assert!(
        message.starts_with("key one has 2 of its 2 unfinished jobs (`open_jobs`"),
        "{message}"
    );
    // The other key has its adapter and room for jobs.
    let published = server.send_as("two", "POST", &format!("{kept}/publish"), &json!({}));
    assert_eq!(published.json()["fine_tuned_model"], json!("kept@1"));
    let theirs = id(&server.upload_as("two", &rows(4)));
    id(&server.send_as("two", "POST", JOBS, &endless(&theirs, "more")));
}

#[test]
fn publication_of_a_key_delays_no_other_key_and_its_errors_show_no_folders() {
    let fixture = JobsFixture::new();
    let server = server_with_keys(&fixture, &[("one", ""), ("two", "")]);
    let kept = |key: &str| {
        let file = id(&server.upload_as(key, &rows(24)));
        let mut wanted = body(&file, &format!("kept-{key}"));
        wanted["publish"] = json!(false);
        wanted["hyperparameters"]["n_epochs"] = json!(1);
        let job = id(&server.send_as(key, "POST", JOBS, &wanted));
        let path = format!("{JOBS}/{job}");
        assert_eq!(server.finished_as(key, &path)["status"], "succeeded");
        (path, job)
    };
    let ((one, job), (two, _)) = (kept("one"), kept("two"));
    let adapter = fixture.path(&format!("jobs/jobs/{job}/adapter"));
    let weights = adapter.join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let publish = || server.send_as("one", "POST", &format!("{one}/publish"), &json!({}));
    let delete = |key: &str, path: &str| server.send_as(key, "DELETE", path, &Value::Null);

    let slow = SlowFile::new(&weights);
    std::thread::scope(|scope| {
        let published = scope.spawn(publish);
        assert!(slow.has_reader_within(Duration::from_secs(60)));
        let (sender, deleted) = std::sync::mpsc::channel();
        scope.spawn(move || sender.send(delete("two", &two)));
        let deleted = deleted.recv_timeout(Duration::from_secs(20));
        // The job itself is refused until then.
        let (status, code, _, message) = delete("one", &one).error();
        std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
        drop(slow);
        assert_eq!(deleted.map(|reply| reply.status), Ok(200));
        assert_eq!((status, code.as_str()), (409, "job_state"));
        assert!(message.contains("is publishing"), "{message}");
        // Half of the weights are not an adapter.
        let (status, code, _, message) = published.join().unwrap().error();
        assert_eq!((status, code.as_str()), (400, "adapter_unusable"));
        assert!(message.starts_with("adapter/adapter_model"), "{message}");
    });

    // A registry that cannot be used.
    std::fs::write(&weights, bytes).unwrap();
    let registry = fixture.path("registry");
    std::fs::create_dir_all(registry.join("log")).unwrap();
    std::fs::write(registry.join(format!("log/{:020}.json", 1)), "{").unwrap();
    let (status, code, _, message) = publish().error();
    assert_eq!((status, code.as_str()), (500, "registry_failed"));
    let root = fixture.folder.path().display().to_string();
    assert!(
        message.contains("registry") && !message.contains(&root),
        "{message}"
    );
    std::fs::remove_dir_all(registry).unwrap();
}

#[test]
fn unpublished_adapters_of_a_key_are_within_its_bytes() {
    let fixture = JobsFixture::new();
    let server = server_with_keys(&fixture, &[("one", ""), ("two", "")]);
    let file = id(&server.upload_as("two", &rows(24)));
    let mut wanted = body(&file, "kept");
    wanted["publish"] = json!(false);
    wanted["hyperparameters"]["n_epochs"] = json!(1);
    let record = |job: &str| -> Value {
        let path = fixture.path("jobs").join("jobs").join(job).join("job.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let kept = id(&server.send_as("two", "POST", JOBS, &wanted));
    let kept_path = format!("{JOBS}/{kept}");
    assert_eq!(server.finished_as("two", &kept_path)["status"], "succeeded");
    let parameters = record(&kept)["parameters"].as_u64().unwrap();
    let weights = fixture
        .path("jobs")
        .join("jobs")
        .join(&kept)
        .join("adapter/adapter_model.safetensors");
    let bytes = weights.metadata().unwrap().len();
    assert!((2 * parameters..2 * parameters + 20_000).contains(&bytes));
    drop(server);

    // Room for an unfinished job, but not next to the kept adapter.
    let quota = format!("adapter_bytes = {}", 18 * parameters + parameters);
    let server = server_with_keys(&fixture, &[("one", &quota), ("two", &quota)]);
    let refused = server.send_as("two", "POST", JOBS, &wanted);
    let (status, code, _, message) = refused.error();
    assert_eq!((status, code.as_str()), (507, "adapter_bytes_exceeded"));
    assert!(
        message
            .contains("(`adapter_bytes` in the file of keys); cancel a job, publish the adapter"),
        "{message}"
    );
    // Another key has its own bytes, and cannot delete the job.
    let theirs = id(&server.upload_as("one", &rows(4)));
    let running = id(&server.send_as("one", "POST", JOBS, &endless(&theirs, "more")));
    let delete = |key: &str, job: &str| {
        server.send_as(key, "DELETE", &format!("{JOBS}/{job}"), &Value::Null)
    };
    assert_eq!(delete("one", &kept).status, 404);
    assert_eq!(delete("one", &running).status, 409);
    let deleted = delete("two", &kept);
    assert_eq!(deleted.json()["deleted"], json!(true), "{}", deleted.text);
    assert!(!weights.exists());
    assert_eq!(delete("two", &kept).status, 404);
    id(&server.send_as("two", "POST", JOBS, &wanted));
}

#[test]
fn a_request_tightens_the_personas_gate_and_never_loosens_it() {
    let fixture = JobsFixture::new();
    let text = "[eval]\nany_of = ['a', 'b']\ntone_at_least = 0.0\ncopied_at_least = 0.0\nloss_at_most = 0.001\n";
    fixture.home.persona("guarded", text, None);
    let server = server_with_keys(&fixture, &[("one", "personas = ['guarded']\nbase = true")]);
    let file = id(&server.upload_as("one", &rows(24)));
    let mut wanted = body(&file, "guarded");
    wanted["hyperparameters"]["n_epochs"] = json!(1);
    wanted["gate"] = json!({"any_of": [""]});
    let (status, _, about, message) = server.send_as("one", "POST", JOBS, &wanted).error();
    assert_eq!((status, about), (400, json!("gate.any_of")), "{message}");
    wanted["gate"] = json!({"loss_at_most": 100, "tone_at_least": 0, "copied_at_least": 0});
    let job = id(&server.send_as("one", "POST", JOBS, &wanted));
    let job = server.finished_as("one", &format!("{JOBS}/{job}"));
    assert_eq!(job["error"]["code"], "gate_refused", "{job:#}");
    let checks = job["lory"]["gate"].as_array().unwrap();
    let loss = checks.iter().find(|check| check["key"] == "loss_at_most");
    assert_eq!(loss.unwrap()["wanted"], json!(0.001));
}

#[test]
fn baselines_of_a_request_do_not_replace_those_of_the_personas_gate() {
    let fixture = JobsFixture::new();
    // Every answer passes the tone check of `loud`, so an adapter next to it fails this gate.
    let loud = "system_prompt = \"You are loud.\"\nmax_new_tokens = 4\n[eval]\nany_of = ['']\n";
    fixture.home.persona("loud", loud, Some(&adapter(13)));
    let guarded = "max_new_tokens = 4\n[eval]\ntone_at_least = 0.0\ncopied_at_least = 0.0\nother_tone_at_most = 0.5\n";
    fixture.home.persona("guarded", guarded, None);
    let server = server_with_keys(&fixture, &[("one", "")]);
    let file = id(&server.upload_as("one", &rows(24)));
    let mut wanted = body(&file, "guarded");
    wanted["hyperparameters"]["n_epochs"] = json!(1);
    wanted["gate"] = json!({"beside": ["formal"], "distinct_at_least": 0});
    let job = id(&server.send_as("one", "POST", JOBS, &wanted));
    let job = server.finished_as("one", &format!("{JOBS}/{job}"));
    assert_eq!(job["error"]["code"], "gate_refused", "{job:#}");
}

#[test]
fn baselines_of_the_personas_gate_do_not_depend_on_the_key_and_show_no_answers() {
    let fixture = JobsFixture::new();
    let loud = "system_prompt = \"You are loud.\"\nmax_new_tokens = 4\n[eval]\nany_of = ['']\n";
    fixture.home.persona("loud", loud, Some(&adapter(13)));
    let guarded = "max_new_tokens = 4\n[eval]\ntone_at_least = 0.0\ncopied_at_least = 0.0\nother_tone_at_most = 0.5\n";
    fixture.home.persona("guarded", guarded, None);
    let keys = [("one", "personas = ['guarded']\nbase = true")];
    let server = server_with_keys(&fixture, &keys);
    let file = id(&server.upload_as("one", &rows(24)));
    let mut wanted = body(&file, "guarded");
    wanted["hyperparameters"]["n_epochs"] = json!(1);
    wanted["validation_file"] = json!(id(&server.upload_as("one", &rows(1))));
    let job = id(&server.send_as("one", "POST", JOBS, &wanted));
    let job = server.finished_as("one", &format!("{JOBS}/{job}"));
    assert_eq!(job["error"]["code"], "gate_refused", "{job:#}");
    // The only question has one answer of the adapter; `loud` answers it, too.
    let samples = job["lory"]["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 1, "{job:#}");
    assert!(!job.to_string().contains("loud"), "{job:#}");
}

#[test]
fn generated_names_are_within_the_patterns_of_the_key() {
    let fixture = JobsFixture::new();
    let keys = [
        ("one", "personas = ['warm', 'acme-*']\nbase = true"),
        ("two", "personas = ['warm']\nbase = true"),
        ("three", "personas = ['warm', 'acme-*']"),
    ];
    let server = server_with_keys(&fixture, &keys);
    let wanted = |key: &str| {
        let file = id(&server.upload_as(key, &rows(4)));
        let mut wanted = endless(&file, "");
        wanted.as_object_mut().unwrap().remove("suffix");
        wanted
    };
    let job = server.send_as("one", "POST", JOBS, &wanted("one"));
    let persona = job.json()["lory"]["persona"].clone();
    let name = persona.as_str().unwrap().to_owned();
    assert!(name.starts_with("acme-ft-"), "{name}");
    let (status, _, about, message) = server.send_as("two", "POST", JOBS, &wanted("two")).error();
    assert_eq!((status, about), (400, json!("suffix")), "{message}");
    // A key that may not use the base trains from personas only.
    let reply = server.send_as("three", "POST", JOBS, &wanted("three"));
    assert_eq!(reply.error().1, "persona_not_allowed", "{}", reply.text);
}

#[test]
fn questions_of_a_personas_own_rows_are_only_for_keys_that_may_read_its_settings() {
    let fixture = JobsFixture::new();
    with_rows(&fixture);
    let keys = [("one", ""), ("ops", "admin = true")];
    let server = server_with_keys(&fixture, &keys);
    let evaluate = |body: &Value| {
        let asked = server.send_as("one", "POST", "/v1/evaluations", body);
        let path = format!("/v1/evaluations/{}", id(&asked));
        assert_eq!(server.finished_as("one", &path)["status"], "succeeded");
        path
    };
    let samples = |key: &str, path: &str| {
        let found = server.get_as(key, path);
        assert!(
            found["result"]["personas"][0]["name"] == "quick",
            "{found:#}"
        );
        found["result"]["samples"].as_array().unwrap().len()
    };
    let path = evaluate(&json!({"personas": ["quick"], "max_rows": 2}));
    assert_eq!((samples("one", &path), samples("ops", &path)), (0, 2));
    let text = server.get_as("one", &path).to_string();
    assert!(!text.contains("Where is order"), "{text}");
    // The key's own questions stay visible to it.
    let file = id(&server.upload_as("one", &rows(2)));
    let path = evaluate(&json!({"personas": ["quick"], "file": file}));
    assert_eq!(samples("one", &path), 2);
}

#[test]
fn names_that_a_key_may_not_use_are_in_no_error() {
    let fixture = JobsFixture::new();
    let server = server_with_keys(&fixture, &[("one", "personas = ['one-*']")]);
    let file = id(&server.upload_as("one", &rows(24)));
    let mut gated = body(&file, "base");
    gated["suffix"] = json!("one-b");
    gated["gate"] = json!({"distinct_at_least": 0, "beside": ["one-a"]});
    let vote = json!({"a": "one-a@1", "b": "one-a@2", "winner": "a"});
    for (path, wanted) in [
        ("/v1/votes", vote),
        (
            "/v1/evaluations",
            json!({"personas": ["one-a"], "file": file}),
        ),
        (JOBS, body(&file, "one-a")),
        ("/v1/fine_tuning/plan", body(&file, "one-a")),
        (JOBS, gated),
        ("/generate", json!({"prompt": "Hi", "user_type": "one-a"})),
        ("/v1/completions", json!({"prompt": "Hi", "model": "one-a"})),
    ] {
        let reply = server.send_as("one", "POST", path, &wanted);
        assert!((400..500).contains(&reply.status), "{path}: {}", reply.text);
        for hidden in ["warm", "formal"] {
            assert!(!reply.text.contains(hidden), "{path}: {}", reply.text);
        }
    }
}

#[test]
fn only_admin_keys_see_who_owns_files_jobs_and_evaluations() {
    let fixture = JobsFixture::new();
    with_rows(&fixture);
    let keys = [("one", ""), ("ops", "admin = true")];
    let server = server_with_keys(&fixture, &keys);
    let uploaded = server.upload_as("one", &rows(4));
    let file = id(&uploaded);
    let created = server.send_as("one", "POST", JOBS, &endless(&file, "mine"));
    let job = id(&created);
    let wanted = json!({"personas": ["quick"], "file": file});
    let evaluated = server.send_as("one", "POST", "/v1/evaluations", &wanted);
    let evaluation = id(&evaluated);
    for reply in [&uploaded, &created, &evaluated] {
        assert!(!reply.text.contains("\"owner\""), "{}", reply.text);
    }
    let (one_file, one_job) = (format!("/v1/files/{file}"), format!("{JOBS}/{job}"));
    let one_evaluation = format!("/v1/evaluations/{evaluation}");
    for (path, owner) in [
        (&*one_file, "/owner"),
        ("/v1/files", "/data/0/owner"),
        (&*one_job, "/lory/owner"),
        (JOBS, "/data/0/lory/owner"),
        (&*one_evaluation, "/owner"),
    ] {
        let shown = server.get_as("ops", path);
        assert_eq!(shown.pointer(owner), Some(&json!("one")), "{shown:#}");
        assert!(!shown.to_string().contains("secret-"));
        let shown = server.get_as("one", path);
        assert_eq!(shown.pointer(owner), None, "{shown:#}");
    }
    for path in [one_job, one_evaluation] {
        let path = format!("{path}/cancel");
        let cancelled = server.send_as("ops", "POST", &path, &Value::Null);
        assert!(
            cancelled.text.contains("\"owner\":\"one\""),
            "{}",
            cancelled.text
        );
    }
}

#[test]
fn quotas_that_never_allow_a_request_are_permanent_errors() {
    let fixture = JobsFixture::new();
    with_rows(&fixture);
    let keys = [
        ("none", "files = 0"),
        ("small", "file_bytes = 100"),
        ("idle", "open_jobs = 0\nopen_evaluations = 0"),
    ];
    let server = server_with_keys(&fixture, &keys);
    let refused = |reply: &Response, status: u16, code: &str, quota: &str| {
        let (found, found_code, _, message) = reply.error();
        assert_eq!((found, found_code.as_str()), (status, code), "{message}");
        assert!(message.contains(quota), "{message}");
        assert_eq!(reply.header("retry-after"), None);
    };
    let reply = server.upload_as("none", &rows(1));
    refused(&reply, 403, "quota_is_zero", "`files`");
    let reply = server.upload_as("small", &rows(24));
    refused(&reply, 413, "file_too_large", "`file_bytes`");
    let file = id(&server.upload_as("idle", &rows(4)));
    let reply = server.send_as("idle", "POST", JOBS, &endless(&file, "mine"));
    refused(&reply, 403, "quota_is_zero", "`open_jobs`");
    let wanted = json!({"personas": ["quick"], "file": file});
    let reply = server.send_as("idle", "POST", "/v1/evaluations", &wanted);
    refused(&reply, 403, "quota_is_zero", "`open_evaluations`");
}
