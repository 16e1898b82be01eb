//! Checks the folder of `--out`: training replaces what an earlier run of `lory train` wrote, and no file of someone else.

use std::path::Path;

use formats::peft::{self, AdapterFile};
use jobs::training::{LOSS_CURVE, Target};

/// The folder of a run's files: hidden, next to what the run trains.
pub(super) const RUN_FOLDER: &str = ".train";
/// The files and folders that a run writes into the folder.
const WRITTEN: [&str; 6] = [
    peft::CONFIG_FILE,
    peft::WEIGHTS_FILE,
    "README.md",
    LOSS_CURVE,
    "metrics.jsonl",
    train::metrics::TENSORBOARD,
];
/// How the keys begin that `lory train` writes into the header of the weights.
const PROVENANCE: &str = "lory.";

/// # Errors
/// A file in the folder of `target` would be replaced, and `lory train` did not write it.
pub(super) fn check(target: &Target) -> anyhow::Result<()> {
    let dir = &target.out;
    let starts_there = target.from.as_ref().is_some_and(|from| is_same(from, dir));
    if starts_there || is_ours(dir) {
        return Ok(());
    }
    if let Some(name) = WRITTEN.iter().find(|name| dir.join(name).exists()) {
        anyhow::bail!(
            "{} would be replaced, and lory train did not write it; name another folder with --out, or move the file away",
            dir.join(name).display()
        );
    }
    Ok(())
}

/// Whether a run of `lory train` is interrupted in the folder, or has finished there.
fn is_ours(dir: &Path) -> bool {
    dir.join(RUN_FOLDER).is_dir()
        || AdapterFile::open(dir).is_ok_and(|adapter| {
            let mut keys = adapter.metadata.keys();
            keys.any(|key| key.starts_with(PROVENANCE))
        })
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use formats::peft::Dtype;

    use super::*;

    fn target(out: &Path, from: Option<&Path>) -> Target {
        Target {
            name: "tone".to_owned(),
            data: "data.jsonl".into(),
            eval: None,
            system_prompt: None,
            settings: train::TrainSettings::default(),
            siblings: Vec::new(),
            from: from.map(Path::to_owned),
            out: out.to_owned(),
        }
    }

    #[test]
    fn files_of_someone_else_are_not_replaced() {
        for name in WRITTEN {
            let folder = tempfile::tempdir().unwrap();
            check(&target(&folder.path().join("new"), None)).unwrap();
            fs::write(folder.path().join("notes.txt"), "").unwrap();
            check(&target(folder.path(), None)).unwrap();
            fs::write(folder.path().join(name), "precious").unwrap();
            let error = check(&target(folder.path(), None)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("--out"), "{error}");
            check(&target(folder.path(), Some(folder.path()))).unwrap();
            // An interrupted run.
            fs::create_dir(folder.path().join(RUN_FOLDER)).unwrap();
            check(&target(folder.path(), None)).unwrap();
        }
    }

    #[test]
    fn adapters_of_lory_are_replaced_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut adapter = testkit::tiny::adapter(1);
        adapter.write(folder.path(), Dtype::F32, "card").unwrap();
        assert!(check(&target(folder.path(), None)).is_err());
        let key = registry::blob::BASE_KEY.to_owned();
        adapter.metadata.insert(key, "ab".to_owned());
        adapter.write(folder.path(), Dtype::F32, "card").unwrap();
        check(&target(folder.path(), None)).unwrap();
    }
}
