//! Uploaded adapters: inspected first, then published or deleted.

use std::io::{Cursor, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::registry_home::RegistryHome;
use testkit::http::Response;
use testkit::server::TestServer;

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer
            .start_file(*name, SimpleFileOptions::default())
            .unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A PEFT folder as an archive.
fn folder(path: &Path) -> Vec<u8> {
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    let (config, weights) = (
        read("adapter_config.json"),
        read("adapter_model.safetensors"),
    );
    zipped(&[
        ("x/adapter_config.json", &config),
        ("x/adapter_model.safetensors", &weights),
        ("x/optimizer.pt", b"o"),
    ])
}

fn send(server: &TestServer, archive: &[u8]) -> Response {
    let headers = [("Content-Type", "application/zip")];
    server
        .send("POST", "/v1/adapters", &headers, archive)
        .read_all()
}

fn publish(server: &TestServer, name: &str, body: Value) -> Response {
    server.post(&format!("/v1/personas/{name}/versions"), &body)
}

#[test]
fn uploaded_adapter_is_inspected_and_then_published() {
    let home = RegistryHome::new();
    let sent = home.adapter("sent", 41, &[]);
    let server = TestServer::start(home.service(false));
    let reply = send(&server, &folder(&sent));
    assert_eq!(reply.status, 201, "{}", reply.text);
    let shown = reply.json();
    assert_eq!(
        (&shown["fits"], &shown["problem"], &shown["rank"]),
        (&json!(true), &Value::Null, &json!(4))
    );
    assert_eq!(shown["passed_over"], json!(["x/optimizer.pt"]));
    assert!(shown["parameters"].as_u64().unwrap() > 0 && shown["layers"].as_u64().unwrap() > 0);
    // An upload publishes nothing.
    assert_eq!(server.get("/v1/personas/third").status, 404);
    let sha256 = shown["sha256"].as_str().unwrap();
    let version = publish(
        &server,
        "third",
        json!({"upload": sha256, "settings": {"system_prompt": "s"}}),
    );
    assert_eq!(version.status, 201, "{}", version.text);
    assert_eq!(version.json()["adapter"]["sha256"], shown["sha256"]);
    let answer =
        server.generate(json!({"prompt": "Hi", "user_type": "third", "max_new_tokens": 2}));
    assert_eq!(answer["persona"]["adapters"][0]["sha256"], shown["sha256"]);
    // A published upload is gone.
    let (status, code, _, _) = publish(&server, "third", json!({"upload": sha256})).error();
    assert_eq!((status, code.as_str()), (404, "upload_not_found"));

    send(&server, &folder(&sent));
    let path = format!("/v1/adapters/{sha256}");
    assert_eq!(server.delete(&path).status, 200);
    assert_eq!(server.delete(&path).status, 404);
}

#[test]
fn uploaded_adapter_of_another_base_is_reported_and_not_published() {
    let home = RegistryHome::new();
    let other = home.adapter("other", 42, &[("lory.base_sha256", &"ab".repeat(32))]);
    let server = TestServer::start(home.service(false));
    let shown = send(&server, &folder(&other)).json();
    assert_eq!(shown["fits"], json!(false));
    let problem = shown["problem"].as_str().unwrap();
    assert!(
        problem.contains("trained on the base") && !problem.contains("uploads"),
        "{problem}"
    );
    let (status, code, _, _) = publish(&server, "x", json!({"upload": shown["sha256"]})).error();
    assert_eq!((status, code.as_str()), (400, "adapter_of_another_base"));
}

#[test]
fn unusable_upload_is_rejected_with_the_reason() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(false));
    let refused = |reply: Response, status: u16, code: &str, expected: &str| {
        let (found, found_code, _, message) = reply.error();
        assert_eq!((found, found_code.as_str()), (status, code), "{message}");
        assert!(message.contains(expected), "{message}");
        let root = home.path("").display().to_string();
        assert!(
            !message.contains(&root) && !message.contains(".lory-partial"),
            "{message}"
        );
    };
    refused(
        send(&server, b"no archive"),
        400,
        "archive_refused",
        "not a readable zip archive",
    );
    let climbing = zipped(&[
        ("../adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"w"),
    ]);
    refused(
        send(&server, &climbing),
        400,
        "archive_refused",
        "leads out",
    );
    let half = zipped(&[("adapter_config.json", b"{}")]);
    refused(
        send(&server, &half),
        400,
        "archive_refused",
        "has no adapter_model.safetensors",
    );
    let broken = zipped(&[
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"w"),
    ]);
    refused(
        send(&server, &broken),
        400,
        "adapter_unusable",
        "adapter_config.json",
    );
    let bomb = zipped(&[
        ("adapter_config.json", &vec![b' '; (1 << 20) + 1]),
        ("adapter_model.safetensors", b"w"),
    ]);
    refused(
        send(&server, &bomb),
        413,
        "request_too_large",
        "larger than 1048576 bytes",
    );
    let json_body = server.post("/v1/adapters", &json!({}));
    refused(json_body, 415, "unsupported_media_type", "application/zip");
    let both = publish(&server, "x", json!({"upload": "0", "from_folder": true}));
    refused(both, 400, "invalid_value", "give one of them");
    let nobody = publish(&server, "nobody", json!({"from_folder": true}));
    refused(nobody, 404, "persona_not_found", "folder of personas");
}

