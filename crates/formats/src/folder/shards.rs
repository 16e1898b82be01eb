//! The weights of a folder: one safetensors file, or shards with an index that maps each tensor to its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{FolderError, names};
use crate::config::ModelConfig;
use crate::file::{FileError, read_json};
use crate::gguf::{Bytes, GgmlType, TensorView};
use crate::safetensors::{self, Dtype};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Longest index, in bytes.
const MAX_INDEX: u64 = 64 << 20;
/// Most shards of a model.
const MAX_SHARDS: usize = 1024;
/// Longest header of a shard, in bytes: the names and ranges of its tensors.
const MAX_HEADER: u64 = 32 << 20;

/// Opens a weights file. The caller maps it, as mapping needs unsafe code.
pub type Map<'a> = &'a dyn Fn(&Path) -> std::io::Result<Bytes>;

/// A tensor of the weights.
struct ShardTensor {
    shard: usize,
    dtype: GgmlType,
    /// In ggml's order: the inner dimension first.
    dims: Vec<u64>,
    bytes: std::ops::Range<usize>,
}

pub(super) struct Shards {
    folder: PathBuf,
    shards: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, ShardTensor>,
}

/// The files of a folder's weights, in the order of their names, and the index if there is one.
///
/// # Errors
/// There are no weights in a format that is read, or the index names files outside the folder.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let index = folder.join(INDEX);
    match weight_map(folder)? {
        None => Ok(vec![folder.join(SINGLE)]),
        Some(map) => {
            let files: BTreeSet<&String> = map.values().collect();
            let files = files.into_iter().map(|file| folder.join(file));
            Ok(std::iter::once(index).chain(files).collect())
        }
    }
}

/// The file of each tensor, by the index; none where a single file has all.
fn weight_map(folder: &Path) -> Result<Option<BTreeMap<String, String>>, FolderError> {
    let path = folder.join(INDEX);
    if !path.is_file() {
        return if folder.join(SINGLE).is_file() {
            Ok(None)
        } else {
            Err(no_weights(folder))
        };
    }
    let index = read_json(&path, MAX_INDEX)?;
    let error = |field: String, problem: String| FolderError::Field {
        path: path.clone(),
        field,
        problem,
    };
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(error("weight_map".to_owned(), "missing".to_owned()));
    };
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let field = || format!("weight_map.{tensor}");
        let Some(file) = file.as_str() else {
            return Err(error(field(), "is not a file name".to_owned()));
        };
        let mut components = Path::new(file).components();
        let plain = matches!(
            (components.next(), components.next()),
            (Some(Component::Normal(_)), None)
        );
        if !plain || file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
            let problem = format!("{file:?} is not a .safetensors file of this folder");
            return Err(error(field(), problem));
        }
        files.insert(tensor.clone(), file.to_owned());
    }
    let count = files.values().collect::<BTreeSet<_>>().len();
    if count == 0 || count > MAX_SHARDS {
        let problem = format!("names {count} files; 1 to {MAX_SHARDS} are read");
        return Err(error("weight_map".to_owned(), problem));
    }
    Ok(Some(files))
}

fn no_weights(folder: &Path) -> FolderError {
    let has = |name: &str| folder.join(name).is_file();
    let found = if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        "there is only pytorch_model.bin, a pickle, which is not read; save the model with safe_serialization=True"
    } else if has("consolidated.safetensors") {
        "there is only consolidated.safetensors, which has other tensors' names"
    } else {
        "there are no weights"
    };
    FolderError::NoWeights {
        path: folder.to_owned(),
        found: found.to_owned(),
    }
}

impl Shards {
    pub(super) fn open(folder: &Path, map: Map<'_>) -> Result<Shards, FolderError> {
        let mut shards = Shards {
            folder: folder.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        match weight_map(folder)? {
            None => shards.add(SINGLE, map, &|_| true)?,
            Some(files) => {
                let names: BTreeSet<&String> = files.values().collect();
                for name in names {
                    shards.add(name, map, &|tensor| files.get(tensor) == Some(name))?;
                }
                if let Some((tensor, file)) = files
                    .iter()
                    .find(|(tensor, _)| !shards.tensors.contains_key(*tensor))
                {
                    return Err(FolderError::Tensor {
                        path: folder.join(file),
                        name: tensor.clone(),
                        problem: format!("missing, but {INDEX} says that it is here"),
                    });
                }
            }
        }
        Ok(shards)
    }

    /// Lists the tensors of one file for which `wanted` is true.
    fn add(
        &mut self,
        file: &str,
        map: Map<'_>,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<(), FolderError> {
        let path = self.folder.join(file);
        let bytes = map(&path).map_err(|source| FileError::Io {
            path: path.clone(),
            source,
        })?;
        let data = (*bytes).as_ref();
        if let Some(&length) = data.first_chunk::<8>() {
            let found = u64::from_le_bytes(length);
            if found > MAX_HEADER {
                let limit = MAX_HEADER;
                return Err(FileError::TooLarge { path, found, limit }.into());
            }
        }
        let header = safetensors::read_header(data).map_err(|source| FolderError::Safetensors {
            path: path.clone(),
            source,
        })?;
        let shard = self.shards.len();
        for (name, location) in header.tensors {
            if !wanted(&name) {
                continue;
            }
            let dtype = match location.dtype {
                Dtype::F32 => GgmlType::F32,
                Dtype::F16 => GgmlType::F16,
                Dtype::BF16 => GgmlType::BF16,
            };
            let dims = location.shape.iter().rev().map(|&dim| dim as u64).collect();
            let entry = ShardTensor {
                shard,
                dtype,
                dims,
                bytes: location.bytes,
            };
            self.tensors.insert(name, entry);
        }
        self.shards.push((path, bytes));
        Ok(())
    }

    /// Refuses tensors that the decoder would not use: the model would be another one without them.
    pub(super) fn refuse_others(&self, config: &ModelConfig) -> Result<(), FolderError> {
        let other = self
            .tensors
            .iter()
            .find(|(name, _)| !names::is_used(name, config));
        match other {
            None => Ok(()),
            Some((name, entry)) => Err(FolderError::Tensor {
                path: self.shards[entry.shard].0.clone(),
                name: name.clone(),
                problem: format!(
                    "is not part of a model of {} layers of architecture {} as it is run here",
                    config.layers, config.architecture
                ),
            }),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let data = (*self.shards[entry.shard].1).as_ref();
        Some(TensorView {
            name,
            dtype: entry.dtype,
            dims: &entry.dims,
            data: data.get(entry.bytes.clone()).unwrap_or_default(),
        })
    }

    /// The file of a tensor, or the folder if no file has it.
    pub(super) fn file_of(&self, name: &str) -> String {
        let file = self.tensors.get(name).map(|e| &self.shards[e.shard].0);
        file.unwrap_or(&self.folder).display().to_string()
    }
}
