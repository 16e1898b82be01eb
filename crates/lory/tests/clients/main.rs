//! Tests `lory serve` with OpenAI's clients for Python and Node, over a tiny random base. `client.py` and `client.mjs` have the
//! assertions, `install` installs the clients. Without npm the Node test prints a message and passes; with `LORY_EVERY_CLIENT` set it
//! fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use testkit::home::TestHome;
use testkit::server::ServerProcess;
use testkit::tiny::adapter;

/// If this variable is set, a missing client is an error.
const EVERY_CLIENT: &str = "LORY_EVERY_CLIENT";

/// The folder with the installed clients.
static CLIENTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let installed = Command::new(test_file("install")).arg(&folder).output();
    assert_success("install (it needs python3 with venv and pip)", installed);
    folder
});

fn test_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

fn assert_success(what: &str, output: std::io::Result<Output>) {
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what}\n{out}\n{err}");
}

/// A running `lory serve` with the base `tiny` and the personas `warm` and `formal`. The server is dropped before its folder.
struct Setup {
    server: ServerProcess,
    _home: TestHome,
}

fn serve() -> Setup {
    let home = TestHome::new("tiny.gguf", 2048);
    for (name, seed) in [("warm", 11), ("formal", 12)] {
        home.persona(name, "", Some(&adapter(seed)));
    }
    let args = "serve --base tiny.gguf --personas personas --port 0";
    let args: Vec<&str> = args.split(' ').collect();
    Setup {
        server: ServerProcess::spawn(home.command(env!("CARGO_BIN_EXE_lory"), &args)),
        _home: home,
    }
}

#[test]
fn python_client_works() {
    let python = CLIENTS.join("python/bin/python");
    let setup = serve();
    let run = Command::new(python)
        .arg(test_file("client.py"))
        .arg(setup.server.address.to_string())
        .output();
    assert_success("client.py", run);
}

#[test]
fn node_client_works() {
    let folder = CLIENTS.join("node");
    if !folder.is_dir() {
        assert!(std::env::var_os(EVERY_CLIENT).is_none(), "npm is missing");
        eprintln!("npm is missing: the Node client was not tested");
        return;
    }
    let setup = serve();
    let mut run = Command::new("node");
    run.arg(test_file("client.mjs"))
        .arg(setup.server.address.to_string())
        .arg(&folder);
    assert_success("client.mjs", run.output());
}
