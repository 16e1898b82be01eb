//! The server process: settings, log, shutdown.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::http::JSON;
use testkit::server::ServerProcess;

use crate::test_dir::TestDir;

/// `lory serve` with its log in a pipe.
fn serve(dir: &TestDir, args: &[&str]) -> ServerProcess {
    let common = ["serve", "--base", "tiny.gguf", "--port", "0"];
    let mut command = dir.lory(&[&common, args].concat());
    command.stderr(Stdio::piped());
    ServerProcess::spawn(command)
}

#[test]
fn sigterm_drains_and_exits_with_0() {
    let dir = TestDir::with_tones();
    let mut server = serve(&dir, &["--drain-timeout", "60s"]);
    let body =
        json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 400, "stream": true});
    let mut running = server.send("POST", "/generate", JSON, body.to_string().as_bytes());
    running.wait_for_body();
    server.signal("-TERM");
    server.log_line(&["shutting down: 1 requests in flight, at most 60s"]);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ready = server.get("/ready");
        if ready.status == 503 {
            break;
        }
        assert!(Instant::now() < end, "{}", ready.text);
    }
    let refused = server.post("/generate", &body);
    let (status, code, ..) = refused.error();
    assert_eq!((status, code.as_str()), (503, "shutting_down"));
    assert!(refused.header("retry-after").is_some());
    let rest = running.read_all().text;
    assert!(rest.contains("\"completion_tokens\":400"), "{rest}");
    server.log_line(&["shut down"]);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn plan_and_shutdown_of_an_idle_server_are_logged() {
    let dir = TestDir::with_tones();
    let mut server = serve(&dir, &["--drain-timeout", "7s"]);
    let plan = server.log_line(&["plan: cpu"]);
    assert_eq!(plan.matches("as in the file").count(), 1, "{plan}");
    server.signal("-TERM");
    server.log_line(&["shutting down: 0 requests in flight, at most 7s"]);
    server.log_line(&["shut down"]);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn request_log_is_one_json_line_without_secrets() {
    let dir = TestDir::with_tones();
    let made = dir.run(&["key", "new", "shop"]);
    let secret = made.succeeds().trim().to_owned();
    let args = ["--keys", "keys.toml", "--log-format", "json"];
    let mut server = serve(&dir, &args);
    let body = json!({"prompt": "Hello!", "user_type": "formal", "max_new_tokens": 3}).to_string();
    let generate = |server: &ServerProcess, path: &str, key: &str, id: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [
            JSON[0],
            ("Authorization", bearer.as_str()),
            ("X-Request-Id", id),
        ];
        server
            .send("POST", path, &headers, body.as_bytes())
            .read_all()
    };
    let reply = generate(&server, "/generate?hidden=query", &secret, "order-7");
    assert_eq!(reply.status, 200, "{}", reply.text);
    let text = server.log_line(&["order-7"]);
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["level"], line.get("code")), (&"INFO".into(), None));
    assert_eq!(
        (&line["path"], &line["status"]),
        (&"/generate".into(), &200.into())
    );
    assert_eq!(
        (&line["key"], &line["persona"]),
        (&"shop".into(), &"formal".into())
    );
    assert_eq!(line["version"], 2);
    assert!(line["prompt_tokens"].as_u64().unwrap() > 0);
    assert!((1..=3).contains(&line["completion_tokens"].as_u64().unwrap()));
    let times = ["queue_ms", "first_token_ms", "total_ms"].map(|name| line[name].as_f64().unwrap());
    assert!(times[0] <= times[1] && times[1] <= times[2], "{text}");
    assert!(!text.contains(&secret) && !text.contains("hidden") && !text.contains("Hello"));

    // A wrong key is not logged.
    generate(&server, "/generate", "wrong-secret", "order-8");
    let text = server.log_line(&["order-8"]);
    assert!(
        text.contains("401") && !text.contains("wrong-secret"),
        "{text}"
    );
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["code"], "invalid_api_key");
    // SIGHUP reads the keys again; a broken file changes nothing.
    dir.write("keys.toml", "[[key]]\nname = 'a'");
    server.signal("-HUP");
    let text = server.log_line(&["keys.toml:1", "the previous keys stay in use"]);
    assert!(text.contains("ERROR"), "{text}");
    let bearer = format!("Bearer {secret}");
    let models = server.send("GET", "/v1/models", &[("Authorization", &bearer)], b"");
    assert_eq!(models.read_all().status, 200);
}

#[test]
fn command_line_overrides_the_config_file() {
    let dir = TestDir::with_tones();
    dir.write(
        "lory.toml",
        "base = 'tiny.gguf'\nmax-batch = 3\nno-prefix-cache = true\n",
    );
    let print = |more: &[&str]| dir.run(&[&["serve", "--print-config"], more].concat());
    let shown = print(&["--max-queue", "7", "--no-prefix-cache=false"]);
    for (key, value, source) in [
        ("base", "\"tiny.gguf\"", "lory.toml:1"),
        ("max-batch", "3", "lory.toml:2"),
        ("no-prefix-cache", "false", "the command line"),
        ("max-queue", "7", "the command line"),
        ("port", "8000", "the default"),
        ("# keys", "", "not set"),
    ] {
        let mut lines = shown.succeeds().lines();
        let line = lines
            .find(|line| line.starts_with(&format!("{key} =")))
            .unwrap();
        assert!(
            line.contains(value) && line.ends_with(&format!("# {source}")),
            "{line}"
        );
    }
    assert!(!shown.out.contains("version ="), "{}", shown.out);
    // The printed text is a config file with the same values.
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" # ").next().unwrap().trim_end().to_owned())
            .collect()
    };
    dir.write("again.toml", &shown.out);
    let again = print(&["--config", "again.toml"]);
    assert_eq!(values(again.succeeds()), values(&shown.out));

    dir.write("bad.toml", "port = 1\nmax-bach = 2\n");
    print(&["--config", "bad.toml"]).fails(
        2,
        &["bad.toml:2: unknown key `max-bach`; did you mean `max-batch`?"],
    );
    print(&["--config=none.toml"]).fails(2, &["none.toml: "]);
    dir.write("half.toml", "tls-key = 'key.pem'\n");
    print(&["--config", "half.toml"]).fails(2, &["with the settings from half.toml", "--tls-cert"]);
    // Other commands do not read the file.
    dir.write("lory.toml", "nonsense");
    dir.run(&["key", "new", "a"]).succeeds();
}
