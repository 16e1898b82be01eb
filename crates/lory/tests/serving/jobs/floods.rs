//! Many requests for work that takes long, from clients that disconnect at once.

use std::io::Read as _;

use super::*;
use testkit::http::JSON;

/// The lints and plans have their own threads: an answer is complete before the last of twenty plans.
#[test]
fn answers_do_not_wait_for_plans() {
    let fixture = JobsFixture::new();
    let mut server = fixture.start();
    let file = server.upload(&rows(20_000));
    let plan = body(&file, "planned").to_string();
    let path = "/v1/fine_tuning/plan";
    let mut plans: Vec<_> = (0..20)
        .map(|_| server.http.write("POST", path, JSON, plan.as_bytes()))
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    server
        .http
        .generate(json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 2}));
    let last = &mut plans[19];
    let wait = Some(Duration::from_millis(1));
    last.set_read_timeout(wait).unwrap();
    assert!(last.read(&mut [0; 1]).is_err(), "it was planned before");
    drop(plans);
    server.http.stop();
    server.http.join();
}

#[test]
fn plans_of_clients_that_disconnected_delay_nobody() {
    let fixture = JobsFixture::new();
    let mut server = fixture.start();
    let file = server.upload(&rows(20_000));
    let plan = body(&file, "planned").to_string();
    for _ in 0..600 {
        let path = "/v1/fine_tuning/plan";
        drop(server.http.write("POST", path, JSON, plan.as_bytes()));
    }
    // Answers, records and the shutdown do not wait for 600 plans.
    let hello = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 2});
    server.http.generate(hello);
    assert_eq!(server.http.get("/v1/fine_tuning/jobs").status, 200);
    server.http.stop();
    server.http.join();
}

impl RunningServer {
    /// The response to a lint, which may take long on a busy machine.
    fn linted(&self, file: &str) -> String {
        let path = format!("/v1/files/{file}/lint");
        let mut stream = self.http.write("GET", &path, &[], b"");
        let timeout = Some(Duration::from_secs(120));
        stream.set_read_timeout(timeout).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }
}

#[test]
fn lint_of_a_client_that_disconnects_stops_in_the_middle() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let small = server.upload(&rows(4));
    let row = |i: usize| {
        let text: String = (0..40)
            .map(|word| format!("w{} ", i.wrapping_mul(31 + word * 17) % 5_000))
            .collect();
        format!("{{\"instruction\":\"{text}{i}\",\"output\":\"Yay.\"}}\n")
    };
    let large = server.upload(&(0..3_000).map(row).collect::<String>());
    let path = |file: &str| format!("/v1/files/{file}/lint");
    let lint = |file: &str| {
        let began = Instant::now();
        let reply = server.linted(file);
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply:.2000}");
        began.elapsed()
    };
    let whole = lint(&large);
    // The server has four slots for lints, and its next one waits for one of them.
    for part in [10, 5] {
        let disconnected: Vec<_> = (0..4)
            .map(|_| server.http.write("GET", &path(&large), &[], b""))
            .collect();
        std::thread::sleep(whole / part);
        for mut stream in disconnected {
            let short = Some(Duration::from_millis(1));
            stream.set_read_timeout(short).unwrap();
            assert!(stream.read(&mut [0; 1]).is_err(), "it ended before");
        }
        let next = lint(&small);
        assert!(next < whole / 2, "{next:?} of {whole:?}");
    }
}

#[test]
fn linter_checks_the_first_rows_of_a_large_file() {
    let fixture = JobsFixture::new();
    let server = fixture.start();
    let file = server.upload(&"{\"text\":\"a\"}\n".repeat(100_007));
    let reply = server.linted(&file);
    assert!(reply.contains("\"unchecked_rows\":7,"), "{reply:.2000}");
}
