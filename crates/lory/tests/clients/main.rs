//! OpenAI's own clients for Python and Node against the program as it is served, over a tiny random base: `client.py` and
//! `client.mjs` say what must hold, `install` gets the clients.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

use formats::gguf::GgmlType;
use formats::peft::Dtype;
use tempfile::TempDir;
use testkit::tiny::{tiny_adapter, tiny_config, tiny_gguf_of};

/// Set where a client that is not there is an error, not a test less.
const EVERY_CLIENT: &str = "LORY_EVERY_CLIENT";

/// Where the clients are.
static CLIENTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let installed = Command::new(here("install")).arg(&folder).output();
    passes("install (it needs python3 with venv and pip)", installed);
    folder
});

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

fn passes(what: &str, output: std::io::Result<Output>) {
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{what}\n{out}\n{err}");
}

/// The program while it serves `tiny`, `warm` and `formal`; dropped, it is killed.
struct Serving {
    child: Child,
    address: String,
    _home: TempDir,
}

impl Serving {
    fn start() -> Serving {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        std::fs::write(path("tiny.gguf"), tiny_gguf_of(1, GgmlType::Q4_1, 2048)).unwrap();
        for (name, seed) in [("warm", 11), ("formal", 12)] {
            let folder = path("personas").join(name).join("adapter");
            std::fs::create_dir_all(&folder).unwrap();
            let adapter = tiny_adapter(seed, &tiny_config(), 4, 1.0);
            adapter.write(&folder, Dtype::F32, "tiny").unwrap();
            std::fs::write(path("personas").join(name).join("persona.toml"), "").unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_lory"))
            .args([
                "serve",
                "--base",
                "tiny.gguf",
                "--personas",
                "personas",
                "--port",
                "0",
            ])
            .current_dir(home.path())
            .env("LORY_HOME", path("home"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        while !said.contains("curl") && reader.read_line(&mut said).unwrap() > 0 {}
        let address = said.split("Serving http://").nth(1).expect(&said);
        Serving {
            address: address.lines().next().unwrap().to_owned(),
            child,
            _home: home,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_python_client() {
    let python = CLIENTS.join("python/bin/python");
    let serving = Serving::start();
    let run = Command::new(python)
        .arg(here("client.py"))
        .arg(&serving.address)
        .output();
    passes("client.py", run);
}

#[test]
fn the_node_client() {
    let folder = CLIENTS.join("node");
    if !folder.is_dir() {
        assert!(std::env::var_os(EVERY_CLIENT).is_none(), "there is no npm");
        eprintln!("no npm: the Node client was not tried");
        return;
    }
    let serving = Serving::start();
    let mut run = Command::new("node");
    run.arg(here("client.mjs"))
        .arg(&serving.address)
        .arg(&folder);
    passes("client.mjs", run.output());
}
