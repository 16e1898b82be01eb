//! A base model, opened: weights, tokenizer and chat template. Serving, training and evaluation open it here, so they cannot
//! differ.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use formats::chat_template::ChatTemplate;
use formats::checkpoint::Checkpoint;
use formats::gguf::Gguf;
use formats::tokenizer::Tokenizer;
use kernels::Device;
use model::{Loading, Model, Precision};

use crate::error::BaseError;
use crate::files::{self, BaseFiles};
use crate::quant_cache::{Kept, Overlaid, Source};

/// An open base.
pub struct Base {
    /// What requests call it.
    pub name: String,
    /// The weights.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// In what its float weights are held; none where they are as in the file.
    pub precision: Option<Precision>,
    /// What its file is known by.
    pub fingerprint: Arc<Fingerprint>,
}

/// How a base is loaded: the precision of its weights, and the cache of quantized weights and hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The precision of the float weights; by default, as in the file.
    pub precision: Option<Precision>,
    /// The cache of quantized weights and of hashes of bases; by default none.
    pub kept: Option<Kept>,
}

/// The sha256 of a base's files. Reading all of it takes seconds for a large base, so it is done when somebody asks, and
/// remembered from start to start where there is a place for it.
#[derive(Debug, Default)]
pub struct Fingerprint {
    file: Option<PathBuf>,
    kept: Option<Kept>,
    sha256: OnceLock<Option<String>>,
}

impl Fingerprint {
    /// One that is known already.
    pub fn known(&self, sha256: &str) {
        let _ = self.sha256.set(Some(sha256.to_owned()));
    }

    /// In hex; none for a base that came from no file, or whose file cannot be read any more.
    pub fn sha256(&self) -> Option<&str> {
        let hash = || {
            let file = self.file.as_ref()?;
            let hash = match &self.kept {
                Some(kept) => kept.fingerprint(file),
                None => files::sha256(file),
            };
            hash.ok()
        };
        self.sha256.get_or_init(hash).as_deref()
    }
}

impl Base {
    /// Maps the GGUF file, or the folder, at `path` and packs its weights for `device`. `name` is what requests call it;
    /// without, it is the file's name without `.gguf`, or the folder's, in lower case.
    ///
    /// # Errors
    /// [`BaseError`], naming the file and what is wrong in it.
    pub fn open(path: &Path, name: Option<&str>, device: Device) -> Result<Base, BaseError> {
        Base::open_in(path, name, device, &LoadOptions::default())
    }

    /// [`Base::open`], its float weights held in another precision. What was quantized once is kept, if there is a place to
    /// keep it.
    ///
    /// # Errors
    /// As [`Base::open`]; and weights that the precision does not hold.
    pub fn open_in(
        path: &Path,
        name: Option<&str>,
        device: Device,
        options: &LoadOptions,
    ) -> Result<Base, BaseError> {
        let files = BaseFiles::open(path)?;
        let (tokenizer, template) = files.wording()?;
        Ok(Base {
            name: name.map_or_else(|| called(path), str::to_owned),
            model: Arc::new(load(path, &files, device, options)?),
            tokenizer,
            template,
            precision: options.precision,
            fingerprint: Arc::new(Fingerprint {
                file: Some(path.to_owned()),
                kept: options.kept.clone(),
                ..Fingerprint::default()
            }),
        })
    }

    /// [`Base::open`] with a file that is parsed already.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn from_gguf(gguf: &Gguf, name: String, device: Device) -> Result<Base, BaseError> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let template = ChatTemplate::from_gguf(gguf, &tokenizer)?;
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

    /// What a training run is bound to: the base's hash, and the precision, which computes other numbers.
    #[must_use]
    pub fn bound(&self, sha256: &str) -> String {
        match self.precision {
            Some(precision) => format!("{sha256} {precision}"),
            None => sha256.to_owned(),
        }
    }
}

/// Loads the weights alone.
///
/// # Errors
/// As [`Base::open_in`].
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
    let made_of = Source {
        path,
        checkpoint: source,
        precision,
        tensors: &tensors,
        release: &|bytes| files.release(bytes),
    };
    let place = options.kept.as_ref().filter(|_| precision.is_quantized());
    if let Some(found) = place.and_then(|kept| kept.find(&made_of, device.threads())) {
        let overlaid = Overlaid {
            kept: found.checkpoint(),
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
    let keeping = place.and_then(|kept| kept.begin(made_of).inspect_err(not_kept).ok());
    let loading = Loading {
        precision: Some(precision),
        packed: &|bytes| files.release(bytes),
        converted: &|name, bytes| {
            if let Some(keeping) = &keeping {
                keeping.put(name, bytes);
            }
        },
    };
    let model = Model::load_with(source, device, loading)?;
    if let Some(keeping) = keeping {
        // The base runs without; it will be quantized again.
        let _ = keeping.finish().inspect_err(not_kept);
    }
    Ok(model)
}

fn not_kept(error: &std::io::Error) {
    tracing::warn!("the quantized base is not kept for the next start: {error}");
}

/// Whether a precision changes any tensor.
fn is_changed(source: &dyn Checkpoint, precision: Precision) -> bool {
    Model::converted(source, precision).is_ok_and(|tensors| !tensors.is_empty())
}

/// What a base is called where nobody says.
fn called(path: &Path) -> String {
    let own = if path.is_dir() {
        // `.` has a name, too.
        let real = path.canonicalize();
        real.ok()
            .and_then(|real| Some(real.file_name()?.to_owned()))
    } else {
        path.file_stem().map(ToOwned::to_owned)
    };
    own.map_or_else(|| "base".into(), |own| own.to_string_lossy().to_lowercase())
}
