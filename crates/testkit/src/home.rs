//! A temporary folder with a tiny base and personas, and commands that run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use formats::gguf::GgmlType;
use formats::peft::{Adapter, Dtype};
use tempfile::TempDir;

use crate::tiny::tiny_gguf_of;

/// The name of the base in every [`TestHome`].
pub const BASE: &str = "tiny";

/// A temporary folder. Its layout is that of a user's working directory: a base, `personas/` and `home/` (`LORY_HOME`).
pub struct TestHome {
    folder: TempDir,
    /// The file name of the base.
    base: &'static str,
}

impl TestHome {
    /// An empty folder.
    pub fn empty() -> TestHome {
        TestHome {
            folder: tempfile::tempdir().unwrap(),
            base: "tiny.gguf",
        }
    }

    /// A folder with the tiny base in Q4_1, in a file of this name, with a context of so many tokens.
    pub fn new(base: &'static str, context_length: usize) -> TestHome {
        let home = TestHome {
            base,
            ..TestHome::empty()
        };
        home.write_base(context_length);
        home
    }

    /// Writes the tiny base, or replaces it. The weights do not depend on `context_length`.
    pub fn write_base(&self, context_length: usize) {
        let bytes = tiny_gguf_of(1, GgmlType::Q4_1, context_length);
        std::fs::write(self.base(), bytes).unwrap();
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The base's file.
    pub fn base(&self) -> PathBuf {
        self.path(self.base)
    }

    /// The folder of the personas.
    pub fn personas(&self) -> PathBuf {
        self.path("personas")
    }

    /// Writes a file and the folders above it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a PEFT folder for the tiny base.
    pub fn adapter(&self, name: &str, adapter: &Adapter) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        adapter.write(&folder, Dtype::F32, BASE).unwrap();
        folder
    }

    /// Writes a persona, or replaces it: the text of its `persona.toml`, and its adapter if it has one.
    pub fn persona(&self, name: &str, text: &str, adapter: Option<&Adapter>) {
        self.write(&format!("personas/{name}/persona.toml"), text);
        if let Some(adapter) = adapter {
            self.adapter(&format!("personas/{name}/adapter"), adapter);
        }
    }

    /// The file with a persona's weights.
    pub fn weights(&self, persona: &str) -> PathBuf {
        self.path(&format!(
            "personas/{persona}/adapter/adapter_model.safetensors"
        ))
    }

    /// The names in one of the folders, sorted.
    pub fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder().join(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A command that runs in this folder, with `home/` as `LORY_HOME` and without the settings of the caller's environment.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.folder())
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
}
