//! Runs the curl lines of the documents in order. They are skipped with a message if curl is missing; with `LORY_EVERY_CLIENT` set,
//! that is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use formats::gguf::GgmlType;
use serde_json::Value;
use testkit::server::ServerProcess;
use testkit::tiny::tiny_gguf_of;

use crate::test_dir::TestDir;

/// Where the examples ask.
const ADDRESS: &str = "127.0.0.1:8000";
/// What is refused whatever is asked, as the document says.
const REFUSED: &str = "/v1/embeddings";

fn has_curl() -> bool {
    let there = Command::new("curl").arg("--version").output().is_ok();
    assert!(
        there || std::env::var_os("LORY_EVERY_CLIENT").is_none(),
        "curl is missing"
    );
    if !there {
        eprintln!("skipped: curl is missing");
    }
    there
}

fn repository(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// A copy of what the repository has for the examples, over a tiny base.
fn shop() -> TestDir {
    let dir = TestDir::new();
    let base = tiny_gguf_of(1, GgmlType::Q4_1, 2048);
    std::fs::write(dir.path("smollm2-135m.gguf"), base).unwrap();
    for (name, seed) in [("customer", 11), ("partner", 12)] {
        let text = repository(&format!("personas/{name}/persona.toml"));
        dir.persona(name, &text, Some(seed));
        for rows in ["train", "eval", "test"] {
            let path = format!("personas/{name}/{rows}.jsonl");
            let rows: Vec<String> = repository(&path).lines().map(str::to_owned).collect();
            // Enough for a job that can be paused.
            dir.write(&path, &rows[..rows.len().min(60)].join("\n"));
        }
    }
    let mut archive = zip::ZipWriter::new(std::fs::File::create(dir.path("customer.zip")).unwrap());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(name, options).unwrap();
        let bytes = std::fs::read(dir.path("personas/customer/adapter").join(name)).unwrap();
        archive.write_all(&bytes).unwrap();
    }
    archive.finish().unwrap();
    dir
}

/// The curl lines of a document's blocks, each with the lines that belong to it.
fn lines_of(document: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut inside, mut open) = (false, false);
    for line in document.lines() {
        if line.starts_with("```") {
            inside = !inside;
            continue;
        }
        if inside && open {
            let last = found.last_mut().unwrap();
            last.push('\n');
            last.push_str(line);
        } else if inside && line.starts_with("curl ") {
            found.push(line.to_owned());
        } else {
            continue;
        }
        let last = found.last().unwrap();
        open = last.ends_with('\\') || last.matches('\'').count() % 2 == 1;
    }
    found
}

/// The method and the path that a line asks.
fn asked(line: &str) -> (String, String) {
    let path = line.split(ADDRESS).nth(1).unwrap();
    let path = path.split([' ', '"', '?', '\n']).next().unwrap().to_owned();
    let given = line
        .split("-X ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let sends = [" -d ", " -F ", " --data-binary "];
    let sends = sends.iter().any(|flag| line.contains(flag));
    let method = given.unwrap_or(if sends { "POST" } else { "GET" });
    (method.to_lowercase(), path)
}

/// A reader with a shell, who fills ids of earlier answers in.
struct Reader<'s> {
    dir: &'s TestDir,
    server: ServerProcess,
    ids: BTreeMap<&'static str, String>,
}

impl<'s> Reader<'s> {
    fn new(dir: &'s TestDir) -> Reader<'s> {
        let base = ["serve", "--base", "smollm2-135m.gguf", "--port", "0"];
        let places = ["--personas", "personas", "--adapter-root", "personas"];
        Reader {
            dir,
            server: dir.serve(&[&base[..], &places[..]].concat()),
            ids: BTreeMap::from([("LORY_KEY", "none".to_owned())]),
        }
    }

    /// Types a line; the status and what was answered.
    fn types(&mut self, line: &str) -> (u16, String) {
        let line = line.replace(ADDRESS, &self.server.address.to_string());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{line} -w '\\n%{{http_code}}'")]);
        shell.current_dir(self.dir.folder()).envs(&self.ids);
        let output = shell.output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = stdout
            .rsplit_once('\n')
            .unwrap_or_else(|| panic!("{line}: {stdout}"));
        let answered = serde_json::from_str(answer).unwrap_or(Value::Null);
        for (name, field, begins) in [
            ("FILE", "id", "file-"),
            ("JOB", "id", "ftjob-"),
            ("EVALUATION", "id", "eval-"),
            ("UPLOAD", "sha256", ""),
        ] {
            if let Some(id) = answered[field].as_str().filter(|id| id.starts_with(begins)) {
                self.ids.insert(name, id.to_owned());
            }
        }
        (status.parse().unwrap(), answer.to_owned())
    }

    /// Waits until the job is one of `wanted`.
    #[track_caller]
    fn waits(&mut self, wanted: &[&str]) {
        let began = Instant::now();
        loop {
            let look = format!("curl -s http://{ADDRESS}/v1/fine_tuning/jobs/$JOB");
            let (_, answer) = self.types(&look);
            let job: Value = serde_json::from_str(&answer).unwrap();
            if wanted.iter().any(|status| job["status"] == *status) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{job:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Types every line of a document; what was asked, by method and path.
fn typed(path: &str) -> BTreeSet<(String, String)> {
    let dir = shop();
    let mut reader = Reader::new(&dir);
    let mut all = BTreeSet::new();
    for line in lines_of(&repository(path)) {
        let (method, route) = asked(&line);
        if route.ends_with("/pause") {
            reader.waits(&["running"]);
        } else if route.ends_with("/publish") {
            reader.waits(&["succeeded"]);
        }
        let (status, answer) = reader.types(&line);
        let fits = if route == REFUSED {
            status == 400
        } else {
            (200..300).contains(&status)
        };
        assert!(fits, "{path}: {line}\n{status}: {answer}");
        all.insert((method, route));
    }
    all
}

#[test]
fn the_api_document_covers_every_route() {
    if !has_curl() {
        return;
    }
    let asked = typed("docs/api.md");
    let dir = TestDir::with_tones();
    let server = dir.serve(&["serve", "--base", "tiny.gguf", "--port", "0"]);
    let document = server.get("/openapi.json").json();
    let is = |path: &str, route: &str| {
        let (path, route): (Vec<&str>, Vec<&str>) =
            (path.split('/').collect(), route.split('/').collect());
        path.len() == route.len()
            && path
                .iter()
                .zip(&route)
                .all(|(a, b)| a == b || b.starts_with('{'))
    };
    let routes = document["paths"].as_object().unwrap();
    let operations = routes.iter().flat_map(|(route, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(move |method| (method, route))
    });
    let missing: Vec<_> = operations
        .filter(|(method, route)| {
            !asked
                .iter()
                .any(|(by, path)| by == *method && is(path, route))
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/api.md has no curl line for {missing:?}"
    );
}

#[test]
fn curl_lines_of_other_documents_work() {
    if !has_curl() {
        return;
    }
    for (path, lines) in [
        ("docs/registry.md", 6),
        ("docs/evaluation.md", 4),
        ("docs/studio.md", 3),
    ] {
        assert!(typed(path).len() >= lines, "{path}");
    }
}
