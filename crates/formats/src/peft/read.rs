//! Reads an adapter folder.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::adapter::{Adapter, BaseTensor, LoraPair, PairShape, check, missing, tensor_name};
use super::config::{AdapterConfig, Matcher};
use super::error::PeftError;
use super::limits::{
    CONFIG_FILE, MAX_CONFIG_BYTES, MAX_RANK, MAX_WEIGHTS_BYTES, MAX_WIDTH, WEIGHTS_FILE,
};
use super::module::Module;
use super::other_format::OtherFormat;
use super::tensor_names::TensorName;
use crate::config::ModelConfig;
use crate::safetensors::{self, Dtype, TensorLocation};

/// Names and locations of A and B of one linear, and its path in the model that was trained.
#[derive(Default)]
struct Sides {
    path: String,
    tensors: [Option<(String, TensorLocation)>; 2],
}

/// An adapter folder, read and checked except for the values. Those are widened pair by pair when they are needed: widening
/// all of them at once would allocate four bytes a value for each adapter.
pub struct AdapterFile {
    /// Its configuration.
    pub config: AdapterConfig,
    /// The type of the weights (F32 where a file mixes types).
    pub dtype: Dtype,
    /// Strings in the weights' header, except PEFT's own `format`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors of the base in the file, which must be the base's own.
    pub base_tensors: Vec<BaseTensor>,
    pairs: Vec<PairLocation>,
    files: [Vec<u8>; 2],
    /// The path of the weights, for messages.
    path: PathBuf,
}

struct PairLocation {
    shape: PairShape,
    a: (String, TensorLocation),
    b: (String, TensorLocation),
}

impl AdapterFile {
    /// Reads and checks an adapter folder.
    ///
    /// # Errors
    /// [`PeftError`], naming the file and the field or tensor.
    pub fn open(dir: &Path) -> Result<AdapterFile, PeftError> {
        let (config_path, path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
        let config_bytes = read_limited(&config_path, MAX_CONFIG_BYTES)?;
        refuse_other_formats(dir)?;
        let config = AdapterConfig::parse(&config_bytes, &config_path)?;
        let weights = read_limited(&path, MAX_WEIGHTS_BYTES)?;
        AdapterFile::parse(config, [config_bytes, weights], path)
    }

    fn parse(
        config: AdapterConfig,
        files: [Vec<u8>; 2],
        path: PathBuf,
    ) -> Result<AdapterFile, PeftError> {
        let header =
            safetensors::read_header(&files[1]).map_err(|source| PeftError::Safetensors {
                path: path.clone(),
                source,
            })?;
        let (pairs, base_tensors) = pairs(&config, header.tensors, &path)?;
        let locations = pairs.iter().flat_map(|pair| [&pair.a.1, &pair.b.1]);
        let dtype = common_dtype(locations.map(|location| location.dtype));
        let base_tensors = base_tensors
            .into_iter()
            .map(|(name, gguf, location)| BaseTensor::new(name, gguf, &location, &files[1]));
        let base_tensors = base_tensors.collect();
        let mut metadata = header.metadata;
        metadata.remove("format");
        Ok(AdapterFile {
            config,
            dtype,
            metadata,
            base_tensors,
            pairs,
            files,
            path,
        })
    }

    /// Its pairs, sorted by layer and module.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = PairShape> {
        self.pairs.iter().map(|pair| pair.shape)
    }

    /// Widens A (`[rank x inputs]`) and B (`[outputs x rank]`) of the pair at `index` into `a` and `b`, in location of what they hold.
    ///
    /// # Errors
    /// A value that is not finite, by tensor name.
    ///
    /// # Panics
    /// There is no such pair.
    pub fn values(
        &self,
        index: usize,
        a: &mut Vec<f32>,
        b: &mut Vec<f32>,
    ) -> Result<(), PeftError> {
        let pair = &self.pairs[index];
        for ((name, location), values) in [(&pair.a, a), (&pair.b, b)] {
            location
                .dtype
                .decode(&self.files[1][location.bytes.clone()], values);
            check_values(values, name, &self.path)?;
        }
        Ok(())
    }

