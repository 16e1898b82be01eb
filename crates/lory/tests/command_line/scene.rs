//! A home of its own for the program, a tiny base, and a way to run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use formats::gguf::GgmlType;
use formats::peft::Dtype;
use testkit::tiny::{tiny_adapter, tiny_config, tiny_gguf_as};

/// A folder that is the program's home and where it runs.
pub struct Scene {
    pub folder: tempfile::TempDir,
}

/// What became of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Scene {
    pub fn new() -> Scene {
        Scene {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A home with a base, `tiny.gguf`, and the personas `warm` and `formal`.
    pub fn with_tones() -> Scene {
        let scene = Scene::new();
        std::fs::write(scene.path("tiny.gguf"), tiny_gguf_as(1, GgmlType::Q4_1)).unwrap();
        scene.persona(
            "warm",
            "description = \"Warm\"\nmax_new_tokens = 8",
            Some(11),
        );
        scene.persona("formal", "version = 2\nmax_new_tokens = 8", Some(12));
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a persona, with a random adapter if there is a seed.
    pub fn persona(&self, name: &str, text: &str, adapter: Option<u64>) {
        let path = self.write(&format!("personas/{name}/persona.toml"), text);
        if let Some(seed) = adapter {
            let folder = path.parent().unwrap().join("adapter");
            tiny_adapter(seed, &tiny_config(), 4, 1.0)
                .write(&folder, Dtype::F32, "tiny")
                .unwrap();
        }
    }

    /// The program, in this home, with none of the caller's settings.
    pub fn lory(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lory"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("LORY_HOME", self.path("home"))
            .env_remove("HF_ENDPOINT")
            .env_remove("HF_TOKEN")
            .env_remove("RUST_LOG")
            .env_remove("LORY_API_KEYS")
            .env_remove("LORY_REGISTRY")
            .env_remove("COLUMNS")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.lory(args).output().unwrap())
    }

    /// Everything under a folder, by name.
    pub fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// The run ended with `code` and says all of `parts` on stderr.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is missing: {self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }

    /// The run ended well; its stdout.
    #[track_caller]
    pub fn succeeds(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.out
    }
}
