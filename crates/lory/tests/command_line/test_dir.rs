//! A temporary folder that is the program's home and working directory, and a way to run the built binary in it.

use std::ops::Deref;
use std::process::{Command, Output};

use testkit::home::TestHome;
use testkit::server::ServerProcess;
use testkit::tiny::adapter;

/// A [`TestHome`] in which the built binary runs.
pub struct TestDir(TestHome);

/// The exit code and the output of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl TestDir {
    /// An empty folder.
    pub fn new() -> TestDir {
        TestDir(TestHome::empty())
    }

    /// A base, `tiny.gguf`, and the personas `warm` and `formal`.
    pub fn with_tones() -> TestDir {
        let dir = TestDir(TestHome::new("tiny.gguf", 512));
        dir.persona(
            "warm",
            "description = \"Warm\"\nmax_new_tokens = 8",
            Some(11),
        );
        dir.persona("formal", "version = 2\nmax_new_tokens = 8", Some(12));
        dir
    }

    /// Writes a persona, with a random adapter if there is a seed.
    pub fn persona(&self, name: &str, text: &str, seed: Option<u64>) {
        self.0.persona(name, text, seed.map(adapter).as_ref());
    }

    /// The command `lory` with `args`, which runs in this folder.
    pub fn lory(&self, args: &[&str]) -> Command {
        self.0.command(env!("CARGO_BIN_EXE_lory"), args)
    }

    /// Runs `lory` and waits for its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.lory(args).output().unwrap())
    }

    /// Runs `lory serve` or `lory demo` and waits until it is ready.
    pub fn serve(&self, args: &[&str]) -> ServerProcess {
        ServerProcess::spawn(self.lory(args))
    }
}

impl Deref for TestDir {
    type Target = TestHome;

    fn deref(&self) -> &TestHome {
        &self.0
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
    /// The run ended with `code`, and its stderr has all of `parts`.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is missing: {self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }

    /// The run succeeded; its stdout.
    #[track_caller]
    pub fn succeeds(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.out
    }
}
