//! Writes an adapter folder, so that a reader never sees half of it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use super::adapter::{Adapter, tensor_name};
use super::config::AdapterConfig;
use super::error::PeftError;
use super::limits::{CONFIG_FILE, WEIGHTS_FILE};
use super::read::{check_shape, check_values};
use crate::atomic_file;
use crate::disk;
use crate::safetensors::{self, Dtype, Tensor};

impl Adapter {
    /// Writes the adapter as PEFT would, its weights rounded to `dtype` (nearest, ties to even).
    ///
    /// Each file is written in one step (see [`atomic_file`]). `adapter_config.json` comes last, and an old one that differs is
    /// removed first, so that a crash never leaves a configuration next to the weights of another adapter.
    ///
    /// # Errors
    /// [`PeftError`]: pairs that do not agree with the configuration, values that `dtype` cannot hold, or the system's.
    pub fn write(&self, dir: &Path, dtype: Dtype, readme: &str) -> Result<(), PeftError> {
        let config = self.config.to_json();
        let weights = self.to_safetensors(dtype, &dir.join(WEIGHTS_FILE))?;

        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| PeftError::Io { path, source }
        };
        disk::create_folders(dir).map_err(error(dir))?;
        let config_path = dir.join(CONFIG_FILE);
        if config_path.exists()
            && std::fs::read(&config_path).map_err(error(&config_path))? != config.as_bytes()
        {
            disk::remove_file(&config_path).map_err(error(&config_path))?;
            atomic_file::sync_folder(dir).map_err(error(dir))?;
        }
        for (name, bytes) in [
            ("README.md", readme.as_bytes()),
            (WEIGHTS_FILE, &weights),
            (CONFIG_FILE, config.as_bytes()),
        ] {
            let path = dir.join(name);
            atomic_file::replace(&path, |file| file.write_all(bytes)).map_err(error(&path))?;
        }
        Ok(())
    }

    /// The bytes of `adapter_model.safetensors`; `path` names the file in messages.
    ///
    /// # Errors
    /// [`PeftError`]: pairs that do not agree with the configuration, or values that `dtype` cannot hold.
    pub fn to_safetensors(&self, dtype: Dtype, path: &Path) -> Result<Vec<u8>, PeftError> {
        // What is written must be readable: the same parser decides about the configuration.
        let parsed =
            AdapterConfig::parse(self.config.to_json().as_bytes(), Path::new(CONFIG_FILE))?;
        let matcher = parsed.matcher(Path::new(CONFIG_FILE))?;
        if self.pairs.is_empty() {
            return Err(PeftError::Empty {
                path: path.to_owned(),
            });
        }
        let mut tensors = BTreeMap::new();
        for pair in &self.pairs {
            let names = ['A', 'B'].map(|side| tensor_name(pair.layer, pair.module, side));
            let module_path = pair.module.path(pair.layer);
            let paths = [module_path.as_str()];
            check_shape(&pair.shape(), &matcher, &paths, &names[0], path)?;
            let scale = matcher.scale(&paths, pair.rank)?;
            if pair.scale != scale {
                return Err(PeftError::Tensor {
                    path: path.to_owned(),
                    name: names[0].clone(),
                    problem: format!("scale {}, but {CONFIG_FILE} says {scale}", pair.scale),
                });
            }
            let shapes = [vec![pair.rank, pair.inputs], vec![pair.outputs, pair.rank]];
            for ((name, values), shape) in names.into_iter().zip([&pair.a, &pair.b]).zip(shapes) {
                let error = |problem: String| PeftError::Tensor {
                    path: path.to_owned(),
                    name: name.clone(),
                    problem,
                };
                let needs = shape[0] * shape[1];
                if values.len() != needs || needs == 0 {
                    let has = values.len();
                    return Err(error(format!("{has} values where {needs} are needed")));
                }
                check_values(values, &name, path)?;
                if let Some(value) = values
                    .iter()
                    .find(|value| !dtype.round(**value).is_finite())
                {
                    return Err(error(format!("{value} does not fit into {dtype}")));
                }
                if tensors.contains_key(&name) {
                    return Err(error("the pair appears twice".to_owned()));
                }
                tensors.insert(
                    name,
                    Tensor {
                        dtype,
                        shape,
                        values: values.clone(),
                    },
                );
            }
        }
        let mut metadata = self.metadata.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        safetensors::write(&safetensors::File { metadata, tensors }).map_err(|source| {
            PeftError::Safetensors {
                path: path.to_owned(),
                source,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faults::for_each_fault;
    use crate::peft::{LoraPair, Module};

    fn adapter(value: f32, alpha: f64) -> Adapter {
        Adapter {
            config: AdapterConfig::new(1, alpha, &[Module::Q]),
            pairs: vec![LoraPair {
                layer: 0,
                module: Module::Q,
                rank: 1,
                inputs: 2,
                outputs: 2,
                scale: alpha as f32,
                a: vec![value; 2],
                b: vec![value; 2],
            }],
            dtype: Dtype::F32,
            metadata: BTreeMap::new(),
            base_tensors: Vec::new(),
        }
    }

    #[test]
    fn folder_never_mixes_two_adapters_after_any_fault() {
        // With another configuration, and with the same.
        for alpha in [2.0, 1.0] {
            for_each_fault(|injection| {
                let folder = tempfile::tempdir().unwrap();
                let dir = folder.path().join("adapter");
                let (old, new) = (adapter(0.5, 1.0), adapter(0.25, alpha));
                old.write(&dir, Dtype::F32, "old").unwrap();
                let written = injection.run(|| new.write(&dir, Dtype::F32, "new"));
                match Adapter::read(&dir) {
                    Ok(found) if found.pairs == new.pairs => assert_eq!(found.config, new.config),
                    Ok(found) => {
                        assert!(written.is_err(), "{injection:?}");
                        assert_eq!((found.pairs, found.config), (old.pairs, old.config));
                    }
                    // Its configuration comes last, so a reader finds no adapter.
                    Err(_) => {
                        assert!(written.is_err(), "{injection:?}");
                        assert!(!dir.join(CONFIG_FILE).exists(), "{injection:?}");
                    }
                }
                new.write(&dir, Dtype::F32, "new").unwrap();
                assert_eq!(Adapter::read(&dir).unwrap().pairs, new.pairs);
            });
        }
    }
}
