//! Writes GGUF version 3: for exports, tiny models and tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAX_ALIGNMENT, MAX_DIMS, Value,
};

struct Tensor {
    name: String,
    dtype: GgmlType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

/// Collects metadata and tensors, then gives the bytes of the file. Keys come out sorted, tensors in the order added.
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
    /// A `general.alignment` that is no power of two.
    pub fn to_bytes(&self) -> Result<Vec<u8>, GgufError> {
        let alignment = self.alignment()? as usize;
        let mut out = self.header(alignment);
        for tensor in &self.tensors {
            out.extend_from_slice(&tensor.data);
            out.resize(out.len().next_multiple_of(alignment), 0);
        }
        Ok(out)
    }

    /// Writes the file: beside `path` first, flushed to the disk, then renamed, so that nobody sees half of it.
    ///
    /// # Errors
    /// Those of [`GgufWriter::to_bytes`], or the system's; what was at `path` before is then still there.
    pub fn write(&self, path: &Path) -> Result<(), GgufError> {
        let alignment = self.alignment()? as usize;
        let header = self.header(alignment);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(name);
        let put = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(&beside)?);
            file.write_all(&header)?;
            let zeros = vec![0; alignment];
            for tensor in &self.tensors {
                file.write_all(&tensor.data)?;
                let length = tensor.data.len();
                file.write_all(&zeros[..length.next_multiple_of(alignment) - length])?;
            }
            file.into_inner()?.sync_all()?;
            std::fs::rename(&beside, path)
        };
        put().map_err(|source| {
            // Nothing more can be done about a leftover than to try.
            let _ = std::fs::remove_file(&beside);
            let origin = path.display().to_string();
            GgufError::Io { origin, source }
        })
    }

    /// Everything in front of the tensors' data, padded.
    fn header(&self, alignment: usize) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            out.extend_from_slice(&(value.value_type() as u32).to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&tensor.dtype.id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(alignment as u64);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        out
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
