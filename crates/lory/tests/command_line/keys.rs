//! `lory key`, and the keys that `lory serve` requires.

use crate::test_dir::TestDir;

#[test]
fn keys_are_made_listed_and_revoked() {
    let dir = TestDir::new();
    let made = dir.run(&["key", "new", "ops", "--admin"]);
    let secret = made.succeeds().trim().to_owned();
    assert!(
        secret.starts_with("lory_") && secret.len() == 69,
        "{made:?}"
    );
    assert!(made.err.contains("key ops is in keys.toml"), "{made:?}");
    let file = std::fs::read_to_string(dir.path("keys.toml")).unwrap();
    assert!(file.contains("admin = true") && !file.contains(&secret));
    let more = [
        "key",
        "new",
        "acme",
        "--persona",
        "acme-*",
        "--requests-per-minute",
        "60",
        "--cache-group",
        "stores",
        "--json",
    ];
    let json: serde_json::Value = serde_json::from_str(dir.run(&more).succeeds()).unwrap();
    assert_eq!(json["requests_per_minute"], 60);
    assert_eq!(
        (&json["base"], &json["personas"][0]),
        (&false.into(), &"acme-*".into())
    );
    assert!(json["key"].as_str().unwrap().starts_with("lory_"));

    let listed = dir.run(&["key", "list"]);
    for part in [
        "ops",
        "every persona, the base",
        "acme-*",
        "no limit",
        "cache group",
        "stores",
    ] {
        assert!(listed.succeeds().contains(part), "{}", listed.out);
    }
    assert!(!listed.out.contains("lory_"));
    dir.run(&["key", "new", "ops"]).fails(
        1,
        &["keys.toml: key ops exists; revoke it first, or edit its limits in the file"],
    );
    dir.run(&["key", "new", "ops", "--keys", "missing/keys.toml"])
        .fails(1, &["missing: no such folder; create it first"]);
    dir.run(&["key", "revoke", "ops"]).succeeds();
    assert!(!dir.run(&["key", "list"]).succeeds().contains("ops"));
    dir.run(&["key", "revoke", "ops"])
        .fails(1, &["there is no key ops", "acme"]);
    dir.run(&["key", "list", "--keys", "none.toml"])
        .fails(1, &["none.toml: no such file"]);
    dir.run(&["key", "new", "a b"])
        .fails(2, &["a key's name has"]);
    dir.run(&["key", "new", "a", "--persona", "A*"])
        .fails(2, &["is not a persona's name"]);
}

#[test]
fn flags_without_a_heading_are_shown_before_the_first_one() {
    let dir = TestDir::new();
    for (command, heading, flags) in [
        (&["key", "new"][..], "Quotas [", &["--json"][..]),
        (
            &["train"],
            "Settings (",
            &["--plan", "--lr-find", "--memory", "--json"],
        ),
        (
            &["serve"],
            "Engine:",
            &["--config", "--print-config", "--log-format"],
        ),
    ] {
        let help = dir.run(&[command, &["--help"]].concat());
        let options = help.succeeds().split_once("\nOptions:").unwrap().1;
        let before = options.split_once(&format!("\n{heading}")).unwrap().0;
        for flag in flags {
            assert!(
                before.contains(&format!("  {flag}")),
                "{flag}: {}",
                help.out
            );
        }
    }
}

#[test]
fn quotas_of_a_key_are_set_and_listed() {
    let dir = TestDir::new();
    assert!(
        dir.run(&["key", "new", "plain"])
            .succeeds()
            .contains("lory_")
    );
    let names = [
        "open_jobs",
        "stored_jobs",
        "open_evaluations",
        "stored_evaluations",
        "files",
        "file_bytes",
        "votes",
        "vote_pairs",
        "adapter_bytes",
        "upload_bytes",
    ];
    let flags: Vec<String> = names
        .iter()
        .enumerate()
        .flat_map(|(n, name)| [format!("--{}", name.replace('_', "-")), n.to_string()])
        .collect();
    let mut new = vec!["key", "new", "ci", "--train", "--json"];
    new.extend(flags.iter().map(String::as_str));
    let json: serde_json::Value = serde_json::from_str(dir.run(&new).succeeds()).unwrap();
    let file = std::fs::read_to_string(dir.path("keys.toml")).unwrap();
    let listed = dir.run(&["key", "list"]);
    let listed = listed.succeeds();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(json["quotas"][name], n, "{json}");
        assert!(file.contains(&format!("\n{name} = {n}\n")), "{file}");
        assert!(listed.contains(&format!("{name} {n}")), "{listed}");
    }
    assert!(listed.contains("default"), "{listed}");
    dir.run(&["key", "new", "big", "--file-bytes", "500MB"])
        .succeeds();
    assert!(
        dir.run(&["key", "list"])
            .succeeds()
            .contains("file_bytes 500000000")
    );
    dir.run(&["key", "new", "bad", "--file-bytes", "lots"])
        .fails(2, &["--file-bytes", "must be a size"]);
}

#[test]
fn serving_other_machines_requires_keys() {
    let dir = TestDir::with_tones();
    let serve =
        |more: &[&str]| dir.run(&[&["serve", "--base", "tiny.gguf", "--port", "0"], more].concat());
    serve(&["--host", "0.0.0.0"]).fails(2, &["without keys", "lory key new", "--no-keys"]);
    serve(&["--keys", "none.toml"]).fails(1, &["none.toml: no such file", "lory key new"]);
    dir.write("keys.toml", "[[key]]\nname = 'a'\nsha256 = 'short'");
    serve(&["--keys", "keys.toml"]).fails(1, &["keys.toml:3: key a: sha256 must be"]);
    serve(&["--tls-cert", "a.pem"]).fails(2, &["--tls-key"]);
    serve(&["--tls-cert", "a.pem", "--tls-key", "b.pem"]).fails(1, &["a.pem: "]);
    serve(&["--cors-origin", "shop.example"]).fails(2, &["must be an origin"]);
}