    /// As [`Adapter::check`].
    ///
    /// # Errors
    /// As [`Adapter::check`].
    pub fn check(&self, model: &ModelConfig) -> Result<(), PeftError> {
        let shapes: Vec<PairShape> = self.shapes().collect();
        check(&shapes, model)
    }

    /// As [`Adapter::missing`].
    ///
    /// # Errors
    /// As [`Adapter::missing`].
    pub fn missing(&self, model: &ModelConfig) -> Result<Vec<String>, PeftError> {
        let shapes: Vec<PairShape> = self.shapes().collect();
        missing(&shapes, &self.config, model)
    }

    /// Does `work` while another thread computes the [`content_hash`] of the bytes that were read: hashing takes about as long as
    /// packing.
    pub fn hash_while<R>(&self, work: impl FnOnce() -> R) -> (R, String) {
        std::thread::scope(|scope| {
            let hashing = scope.spawn(|| {
                let hasher = self.files.iter().fold(Sha256::new(), Digest::chain_update);
                base16ct::lower::encode_string(&hasher.finalize())
            });
            let done = work();
            let hash = hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
            (done, hash)
        })
    }

    fn widened(self) -> Result<Adapter, PeftError> {
        let mut pairs = Vec::with_capacity(self.pairs.len());
        for (i, shape) in self.shapes().enumerate() {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            self.values(i, &mut a, &mut b)?;
            let PairShape {
                layer,
                module,
                rank,
                inputs,
                outputs,
                scale,
            } = shape;
            pairs.push(LoraPair {
                layer,
                module,
                rank,
                inputs,
                outputs,
                scale,
                a,
                b,
            });
        }
        Ok(Adapter {
            config: self.config,
            pairs,
            dtype: self.dtype,
            metadata: self.metadata,
            base_tensors: self.base_tensors,
        })
    }
}

impl AdapterConfig {
    /// Reads the configuration in an adapter folder.
    ///
    /// # Errors
    /// [`PeftError`], naming the file and the field.
    pub fn read(dir: &Path) -> Result<AdapterConfig, PeftError> {
        let path = dir.join(CONFIG_FILE);
        AdapterConfig::parse(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)
    }
}

impl Adapter {
    /// Reads and checks an adapter folder.
    ///
    /// # Errors
    /// [`PeftError`], naming the file and the field or tensor.
    pub fn read(dir: &Path) -> Result<Adapter, PeftError> {
        AdapterFile::open(dir)?.widened()
    }

    /// [`Adapter::read`] with the [`content_hash`] of the bytes that were read.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_hashed(dir: &Path) -> Result<(Adapter, String), PeftError> {
        let file = AdapterFile::open(dir)?;
        let ((), hash) = file.hash_while(|| ());
        Ok((file.widened()?, hash))
    }

    /// Reads the bytes of `adapter_model.safetensors` under a configuration; `path` names the file in messages.
    ///
    /// # Errors
    /// [`PeftError`], naming the tensor.
    pub fn parse(config: AdapterConfig, bytes: &[u8], path: &Path) -> Result<Adapter, PeftError> {
        AdapterFile::parse(config, [Vec::new(), bytes.to_owned()], path.to_owned())?.widened()
    }
}

/// Refuses the adapter in the folder `dir` if its weights are in a format that is not read.
///
/// # Errors
/// [`PeftError::OtherFormat`].
pub fn refuse_other_formats(dir: &Path) -> Result<(), PeftError> {
    match OtherFormat::of(|file| dir.join(file).exists()) {
        None => Ok(()),
        Some(found) => Err(PeftError::OtherFormat {
            path: dir.to_owned(),
            found,
        }),
    }
}

