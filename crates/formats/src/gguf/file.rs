//! A GGUF file in memory: typed access to its metadata, views of its tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::read::{Contents, TensorInfo};
use super::{Array, GgmlType, GgufError, Value};

/// The bytes of a file, read or mapped. They must not change while they are held.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor of a file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its type.
    pub dtype: GgmlType,
    /// Its dimensions in ggml's order: `dims[0]` is the contiguous one (a weight's inputs), then the rows (its outputs).
    pub dims: &'a [u64],
    /// Its bytes, exactly as many as `dims` and `dtype` need.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        // The product was checked against the file's length when the file was read.
        self.dims.iter().product::<u64>() as usize
    }
}

/// A GGUF file: its metadata, and its tensors as views into the bytes.
pub struct Gguf {
    /// The bytes of the file, or of its parts.
    pub(super) bytes: Vec<Bytes>,
    pub(super) origin: String,
    version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) by_name: HashMap<String, usize>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("origin", &self.origin)
            .field("version", &self.version)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl Gguf {
    /// Reads a whole file into memory and parses it. For a mapped file use [`Gguf::parse`].
    ///
    /// # Errors
    /// [`GgufError`] for an unreadable or malformed file.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let origin = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Gguf::parse(Arc::new(bytes), &origin),
            Err(source) => Err(GgufError::Io { origin, source }),
        }
    }

    /// Parses the bytes of a file; `origin` names it in messages.
    ///
    /// # Errors
    /// [`GgufError`] for anything malformed, truncated or beyond the limits.
    pub fn parse(bytes: Bytes, origin: &str) -> Result<Gguf, GgufError> {
        let Contents {
            version,
            metadata,
            tensors,
        } = Contents::read((*bytes).as_ref(), origin)?;
        let by_name = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        Ok(Gguf {
            origin: origin.to_owned(),
            version,
            metadata,
            tensors,
            by_name,
            bytes: vec![bytes],
        })
    }

    /// The file's name, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|tensor| self.view(tensor))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name
            .get(name)
            .map(|&index| self.view(&self.tensors[index]))
    }

    fn view<'a>(&'a self, tensor: &'a TensorInfo) -> TensorView<'a> {
        let part = self.bytes.get(tensor.part);
        let data = part.and_then(|bytes| (**bytes).as_ref().get(tensor.range.clone()));
        TensorView {
            name: &tensor.name,
            dtype: tensor.dtype,
            dims: &tensor.dims,
            data: data.unwrap_or_default(),
        }
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| GgufError::WrongType {
            origin: self.origin.clone(),
            key: key.to_owned(),
            found: value.describe(),
            expected,
        })
    }

    /// An integer of any width that fits; `None` if the key is absent.
    ///
    /// # Errors
    /// A value of another type, or a number that does not fit. The same for all getters.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get(key, "a number from 0 to 4294967295", |value| {
            u32::try_from(value.integer()?).ok()
        })
    }

    /// An integer of any width that is not negative.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key, "a number that is not negative", |value| {
            u64::try_from(value.integer()?).ok()
        })
    }

    /// A floating-point number; one of 64 bits is rounded.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get(key, "a floating-point number", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key, "a bool", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_str_array(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.get(key, "an array of strings", |value| match value {
            Value::Array(Array::String(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of integers, of any width that fits.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.get(key, "an array of 32-bit integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }

    /// An array of 32-bit floating-point numbers.
    ///
    /// # Errors
    /// See [`Gguf::get_u32`].
    pub fn get_f32_array(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.get(key, "an array of f32", |value| match value {
            Value::Array(Array::F32(values)) => Some(values.as_slice()),
            _ => None,
        })
    }
}
