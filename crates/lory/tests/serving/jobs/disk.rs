//! The jobs folder on a disk that has foreign, damaged and missing files.

use std::fs;

use super::*;

/// What starting jobs in the fixture's folder answers.
fn start_jobs(fixture: &JobsFixture) -> Result<Jobs, jobs::JobError> {
    let base = fixture.home.base();
    let catalog = Catalog::from(Personas::default());
    let service = Service::open(&base, catalog, &Settings::default()).unwrap();
    let settings = JobSettings {
        dir: fixture.path("jobs"),
        known_base: None,
        results: None,
        train_memory: u64::MAX,
    };
    Jobs::start(Arc::new(service), &settings)
}

#[test]
fn folder_of_someone_else_is_refused_and_keeps_its_files() {
    for name in ["files", "jobs", "evaluations"] {
        let fixture = JobsFixture::new();
        let foreign = fixture.path(&format!("jobs/{name}/mine"));
        fs::create_dir_all(&foreign).unwrap();
        fs::write(foreign.join("notes.txt"), "precious").unwrap();
        let started = start_jobs(&fixture).map(drop);
        assert!(foreign.join("notes.txt").exists(), "{name}");
        let message = started.unwrap_err().to_string();
        let dir = fixture.path("jobs").display().to_string();
        assert!(
            message.contains(&dir) && message.contains(name) && message.contains("--jobs-dir"),
            "{message}"
        );
        let found = fs::read_dir(fixture.path("jobs")).unwrap().count();
        assert_eq!(found, 1, "a refused folder gets no files");
    }
}

#[test]
fn damaged_records_and_stray_files_affect_only_themselves() {
    let fixture = JobsFixture::new();
    let (good, bad, file) = {
        let server = fixture.start();
        let file = server.upload(&rows(12));
        let good = server.created(&body(&file, "good"));
        server.succeeded(&good);
        let bad = server.created(&body(&file, "bad"));
        server.succeeded(&bad);
        (good, bad, file)
    };
    let other = {
        let server = fixture.start();
        server.upload(&rows(13))
    };
    let at = |name: &str| fixture.path(&format!("jobs/{name}"));
    fs::write(at(&format!("jobs/{bad}/job.json")), "{\"id\":").unwrap();
    fs::write(at(&format!("files/{other}/file.json")), "").unwrap();
    for folder in ["files", "jobs", "evaluations"] {
        fs::write(at(&format!("{folder}/stray.txt")), "s").unwrap();
        fs::create_dir(at(&format!("{folder}/mine"))).unwrap();
        fs::write(at(&format!("{folder}/mine/notes.txt")), "n").unwrap();
    }
    let server = fixture.start();
    assert_eq!(server.job(&good)["status"], "succeeded");
    assert_eq!(
        server
            .http
            .get(&format!("/v1/fine_tuning/jobs/{bad}"))
            .status,
        404
    );
    assert_eq!(server.http.get(&format!("/v1/files/{file}")).status, 200);
    assert_eq!(server.http.get(&format!("/v1/files/{other}")).status, 404);
    // Its run and the stray files are where they were.
    assert!(at(&format!("jobs/{bad}/adapter/adapter_config.json")).exists());
    assert!(at(&format!("files/{other}/mine.jsonl")).exists());
    for folder in ["files", "jobs", "evaluations"] {
        assert!(at(&format!("{folder}/stray.txt")).exists(), "{folder}");
        assert!(at(&format!("{folder}/mine/notes.txt")).exists(), "{folder}");
    }
    let metrics = server.http.get("/metrics").text;
    for line in [
        "lory_damaged_records{kind=\"job\"} 1",
        "lory_damaged_records{kind=\"file\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let ready = server.http.get("/ready").json();
    assert_eq!(ready["jobs"], "ready");
    // The next job gets a number after all others, and runs.
    let next = server.created(&body(&file, "next"));
    server.succeeded(&next);
}

#[test]
fn removed_folder_is_reported_and_nothing_is_acknowledged() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    assert_eq!(server.http.get("/ready").json()["jobs"], "ready");
    fs::remove_dir_all(fixture.path("jobs")).unwrap();
    let reply = server.create(&body(&file, "gone"));
    assert_eq!(reply.status, 500, "{}", reply.text);
    assert!(reply.text.contains("removed"), "{}", reply.text);
    let sent = form(&[
        ("purpose", None, "fine-tune"),
        ("file", Some("mine.jsonl"), &rows(12)),
    ]);
    let reply = server.http.send("POST", "/v1/files", &[FORM], &sent);
    let reply = reply.read_all();
    assert_eq!(reply.status, 500, "{}", reply.text);
    let path = fixture.folder.path().display().to_string();
    assert!(!reply.text.contains(&path), "{}", reply.text);
    let ready = server.http.get("/ready");
    assert_eq!(
        (ready.status, &ready.json()["jobs"]),
        (200, &json!("unavailable"))
    );
    drop(server);
    fixture.start();
}

