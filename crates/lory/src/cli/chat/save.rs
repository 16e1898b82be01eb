//! `/save`: appends a conversation to a file of rows. The file is replaced in one step, so it never has half a row.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

/// The row that a conversation has in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SavedRow {
    path: PathBuf,
    /// Where it begins, in bytes.
    offset: u64,
    line: String,
}

/// Whether a row is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaveResult {
    /// The row was appended.
    Appended,
    /// The row of the same conversation, with fewer turns, was replaced.
    Replaced,
}

/// Writes `row` at the end of the file at `path`, which may be missing. If the file ends in `earlier`, the row that the same
/// conversation had before, the row replaces it.
pub(super) fn save(
    path: &Path,
    row: &Value,
    earlier: Option<&SavedRow>,
) -> anyhow::Result<(SavedRow, SaveResult)> {
    let context = || format!("cannot save to {}", path.display());
    // A link stays a link: the file that it names is replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        anyhow::bail!(
            "cannot save to {}: the folder {} does not exist; make it first",
            path.display(),
            folder.display()
        );
    }
    let line = format!("{row}\n");
    let mut written = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    let mut offset = 0;
    let mut result = SaveResult::Appended;
    match std::fs::File::open(&target) {
        Ok(mut file) => {
            let length = file.metadata().with_context(context)?.len();
            let permissions = file.metadata().with_context(context)?.permissions();
            offset = length;
            if let Some(earlier) = earlier.filter(|earlier| earlier.path == target)
                && ends_in(&mut file, length, earlier).with_context(context)?
            {
                offset = earlier.offset;
                result = SaveResult::Replaced;
            }
            file.rewind().with_context(context)?;
            std::io::copy(&mut (&file).take(offset), written.as_file_mut())
                .with_context(context)?;
            if !ends_a_line(&mut file, offset).with_context(context)? {
                written.write_all(b"\n").with_context(context)?;
                offset += 1;
            }
            written
                .as_file()
                .set_permissions(permissions)
                .with_context(context)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(context),
    }
    written.write_all(line.as_bytes()).with_context(context)?;
    written.as_file().sync_all().with_context(context)?;
    written
        .persist(&target)
        .map_err(|error| error.error)
        .with_context(context)?;
    let path = target.canonicalize().unwrap_or(target);
    Ok((SavedRow { path, offset, line }, result))
}

/// Whether a file of `length` bytes ends in the row.
fn ends_in(file: &mut std::fs::File, length: u64, row: &SavedRow) -> std::io::Result<bool> {
    if length != row.offset + row.line.len() as u64 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(row.offset))?;
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    Ok(found == row.line.as_bytes())
}

/// Whether the first `length` bytes are whole lines.
fn ends_a_line(file: &mut std::fs::File, length: u64) -> std::io::Result<bool> {
    let Some(last) = length.checked_sub(1) else {
        return Ok(true);
    };
    file.seek(SeekFrom::Start(last))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(text: &str) -> Value {
        json!({ "messages": text })
    }

    #[test]
    fn rows_are_appended_and_the_same_conversation_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let read = || std::fs::read_to_string(&path).unwrap();
        let (first, result) = save(&path, &row("a"), None).unwrap();
        assert_eq!(result, SaveResult::Appended);
        assert_eq!(read(), "{\"messages\":\"a\"}\n");
        let (second, result) = save(&path, &row("a b"), Some(&first)).unwrap();
        assert_eq!(result, SaveResult::Replaced);
        assert_eq!(read(), "{\"messages\":\"a b\"}\n");
        // Something else was added since.
        std::fs::write(&path, read() + "{\"messages\":\"x\"}").unwrap();
        let (_, result) = save(&path, &row("a b c"), Some(&second)).unwrap();
        assert_eq!(result, SaveResult::Appended);
        assert_eq!(
            read(),
            "{\"messages\":\"a b\"}\n{\"messages\":\"x\"}\n{\"messages\":\"a b c\"}\n"
        );
        let entries = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(entries, 1, "a temporary file was left");
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/rows.jsonl");
        let error = save(&path, &row("a"), None).unwrap_err().to_string();
        assert!(error.contains("does not exist; make it first"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_keeps_its_permissions_and_a_link_stays_a_link() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let link = folder.path().join("link.jsonl");
        std::fs::write(&path, "{\"messages\":\"x\"}\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        save(&link, &row("a"), None).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
