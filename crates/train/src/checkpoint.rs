//! Checkpoints: the state of a run in one file, from which it continues to the same bytes. The file is complete or absent.
//!
//! The file is a safetensors: the parameters, AdamW's means and squares, the best parameters and the metrics' text of every
//! adapter (named `<adapter's index>/...`), and under `state` in its metadata the rest as JSON. The order of rows and the
//! random numbers are functions of seed and step (`batch`, `rng`), so the step is their state. Does not know the loop.

mod identity;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use formats::disk;
use formats::peft::PairShape;
use safetensors::tensor::{Dtype, Metadata, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainError;
use crate::optimizer::{AdamW, AdamWConfig};
use crate::params::{self, LoraGrads, LoraParams};
use crate::replace_file::replace_file;
pub use identity::{AdapterIdentity, RunIdentity};

/// Version of the file's layout.
const VERSION: u32 = 2;
/// Largest checkpoint that is read, in bytes.
const MAX_BYTES: u64 = 64 << 30;

/// The state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// The adapters, in the order of the tasks.
    pub adapters: Vec<AdapterState>,
}

/// The state of one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterState {
    /// Its parameters.
    pub params: LoraParams,
    /// Its optimizer.
    pub optimizer: AdamW,
    /// Validation passes done.
    pub validations: u64,
    /// The parameters of the lowest validation loss, and that pass.
    pub best: Option<BestParams>,
    /// Its early stopping state.
    pub stopping: EarlyStopping,
    /// The text of its metrics.
    pub metrics: String,
}

/// The best parameters so far.
#[derive(Debug, Clone, PartialEq)]
pub struct BestParams {
    /// The parameters.
    pub params: LoraParams,
    /// Their validation loss.
    pub loss: f64,
    /// The step after which they were seen, from 1.
    pub step: u64,
    /// The epoch that had ended, from 1.
    pub epoch: u64,
}

/// The state of early stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Validation passes since the lowest loss.
    pub since_best: u64,
    /// The step after which training stopped, if it did.
    pub stopped: Option<u64>,
}

/// The JSON part of the file. Numbers that must keep every bit are written as bits.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    identity: RunIdentity,
    step: u64,
    adapters: Vec<AdapterHeader>,
}

#[derive(Serialize, Deserialize)]
struct AdapterHeader {
    optimizer_step: u64,
    validations: u64,
    best: Option<BestHeader>,
    stopping: EarlyStopping,
}

#[derive(Serialize, Deserialize)]
struct BestHeader {
    loss_bits: u64,
    step: u64,
    epoch: u64,
}

/// One adapter's state, borrowed for writing.
pub struct AdapterView<'a> {
    /// Its parameters.
    pub params: &'a LoraParams,
    /// Its optimizer.
    pub optimizer: &'a AdamW,
    /// Validation passes done.
    pub validations: u64,
    /// The best so far.
    pub best: Option<&'a BestParams>,
    /// Its early stopping state.
    pub stopping: EarlyStopping,
    /// The text of its metrics.
    pub metrics: &'a str,
}

