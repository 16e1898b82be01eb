//! The memory of training has a limit, which plans, new jobs and jobs that start are compared with.

use super::*;

#[test]
fn jobs_that_need_more_memory_than_training_has_are_refused_and_fail() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let plan = "/v1/fine_tuning/plan";
    let mut job = body(&file, "small");
    let needed = |server: &RunningServer, job: &Value| {
        let planned = server.http.post(plan, job).json();
        let cache = planned["memory"]["kept"].as_u64().unwrap();
        planned["memory_needed"].as_u64().unwrap() - cache
    };
    let small = needed(&server, &job);
    let queued = server.created(&body(&file, "queued"));
    server.once(&queued, |job| job["status"] == "succeeded");
    drop(server);

    // Just enough: the activation cache is made smaller.
    let server = fixture.start_with_train_memory(small);
    assert_eq!(needed(&server, &job), small);
    assert_eq!(server.http.post(plan, &job).json()["memory"]["kept"], 0);
    let id = server.created(&job);
    server.succeeded(&id);

    job["hyperparameters"]["rank"] = json!(64);
    job["suffix"] = json!("large");
    let (status, code, _, message) = server.http.post(plan, &job).error();
    assert_eq!((status, code.as_str()), (400, "out_of_memory"), "{message}");
    assert!(
        message.contains("MiB are allowed by --train-memory") && message.contains("rank"),
        "{message}"
    );
    let id = server.created(&job);
    let failed = loop {
        let job = server.job(&id);
        if job["status"] == "failed" {
            break job;
        }
        assert_ne!(job["status"], "running", "{job}");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(failed["error"]["code"], "out_of_memory");
    assert_eq!(failed["error"]["param"], "hyperparameters");
}

#[test]
fn queued_job_fails_if_the_server_has_less_memory_for_training_when_it_starts() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let id = server.created(&endless(&file, "endless"));
    server.at_step(&id, 2);
    drop(server);
    let server = fixture.start_with_train_memory(1 << 10);
    let failed = loop {
        let job = server.job(&id);
        if job["status"] == "failed" {
            break job;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(failed["error"]["code"], "out_of_memory", "{failed}");
}
