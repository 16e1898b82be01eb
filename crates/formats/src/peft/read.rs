//! Reads an adapter folder.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::config::Matcher;
use super::{
    Adapter, AdapterConfig, CONFIG_FILE, Dtype, LoraPair, MAX_CONFIG_BYTES, MAX_LAYERS, MAX_RANK,
    MAX_WEIGHTS_BYTES, MAX_WIDTH, Module, PeftError, WEIGHTS_FILE, tensor_name,
};
use crate::safetensors::{self, Tensor};

/// A and B of one linear with their names, where they were found.
type Sides = [Option<(String, Tensor)>; 2];

impl Adapter {
    /// Reads and checks an adapter folder.
    ///
    /// # Errors
    /// [`PeftError`], naming the file and the field or tensor.
    pub fn read(dir: &Path) -> Result<Adapter, PeftError> {
        Adapter::read_whole(dir, |_| {})
    }

    /// [`Adapter::read`] with the [`content_hash`] of the very bytes that were read.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_hashed(dir: &Path) -> Result<(Adapter, String), PeftError> {
        let mut hasher = Sha256::new();
        let adapter = Adapter::read_whole(dir, |bytes| hasher.update(bytes))?;
        Ok((adapter, crate::sha256::hex(&hasher.finalize())))
    }

    /// Reads the folder; `saw` is given the bytes of its files, in the order of [`content_hash`].
    fn read_whole(dir: &Path, mut saw: impl FnMut(&[u8])) -> Result<Adapter, PeftError> {
        let config_path = dir.join(CONFIG_FILE);
        let weights_path = dir.join(WEIGHTS_FILE);
        let bytes = read_limited(&config_path, MAX_CONFIG_BYTES)?;
        saw(&bytes);
        let config = AdapterConfig::parse(&bytes, &config_path)?;
        if !weights_path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(PeftError::Pickle {
                path: dir.to_owned(),
            });
        }
        let bytes = read_limited(&weights_path, MAX_WEIGHTS_BYTES)?;
        saw(&bytes);
        Adapter::parse(config, &bytes, &weights_path)
    }

    /// Reads the bytes of `adapter_model.safetensors` under a configuration; `path` names the file in messages.
    ///
    /// # Errors
    /// [`PeftError`], naming the tensor.
    pub fn parse(config: AdapterConfig, bytes: &[u8], path: &Path) -> Result<Adapter, PeftError> {
        let file = safetensors::read(bytes).map_err(|source| PeftError::Safetensors {
            path: path.to_owned(),
            source,
        })?;
        let matcher = config.matcher(path)?;
        let dtype = common_dtype(file.tensors.values());

        let mut sides: BTreeMap<(usize, Module), Sides> = BTreeMap::new();
        for (name, tensor) in file.tensors {
            let error = |problem: String| PeftError::Tensor {
                path: path.to_owned(),
                name: name.clone(),
                problem,
            };
            let (layer, module, side) = parse_name(&name).map_err(&error)?;
            let slot = &mut sides.entry((layer, module)).or_default()[side];
            if let Some((other, _)) = slot {
                return Err(error(format!("the same tensor as {other}")));
            }
            *slot = Some((name, tensor));
        }
        if sides.is_empty() {
            return Err(PeftError::Empty {
                path: path.to_owned(),
            });
        }
        let mut pairs = Vec::with_capacity(sides.len());
        for ((layer, module), [a, b]) in sides {
            let missing = |have: &str, side| PeftError::Tensor {
                path: path.to_owned(),
                name: tensor_name(layer, module, side),
                problem: format!("missing, but {have} is there"),
            };
            let (a, b) = match (a, b) {
                (Some(a), Some(b)) => (a, b),
                (Some((name, _)), None) => return Err(missing(&name, 'B')),
                (None, Some((name, _))) => return Err(missing(&name, 'A')),
                (None, None) => continue,
            };
            pairs.push(pair(&matcher, layer, module, a, b, path)?);
        }
        let mut metadata = file.metadata;
        metadata.remove("format");
        Ok(Adapter {
            config,
            pairs,
            dtype,
            metadata,
        })
    }
}

