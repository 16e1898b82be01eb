//! `lory demo` and `lory serve`.

use std::net::TcpListener;

use crate::scene::Scene;
use crate::serving::Serving;

#[test]
fn the_demo_answers_in_every_tone_side_by_side() {
    let scene = Scene::with_tones();
    scene.persona("later", "description = \"Comes later\"", None);
    let mut command = scene.lory(&["demo", "--once", "--base", "tiny.gguf"]);
    let wide = crate::scene::ran(command.env("COLUMNS", "170").output().unwrap());
    let head = wide
        .succeeds()
        .lines()
        .find(|line| line.starts_with("tiny (no persona)"))
        .unwrap();
    for title in ["│  formal", "│  later: not trained yet", "│  warm: Warm"] {
        assert!(head.contains(title), "{}", wide.out);
    }
    assert!(wide.out.contains("What is the status of my order #12345?"));
    assert!(wide.out.contains("4 answers, "), "{}", wide.out);

    let mut command = scene.lory(&["demo", "--once", "--base", "tiny.gguf"]);
    let narrow = crate::scene::ran(command.env("COLUMNS", "60").output().unwrap());
    assert!(
        narrow.succeeds().contains("warm: Warm\n──────────\n"),
        "{}",
        narrow.out
    );
    assert!(
        narrow
            .out
            .lines()
            .all(|line| console::measure_text_width(line) <= 60),
        "{}",
        narrow.out
    );
}

#[test]
fn the_demo_serves_on_the_next_free_port() {
    let scene = Scene::with_tones();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let serving = Serving::start(
        &scene,
        &["demo", "--base", "tiny.gguf", "--port", &port.to_string()],
    );
    assert_ne!(serving.address(), format!("127.0.0.1:{port}"));
    assert!(serving.said.contains("formal, warm"), "{}", serving.said);
    assert!(serving.get("/health").starts_with("HTTP/1.1 200"));
}

#[cfg(unix)]
#[test]
fn serve_says_where_it_is_and_stops_when_told() {
    let scene = Scene::with_tones();
    let serving = Serving::start(
        &scene,
        &[
            "serve",
            "--base",
            "tiny.gguf",
            "--personas",
            "personas",
            "--port",
            "0",
            "--kv-memory",
            "16MiB",
        ],
    );
    assert!(
        serving.said.contains("curl -s http://127.0.0.1:"),
        "{}",
        serving.said
    );
    assert!(serving.get("/v1/models").contains("\"formal\""));
    assert_eq!(serving.stop(), Some(0));
}

#[test]
fn serve_takes_an_empty_folder_of_personas() {
    let scene = Scene::with_tones();
    std::fs::create_dir(scene.path("none")).unwrap();
    let serving = Serving::start(
        &scene,
        &[
            "serve",
            "--base",
            "tiny.gguf",
            "--personas",
            "none",
            "--port",
            "0",
        ],
    );
    assert!(serving.said.contains("personas  none"), "{}", serving.said);
    let studio = format!("studio    http://{}/ in a browser", serving.address());
    assert!(serving.said.contains(&studio), "{}", serving.said);
    assert!(serving.get("/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_port_that_is_taken_is_an_error_at_once() {
    let scene = Scene::with_tones();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ran = scene.run(&["serve", "--base", "tiny.gguf", "--port", &port]);
    ran.fails(
        1,
        &[
            &format!("cannot listen on 127.0.0.1:{port}"),
            "the port is taken",
            "--port",
        ],
    );
}

#[test]
fn a_base_that_cannot_be_loaded_ends_the_server() {
    let scene = Scene::with_tones();
    scene.write("broken.gguf", "no model");
    let args = ["serve", "--base", "broken.gguf", "--port", "0"];
    scene.run(&args).fails(1, &["broken.gguf"]);
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let scene = Scene::with_tones();
    let args = [
        "serve",
        "--base",
        "tiny.gguf",
        "--port",
        "0",
        "--adapter-memory",
        "1KiB",
    ];
    scene.run(&args).fails(1, &["formal", "adapter memory"]);
}