/// Writes a checkpoint to `path`. It replaces an existing file only when the last byte is on the disk.
///
/// # Errors
/// The file cannot be written.
pub fn save(
    path: &Path,
    identity: &RunIdentity,
    step: u64,
    adapters: &[AdapterView<'_>],
) -> Result<(), TrainError> {
    let header = |adapter: &AdapterView<'_>| AdapterHeader {
        optimizer_step: adapter.optimizer.step,
        validations: adapter.validations,
        best: adapter.best.map(|best| BestHeader {
            loss_bits: best.loss.to_bits(),
            step: best.step,
            epoch: best.epoch,
        }),
        stopping: adapter.stopping,
    };
    let state = Header {
        version: VERSION,
        identity: identity.clone(),
        step,
        adapters: adapters.iter().map(header).collect(),
    };
    let mut tensors: Vec<(String, TensorData<'_>)> = Vec::new();
    for (i, adapter) in adapters.iter().enumerate() {
        let parts = [
            (
                "params",
                params::tensors(adapter.params).collect::<Vec<_>>(),
            ),
            ("mean", adapter.optimizer.mean.tensors().collect()),
            ("square", adapter.optimizer.square.tensors().collect()),
            (
                "best",
                adapter
                    .best
                    .map(|best| params::tensors(&best.params).collect())
                    .unwrap_or_default(),
            ),
        ];
        for (part, list) in parts {
            for (t, tensor) in list.into_iter().enumerate() {
                tensors.push((
                    format!("{i}/{part}/{t:05}"),
                    TensorData::Floats([tensor.len()], tensor),
                ));
            }
        }
        let text = adapter.metrics.as_bytes();
        tensors.push((format!("{i}/metrics"), TensorData::Text([text.len()], text)));
    }
    let state = serde_json::to_string(&state).expect("a state of numbers and strings is JSON");
    let metadata = BTreeMap::from([("state".to_owned(), state)]);
    replace_file(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        formats::safetensors::write_to(&mut file, &metadata, tensors)?;
        file.flush()
    })
}

/// Reads the checkpoint at `path` for the run that `identity` describes, whose adapters have the shapes of `shapes`. `None` if
/// there is no file.
///
/// # Errors
/// The file cannot be read, is damaged, or belongs to another run; the last error lists all differences.
pub fn load(
    path: &Path,
    identity: &RunIdentity,
    shapes: &[Vec<PairShape>],
) -> Result<Option<Checkpoint>, TrainError> {
    let broken = |message: String| TrainError::CheckpointBroken {
        path: path.to_owned(),
        message,
    };
    let Some(size) = file_size(path)? else {
        return Ok(None);
    };
    if size > MAX_BYTES {
        return Err(broken(format!("{size} bytes, more than {MAX_BYTES}")));
    }
    let file = disk::open(path).map_err(TrainError::read(path))?;
    let mut file = CheckpointFile::open(file, size).map_err(broken)?;
    let header = read_header(&file.metadata).map_err(broken)?;
    let differences = header.identity.differences(identity);
    if !differences.is_empty() {
        return Err(TrainError::CheckpointDiffers {
            path: path.to_owned(),
            differences,
        });
    }
    if header.adapters.len() != shapes.len() {
        return Err(broken("the number of adapters is wrong".to_owned()));
    }
    let adapters = header.adapters.into_iter().zip(shapes).enumerate();
    let adapters = adapters
        .map(|(i, (adapter, shapes))| read_adapter(&mut file, i, adapter, shapes))
        .collect::<Result<_, _>>()
        .map_err(broken)?;
    Ok(Some(Checkpoint {
        step: header.step,
        adapters,
    }))
}

/// The size of the file at `path` in bytes; `None` if it does not exist.
fn file_size(path: &Path) -> Result<Option<u64>, TrainError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        // If a parent is a file, the first write reports it with advice.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(TrainError::read(path)(error)),
    }
}

/// An open checkpoint file. Its tensors are read one at a time: a second copy of all of them could take more memory than the run.
struct CheckpointFile {
    file: fs::File,
    metadata: Metadata,
    /// The position of the first tensor.
    data: u64,
}

impl CheckpointFile {
    /// Reads the header of `file`, which has `size` bytes. The error is the message.
    fn open(mut file: fs::File, size: u64) -> Result<CheckpointFile, String> {
        let read = formats::safetensors::read_metadata(&mut file, size);
        let (data, metadata) = read.map_err(|error| error.to_string())?;
        Ok(CheckpointFile {
            file,
            metadata,
            data,
        })
    }

    /// The bytes of the tensor `name`, which has this type. The error is the message.
    fn read(&mut self, name: &str, dtype: Dtype) -> Result<Vec<u8>, String> {
        let info = self.metadata.info(name);
        let info = info.ok_or_else(|| format!("tensor `{name}` is missing"))?;
        if info.dtype != dtype {
            return Err(format!(
                "tensor `{name}`: {:?} {:?} instead of {dtype:?}",
                info.dtype, info.shape
            ));
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let position = SeekFrom::Start(self.data + start as u64);
        let read = self
            .file
            .seek(position)
            .and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| format!("tensor `{name}`: {error}"))?;
        Ok(bytes)
    }

