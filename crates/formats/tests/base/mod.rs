//! Finds the real base for the tests that need it.

use std::path::PathBuf;

const FILE: &str = "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The file that `LORY_TEST_GGUF` names, or the one that `lory pull smollm2-135m` put into the cache. Without either, a
/// line on the screen and `None`.
pub fn real_base() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LORY_TEST_GGUF") {
        let path = PathBuf::from(named);
        assert!(
            path.exists(),
            "LORY_TEST_GGUF names {}, which does not exist",
            path.display()
        );
        return Some(path);
    }
    let home = std::env::var_os("LORY_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            directories::ProjectDirs::from("", "", "lory")
                .map(|folders| folders.cache_dir().to_owned())
        })?;
    let path = home.join(FILE);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: {} is not there; `lory pull smollm2-135m` fetches it",
        path.display()
    );
    None
}
