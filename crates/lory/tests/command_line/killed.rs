//! A training process that is killed, or whose disk fails: the same command continues, with the same result byte for byte.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::test_dir::{Ran, TestDir, ran};

/// A home with a base and a persona that can be trained.
fn test_dir() -> TestDir {
    let dir = TestDir::with_tones();
    let rows = |from: usize, count: usize| -> String {
        let row = |i: usize| {
            format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
        };
        (from..from + count).map(row).collect()
    };
    for name in ["sunny", "happy"] {
        let dropout = if name == "sunny" { 0.1 } else { 0.0 };
        let table = format!(
            "[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\nlr = 0.01\nbatch_rows = 4\nepochs = 10\ndropout = {dropout}\n"
        );
        dir.persona(name, &table, None);
        dir.write(&format!("personas/{name}/train.jsonl"), &rows(100, 12));
        dir.write(&format!("personas/{name}/eval.jsonl"), &rows(300, 2));
    }
    dir
}

/// 30 steps in 10 epochs, a checkpoint after each, so that writing takes a good part of the time.
const ARGS: [&str; 9] = [
    "train",
    "--base",
    "tiny.gguf",
    "--persona",
    "sunny",
    "--persona",
    "happy",
    "--save-every",
    "1",
];

fn checkpoint(dir: &TestDir) -> PathBuf {
    dir.path("personas/.train/sunny+happy.safetensors")
}

/// Every file under a folder, by name.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What an uninterrupted run leaves.
fn uninterrupted() -> &'static BTreeMap<PathBuf, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = test_dir();
        dir.run(&ARGS).succeeds();
        files(&dir.path("personas"))
    })
}

#[track_caller]
fn assert_same(found: &BTreeMap<PathBuf, Vec<u8>>, expected: &BTreeMap<PathBuf, Vec<u8>>) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{} differs", name.display());
    }
}

/// Starts the run and kills it as soon as `when` holds; false when it ended before.
fn kill_when(dir: &TestDir, when: impl Fn() -> bool) -> bool {
    let mut child = dir
        .lory(&ARGS)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !when() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    // SIGKILL: no handler runs, nothing is flushed.
    child.kill().unwrap();
    child.wait().unwrap().signal() == Some(9)
}

#[test]
fn a_run_killed_repeatedly_gives_the_same_result() {
    let dir = test_dir();
    let lines = || {
        let metrics = dir.path("personas/sunny/adapter/metrics.jsonl");
        std::fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
    };
    // Before its first step, in the middle of epochs, about validations.
    let mut killed = 0;
    for least in [0, 1, 3, 5, 9, 15, 25] {
        killed += usize::from(kill_when(&dir, || lines() >= least));
    }
    assert!(killed >= 5, "{killed} kills hit");
    let last = dir.run(&ARGS);
    last.succeeds();
    assert!(last.err.contains("resuming at step "), "{last:?}");
    assert_same(&files(&dir.path("personas")), uninterrupted());
}

/// A process in a shell that lets no file grow past `kib` KiB: past it the system says no, or kills, as `on_limit` has it.
fn limited(dir: &TestDir, kib: u64, on_limit: &str) -> (Ran, Option<i32>) {
    let lory = dir.lory(&ARGS);
    let mut command = Command::new("sh");
    // sh counts in blocks of 512 bytes.
    let script = format!("{on_limit} ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
    command
        .args(["-c", &script])
        .arg(lory.get_program())
        .args(lory.get_args())
        .current_dir(lory.get_current_dir().unwrap())
        .stdin(Stdio::null());
    for (name, value) in lory.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    let signal = output.status.signal();
    (ran(output), signal)
}

/// A size in KiB that the first checkpoints keep to, and that those with a best state do not.
fn limit(dir: &TestDir) -> u64 {
    assert!(kill_when(dir, || checkpoint(dir).exists()));
    let bytes = std::fs::read(checkpoint(dir)).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let of = |part: &str| -> usize {
        let tensors = header.tensors();
        let mut bytes = 0;
        for (_, tensor) in tensors.iter().filter(|(name, _)| name.contains(part)) {
            bytes += tensor.data_offsets.1 - tensor.data_offsets.0;
        }
        bytes
    };
    // Parameters and two means, and half a best state.
    let half = of("/params/") / 2;
    let without = bytes.len() - of("/best/");
    ((without + half) / 1024) as u64
}

#[test]
fn a_run_killed_while_writing_a_checkpoint_gives_the_same_result() {
    let dir = test_dir();
    let kib = limit(&dir);
    // Left to itself, the signal that comes with the limit kills the process within the write.
    let (killed, signal) = limited(&dir, kib, "");
    assert!(signal.is_some(), "{killed:?}");
    let folder = dir.names("personas/.train");
    assert!(
        folder
            .iter()
            .any(|name| name.starts_with(formats::atomic_file::MARK)),
        "{folder:?}"
    );
    let last = dir.run(&ARGS);
    last.succeeds();
    assert!(last.err.contains("resuming at step "), "{last:?}");
    assert_same(&files(&dir.path("personas")), uninterrupted());
}

#[test]
fn a_run_continues_after_a_full_disk() {
    let dir = test_dir();
    let kib = limit(&dir);
    // With the signal ignored, the write fails as on a full disk.
    let (failed, _) = limited(&dir, kib, "trap '' XFSZ;");
    failed.fails(
        1,
        &[
            "cannot write",
            "sunny+happy.safetensors",
            "the file that was there before is unchanged",
            "run the same command again",
        ],
    );
    // The checkpoint before it stands, and no half-written one lies about.
    assert_eq!(dir.names("personas/.train"), ["sunny+happy.safetensors"]);
    let last = dir.run(&ARGS);
    last.succeeds();
    assert!(last.err.contains("resuming at step "), "{last:?}");
    assert_same(&files(&dir.path("personas")), uninterrupted());
}

#[test]
fn a_full_disk_at_the_end_keeps_the_trained_weights() {
    let dir = test_dir();
    assert!(kill_when(&dir, || checkpoint(&dir).exists()));
    // A folder where the adapter's weights belong: they cannot be put in their place.
    let weights = "personas/happy/adapter/adapter_model.safetensors";
    dir.write(&format!("{weights}/in-the-way"), "");
    dir.run(&ARGS).fails(
        1,
        &[
            "cannot write the adapter of happy",
            "run the same command again",
        ],
    );
    assert!(checkpoint(&dir).exists());
    std::fs::remove_dir_all(dir.path(weights)).unwrap();
    let last = dir.run(&ARGS);
    last.succeeds();
    assert!(last.err.contains("resuming at step 30 of 30"), "{last:?}");
    assert_same(&files(&dir.path("personas")), uninterrupted());
}

#[test]
fn an_unwritable_folder_is_reported_with_advice() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = test_dir();
    std::fs::create_dir(dir.path("closed")).unwrap();
    let closed = std::fs::Permissions::from_mode(0o555);
    std::fs::set_permissions(dir.path("closed"), closed).unwrap();
    let args = [
        "train",
        "--base",
        "tiny.gguf",
        "--data",
        "personas/sunny/train.jsonl",
        "--out",
    ];
    // Root may write anywhere, so for root a file is in the place of the folder.
    let may_write = std::fs::write(dir.path("closed/probe"), "").is_ok();
    dir.write("file", "");
    let out = if may_write {
        "file/mine"
    } else {
        "closed/mine"
    };
    let ran = dir.run(&[&args[..], &[out]].concat());
    ran.fails(1, &["cannot write", out, "run the same command again"]);
}
