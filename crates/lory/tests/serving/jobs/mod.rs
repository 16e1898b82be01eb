//! Files, training jobs and evaluations over HTTP.

mod aliases;
mod continued_adapters;
mod disk;
mod eval_gate;
mod evaluations;
mod floods;
mod job_lifecycle;
mod previews;
mod rejected;
mod samples;
mod tenants;
mod train_memory;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth::Keys;
use auth::secret::SecretHash;
use jobs::{EvaluationResults, JobSettings, Jobs};
use kernels::DeviceChoice;
use registry::{Personas, Registry, RegistryLocation};
use serde_json::{Value, json};
use server::{AppState, ServerSettings};
use service::catalog::Catalog;
use service::{Service, Settings};
use testkit::home::TestHome;
use testkit::http::{FORM, Response, form};
use testkit::server::TestServer;

use crate::openapi::complaints;
use crate::setup;

/// Folders of a base, personas, a registry and jobs. Servers that a test starts in turn find what the last one left.
struct JobsFixture {
    home: TestHome,
    folder: tempfile::TempDir,
}

/// A running server with its job queue.
struct RunningServer {
    http: TestServer,
    jobs: Arc<Jobs>,
}

impl JobsFixture {
    fn new() -> JobsFixture {
        JobsFixture {
            home: setup::home_with_context(512),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> RunningServer {
        self.start_with(ServerSettings::default())
    }

    fn start_with(&self, settings: ServerSettings) -> RunningServer {
        self.start_limited(settings, u64::MAX, &[])
    }

    /// A server with these aliases of models.
    fn start_with_aliases(&self, aliases: &[&str]) -> RunningServer {
        self.start_limited(ServerSettings::default(), u64::MAX, aliases)
    }

    /// A server whose runs may take `train_memory` bytes.
    fn start_with_train_memory(&self, train_memory: u64) -> RunningServer {
        self.start_limited(ServerSettings::default(), train_memory, &[])
    }

    fn start_limited(
        &self,
        settings: ServerSettings,
        train_memory: u64,
        aliases: &[&str],
    ) -> RunningServer {
        let service = Settings {
            model_aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
            ..Settings::default()
        };
        self.start_as(service, settings, train_memory)
    }

    fn start_on(&self, device: DeviceChoice) -> RunningServer {
        let service = Settings {
            device,
            ..Settings::default()
        };
        self.start_as(service, ServerSettings::default(), u64::MAX)
    }

    fn start_as(
        &self,
        service: Settings,
        settings: ServerSettings,
        train_memory: u64,
    ) -> RunningServer {
        let location = RegistryLocation::Folder(self.path("registry"));
        let registry = Registry::open(&location, &self.path("cache")).unwrap();
        let personas = self.home.base().parent().unwrap().join("personas");
        let catalog = Catalog::open(Personas::open(&personas).unwrap(), registry).unwrap();
        let service = Settings {
            votes: Some(self.path("judgements")),
            ..service
        };
        let service = Service::open(&self.home.base(), catalog, &service);
        let service = Arc::new(service.unwrap());
        let results = EvaluationResults::new(&self.path("judgements"));
        let job_settings = JobSettings {
            dir: self.path("jobs"),
            known_base: None,
            results: Some(results.clone()),
            train_memory,
        };
        let jobs = Arc::new(Jobs::start(Arc::clone(&service), &job_settings).unwrap());
        let state = AppState::loading();
        state.set_results(results);
        state.set_jobs(Ok(Arc::clone(&jobs)));
        state.set_service(service);
        RunningServer {
            http: TestServer::start_with(state, settings),
            jobs,
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.jobs.shutdown();
    }
}

/// `count` rows of questions with numbers and cheerful answers.
fn rows(count: usize) -> String {
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
    };
    (100..100 + count).map(row).collect()
}

impl RunningServer {
    fn upload(&self, text: &str) -> String {
        let body = form(&[
            ("purpose", None, "fine-tune"),
            ("file", Some("mine.jsonl"), text),
        ]);
        let reply = self
            .http
            .send("POST", "/v1/files", &[FORM], &body)
            .read_all();
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    fn create(&self, body: &Value) -> Response {
        self.http.post("/v1/fine_tuning/jobs", body)
    }

    fn created(&self, body: &Value) -> String {
        let reply = self.create(body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    fn job(&self, id: &str) -> Value {
        self.http.get(&format!("/v1/fine_tuning/jobs/{id}")).json()
    }

    fn turn(&self, id: &str, what: &str) -> Response {
        let path = format!("/v1/fine_tuning/jobs/{id}/{what}");
        self.http.send("POST", &path, &[], b"").read_all()
    }

    /// Waits until `when` holds for the job.
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

    /// Waits until the job has done `step` steps.
    #[track_caller]
    fn at_step(&self, id: &str, step: u64) -> Value {
        self.once(id, |job| {
            job["lory"]["progress"]["step"].as_u64().unwrap() >= step
        })
    }

    fn list(&self, id: &str, what: &str) -> Vec<Value> {
        let path = format!("/v1/fine_tuning/jobs/{id}/{what}?limit=100");
        let list = self.http.get(&path).json();
        list["data"].as_array().unwrap().clone()
    }

    /// The hash of the adapter that serves `who`.
    fn hash(&self, who: &str) -> String {
        let answer = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 2});
        let answer = self.http.generate(answer);
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

/// A job with more steps than a test waits for.
fn endless(file: &str, suffix: &str) -> Value {
    let mut body = body(file, suffix);
    body["hyperparameters"]["n_epochs"] = json!(10_000);
    body
}
