//! A base model's file, opened: weights, tokenizer and chat template. Serving, training and evaluation open it here, so
//! they cannot differ.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::gguf::Gguf;
use formats::tokenizer::Tokenizer;
use kernels::Device;
use model::Model;

use super::error::OpenError;
use crate::pull;

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
    /// What its file is known by.
    pub fingerprint: Arc<Fingerprint>,
}

/// The sha256 of a base's file. Reading all of it takes seconds for a large base, so it is done when somebody asks.
#[derive(Debug, Default)]
pub struct Fingerprint {
    file: Option<PathBuf>,
    sha256: OnceLock<Option<String>>,
}

impl Fingerprint {
    /// One that is known already.
    pub fn known(&self, sha256: &str) {
        let _ = self.sha256.set(Some(sha256.to_owned()));
    }

    /// In hex; none for a base that came from no file, or whose file cannot be read any more.
    pub fn sha256(&self) -> Option<&str> {
        let hash = || pull::hash_file(self.file.as_ref()?).ok();
        self.sha256.get_or_init(hash).as_deref()
    }
}

/// How a base is spoken to: its file without the weights, for what only looks at texts and tokens.
pub struct Wording {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// Most tokens of a sequence.
    pub context_length: usize,
}

impl Wording {
    /// Reads the metadata of the GGUF file at `path`.
    ///
    /// # Errors
    /// [`OpenError`], naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Wording, OpenError> {
        let gguf = Gguf::parse(Arc::new(map(path)?), &path.display().to_string())?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
        let config = ModelConfig::from_gguf(&gguf).map_err(model::ModelError::from)?;
        Ok(Wording {
            tokenizer,
            template,
            context_length: config.context_length,
        })
    }
}

fn map(path: &Path) -> Result<kernels::MappedFile, OpenError> {
    kernels::map_file(path).map_err(|source| OpenError::Read {
        path: path.to_owned(),
        source,
    })
}

impl Base {
    /// Maps the GGUF file at `path` and packs its weights for `device`. `name` is what requests call it; without, it is
    /// the file's name without `.gguf`, in lower case.
    ///
    /// # Errors
    /// [`OpenError`], naming the file and what is wrong in it.
    pub fn open(path: &Path, name: Option<&str>, device: Device) -> Result<Base, OpenError> {
        let mapped = Arc::new(map(path)?);
        let gguf = Gguf::parse(mapped.clone(), &path.display().to_string())?;
        let stem = || {
            path.file_stem()
                .map_or("base".into(), |stem| stem.to_string_lossy().to_lowercase())
        };
        let name = name.map_or_else(stem, str::to_owned);
        let mut base = Base::load(&gguf, name, device, &|bytes| mapped.release(bytes))?;
        base.fingerprint = Arc::new(Fingerprint {
            file: Some(path.to_owned()),
            ..Fingerprint::default()
        });
        Ok(base)
    }

    /// [`Base::open`] with a file that is parsed already.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn from_gguf(gguf: &Gguf, name: String, device: Device) -> Result<Base, OpenError> {
        Base::load(gguf, name, device, &|_| ())
    }

    fn load(
        gguf: &Gguf,
        name: String,
        device: Device,
        packed: &dyn Fn(&[u8]),
    ) -> Result<Base, OpenError> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let template = ChatTemplate::from_gguf(gguf, &tokenizer)?;
        let model = Model::load_with(gguf, device, packed)?;
        Ok(Base {
            name,
            model: Arc::new(model),
            tokenizer,
            template,
            fingerprint: Arc::default(),
        })
    }
}
