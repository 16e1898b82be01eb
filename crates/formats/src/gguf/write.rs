//! Writes GGUF version 3: for exports, tiny models and tests.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAX_ALIGNMENT, MAX_DIMS, Value,
};
use crate::atomic_file;
use crate::disk::DiskFile;

struct Tensor {
    name: String,
    dtype: GgmlType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

/// Collects metadata and tensors, then returns the bytes of the file. Keys are sorted, tensors in the order added.
#[derive(Default)]
pub struct GgufWriter {
    metadata: BTreeMap<String, Value>,
    tensors: Vec<Tensor>,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata value. `general.alignment` (u32, a power of two) sets the alignment of the data.
    pub fn metadata(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a tensor: `dims` in ggml's order (inputs first), `data` as its type lays it out.
    ///
    /// # Errors
    /// A name given twice, more than 4 dimensions, or `data` of another length than `dims` needs.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: GgmlType,
        dims: &[u64],
        data: Vec<u8>,
    ) -> Result<&mut Self, GgufError> {
        let error = |problem: String| GgufError::Tensor {
            origin: "GGUF to write".to_owned(),
            name: name.to_owned(),
            problem,
        };
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(error("the name appears twice".to_owned()));
        }
        if dims.len() > MAX_DIMS as usize || dims.contains(&0) {
            return Err(error(format!(
                "dimensions {dims:?}: at most {MAX_DIMS}, none of them 0"
            )));
        }
        let elements = dims
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let needs = dims
            .first()
            .map_or(Some(0), |&first| dtype.bytes_for(first))
            .and(elements)
            .and_then(|elements| dtype.bytes_for(elements))
            .ok_or_else(|| error(format!("dimensions {dims:?} are not whole {dtype} blocks")))?;
        if needs != data.len() as u64 {
            let has = data.len();
            return Err(error(format!(
                "{dtype} of dimensions {dims:?} needs {needs} bytes, but {has} were given"
            )));
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype,
            dims: dims.to_vec(),
            data,
        });
        Ok(self)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// A `general.alignment` that is not a power of two.
    pub fn to_bytes(&self) -> Result<Vec<u8>, GgufError> {
        let alignment = self.alignment()? as usize;
        let mut out = self.header(alignment);
        for tensor in &self.tensors {
            out.extend_from_slice(&tensor.data);
            out.resize(out.len().next_multiple_of(alignment), 0);
        }
        Ok(out)
    }

    /// Writes the file in one step (see [`atomic_file`]).
    ///
    /// # Errors
    /// Those of [`GgufWriter::to_bytes`], or the system's; `path` then still has its old content.
    pub fn write(&self, path: &Path) -> Result<(), GgufError> {
        let alignment = self.alignment()? as usize;
        let header = self.header(alignment);
        let written = atomic_file::replace(path, |file| {
            let mut file = BufWriter::new(file);
            file.write_all(&header)?;
            let zeros = vec![0; alignment];
            for tensor in &self.tensors {
                file.write_all(&tensor.data)?;
                let length = tensor.data.len();
                file.write_all(&zeros[..length.next_multiple_of(alignment) - length])?;
            }
            file.flush()
        });
        written.map_err(|source| GgufError::Io {
            origin: path.display().to_string(),
            source,
        })
    }

    /// The header with its padding: everything before the tensors' data.
    fn header(&self, alignment: usize) -> Vec<u8> {
        let tensors = self.tensors.iter().map(|tensor| {
            let bytes = tensor.data.len() as u64;
            (
                tensor.name.as_str(),
                tensor.dtype,
                tensor.dims.as_slice(),
                bytes,
            )
        });
        header(&self.metadata, tensors, alignment)
    }

    fn alignment(&self) -> Result<u64, GgufError> {
        match self.metadata.get(ALIGNMENT_KEY) {
            None => Ok(DEFAULT_ALIGNMENT),
            Some(Value::U32(alignment))
                if alignment.is_power_of_two() && u64::from(*alignment) <= MAX_ALIGNMENT =>
            {
                Ok((*alignment).into())
            }
            Some(other) => Err(GgufError::Metadata {
                origin: "GGUF to write".to_owned(),
                key: ALIGNMENT_KEY.to_owned(),
                problem: format!(
                    "{} is not a u32 power of two up to {MAX_ALIGNMENT}",
                    other.describe()
                ),
            }),
        }
    }
}