    /// Reads the tensor `name` into `into`. The error is the message.
    fn read_floats(&mut self, name: &str, into: &mut [f32]) -> Result<(), String> {
        let bytes = self.read(name, Dtype::F32)?;
        let (words, _) = bytes.as_chunks::<4>();
        if words.len() != into.len() {
            return Err(format!(
                "tensor `{name}`: F32 [{}] instead of F32 [{}]",
                words.len(),
                into.len()
            ));
        }
        for (number, word) in into.iter_mut().zip(words) {
            *number = f32::from_le_bytes(*word);
        }
        Ok(())
    }
}

/// Reads the JSON part of the header of a checkpoint file of this version. The error is the message.
fn read_header(metadata: &Metadata) -> Result<Header, String> {
    let state = metadata
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get("state"))
        .ok_or_else(|| "no `state` in its metadata".to_owned())?;
    let version = serde_json::from_str::<Value>(state)
        .ok()
        .and_then(|state| state.get("version")?.as_u64());
    if version != Some(u64::from(VERSION)) {
        return Err(format!(
            "its version is {version:?}, this program reads {VERSION}"
        ));
    }
    serde_json::from_str(state).map_err(|error| format!("`state`: {error}"))
}

/// Reads the state of adapter `i`, whose pairs have these `shapes`. The error is the message.
fn read_adapter(
    file: &mut CheckpointFile,
    i: usize,
    header: AdapterHeader,
    shapes: &[PairShape],
) -> Result<AdapterState, String> {
    let mut floats = |part: &str, into: &mut dyn Iterator<Item = &mut [f32]>| {
        for (t, numbers) in into.enumerate() {
            file.read_floats(&format!("{i}/{part}/{t:05}"), numbers)?;
        }
        Ok::<(), String>(())
    };
    let mut params = LoraParams::zeros(shapes);
    floats("params", &mut params::tensors_mut(&mut params))?;
    let (mut mean, mut square) = (
        LoraGrads::zeros_like(&params),
        LoraGrads::zeros_like(&params),
    );
    floats("mean", &mut mean.tensors_mut())?;
    floats("square", &mut square.tensors_mut())?;
    let best = match header.best {
        None => None,
        Some(best) => {
            let mut params = LoraParams::zeros(shapes);
            floats("best", &mut params::tensors_mut(&mut params))?;
            Some(BestParams {
                params,
                loss: f64::from_bits(best.loss_bits),
                step: best.step,
                epoch: best.epoch,
            })
        }
    };
    let name = format!("{i}/metrics");
    let metrics = String::from_utf8(file.read(&name, Dtype::U8)?)
        .map_err(|_| format!("tensor `{name}` is not UTF-8 text"))?;
    // The optimizer's configuration comes from the settings; the loop sets it.
    let optimizer = AdamW {
        hyper: AdamWConfig::default(),
        step: header.optimizer_step,
        mean,
        square,
    };
    Ok(AdapterState {
        params,
        optimizer,
        validations: header.validations,
        best,
        stopping: header.stopping,
        metrics,
    })
}

/// A tensor that is laid out as bytes only when it is written.
enum TensorData<'a> {
    Floats([usize; 1], &'a [f32]),
    Text([usize; 1], &'a [u8]),
}

impl View for TensorData<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            TensorData::Floats(..) => Dtype::F32,
            TensorData::Text(..) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            TensorData::Floats(shape, _) | TensorData::Text(shape, _) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            TensorData::Floats(_, floats) => {
                Cow::Owned(floats.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            TensorData::Text(_, text) => Cow::Borrowed(text),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            TensorData::Floats(_, floats) => floats.len() * 4,
            TensorData::Text(_, text) => text.len(),
        }
    }
}
