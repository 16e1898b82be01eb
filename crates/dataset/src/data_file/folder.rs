//! The data files of a folder, in it or in the folders in it. Of a published data set only the training split is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layout::format_name;
use super::{DataFileError, Unusable};

/// Most files of a folder.
pub const MAX_FOLDER_FILES: usize = 10_000;

/// The splits of a data set, and the words that name them in paths, as the library `datasets` has them.
const SPLITS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
const TRAIN: &str = "train";
/// Files that describe a data set, as `datasets` and LLaMA-Factory write them.
const DESCRIPTIONS: [&str; 4] = [
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
];

/// The files that a path means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataFiles {
    /// Those to read, sorted by path.
    pub files: Vec<PathBuf>,
    /// How many others are there, by their split.
    pub other_splits: BTreeMap<&'static str, usize>,
}

/// The data files at `path`: itself, or those of a folder. A folder without data files has those of the folders in it. If some files are of another
/// split than `train`, by their names or their folder's, and others are not, they are left out.
///
/// # Errors
/// A folder cannot be read, has no data files, or more than [`MAX_FOLDER_FILES`].
pub fn data_files(path: &Path) -> Result<DataFiles, DataFileError> {
    if !path.is_dir() {
        return Ok(DataFiles {
            files: vec![path.to_owned()],
            ..DataFiles::default()
        });
    }
    let unusable = |reason| DataFileError::Unusable {
        file: path.display().to_string(),
        reason,
    };
    let (mut files, folders) = entries(path)?;
    if files.is_empty() {
        for folder in folders {
            files.extend(entries(&folder)?.0);
            if files.len() > MAX_FOLDER_FILES {
                break;
            }
        }
    }
    match files.len() {
        0 => return Err(unusable(Unusable::NoFiles)),
        1..=MAX_FOLDER_FILES => {}
        _ => return Err(unusable(Unusable::TooManyFiles)),
    }
    files.sort();
    Ok(without_other_splits(files, path))
}

/// The data files of a folder, at most one more than the limit, and its folders. What is hidden or describes a data set does not count.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataFileError> {
    let unreadable = |source| DataFileError::Read {
        path: folder.to_owned(),
        source,
    };
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in folder.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || DESCRIPTIONS.contains(&&*name) {
            continue;
        }
        let format = format_name(&path);
        let is_data = matches!(
            format.as_deref(),
            Some("jsonl" | "ndjson" | "json" | "csv" | "tsv")
        );
        if path.is_dir() {
            folders.push(path);
        } else if is_data && path.is_file() {
            files.push(path);
            if files.len() > MAX_FOLDER_FILES {
                break;
            }
        }
    }
    Ok((files, folders))
}

/// `files` without those of other splits than `train`, unless there are no others.
fn without_other_splits(files: Vec<PathBuf>, folder: &Path) -> DataFiles {
    let mut all = DataFiles::default();
    let mut others = Vec::new();
    for file in files {
        match split(file.strip_prefix(folder).unwrap_or(&file)) {
            Some(split) if split != TRAIN => {
                *all.other_splits.entry(split).or_default() += 1;
                others.push(file);
            }
            _ => all.files.push(file),
        }
    }
    match all.files.is_empty() {
        true => DataFiles {
            files: others,
            ..DataFiles::default()
        },
        false => all,
    }
}

/// The split that the words of a path name.
fn split(path: &Path) -> Option<&'static str> {
    let path = path.to_string_lossy().to_ascii_lowercase();
    let words: Vec<&str> = path.split(|c: char| !c.is_alphabetic()).collect();
    let named = |(_, names): &&(&str, &[&str])| names.iter().any(|name| words.contains(name));
    SPLITS.iter().find(named).map(|(split, _)| *split)
}
