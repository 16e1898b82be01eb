//! Votes, evaluation results and the studio's page over HTTP.

use serde_json::json;

use crate::registry_home::RegistryHome;
use testkit::server::TestServer;

use crate::setup::shared_server;

#[test]
fn votes_name_versions_and_survive_a_restart() {
    let home = RegistryHome::new();
    let vote =
        |a: &str, b: &str, winner: &str| json!({"a": a, "b": b, "winner": winner, "prompt": "Hi"});
    {
        let server = TestServer::start(home.state(false));
        assert_eq!(
            server.get("/v1/votes").json(),
            json!({"object": "list", "data": []})
        );
        let reply = server.post("/v1/votes", &vote("warm@1", "formal@2", "a"));
        assert_eq!(reply.status, 201, "{}", reply.text);
        assert_eq!(
            (&reply.json()["a"], &reply.json()["b_wins"]),
            (&json!("formal@2"), &json!(1))
        );
        server.post("/v1/votes", &vote("tiny", "warm@1*0.5+formal@2*0.5", "tie"));
        for (body, code, field) in [
            (vote("warm", "formal@2", "a"), "invalid_persona", "a"),
            (vote("warm@1", "nobody@2", "a"), "invalid_persona", "b"),
            (vote("warm@1", "warm@1", "a"), "invalid_value", "b"),
            (vote("warm@1", "tiny", "c"), "invalid_value", "winner"),
            (
                json!({"a": "warm@1", "b": "tiny", "winner": "a", "prompt": "x".repeat(4097)}),
                "invalid_value",
                "prompt",
            ),
        ] {
            let (status, found, param, message) = server.post("/v1/votes", &body).error();
            assert_eq!(
                (status, found.as_str(), param.as_str()),
                (400, code, Some(field)),
                "{message}"
            );
        }
    }
    let again = TestServer::start(home.state(false));
    let votes = again.get("/v1/votes").json();
    assert_eq!(votes["data"].as_array().unwrap().len(), 2, "{votes}");
    assert_eq!(votes["data"][0]["b_wins"], json!(1));
}

#[test]
fn evaluations_are_listed_and_shown() {
    let home = RegistryHome::new();
    let kept = home.evaluations();
    let result = json!({"base": "tiny", "missed": [], "losses": {}, "personas": [{"name": "warm", "version": 1, "adapter": null}]});
    kept.store(1_764_000_000, result).unwrap();
    let server = TestServer::start(home.state(false));
    let listed = server.get("/v1/evaluations").json();
    let id = listed["data"][0]["id"].as_str().unwrap();
    assert_eq!(listed["data"][0]["personas"][0]["name"], json!("warm"));
    let whole = server.get(&format!("/v1/evaluations/{id}")).json();
    assert_eq!(
        (&whole["base"], &whole["losses"]),
        (&json!("tiny"), &json!({}))
    );
    let (status, code, _, _) = server.get("/v1/evaluations/7").error();
    assert_eq!((status, code.as_str()), (404, "evaluation_not_found"));
    // Without a folder for results, votes are off.
    let (status, code, _, _) = shared_server().get("/v1/votes").error();
    assert_eq!((status, code.as_str()), (409, "judgements_off"));
}

#[test]
fn studio_page_has_a_content_security_policy() {
    let server = shared_server();
    let page = server.get("/");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let script = server.get("/studio/main.js");
    assert_eq!(
        (script.status, script.header("content-type")),
        (200, Some("text/javascript; charset=utf-8"))
    );
    let tag = script.header("etag").unwrap();
    let again = server
        .send("GET", "/studio/main.js", &[("If-None-Match", tag)], b"")
        .read_all();
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    assert_eq!(server.get("/studio/mod.rs").status, 404);
}
