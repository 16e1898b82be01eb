//! Maps the files of a base: a GGUF file or its parts, or a Hugging Face folder. Reads them; [`crate::open`] makes a base of them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::chat_template::ChatTemplate;
use formats::checkpoint::Checkpoint;
use formats::config::ModelConfig;
use formats::folder::{self, Description, Folder};
use formats::gguf::{self, Bytes, Gguf};
use formats::git_lfs;
use formats::tokenizer::Tokenizer;
use kernels::MappedFile;
use sha2::{Digest as _, Sha256};

use crate::error::BaseError;
use crate::hub;

/// The mapped files of a base.
pub struct BaseFiles {
    kind: Kind,
    mapped: Vec<Arc<MappedFile>>,
}

enum Kind {
    Gguf(Gguf),
    Folder(Box<Folder>),
}

impl BaseFiles {
    /// Maps the GGUF file with its parts, or the weights of the folder, at `path`.
    ///
    /// # Errors
    /// [`BaseError`], naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<BaseFiles, BaseError> {
        let mapped = RefCell::new(Vec::new());
        let map_one = |path: &Path| {
            let file = Arc::new(map_file(path)?);
            mapped.borrow_mut().push(Arc::clone(&file));
            Ok(file as Bytes)
        };
        let kind = match path.is_dir() {
            true => Kind::Folder(Box::new(Folder::open(path, &map_one)?)),
            false => Kind::Gguf(Gguf::open_parts(path, &map_one)?),
        };
        Ok(BaseFiles {
            kind,
            mapped: mapped.into_inner(),
        })
    }

    /// The weights.
    pub fn checkpoint(&self) -> &dyn Checkpoint {
        match &self.kind {
            Kind::Gguf(gguf) => gguf,
            Kind::Folder(folder) => folder.as_ref(),
        }
    }

    /// The tokenizer and the chat template.
    ///
    /// # Errors
    /// They are missing, broken or not supported.
    pub fn tokenizer_and_template(&self) -> Result<(Tokenizer, ChatTemplate), BaseError> {
        match &self.kind {
            Kind::Gguf(gguf) => of_gguf(gguf),
            Kind::Folder(folder) => of_folder(folder.description()),
        }
    }

    /// A text of a GGUF's metadata.
    #[must_use]
    pub fn metadata_text(&self, key: &str) -> Option<String> {
        match &self.kind {
            Kind::Gguf(gguf) => gguf.get_str(key).ok().flatten().map(str::to_owned),
            Kind::Folder(_) => None,
        }
    }

    /// Releases the memory of a tensor's bytes. They can still be read, from disk.
    pub fn release(&self, bytes: &[u8]) {
        let holds = |file: &&Arc<MappedFile>| {
            let all = (***file).as_ref().as_ptr_range();
            all.contains(&bytes.as_ptr())
        };
        if let Some(file) = self.mapped.iter().find(holds) {
            file.release(bytes);
        }
    }
}

/// The files of a base without its weights, for code that only needs texts and tokens.
pub struct BaseText {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// Its sizes.
    pub config: ModelConfig,
    /// Most tokens of a sequence.
    pub context_length: usize,
}

impl BaseText {
    /// Reads the GGUF file or the folder at `path`, without its weights.
    ///
    /// # Errors
    /// [`BaseError`], naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<BaseText, BaseError> {
        let ((tokenizer, template), config) = if path.is_dir() {
            let description = Description::read(path)?;
            let config = description.config().clone();
            (of_folder(&description)?, config)
        } else {
            let gguf = open_gguf(path)?;
            let config = ModelConfig::from_gguf(&gguf).map_err(model::ModelError::from)?;
            (of_gguf(&gguf)?, config)
        };
        Ok(BaseText {
            tokenizer,
            template,
            context_length: config.context_length,
            config,
        })
    }
}

/// The tokenizer and the chat template of a GGUF file.
///
/// # Errors
/// They are missing, broken or not supported.
pub fn of_gguf(gguf: &Gguf) -> Result<(Tokenizer, ChatTemplate), BaseError> {
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    let template = ChatTemplate::from_gguf(gguf, &tokenizer)?;
    with_end_of_turn(tokenizer, template)
}

fn of_folder(description: &Description) -> Result<(Tokenizer, ChatTemplate), BaseError> {
    let tokenizer = description.tokenizer()?;
    let template = description.chat_template(&tokenizer)?;
    with_end_of_turn(tokenizer, template)
}

/// An answer also ends with the token with which the template ends a turn, whatever the other files say.
fn with_end_of_turn(
    tokenizer: Tokenizer,
    template: ChatTemplate,
) -> Result<(Tokenizer, ChatTemplate), BaseError> {
    let tokenizer = match template.end_of_turn(&tokenizer) {
        Some(end) => tokenizer.with_end_id(end)?,
        None => tokenizer,
    };
    Ok((tokenizer, template))
}

/// Maps the GGUF file at `path`, or all parts of the split file that it belongs to.
///
/// # Errors
/// [`BaseError`], naming the file and what is wrong in it.
pub fn open_gguf(path: &Path) -> Result<Gguf, BaseError> {
    let map = |path: &Path| Ok(Arc::new(map_file(path)?) as Bytes);
    Ok(Gguf::open_parts(path, &map)?)
}

fn map_file(path: &Path) -> std::io::Result<MappedFile> {
    let file = kernels::map_file(path)?;
    git_lfs::check(AsRef::<[u8]>::as_ref(&file))?;
    Ok(file)
}

/// The files of the base at `path`: the GGUF file, all parts of a split one, or those of a folder in the order of their names.
///
/// # Errors
/// The folder has no weights in a supported format.
pub fn all_files(path: &Path) -> Result<Vec<PathBuf>, BaseError> {
    if !path.is_dir() {
        return Ok(gguf::part_files(path));
    }
    let mut files = folder::weight_files(path)?;
    let described = folder::description_files().map(|name| path.join(name));
    files.extend(described.into_iter().filter(|file| file.is_file()));
    files.sort();
    Ok(files)
}

/// The sha256 of a base, in hex: of its file, or of the names and hashes of its parts or of its folder's files.
///
/// # Errors
/// A file cannot be read.
pub fn sha256(path: &Path) -> std::io::Result<String> {
    let files = all_files(path).map_err(std::io::Error::other)?;
    if !path.is_dir() && files.len() == 1 {
        return hub::hash_file(path);
    }
    let mut all = Sha256::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        all.update(format!("{name} {}\n", hub::hash_file(&file)?));
    }
    Ok(base16ct::lower::encode_string(&all.finalize()))
}