/// The sha256, in hex, of the bytes of `adapter_config.json` and then `adapter_model.safetensors`; the same as
/// `cat adapter_config.json adapter_model.safetensors | sha256sum`.
///
/// # Errors
/// [`PeftError::Io`] where a file cannot be read.
pub fn content_hash(dir: &Path) -> Result<String, PeftError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        let path = dir.join(name);
        let error = |source| PeftError::Io {
            path: path.clone(),
            source,
        };
        let mut file = std::fs::File::open(&path).map_err(error)?;
        loop {
            match file.read(&mut buffer).map_err(error)? {
                0 => break,
                length => hasher.update(&buffer[..length]),
            }
        }
    }
    Ok(crate::sha256::hex(&hasher.finalize()))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, PeftError> {
    let error = |source| PeftError::Io {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(error)?;
    let found = file.metadata().map_err(error)?.len();
    let mut bytes = Vec::new();
    if found <= limit {
        // One byte more than the limit, so that a file that grows meanwhile is noticed.
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

fn common_dtype<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> Dtype {
    let first = tensors.next().map_or(Dtype::F32, |tensor| tensor.dtype);
    if tensors.all(|tensor| tensor.dtype == first) {
        first
    } else {
        Dtype::F32
    }
}

/// Layer, module, and 0 for A or 1 for B.
fn parse_name(name: &str) -> Result<(usize, Module, usize), String> {
    let unknown = || -> String {
        let reason = if name.contains("lora_embedding_")
            || name.contains("embed_tokens")
            || name.contains("lm_head")
        {
            "LoRA on the embedding or the head is not supported"
        } else if name.contains("lora_magnitude_vector") {
            "DoRA is not supported"
        } else if name.contains("modules_to_save") {
            "saved modules are not supported"
        } else if name.ends_with(".bias") {
            "biases are not supported"
        } else {
            "unknown; names look like base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        };
        reason.to_owned()
    };
    let rest = name
        .strip_prefix("base_model.model.model.layers.")
        .ok_or_else(unknown)?;
    let parts: Vec<&str> = rest.split('.').collect();
    let (number, parent, module, side) = match parts[..] {
        [number, parent, module, side, "weight"]
        | [number, parent, module, side, "default", "weight"] => (number, parent, module, side),
        _ => return Err(unknown()),
    };
    let module: Module = module.parse().map_err(|_| unknown())?;
    let side = ["lora_A", "lora_B"]
        .iter()
        .position(|known| *known == side)
        .ok_or_else(unknown)?;
    let layer: usize = number.parse().map_err(|_| unknown())?;
    if module.parent() != parent || layer.to_string() != number {
        return Err(unknown());
    }
    if layer >= MAX_LAYERS {
        return Err(format!(
            "layer {layer}; at most {MAX_LAYERS} layers are read"
        ));
    }
    Ok((layer, module, side))
}

fn pair(
    matcher: &Matcher,
    layer: usize,
    module: Module,
    (a_name, a): (String, Tensor),
    (b_name, b): (String, Tensor),
    path: &Path,
) -> Result<LoraPair, PeftError> {
    let error = |name: &str, problem: String| PeftError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        problem,
    };
    let matrix = |name: &str, tensor: &Tensor, form: &str| match tensor.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(error(
            name,
            format!(
                "shape {:?}; {form}, none of them 0, is needed",
                tensor.shape
            ),
        )),
    };
    let (rank, inputs) = matrix(&a_name, &a, "[rank, inputs]")?;
    let (outputs, b_rank) = matrix(&b_name, &b, "[outputs, rank]")?;
    if b_rank != rank {
        return Err(error(
            &b_name,
            format!("shape {:?}, but {a_name} has rank {rank}", b.shape),
        ));
    }
    let module_path = module.path(layer);
    let pair = LoraPair {
        layer,
        module,
        rank,
        inputs,
        outputs,
        scale: matcher.scale(&module_path),
        a: a.values,
        b: b.values,
    };
    check_pair(&pair, matcher, [&a_name, &b_name], path)?;
    Ok(pair)
}

/// What must hold for a pair that is read or written.
pub(super) fn check_pair(
    pair: &LoraPair,
    matcher: &Matcher,
    [a_name, b_name]: [&str; 2],
    path: &Path,
) -> Result<(), PeftError> {
    let error = |name: &str, problem: String| {
        Err(PeftError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            problem,
        })
    };
    let (rank, module_path) = (pair.rank, pair.module.path(pair.layer));
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
    if !matcher.targets(&module_path) {
        return error(
            a_name,
            format!("{module_path} is no target of {CONFIG_FILE}'s target_modules"),
        );
    }
    let configured = matcher.rank(&module_path);
    if rank != configured {
        return error(
            a_name,
            format!("rank {rank}, but {CONFIG_FILE} says {configured}"),
        );
    }
    let scale = matcher.scale(&module_path);
    if pair.scale != scale || !scale.is_finite() {
        return error(
            a_name,
            format!("scale {}, but {CONFIG_FILE} says {scale}", pair.scale),
        );
    }
    for (name, values, needs) in [
        (a_name, &pair.a, rank * pair.inputs),
        (b_name, &pair.b, rank * pair.outputs),
    ] {
        if values.len() != needs || needs == 0 {
            return error(
                name,
                format!("{} values where {needs} are needed", values.len()),
            );
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return error(name, format!("element {index} is {}", values[index]));
        }
    }
    Ok(())
}
