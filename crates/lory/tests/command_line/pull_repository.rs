//! `lory pull OWNER/NAME` from a hub in the test, which can interrupt downloads.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use formats::gguf::{Gguf, GgufWriter, TensorView, Value as GgufValue};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::test_dir::{Ran, TestDir, ran};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has, and how it behaves.
#[derive(Default)]
struct Shop {
    files: BTreeMap<String, Vec<u8>>,
    /// The files of the adapter `nobody/My_Pirate`.
    adapter: BTreeMap<String, Vec<u8>>,
    /// Answers break off after so many bytes, so often.
    cut: Mutex<(usize, u32)>,
    gated: bool,
    /// The hash that it claims for weights, if not the right one.
    lies: Option<String>,
    /// Requests for files: name and range.
    asked: Mutex<Vec<(String, Option<String>)>>,
}

fn coded(status: StatusCode, code: &'static str) -> Response {
    (status, [("x-error-code", code)], "no").into_response()
}

async fn listing(
    State(shop): State<Arc<Shop>>,
    Path((owner, name, revision)): Path<(String, String, String)>,
) -> Response {
    if shop.gated {
        return coded(StatusCode::UNAUTHORIZED, "GatedRepo");
    }
    let files = match (owner.as_str(), name.as_str()) {
        ("nobody", "tiny") => &shop.files,
        ("nobody", "My_Pirate") => &shop.adapter,
        _ => return coded(StatusCode::NOT_FOUND, "RepoNotFound"),
    };
    if !["main", "v1", COMMIT].contains(&revision.as_str()) {
        return coded(StatusCode::NOT_FOUND, "RevisionNotFound");
    }
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let mut one = json!({"rfilename": name, "size": bytes.len()});
        if name.ends_with("safetensors") {
            let hash = base16ct::lower::encode_string(&Sha256::digest(bytes));
            one["lfs"] = json!({"sha256": shop.lies.clone().unwrap_or(hash), "size": bytes.len()});
        }
        one
    };
    let siblings: Vec<Value> = files.iter().map(sibling).collect();
    axum::Json(json!({"sha": COMMIT, "siblings": siblings})).into_response()
}

