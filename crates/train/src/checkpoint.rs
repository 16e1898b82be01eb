//! Checkpoints: the state of a run in one file, from which it continues to the same bytes. The file is complete or absent.
//!
//! The file is a safetensors: the parameters, AdamW's means and squares, the best parameters and the metrics' text of every
//! adapter (named `<adapter's index>/...`), and under `state` in its metadata the rest as JSON. The order of rows and the
//! random numbers are functions of seed and step (`batch`, `rng`), so the step is their state. Does not know the loop.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::durable;
use crate::error::TrainError;
use crate::optimizer::{AdamW, AdamWConfig};
use crate::params::{self, LoraGrads, LoraParams};

/// Version of the file's layout.
const VERSION: u32 = 2;
/// Largest checkpoint that is read, in bytes.
const MAX_BYTES: u64 = 64 << 30;

/// The parts of a run that must be equal when it resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The base, by fingerprint.
    pub base: String,
    /// Most tokens of one call of the learner.
    pub batch_tokens: usize,
    /// Each adapter's, in the order of the jobs.
    pub adapters: Vec<AdapterIdentity>,
}

/// The parts of one adapter that must be equal when the run resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterIdentity {
    /// Its name.
    pub name: String,
    /// Its settings, as JSON.
    pub settings: Value,
    /// Hash of its training examples.
    pub train_hash: String,
    /// Hash of its validation examples.
    pub validation_hash: String,
    /// Layer, module, rank, inputs and outputs of every pair.
    pub shapes: Vec<String>,
    /// Hash of the adapter that it started from; `None` for freshly drawn parameters.
    #[serde(rename = "start", default, skip_serializing_if = "Option::is_none")]
    pub initial_adapter: Option<String>,
}

/// The state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// The adapters, in the order of the jobs.
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

/// The JSON part of the file. TensorData that must keep every bit are written as bits.
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

/// Writes a checkpoint to `path`; until the last byte is on the disk, the one that was there stays.
///
/// # Errors
/// The file cannot be written.
pub fn save(
    path: &Path,
    identity: &RunIdentity,
    step: u64,
    adapters: &[AdapterView<'_>],
) -> Result<(), TrainError> {
    let small = |adapter: &AdapterView<'_>| AdapterHeader {
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
        adapters: adapters.iter().map(small).collect(),
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
    durable::replace(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        formats::safetensors::write_to(&mut file, &metadata, tensors)?;
        file.flush()
    })
}

/// Reads the checkpoint at `path`, if there is one, for the run that `identity` describes and whose adapters have the
/// shapes of `shapes`.
///
/// # Errors
/// The file cannot be read, is damaged, or belongs to a run that is not this one: then all differences are named.
pub fn load(
    path: &Path,
    identity: &RunIdentity,
    shapes: &[&LoraParams],
) -> Result<Option<Checkpoint>, TrainError> {
    let size = match fs::metadata(path) {
        // If a parent is a file, the first write reports it with advice.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        found => found.map_err(TrainError::read(path))?.len(),
    };
    let broken = |message: String| TrainError::CheckpointBroken {
        path: path.to_owned(),
        message,
    };
    if size > MAX_BYTES {
        return Err(broken(format!("{size} bytes, more than {MAX_BYTES}")));
    }
    let bytes = fs::read(path).map_err(TrainError::read(path))?;
    let (_, header) =
        SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
    let state = header
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get("state"));
    let state = state.ok_or_else(|| broken("no `state` in its metadata".to_owned()))?;
    let version = serde_json::from_str::<Value>(state)
        .ok()
        .and_then(|state| state.get("version")?.as_u64());
    if version != Some(u64::from(VERSION)) {
        return Err(broken(format!(
            "its version is {version:?}, this program reads {VERSION}"
        )));
    }
    let state: Header =
        serde_json::from_str(state).map_err(|error| broken(format!("`state`: {error}")))?;
    let differences = differences(&state.identity, identity);
    if !differences.is_empty() {
        return Err(TrainError::CheckpointDiffers {
            path: path.to_owned(),
            differences,
        });
    }
    if state.adapters.len() != shapes.len() {
        return Err(broken("the number of adapters is wrong".to_owned()));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
    let mut adapters = Vec::with_capacity(shapes.len());
    for (i, (small, shape)) in state.adapters.into_iter().zip(shapes).enumerate() {
        let floats = |part: &str, into: &mut dyn Iterator<Item = &mut [f32]>| {
            for (t, tensor) in into.enumerate() {
                let name = format!("{i}/{part}/{t:05}");
                let found = file
                    .tensor(&name)
                    .map_err(|_| broken(format!("tensor `{name}` is missing")))?;
                read_floats(&found, tensor)
                    .map_err(|message| broken(format!("tensor `{name}`: {message}")))?;
            }
            Ok(())
        };
        let mut params = (*shape).clone();
        floats("params", &mut params::tensors_mut(&mut params))?;
        let (mut mean, mut square) = (LoraGrads::zeros_like(shape), LoraGrads::zeros_like(shape));
        floats("mean", &mut mean.tensors_mut())?;
        floats("square", &mut square.tensors_mut())?;
        let best = match small.best {
            None => None,
            Some(best) => {
                let mut params = (*shape).clone();
                floats("best", &mut params::tensors_mut(&mut params))?;
                let loss = f64::from_bits(best.loss_bits);
                Some(BestParams {
                    params,
                    loss,
                    step: best.step,
                    epoch: best.epoch,
                })
            }
        };
        let name = format!("{i}/metrics");
        let metrics = file
            .tensor(&name)
            .map_err(|_| broken(format!("tensor `{name}` is missing")))?;
        let metrics = String::from_utf8(metrics.data().to_vec())
            .map_err(|_| broken(format!("tensor `{name}` is not UTF-8 text")))?;
        // The optimizer's configuration comes from the settings; the loop sets it.
        let optimizer = AdamW {
            hyper: AdamWConfig::default(),
            step: small.optimizer_step,
            mean,
            square,
        };
        adapters.push(AdapterState {
            params,
            optimizer,
            validations: small.validations,
            best,
            stopping: small.stopping,
            metrics,
        });
    }
    Ok(Some(Checkpoint {
        step: state.step,
        adapters,
    }))
}

