//! Jobs that continue the adapter of a persona.

use super::*;

const PLAN: &str = "/v1/fine_tuning/plan";

#[test]
fn alias_of_a_model_names_the_adapter_to_continue() {
    let fixture = JobsFixture::new();
    let aliases = [
        "gpt-4o=warm",
        "gpt-3=tiny",
        "both=warm+formal",
        "half=warm*0.5",
    ];
    let server = fixture.start_with_aliases(&aliases);
    let file = server.upload(&rows(12));
    let mut job = body(&file, "more");
    job["model"] = json!("gpt-3");
    assert_eq!(server.http.post(PLAN, &job).status, 200);
    job["model"] = json!("gpt-4o");
    let planned = server.http.post(PLAN, &job);
    assert_eq!(planned.status, 200, "{}", planned.text);
    let done = server.succeeded(&server.created(&job));
    assert_eq!(done["lory"]["started_from"], "warm@1");
    assert_eq!(done["model"], "gpt-4o");
    // No job makes a persona with the name of an alias.
    job["suffix"] = json!("gpt-4o");
    for path in [PLAN, "/v1/fine_tuning/jobs"] {
        let (status, code, param, message) = server.http.post(path, &job).error();
        assert_eq!((status, code.as_str()), (400, "invalid_value"), "{message}");
        assert_eq!(
            (param, message.as_str()),
            (
                json!("suffix"),
                "suffix: is an alias of this server; use another name"
            )
        );
    }
    let published = server.http.post(
        "/v1/personas/gpt-4o/versions",
        &json!({"settings": {"system_prompt": "You are kind."}}),
    );
    let (status, code, _, message) = published.error();
    assert_eq!(
        (status, code.as_str()),
        (409, "persona_refused"),
        "{message}"
    );
    // Nor does the registry give a persona this name.
    let target = json!({"target": "warm"});
    let named = server.http.put("/v1/persona_aliases/gpt-4o", &target);
    let (status, code, ..) = named.error();
    assert_eq!((status, code.as_str()), (409, "persona_refused"));
    job["suffix"] = json!("more");
    for (alias, expected) in [
        ("both", "model: is a blend"),
        ("half", "model: has a scale"),
        ("nobody", "model: unknown persona `nobody`"),
        ("gpt:5", "model: no model is named \"gpt:5\""),
        ("warm\n", "model: no model is named"),
    ] {
        job["model"] = json!(alias);
        for path in [PLAN, "/v1/fine_tuning/jobs"] {
            let (status, code, param, message) = server.http.post(path, &job).error();
            assert_eq!((status, code.as_str()), (400, "invalid_value"), "{message}");
            assert_eq!(param, "model");
            assert!(message.starts_with(expected), "{message}");
        }
    }
}

#[test]
fn setting_that_differs_from_the_continued_adapter_is_rejected_by_name() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&rows(12));
    let mut job = body(&file, "more");
    job["model"] = json!("warm");
    for (name, value, status) in [
        ("rank", json!(4), 200),
        ("alpha", json!(4), 200),
        ("rank", json!(8), 400),
        ("alpha", json!(8), 400),
        ("rslora", json!(true), 400),
        ("target_modules", json!(["q_proj"]), 400),
    ] {
        let mut job = job.clone();
        job["hyperparameters"][name] = value;
        let planned = server.http.post(PLAN, &job);
        assert_eq!(planned.status, status, "{}", planned.text);
        if status == 400 {
            let (_, code, param, message) = server.create(&job).error();
            assert_eq!(code, "invalid_value", "{message}");
            assert_eq!(param, format!("hyperparameters.{name}"));
            assert!(message.contains("leave it out"), "{message}");
        }
    }
    // Without the rank the job has that of the adapter.
    let rank = &mut job["hyperparameters"];
    rank.as_object_mut().unwrap().remove("rank");
    let needed = |job: &Value| server.http.post(PLAN, job).json()["memory"]["gradients"].clone();
    let left_out = needed(&job);
    job["hyperparameters"]["rank"] = json!(4);
    assert_eq!(left_out, needed(&job));
}
