//! Many requests for work that takes long, from clients that disconnect at once.

use super::*;
use testkit::http::JSON;

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
