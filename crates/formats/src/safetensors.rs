//! Reads the float tensors of a safetensors file, widened to f32, and writes them.
//!
//! The container itself is parsed by the `safetensors` crate, which checks its offsets; limits, types and rounding are
//! this module's. It does not interpret names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors, View};
use serde_json::{Map, Value, json};

/// The float types that adapters come in.
#[allow(missing_docs, reason = "the names are the format's own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        }
    }

    /// The nearest value that the type holds (ties to even), widened again.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Dtype::F32 => value,
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Dtype::F32 => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Dtype::F16 => values
                .iter()
                .flat_map(|&value| f16::from_f32(value).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .iter()
                .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
                .collect(),
        }
    }

    /// Replaces the content of `to` by the values of `bytes`, widened.
    pub(crate) fn decode(self, bytes: &[u8], to: &mut Vec<f32>) {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        to.clear();
        match self {
            Dtype::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                to.extend(words.map(|&word| f32::from_le_bytes(word)));
            }
            Dtype::F16 => to.extend(pairs().map(|&pair| f16::from_le_bytes(pair).to_f32())),
            Dtype::BF16 => to.extend(pairs().map(|&pair| bf16::from_le_bytes(pair).to_f32())),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(Dtype::F32),
            "f16" | "float16" => Ok(Dtype::F16),
            "bf16" | "bfloat16" => Ok(Dtype::BF16),
            _ => Err(format!("unknown type {name:?}; known: f32, f16, bf16")),
        }
    }
}

/// A tensor in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The type in the file.
    pub dtype: Dtype,
    /// Dimensions, the contiguous one last.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

/// A file in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct File {
    /// The free strings of the header, `format` among them.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// A safetensors file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The container is malformed or truncated.
    #[error("not a whole safetensors file: {0}")]
    Malformed(#[from] safetensors::SafeTensorError),
    /// A tensor of a type that is not read.
    #[error("tensor {name:?}: type {dtype} is not read; F32, F16 and BF16 are")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// The number of values does not match the shape.
    #[error("tensor {name:?}: shape {shape:?} does not hold {has} values")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its number of values.
        has: usize,
    },
    /// More tensors than any adapter has.
    #[error("{found} tensors; at most {MAX_TENSORS} are read")]
    TooMany {
        /// How many.
        found: usize,
    },
}

/// Most tensors that a file may have.
const MAX_TENSORS: usize = 65_536;
/// Largest header that [`read_metadata`] reads, in bytes.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Bytes of the header's length, which precedes the header.
const LENGTH_BYTES: u64 = 8;

/// A tensor's type, shape and byte range in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLocation {
    /// The type in the file.
    pub dtype: Dtype,
    /// Dimensions, the contiguous one last.
    pub shape: Vec<usize>,
    /// The bytes of the file.
    pub bytes: Range<usize>,
}

/// A file's header: its metadata and its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The free strings of the header, `format` among them.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorLocation>,
}

/// Reads the header of a file, without the values.
///
/// # Errors
/// [`SafetensorsError`]: a malformed or truncated file, or a type that is not read, naming the tensor.
pub fn read_header(bytes: &[u8]) -> Result<Header, SafetensorsError> {
    // This checks that the tensors follow one another, fit their shapes, and end at the end of the file.
    let (header_bytes, header) = SafeTensors::read_metadata(bytes)?;
    header_of(&header, header_bytes + LENGTH_BYTES as usize)
}

/// Reads the header at the start of `file`, which has `length` bytes, as [`read_header`] does, without reading the values.
///
/// # Errors
/// As [`read_header`]; also if its header has more than 32 MiB.
pub fn read_header_of_file(
    file: &mut impl io::Read,
    length: u64,
) -> Result<Header, SafetensorsError> {
    let (data, metadata) = read_metadata(file, length)?;
    header_of(&metadata, data as usize)
}