#[test]
fn long_file_names_are_kept_or_refused_by_field() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let send = |name: &str| {
        let sent = form(&[
            ("purpose", None, "fine-tune"),
            ("file", Some(name), &rows(3)),
        ]);
        let reply = server.http.send("POST", "/v1/files", &[FORM], &sent);
        reply.read_all()
    };
    // 3 bytes each.
    let kept = send(&"语".repeat(66));
    assert_eq!(kept.status, 200, "{}", kept.text);
    let long = send(&"语".repeat(100));
    assert_eq!(long.status, 400, "{}", long.text);
    assert_eq!(long.json()["error"]["param"], "file");
    let path = fixture.folder.path().display().to_string();
    assert!(
        long.text.contains("300 bytes") && long.text.contains("200") && !long.text.contains(&path),
        "{}",
        long.text
    );
}

#[test]
fn votes_that_cannot_be_read_are_reported_and_everything_else_works() {
    let fixture = JobsFixture::new();
    fs::create_dir_all(fixture.path("judgements").join("votes.jsonl")).unwrap();
    let server = fixture.start();
    let vote = json!({"a": "warm@1", "b": "formal@2", "winner": "a"});
    for reply in [
        server.http.get("/v1/votes"),
        server.http.post("/v1/votes", &vote),
    ] {
        let (status, code, _, message) = reply.error();
        assert_eq!((status, &*code), (503, "judgements_failed"), "{message}");
        assert!(
            message.contains("votes.jsonl") && message.contains("try again when its operator"),
            "{message}"
        );
        let root = fixture.folder.path().display().to_string();
        assert!(!message.contains(&root), "{message}");
    }
    let metrics = server.http.get("/metrics").text;
    assert!(
        metrics.contains("lory_damaged_records{kind=\"vote\"} 1"),
        "{metrics}"
    );
    let ready = server.http.get("/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.text.contains("votes.jsonl"), "{}", ready.text);
    server.upload(&rows(12));
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_do_not_hinder_the_start() {
    let fixture = JobsFixture::new();
    let (job, file) = {
        let server = fixture.start();
        let file = server.upload(&rows(12));
        let job = server.created(&body(&file, "good"));
        server.succeeded(&job);
        (job, file)
    };
    let record = fixture.path(&format!("jobs/jobs/{job}/job.json"));
    fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &record).unwrap();
    let entry = fixture.path(&format!("jobs/files/{file}/file.json"));
    fs::remove_file(&entry).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&entry).status();
    assert!(made.unwrap().success());
    let server = fixture.start();
    let metrics = server.http.get("/metrics").text;
    for kind in ["job", "file"] {
        let line = format!("lory_damaged_records{{kind=\"{kind}\"}} 1");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    server.upload(&rows(13));
}

#[cfg(unix)]
#[test]
fn content_of_a_file_that_became_a_pipe_is_an_error() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let folder = fixture.path(&format!("jobs/files/{file}"));
    let is_content = |path: &std::path::PathBuf| !path.ends_with("file.json");
    let entries = fs::read_dir(folder).unwrap();
    let content: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    let content = content.into_iter().find(is_content).unwrap();
    fs::remove_file(&content).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&content).status();
    assert!(made.unwrap().success());
    let reply = server.http.get(&format!("/v1/files/{file}/content"));
    assert_eq!(reply.status, 500, "{}", reply.text);
}

#[test]
fn job_whose_folder_is_removed_fails_with_the_reason() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let job = server.created(&endless(&file, "gone"));
    server.at_step(&job, 2);
    fs::remove_dir_all(fixture.path("jobs")).unwrap();
    let failed = server.once(&job, |job| job["status"] == "failed");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("removed"), "{failed}");
    assert!(
        !fixture.path("jobs").exists(),
        "the run made the folder again"
    );
    drop(server);
    fixture.start();
}