async fn file(
    State(shop): State<Arc<Shop>>,
    Path((_, repository, commit, name)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(commit, COMMIT, "files are asked for by commit");
    let range = headers
        .get("range")
        .map(|range| range.to_str().unwrap().to_owned());
    shop.asked
        .lock()
        .unwrap()
        .push((name.clone(), range.clone()));
    let files = match repository.as_str() {
        "tiny" => &shop.files,
        _ => &shop.adapter,
    };
    let Some(bytes) = files.get(&name) else {
        return coded(StatusCode::NOT_FOUND, "EntryNotFound");
    };
    let from = range.map_or(0, |range| {
        range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse::<usize>()
            .unwrap()
    });
    let status = if from > 0 {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let rest = bytes[from..].to_vec();
    let length = rest.len();
    let mut cut = shop.cut.lock().unwrap();
    if name.ends_with("safetensors") && cut.1 > 0 {
        cut.1 -= 1;
        // A length that does not come: the connection ends before it.
        let some = rest[..cut.0.min(length)].to_vec();
        let cut = async {
            // What came before is on its way by then: an error at once would take it along.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("cut"))
        };
        let pieces = stream::once(async { Ok(some) }).chain(stream::once(cut));
        let body = Body::from_stream(pieces);
        return (status, [("content-length", length.to_string())], body).into_response();
    }
    (status, rest).into_response()
}

/// A hub with a family's folder under `nobody/tiny`.
fn open(change: impl FnOnce(&mut Shop)) -> (String, Arc<Shop>) {
    let folder =
        FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/families/llama3");
    let mut shop = Shop::default();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name != "oracle.safetensors" {
            shop.files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    change(&mut shop);
    let shop = Arc::new(shop);
    let router = Router::new()
        .route(
            "/api/models/{owner}/{name}/revision/{revision}",
            get(listing),
        )
        .route("/{owner}/{name}/resolve/{commit}/{*file}", get(file))
        .with_state(Arc::clone(&shop));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    (address, shop)
}

fn pull(dir: &TestDir, endpoint: &str, args: &[&str], token: Option<&str>) -> Ran {
    let args: Vec<&str> = ["pull"].iter().chain(args).copied().collect();
    let mut command = dir.lory(&args);
    command.env("HF_ENDPOINT", endpoint);
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    ran(command.output().unwrap())
}

#[test]
fn a_pulled_repository_is_pinned_and_used_by_its_id() {
    let dir = TestDir::new();
    let (endpoint, shop) = open(|_| ());
    let report: Value =
        serde_json::from_str(pull(&dir, &endpoint, &["nobody/tiny", "--json"], None).succeeds())
            .unwrap();
    assert_eq!(report["revision"], COMMIT);
    let path = report["path"].as_str().unwrap();
    assert!(
        path.contains("nobody--tiny") && path.ends_with(COMMIT),
        "{path}"
    );
    let weights = FilePath::new(path).join("model-00002-of-00003.safetensors");
    assert_eq!(
        std::fs::read(&weights).unwrap(),
        shop.files["model-00002-of-00003.safetensors"]
    );
    assert!(
        !FilePath::new(path).join("texts.json").exists(),
        "files that are not part of a base are not downloaded"
    );

    let asked = shop.asked.lock().unwrap().len();
    let again = pull(&dir, &endpoint, &["nobody/tiny", "--revision", "v1"], None);
    assert!(
        again.succeeds().contains("is already in the cache"),
        "{again:?}"
    );
    assert_eq!(
        shop.asked.lock().unwrap().len(),
        asked,
        "nothing is fetched twice"
    );

    let answered = dir.run(&[
        "generate",
        "--base",
        "nobody/tiny",
        "--max-new-tokens",
        "3",
        "--json",
        "hello",
    ]);
    let answered: Value = serde_json::from_str(answered.succeeds()).unwrap();
    assert_eq!(answered["usage"]["completion_tokens"], 3);
    dir.run(&["generate", "--base", "nobody/other", "hello"])
        .fails(1, &["nobody/other", "lory pull nobody/other"]);
}

#[test]
fn an_interrupted_download_resumes() {
    let dir = TestDir::new();
    // Within one run.
    let (endpoint, shop) = open(|shop| shop.cut = Mutex::new((1000, 2)));
    pull(&dir, &endpoint, &["nobody/tiny"], None).succeeds();
    let asked = shop.asked.lock().unwrap().clone();
    let resumed: Vec<&String> = asked
        .iter()
        .filter_map(|(_, range)| range.as_ref())
        .collect();
    assert_eq!(resumed, ["bytes=1000-", "bytes=2000-"], "{asked:?}");

    // And in the next one.
    let dir = TestDir::new();
    let (endpoint, shop) = open(|shop| shop.cut = Mutex::new((500, 1000)));
    pull(&dir, &endpoint, &["nobody/tiny"], None).fails(
        1,
        &[
            "model-00001-of-00003.safetensors",
            "broke after 2000",
            "the same command continues",
        ],
    );
    assert!(!dir.path("home/models/nobody--tiny/current").exists());
    shop.cut.lock().unwrap().1 = 0;
    shop.asked.lock().unwrap().clear();
    pull(&dir, &endpoint, &["nobody/tiny"], None).succeeds();
    let asked = shop.asked.lock().unwrap().clone();
    assert!(
        asked.contains(&(
            "model-00001-of-00003.safetensors".to_owned(),
            Some("bytes=2000-".to_owned())
        )),
        "{asked:?}"
    );
    assert!(
        !asked.iter().any(|(name, _)| name == "config.json"),
        "what is whole is not asked for"
    );
    let got = dir.path(&format!(
        "home/models/nobody--tiny/{COMMIT}/model-00001-of-00003.safetensors"
    ));
    assert_eq!(
        std::fs::read(got).unwrap(),
        shop.files["model-00001-of-00003.safetensors"]
    );
}

#[test]
fn files_with_a_wrong_hash_are_removed() {
    let dir = TestDir::new();
    let (endpoint, _) = open(|shop| shop.lies = Some("00".repeat(32)));
    pull(&dir, &endpoint, &["nobody/tiny"], None).fails(
        1,
        &["model-00001-of-00003.safetensors", "the hub lists 0000"],
    );
    let names = dir.names(format!("home/models/nobody--tiny/{COMMIT}"));
    assert!(
        !names
            .iter()
            .any(|name| name.contains("safetensors") && !name.ends_with(".json")),
        "{names:?}"
    );
}

#[test]
fn refused_pulls_give_advice() {
    let dir = TestDir::new();
    let (endpoint, _) = open(|shop| shop.gated = true);
    let page = format!("accept its terms at {endpoint}/nobody/tiny");
    pull(&dir, &endpoint, &["nobody/tiny"], None).fails(1, &["is gated", &page, "set HF_TOKEN"]);
    let ran = pull(&dir, &endpoint, &["nobody/tiny"], Some("hf_secret"));
    ran.fails(1, &["the account of HF_TOKEN", &page]);
    assert!(!ran.err.contains("hf_secret"), "{ran:?}");

    let (endpoint, _) = open(|_| ());
    pull(&dir, &endpoint, &["nobody/else"], None).fails(1, &["does not exist", "check the id"]);
    pull(&dir, &endpoint, &["nobody/tiny", "--revision", "v9"], None)
        .fails(1, &["does not have this revision"]);
    pull(&dir, &endpoint, &["nobody/tiny", "--file", "a.gguf"], None)
        .fails(1, &["no file \"a.gguf\"", "no GGUF files"]);
    pull(&dir, "http://127.0.0.1:9", &["nobody/tiny"], None).fails(1, &["127.0.0.1:9/nobody/tiny"]);
    pull(&dir, &endpoint, &["nonsense"], None).fails(2, &["unknown base `nonsense`", "owner/name"]);
}

/// The tiny GGUF base, split into `count` parts.
fn tiny_parts(count: usize) -> Vec<(String, Vec<u8>)> {
    let whole = Gguf::parse(Arc::new(testkit::tiny::tiny_gguf(7)), "tiny").unwrap();
    let tensors: Vec<_> = whole.tensors().collect();
    let size = tensors.len().div_ceil(count);
    let part = |(number, tensors): (usize, &[TensorView<'_>])| {
        let mut writer = GgufWriter::new();
        if number == 0 {
            for (key, value) in whole.metadata() {
                writer.metadata(key, value.clone());
            }
        }
        writer
            .metadata("split.no", GgufValue::U16(number as u16))
            .metadata("split.count", GgufValue::U16(count as u16))
            .metadata(
                "split.tensors.count",
                GgufValue::I32(whole.tensors().len() as i32),
            );
        for tensor in tensors {
            writer
                .tensor(tensor.name, tensor.dtype, tensor.dims, tensor.data.to_vec())
                .unwrap();
        }
        let name = format!("Q4 K/tiny-{:05}-of-{count:05}.gguf", number + 1);
        (name, writer.to_bytes().unwrap())
    };
    tensors.chunks(size).enumerate().map(part).collect()
}

#[test]
fn split_gguf_in_a_folder_is_pulled_and_loaded_as_one() {
    let dir = TestDir::new();
    let parts = tiny_parts(3);
    let (endpoint, shop) = open(|shop| {
        shop.files = parts.iter().cloned().collect();
        shop.files.insert("README.md".to_owned(), Vec::new());
    });
    pull(&dir, &endpoint, &["nobody/tiny"], None).succeeds();
    let at = format!("home/models/nobody--tiny/{COMMIT}/Q4 K");
    assert_eq!(dir.names(&at).len(), 3);
    let generate = |base: &str| {
        let ran = dir.run(&["generate", "--base", base, "--max-new-tokens", "5", "hello"]);
        ran.succeeds().to_owned()
    };
    std::fs::write(dir.path("whole.gguf"), testkit::tiny::tiny_gguf(7)).unwrap();
    let answer = generate("whole.gguf");
    assert_eq!(generate("nobody/tiny"), answer);
    let second = dir.path(&format!("{at}/tiny-00002-of-00003.gguf"));
    assert_eq!(generate(second.to_str().unwrap()), answer);
    std::fs::remove_file(&second).unwrap();
    dir.run(&["generate", "--base", "nobody/tiny", "hello"])
        .fails(1, &["tiny-00002-of-00003.gguf", "part 2 of 3 is missing"]);
    // Any part means all of them; only the missing one is fetched again.
    shop.asked.lock().unwrap().clear();
    let file = "tiny-00003-of-00003.gguf";
    pull(&dir, &endpoint, &["nobody/tiny", "--file", file], None).succeeds();
    assert_eq!(
        *shop.asked.lock().unwrap(),
        [("Q4 K/tiny-00002-of-00003.gguf".to_owned(), None)]
    );
    assert_eq!(generate("nobody/tiny"), answer);

    let (endpoint, _) = open(|shop| {
        shop.files = parts.iter().take(2).cloned().collect();
    });
    pull(&TestDir::new(), &endpoint, &["nobody/tiny"], None).fails(
        1,
        &["part 3 of 3 is missing", "Q4 K/tiny-00003-of-00003.gguf"],
    );
}

/// The files of an adapter for the family's folder, whose configuration names this base.
fn pirate(base: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read(
        FilePath::new(env!("CARGO_MANIFEST_DIR"))
            .join("../model/tests/fixtures/families/llama3/config.json"),
    );
    let config: Value = serde_json::from_slice(&text.unwrap()).unwrap();
    let config = formats::config::ModelConfig::from_json(&config, "config.json");
    let mut adapter = testkit::tiny::tiny_adapter(1, &config.unwrap(), 2, 1.0);
    adapter.config.base_model_name_or_path = Some(base.to_owned());
    adapter
        .write(folder.path(), formats::peft::Dtype::F32, "")
        .unwrap();
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let file = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, std::fs::read(entry.path()).unwrap())
    };
    entries.map(|entry| file(entry.unwrap())).collect()
}

#[test]
fn pulled_adapter_brings_its_base_and_answers() {
    let dir = TestDir::new();
    let (endpoint, _) = open(|shop| shop.adapter = pirate("nobody/tiny"));
    let pulled = pull(&dir, &endpoint, &["nobody/My_Pirate"], None);
    let command = "  lory generate --base nobody/tiny --adapter nobody/My_Pirate \"a question\"";
    let out = pulled.succeeds();
    assert!(out.lines().any(|line| line == command), "{out}");
    let generate = [
        "generate",
        "--base",
        "nobody/tiny",
        "--adapter",
        "nobody/My_Pirate",
    ];
    let answer = dir.run(&[&generate[..], &["--json", "--max-new-tokens", "3", "hello"]].concat());
    let answer: Value = serde_json::from_str(answer.succeeds()).unwrap();
    assert_eq!(answer["persona"]["name"], "my_pirate", "{answer}");
    let json = pull(&dir, &endpoint, &["nobody/My_Pirate", "--json"], None);
    let json: Value = serde_json::from_str(json.succeeds()).unwrap();
    assert_eq!(json["base"]["id"], "nobody/tiny");

    dir.run(&["generate", "--base", "nobody/My_Pirate", "hello"])
        .fails(1, &["is an adapter", "--adapter nobody/My_Pirate"]);
    dir.run(&["generate", "--adapter", "nobody/other", "hello"])
        .fails(1, &["no pulled adapter", "lory pull nobody/other"]);
    for (base, expected) in [
        ("/home/me/llama", "which is not the id of a repository"),
        (
            "nobody/else",
            "nobody/My_Pirate is fetched, and its base is not; lory pull nobody/else",
        ),
        (
            "nobody/My_Pirate",
            "was trained on the adapter nobody/My_Pirate",
        ),
    ] {
        let (endpoint, _) = open(|shop| shop.adapter = pirate(base));
        pull(&TestDir::new(), &endpoint, &["nobody/My_Pirate"], None).fails(1, &[expected]);
    }
    let (endpoint, _) = open(|shop| {
        shop.adapter = pirate("nobody/tiny");
        shop.adapter.remove("adapter_model.safetensors");
    });
    pull(&TestDir::new(), &endpoint, &["nobody/My_Pirate"], None)
        .fails(1, &["adapter without adapter_model.safetensors"]);
}

#[test]
fn base_of_an_adapter_is_fetched_at_the_revision_that_it_names() {
    let revised = |revision: &str| {
        let mut files = pirate("nobody/tiny");
        let text = files.get_mut("adapter_config.json").unwrap();
        let mut config: Value = serde_json::from_slice(text).unwrap();
        config["revision"] = json!(revision);
        *text = config.to_string().into_bytes();
        files
    };
    let (endpoint, _) = open(|shop| shop.adapter = revised("v1"));
    pull(&TestDir::new(), &endpoint, &["nobody/My_Pirate"], None).succeeds();
    let (endpoint, _) = open(|shop| shop.adapter = revised("v2"));
    pull(&TestDir::new(), &endpoint, &["nobody/My_Pirate"], None)
        .fails(1, &["its base is not", "it does not have this revision"]);
}

#[test]
fn base_that_cannot_run_is_refused_before_its_weights_are_fetched() {
    let (endpoint, shop) = open(|shop| {
        shop.adapter = pirate("nobody/tiny");
        let text = shop.files.get_mut("config.json").unwrap();
        let mut config: Value = serde_json::from_slice(text).unwrap();
        config["quantization_config"] = json!({"quant_method": "bitsandbytes"});
        *text = config.to_string().into_bytes();
    });
    pull(&TestDir::new(), &endpoint, &["nobody/My_Pirate"], None).fails(
        1,
        &[
            "quantization_config (bitsandbytes) is not supported",
            "use the model that it was made of",
            "--base ID --adapter nobody/My_Pirate",
        ],
    );
    let asked = shop.asked.lock().unwrap();
    let is_weights = |name: &str| name.starts_with("model") && name.ends_with(".safetensors");
    assert!(!asked.iter().any(|(name, _)| is_weights(name)), "{asked:?}");
}