/// Reads the header at the start of `file`, which has `length` bytes: the position of the values in it, and the header.
///
/// # Errors
/// As [`read_header_of_file`], but any type is read.
pub fn read_metadata(
    file: &mut impl io::Read,
    length: u64,
) -> Result<(u64, Metadata), SafetensorsError> {
    let mut header_length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut header_length)
        .map_err(|_| SafeTensorError::HeaderTooSmall)?;
    let header_length = u64::from_le_bytes(header_length);
    if header_length > MAX_HEADER_BYTES {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header)
        .map_err(|_| SafeTensorError::InvalidHeaderLength)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let data = LENGTH_BYTES + header_length;
    if (metadata.data_len() as u64).checked_add(data) != Some(length) {
        return Err(SafeTensorError::MetadataIncompleteBuffer.into());
    }
    Ok((data, metadata))
}

/// The header as this module has it; the values start at byte `data` of the file.
fn header_of(header: &Metadata, data: usize) -> Result<Header, SafetensorsError> {
    let metadata = header.metadata().clone();
    let metadata = metadata.map(|map| map.into_iter().collect());
    let found = header.tensors();
    if found.len() > MAX_TENSORS {
        let found = found.len();
        return Err(SafetensorsError::TooMany { found });
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in found {
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => {
                let dtype = other.to_string();
                return Err(SafetensorsError::Dtype { name, dtype });
            }
        };
        let (start, end) = info.data_offsets;
        let location = TensorLocation {
            dtype,
            shape: info.shape.clone(),
            bytes: data + start..data + end,
        };
        tensors.insert(name, location);
    }
    Ok(Header {
        metadata: metadata.unwrap_or_default(),
        tensors,
    })
}

/// Reads all tensors of a file.
///
/// # Errors
/// As [`read_header`].
pub fn read(bytes: &[u8]) -> Result<File, SafetensorsError> {
    let Header { metadata, tensors } = read_header(bytes)?;
    let tensors = tensors.into_iter().map(|(name, location)| {
        let mut values = Vec::new();
        location.dtype.decode(&bytes[location.bytes], &mut values);
        let (dtype, shape) = (location.dtype, location.shape);
        let tensor = Tensor {
            dtype,
            shape,
            values,
        };
        (name, tensor)
    });
    let tensors = tensors.collect();
    Ok(File { metadata, tensors })
}

/// The bytes of a file, each tensor in its `dtype`, rounded to nearest even. The same content gives the same bytes:
/// header entries are sorted, which the `safetensors` crate does not promise for the metadata.
///
/// # Errors
/// A tensor whose number of values does not match its shape.
pub fn write(file: &File) -> Result<Vec<u8>, SafetensorsError> {
    for (name, tensor) in &file.tensors {
        let needs = tensor
            .shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if needs != Some(tensor.values.len()) {
            return Err(SafetensorsError::Shape {
                name: name.clone(),
                shape: tensor.shape.clone(),
                has: tensor.values.len(),
            });
        }
    }
    let mut bytes = Vec::new();
    write_to(&mut bytes, &file.metadata, &file.tensors).expect("writing to memory does not fail");
    Ok(bytes)
}

/// Writes a file to `out`, one tensor at a time, so that no copy of all tensors is in memory.
///
/// # Errors
/// `out` cannot be written.
pub fn write_to<N: AsRef<str> + Ord, V: View>(
    out: &mut impl io::Write,
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (N, V)>,
) -> io::Result<()> {
    let mut tensors: Vec<(N, V)> = tensors.into_iter().collect();
    // Wider types first, so that every tensor is aligned to its own size.
    tensors.sort_by(|(a, left), (b, right)| {
        let (left, right) = (left.dtype().bitsize(), right.dtype().bitsize());
        right.cmp(&left).then_with(|| a.cmp(b))
    });
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.data_len();
        let entry = json!({
            "dtype": tensor.dtype().to_string(),
            "shape": tensor.shape(),
            "data_offsets": [start, end],
        });
        header.insert(name.as_ref().to_owned(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in &tensors {
        out.write_all(&tensor.data())?;
    }
    Ok(())
}

impl View for &Tensor {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::BF16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.dtype.encode(&self.values))
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.dtype.size()
    }
}