/// The header with its padding. `tensors` lists name, type, dimensions and bytes in the order of the data.
fn header<'a>(
    metadata: &BTreeMap<String, Value>,
    tensors: impl ExactSizeIterator<Item = (&'a str, GgmlType, &'a [u64], u64)>,
    alignment: usize,
) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        out.extend_from_slice(&(value.value_type() as u32).to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for (name, dtype, dims, bytes) in tensors {
        put_string(&mut out, name);
        out.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        for dim in dims {
            out.extend_from_slice(&dim.to_le_bytes());
        }
        out.extend_from_slice(&dtype.id().to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        offset += bytes.next_multiple_of(alignment as u64);
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    out
}

/// Writes a GGUF tensor by tensor, for files larger than memory. Names, types and dimensions must be known at the start.
#[derive(Debug)]
pub struct GgufStream {
    file: BufWriter<DiskFile>,
    /// Bytes of the tensors that are still to come, the next one first.
    expected: std::collections::VecDeque<(String, u64)>,
}

impl GgufStream {
    /// Writes the header to `file`.
    ///
    /// # Errors
    /// Dimensions that are not whole blocks, by tensor name; or the file cannot be written.
    pub fn begin(
        file: DiskFile,
        metadata: &BTreeMap<String, Value>,
        tensors: &[(String, GgmlType, Vec<u64>)],
    ) -> std::io::Result<GgufStream> {
        let mut listed = Vec::with_capacity(tensors.len());
        for (name, dtype, dims) in tensors {
            let elements = dims
                .iter()
                .try_fold(1u64, |product, &dim| product.checked_mul(dim));
            let bytes = elements.and_then(|elements| dtype.bytes_for(elements));
            let bytes = bytes.ok_or_else(|| {
                std::io::Error::other(format!("{name}: {dims:?} are not whole {dtype} blocks"))
            })?;
            listed.push((name.as_str(), *dtype, dims.as_slice(), bytes));
        }
        let expected = listed
            .iter()
            .map(|(name, .., bytes)| ((*name).to_owned(), *bytes));
        let expected = expected.collect();
        let mut file = BufWriter::new(file);
        file.write_all(&header(
            metadata,
            listed.into_iter(),
            DEFAULT_ALIGNMENT as usize,
        ))?;
        Ok(GgufStream { file, expected })
    }

    /// Writes the data of the next tensor.
    ///
    /// # Errors
    /// Another tensor is next, or the length is not the announced one, or the file cannot be written.
    pub fn put(&mut self, name: &str, data: &[u8]) -> std::io::Result<()> {
        match self.expected.pop_front() {
            Some((expected, bytes)) if expected == name && bytes == data.len() as u64 => {
                self.file.write_all(data)?;
                let padded = data.len().next_multiple_of(DEFAULT_ALIGNMENT as usize);
                self.file
                    .write_all(&[0; DEFAULT_ALIGNMENT as usize][..padded - data.len()])
            }
            next => Err(std::io::Error::other(format!(
                "{name} of {} bytes, where {next:?} was announced",
                data.len()
            ))),
        }
    }

    /// Writes everything to the disk.
    ///
    /// # Errors
    /// Tensors are missing, or the file cannot be written.
    pub fn finish(self) -> std::io::Result<DiskFile> {
        if let Some((name, _)) = self.expected.front() {
            return Err(std::io::Error::other(format!("{name} was never written")));
        }
        let file = self.file.into_inner()?;
        file.sync_all()?;
        Ok(file)
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I8(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::F32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::F64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&(array.element_type() as u32).to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => out.extend_from_slice(values),
        Array::I8(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::U16(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::I16(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::U32(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::I32(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::F32(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::U64(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::I64(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::F64(values) => values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Array::Bool(values) => values.iter().for_each(|value| out.push(u8::from(*value))),
        Array::String(values) => values.iter().for_each(|value| put_string(out, value)),
    }
}