/// The pairs of the adapter in the folder `dir`, sorted by layer and module, without their values, which are not read.
///
/// # Errors
/// As [`AdapterFile::open`].
pub fn read_shapes(dir: &Path) -> Result<Vec<PairShape>, PeftError> {
    refuse_other_formats(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    let config = AdapterConfig::read(dir)?;
    let error = |source| PeftError::Io {
        path: path.clone(),
        source,
    };
    let mut file = crate::git_lfs::open(&path).map_err(error)?;
    let length = file.metadata().map_err(error)?.len();
    let header = safetensors::read_header_of_file(&mut file, length).map_err(|source| {
        PeftError::Safetensors {
            path: path.clone(),
            source,
        }
    })?;
    let (pairs, _) = pairs(&config, header.tensors, &path)?;
    Ok(pairs.into_iter().map(|pair| pair.shape).collect())
}

/// The sha256, in hex, of the bytes of `adapter_config.json` and then `adapter_model.safetensors`; the same as
/// `cat adapter_config.json adapter_model.safetensors | sha256sum`.
///
/// # Errors
/// [`PeftError::Io`] where a file cannot be read, [`PeftError::OtherFormat`].
pub fn content_hash(dir: &Path) -> Result<String, PeftError> {
    refuse_other_formats(dir)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        let path = dir.join(name);
        let error = |source| PeftError::Io {
            path: path.clone(),
            source,
        };
        let mut file = crate::git_lfs::open(&path).map_err(error)?;
        loop {
            match file.read(&mut buffer).map_err(error)? {
                0 => break,
                length => hasher.update(&buffer[..length]),
            }
        }
    }
    Ok(base16ct::lower::encode_string(&hasher.finalize()))
}

/// A tensor of the base in an adapter's file: its name there, its GGUF name, and its location.
type BaseLocation = (String, String, TensorLocation);