fn read_floats(found: &TensorView<'_>, into: &mut [f32]) -> Result<(), String> {
    if found.dtype() != Dtype::F32 || found.data().len() != into.len() * 4 {
        return Err(format!(
            "{:?} {:?} instead of F32 [{}]",
            found.dtype(),
            found.shape(),
            into.len()
        ));
    }
    for (number, bytes) in into.iter_mut().zip(found.data().chunks_exact(4)) {
        *number = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(())
}

/// In words, what keeps a checkpoint of `was` from being used by a run that is `now`.
fn differences(was: &RunIdentity, now: &RunIdentity) -> Vec<String> {
    let mut found = Vec::new();
    let names = |identity: &RunIdentity| {
        identity
            .adapters
            .iter()
            .map(|adapter| format!("`{}`", adapter.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if names(was) != names(now) {
        return vec![format!(
            "it trains {}, this run trains {}",
            names(was),
            names(now)
        )];
    }
    if was.base != now.base {
        found.push(format!("the base was {}, now it is {}", was.base, now.base));
    }
    if was.batch_tokens != now.batch_tokens {
        found.push(format!(
            "batch_tokens was {}, now it is {}",
            was.batch_tokens, now.batch_tokens
        ));
    }
    for (was, now) in was.adapters.iter().zip(&now.adapters) {
        let name = &now.name;
        let empty = serde_json::Map::new();
        let fields = |value: &Value| value.as_object().unwrap_or(&empty).clone();
        let (was_settings, now_settings) = (fields(&was.settings), fields(&now.settings));
        let mut keys: Vec<&String> = was_settings.keys().chain(now_settings.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let shown = |settings: &serde_json::Map<String, Value>| {
                settings
                    .get(key)
                    .map_or_else(|| "not set".to_owned(), Value::to_string)
            };
            if was_settings.get(key) != now_settings.get(key) {
                let (was, now) = (shown(&was_settings), shown(&now_settings));
                found.push(format!(
                    "`{name}`: setting `{key}` was {was}, now it is {now}"
                ));
            }
        }
        let encoded =
            "changed (or the tokenizer, chat template or system prompt that encodes them)";
        if was.train_hash != now.train_hash {
            found.push(format!("`{name}`: the training rows have {encoded}"));
        }
        if was.validation_hash != now.validation_hash {
            found.push(format!("`{name}`: the validation rows have {encoded}"));
        }
        if was.shapes != now.shapes {
            found.push(format!("`{name}`: the shapes of its tensors have changed"));
        }
        if was.initial_adapter != now.initial_adapter {
            let from = |start: &Option<String>| match start {
                None => "freshly drawn parameters".to_owned(),
                Some(hash) => format!("the adapter {hash}"),
            };
            let (was, now) = (from(&was.initial_adapter), from(&now.initial_adapter));
            found.push(format!(
                "`{name}`: it started from {was}, now it would from {now}"
            ));
        }
    }
    found
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
