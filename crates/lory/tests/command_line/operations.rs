//! The server's process: its settings, its log, its end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::Scene;

struct Serving {
    child: Child,
    address: String,
    log: BufReader<ChildStderr>,
}

impl Serving {
    fn start(scene: &Scene, args: &[&str]) -> Serving {
        let common = ["serve", "--base", "tiny.gguf", "--port", "0"];
        let mut child = scene
            .lory(&[&common, args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("curl") && out.read_line(&mut said).unwrap() > 0 {}
        let address = said.split("://").nth(1).expect("an address");
        Serving {
            address: address.lines().next().unwrap().to_owned(),
            child,
            log,
        }
    }

    /// Sends a request and gives the connection back.
    fn send(&self, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let method = if body.is_empty() { "GET" } else { "POST" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: lory\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    fn ask(&self, path: &str, headers: &str, body: &str) -> String {
        let mut answer = String::new();
        self.send(path, headers, body)
            .read_to_string(&mut answer)
            .unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let mut kill = std::process::Command::new("kill");
        assert!(kill.args([name, &id]).status().unwrap().success());
    }

    /// The next line of the log that has all of `parts`.
    fn line(&mut self, parts: &[&str]) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.log.read_line(&mut line).unwrap() > 0,
                "no line with {parts:?}"
            );
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_drains_and_ends_with_0() {
    let scene = Scene::with_tones();
    let serving = Serving::start(&scene, &["--drain-timeout", "60s"]);
    let body =
        r#"{"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 400, "stream": true}"#;
    let mut running = serving.send("/generate", "", body);
    let mut begun = [0; 1];
    running.read_exact(&mut begun).unwrap();
    serving.signal("-TERM");
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = serving.ask("/ready", "", "");
        if answer.starts_with("HTTP/1.1 503") {
            break;
        }
        assert!(Instant::now() < end, "{answer}");
    }
    let refused = serving.ask("/generate", "", body);
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.to_lowercase().contains("retry-after: "),
        "{refused}"
    );
    assert!(refused.contains("\"shutting_down\""), "{refused}");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"completion_tokens\":400"), "{rest}");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn a_request_has_one_line_of_json_and_no_secret() {
    let scene = Scene::with_tones();
    let made = scene.run(&["key", "new", "shop"]);
    let secret = made.succeeds().trim().to_owned();
    let args = ["--keys", "keys.toml", "--log-format", "json"];
    let mut serving = Serving::start(&scene, &args);
    let headers = format!("Authorization: Bearer {secret}\r\nX-Request-Id: order-7\r\n");
    let body = r#"{"prompt": "Hello!", "user_type": "formal", "max_new_tokens": 3}"#;
    let answer = serving.ask("/generate?hidden=query", &headers, body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let text = serving.line(&["order-7"]);
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["level"], "INFO");
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

    // Whose key is wrong is written down without it.
    let headers = "Authorization: Bearer wrong-secret\r\nX-Request-Id: order-8\r\n";
    serving.ask("/generate", headers, body);
    let text = serving.line(&["order-8"]);
    assert!(
        text.contains("401") && !text.contains("wrong-secret"),
        "{text}"
    );
    // SIGHUP reads the keys again; a broken file changes nothing.
    scene.write("keys.toml", "[[key]]\nname = 'a'");
    serving.signal("-HUP");
    let text = serving.line(&["keys.toml:1", "the previous keys stay in use"]);
    assert!(text.contains("ERROR"), "{text}");
    let headers = format!("Authorization: Bearer {secret}\r\n");
    assert!(
        serving
            .ask("/v1/models", &headers, "")
            .starts_with("HTTP/1.1 200")
    );
}

#[test]
fn a_file_of_settings_is_read_and_the_command_line_goes_before_it() {
    let scene = Scene::with_tones();
    scene.write(
        "lory.toml",
        "base = 'tiny.gguf'\nmax-batch = 3\nno-prefix-cache = true\n",
    );
    let print = |more: &[&str]| scene.run(&[&["serve", "--print-config"], more].concat());
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
    // What is printed is such a file, and says the same.
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" # ").next().unwrap().trim_end().to_owned())
            .collect()
    };
    scene.write("again.toml", &shown.out);
    let again = print(&["--config", "again.toml"]);
    assert_eq!(values(again.succeeds()), values(&shown.out));

    scene.write("bad.toml", "port = 1\nmax-bach = 2\n");
    print(&["--config", "bad.toml"]).fails(
        2,
        &["bad.toml:2: unknown key `max-bach`; did you mean `max-batch`?"],
    );
    print(&["--config=none.toml"]).fails(2, &["none.toml: "]);
    scene.write("half.toml", "tls-key = 'key.pem'\n");
    print(&["--config", "half.toml"]).fails(2, &["with the settings of half.toml", "--tls-cert"]);
    // Other commands have no such file.
    scene.write("lory.toml", "nonsense");
    scene.run(&["key", "new", "a"]).succeeds();
}