/// The pairs of a file with `tensors`, sorted by layer and module, and its tensors of the base.
fn pairs(
    config: &AdapterConfig,
    tensors: BTreeMap<String, TensorLocation>,
    path: &Path,
) -> Result<(Vec<PairLocation>, Vec<BaseLocation>), PeftError> {
    let matcher = config.matcher(path.with_file_name(CONFIG_FILE).as_path())?;
    let mut sides: BTreeMap<(usize, Module), Sides> = BTreeMap::new();
    let mut base_tensors = Vec::new();
    for (name, location) in tensors {
        let error = |problem: String| PeftError::Tensor {
            path: path.to_owned(),
            name: name.clone(),
            problem,
        };
        let (layer, module, side, trained) = match TensorName::parse(&name).map_err(&error)? {
            TensorName::Base(gguf) => {
                base_tensors.push((name, gguf, location));
                continue;
            }
            TensorName::Lora {
                layer,
                module,
                side,
                path,
            } => (layer, module, side, path),
        };
        let sides = sides.entry((layer, module)).or_default();
        if let Some((other, _)) = &sides.tensors[side] {
            return Err(error(format!("the same tensor as {other}")));
        }
        sides.tensors[side] = Some((name, location));
        sides.path = trained;
    }
    if sides.is_empty() {
        return Err(PeftError::Empty {
            path: path.to_owned(),
        });
    }
    let mut pairs = Vec::with_capacity(sides.len());
    for (
        (layer, module),
        Sides {
            path: trained,
            tensors,
        },
    ) in sides
    {
        let missing = |have: &str, side| PeftError::Tensor {
            path: path.to_owned(),
            name: tensor_name(layer, module, side),
            problem: format!("missing, but {have} is there"),
        };
        let (a, b) = match tensors {
            [Some(a), Some(b)] => (a, b),
            [Some((name, _)), None] => return Err(missing(&name, 'B')),
            [None, Some((name, _))] => return Err(missing(&name, 'A')),
            [None, None] => continue,
        };
        pairs.push(pair(&matcher, layer, module, &trained, [a, b], path)?);
    }
    Ok((pairs, base_tensors))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, PeftError> {
    let error = |source| PeftError::Io {
        path: path.to_owned(),
        source,
    };
    let file = crate::git_lfs::open(path).map_err(error)?;
    let found = file.metadata().map_err(error)?.len();
    let mut bytes = Vec::new();
    if found <= limit {
        bytes.reserve_exact(found as usize + 1);
        // One byte more than the limit, so that a file that grows while it is read is noticed.
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(error)?;
    }
    let found = found.max(bytes.len() as u64);
    if found > limit {
        return Err(PeftError::TooLarge {
            path: path.to_owned(),
            found,
            limit,
        });
    }
    Ok(bytes)
}

fn common_dtype(mut tensors: impl Iterator<Item = Dtype>) -> Dtype {
    let first = tensors.next().unwrap_or(Dtype::F32);
    if tensors.all(|dtype| dtype == first) {
        first
    } else {
        Dtype::F32
    }
}

/// The pair of the tensors A and B. `trained` is the path of its linear in the model that was trained.
fn pair(
    matcher: &Matcher,
    layer: usize,
    module: Module,
    trained: &str,
    [a, b]: [(String, TensorLocation); 2],
    path: &Path,
) -> Result<PairLocation, PeftError> {
    let error = |name: &str, problem: String| PeftError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        problem,
    };
    let matrix = |(name, location): &(String, TensorLocation), form: &str| match location.shape[..]
    {
        [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(error(
            name,
            format!(
                "shape {:?}; {form}, none of them 0, is needed",
                location.shape
            ),
        )),
    };
    let (rank, inputs) = matrix(&a, "[rank, inputs]")?;
    let (outputs, b_rank) = matrix(&b, "[outputs, rank]")?;
    if b_rank != rank {
        return Err(error(
            &b.0,
            format!("shape {:?}, but {} has rank {rank}", b.1.shape, a.0),
        ));
    }
    let module_path = module.path(layer);
    let both = [module_path.as_str(), trained];
    let paths = if trained == module_path {
        &both[..1]
    } else {
        &both[..]
    };
    let shape = PairShape {
        layer,
        module,
        rank,
        inputs,
        outputs,
        scale: matcher.scale(paths, rank)?,
    };
    check_shape(&shape, matcher, paths, &a.0, path)?;
    Ok(PairLocation { shape, a, b })
}

/// Checks the shape of a pair that is read or written, whose linear has these paths.
pub(super) fn check_shape(
    pair: &PairShape,
    matcher: &Matcher,
    paths: &[&str],
    a_name: &str,
    path: &Path,
) -> Result<(), PeftError> {
    let error = |name: &str, problem: String| {
        Err(PeftError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            problem,
        })
    };
    let rank = pair.rank;
    if rank == 0 || rank > MAX_RANK {
        return error(a_name, format!("rank {rank}; 1 to {MAX_RANK} is run"));
    }
    if pair.inputs.max(pair.outputs) > MAX_WIDTH {
        let (inputs, outputs) = (pair.inputs, pair.outputs);
        return error(
            a_name,
            format!("{inputs} inputs and {outputs} outputs; at most {MAX_WIDTH} are run"),
        );
    }
    if !matcher.targets(paths)? {
        return error(
            a_name,
            format!(
                "{} is not in target_modules of {CONFIG_FILE}",
                paths.join(", or "),
            ),
        );
    }
    let configured = matcher.rank(paths)?;
    if rank != configured {
        return error(
            a_name,
            format!("rank {rank}, but {CONFIG_FILE} says {configured}"),
        );
    }
    if !pair.scale.is_finite() {
        return error(a_name, format!("scale {}", pair.scale));
    }
    Ok(())
}

/// Checks the values of a tensor that is read or written.
pub(super) fn check_values(values: &[f32], name: &str, path: &Path) -> Result<(), PeftError> {
    // Checking all values without an early exit is many times faster than searching for the first.
    if values
        .iter()
        .fold(true, |all, value| all & value.is_finite())
    {
        return Ok(());
    }
    let wrong = values
        .iter()
        .enumerate()
        .find(|(_, value)| !value.is_finite());
    wrong.map_or(Ok(()), |(index, value)| {
        Err(PeftError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            problem: format!("element {index} is {value}"),
        })
    })
}
