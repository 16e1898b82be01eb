//! `/metrics` and `/v1/lora_adapters`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use service::Settings;
use testkit::server::TestServer;
use testkit::tiny::adapter;

use crate::setup;

/// The samples of `/metrics` by name and labels. Every line is a sample or a comment.
fn samples(server: &TestServer) -> BTreeMap<String, f64> {
    let reply = server.get("/metrics");
    assert_eq!(reply.status, 200);
    let kind = reply.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(reply.text.ends_with("# EOF\n"));
    reply
        .text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn requests_tokens_and_times_are_counted() {
    let server = TestServer::start(setup::service(&Settings::default()));
    let fresh = samples(&server);
    assert_eq!(fresh["lory_adapters_resident"], 2.0);
    assert_eq!(fresh["lory_time_to_first_token_seconds_count"], 0.0);
    let answer = server.generate(json!({"prompt": "Hello!", "user_type": "warm"}));
    let base = json!({"model": "tiny", "prompt": [9, 4, 7], "max_tokens": 5, "ignore_eos": true});
    for _ in 0..2 {
        assert_eq!(server.post("/v1/completions", &base).status, 200);
    }
    let blend = json!({"prompt": "Hi", "user_type": "warm*0.2+formal", "max_new_tokens": 1});
    server.generate(blend);
    server.post("/generate", &json!({"prompt": "Hi", "user_type": "nobody"}));
    server.post(
        "/generate",
        &json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 9999}),
    );

    let seen = samples(&server);
    let requests = |persona: &str, outcome: &str| {
        seen[&format!("lory_requests_total{{persona=\"{persona}\",outcome=\"{outcome}\"}}")]
    };
    let reason = answer["finish_reason"].as_str().unwrap();
    assert_eq!(requests("warm", reason), 1.0);
    assert_eq!(requests("tiny", "length"), 2.0);
    assert_eq!(requests("blend", "length"), 1.0);
    assert_eq!(requests("none", "refused"), 1.0);
    assert_eq!(requests("warm", "refused"), 1.0);
    let tokens = |what: &str, persona: &str| {
        seen[&format!("lory_{what}_tokens_total{{persona=\"{persona}\"}}")]
    };
    assert_eq!(
        (tokens("prompt", "tiny"), tokens("completion", "tiny")),
        (6.0, 10.0)
    );
    let usage = &answer["usage"];
    assert_eq!(
        tokens("completion", "warm"),
        usage["completion_tokens"].as_f64().unwrap()
    );
    assert_eq!(seen["lory_time_to_first_token_seconds_count"], 4.0);
    let last = "lory_time_to_first_token_seconds_bucket{le=\"+Inf\"}";
    assert_eq!(seen[last], 4.0);
    let between = seen["lory_inter_token_time_seconds_count"];
    assert!(between >= 8.0, "{between}");
    assert_eq!(seen["lory_request_time_seconds_count"], 4.0);
    assert_eq!(seen["lory_requests_running"], 0.0);
    assert_eq!(seen["vllm:num_requests_waiting"], 0.0);
    assert_eq!(seen["vllm:kv_cache_usage_perc"], 0.0);
    assert_eq!(seen["lory_adapter_hits_total"], 3.0);
    // The two loads at the start.
    assert_eq!(seen["lory_adapter_misses_total"], 2.0);
    assert_eq!(seen["lory_adapter_load_seconds_count"], 2.0);
    assert!(seen["lory_adapter_read_bytes_total"] > 1000.0);
    assert!(seen["lory_adapter_memory_bytes"] <= seen["lory_adapter_memory_limit_bytes"]);
    let info: Vec<_> = seen
        .iter()
        .filter(|(name, _)| name.starts_with("vllm:lora_requests_info{"))
        .collect();
    assert_eq!(info.len(), 1);
    let (labels, time) = info[0];
    assert!(
        labels.contains("running_lora_adapters=\"formal,warm\",waiting_lora_adapters=\"\""),
        "{labels}"
    );
    assert!(*time > 1.7e9, "{time}");
    let blocks = seen["lory_kv_blocks"];
    let cache = format!(
        "vllm:cache_config_info{{block_size=\"16\",cache_dtype=\"float16\",num_gpu_blocks=\"{blocks}\"}}"
    );
    assert_eq!(seen.get(&cache), Some(&1.0), "{cache}");
}

#[test]
fn adapter_list_has_names_memory_and_pool_counters() {
    let home = setup::home();
    // Two personas with the same adapter.
    home.persona("mild", "scale = 0.2", Some(&adapter(11)));
    let roomy = setup::open(&home, &Settings::default()).unwrap();
    let each = roomy.engine().adapters()[0].bytes;
    let mut settings = Settings::default();
    settings.engine.adapter_memory = each;
    let service = std::sync::Arc::new(setup::open(&home, &settings).unwrap());
    let server = TestServer::start(service);
    server.generate(json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 2}));
    let list = server.get("/v1/lora_adapters").json();
    let data = list["data"].as_array().unwrap();
    assert_eq!(data.len(), 2, "{list}");
    let of = |name: &str| -> &Value {
        let named = |entry: &&Value| {
            let names = entry["names"].as_array().unwrap();
            names.iter().any(|other| other["name"] == name)
        };
        data.iter().find(named).unwrap()
    };
    let warm = of("warm");
    assert_eq!(
        warm["names"],
        json!([{"name": "mild", "version": 1}, {"name": "warm", "version": 1}])
    );
    assert_eq!(warm["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        (&warm["resident"], &warm["bytes"]),
        (&json!(true), &json!(each))
    );
    assert_eq!(warm["leases"], 0);
    let formal = of("formal");
    assert_eq!(formal["names"], json!([{"name": "formal", "version": 2}]));
    assert_eq!(
        (&formal["resident"], &formal["bytes"]),
        (&json!(false), &json!(0))
    );
    let pool = &list["pool"];
    assert_eq!(
        (&pool["limit"], &pool["resident"]),
        (&json!(each), &json!(1))
    );
    assert_eq!((&pool["loads"], &pool["evictions"]), (&json!(2), &json!(1)));
    assert_eq!((&pool["hits"], &pool["misses"]), (&json!(0), &json!(2)));
}