#[test]
fn persona_of_the_folder_is_published_unchanged() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(false));
    let before = server.get("/v1/personas/formal").json();
    let reply = publish(&server, "formal", json!({"from_folder": true}));
    assert_eq!(reply.status, 201, "{}", reply.text);
    let shown = reply.json();
    assert_eq!(
        (&shown["source"], &shown["version"]),
        (&json!("registry"), &json!(1))
    );
    assert_eq!(shown["settings"], before["settings"]);
    assert_eq!(shown["adapter"]["sha256"], before["adapter"]["sha256"]);
    let versions = server.get("/v1/personas/formal/versions").json();
    assert_eq!(versions["data"].as_array().unwrap().len(), 1);
}

#[test]
fn folders_of_someone_else_next_to_uploads_stay() {
    let home = RegistryHome::new();
    let foreign = home.path("uploads/mine");
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::write(foreign.join("notes.txt"), "precious").unwrap();
    let stray = home.path("uploads/stray.txt");
    std::fs::write(&stray, "precious").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for path in [&foreign, &stray] {
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(old).unwrap();
    }
    let sent = home.adapter("sent", 41, &[]);
    let server = TestServer::start(home.service(false));
    assert_eq!(send(&server, &folder(&sent)).status, 201);
    assert!(foreign.join("notes.txt").exists() && stray.exists());
}

#[test]
fn removed_folders_of_the_home_are_reported_and_nothing_is_acknowledged() {
    let home = RegistryHome::new();
    let sent = folder(&home.adapter("sent", 41, &[]));
    let server = TestServer::start(home.service(false));
    let vote = json!({"a": "warm@1", "b": "formal@2", "winner": "a"});
    assert_eq!(send(&server, &sent).status, 201);
    assert_eq!(server.post("/v1/votes", &vote).status, 201);
    assert!(server.get("/ready").json()["problems"].is_null());
    for name in ["uploads", "judgements"] {
        std::fs::remove_dir_all(home.path(name)).unwrap();
    }
    let replies = [
        (send(&server, &sent), "uploads"),
        (server.post("/v1/votes", &vote), "judgements"),
        (server.get("/v1/votes"), "judgements"),
    ];
    for (reply, name) in replies {
        let (status, code, _, message) = reply.error();
        assert_eq!((status, code), (500, format!("{name}_failed")));
        assert!(
            message.contains(&format!("folder {name} was removed")) && message.contains("restart"),
            "{message}"
        );
        assert!(!home.path(name).exists(), "{name}");
    }
    let ready = server.get("/ready");
    assert_eq!(ready.status, 200);
    assert_eq!(ready.json()["problems"].as_array().unwrap().len(), 2);
}
