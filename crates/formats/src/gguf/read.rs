//! Reads a GGUF file: everything is checked here, so that what is handed out can be trusted to lie inside the file.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Arguments;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAX_ALIGNMENT, MAX_ARRAY,
    MAX_DIMS, MAX_METADATA, MAX_NAME, MAX_STRING, MAX_TENSORS, Value, ValueType,
};

/// The bytes of a file: read, or mapped by whoever may map. They must not change while they are held.
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

struct TensorInfo {
    name: String,
    dtype: GgmlType,
    dims: Vec<u64>,
    range: Range<usize>,
}

/// A GGUF file: its metadata, and its tensors as views into the bytes.
pub struct Gguf {
    bytes: Bytes,
    origin: String,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
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
    /// Reads a whole file into memory and parses it. A caller that maps large files hands the mapping to [`Gguf::parse`].
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
        let data: &[u8] = (*bytes).as_ref();
        let mut cursor = Cursor {
            data,
            position: 0,
            origin,
        };

        let magic = &data[..data.len().min(4)];
        if magic != b"GGUF" {
            let found = String::from_utf8_lossy(magic).into_owned();
            return Err(GgufError::Magic {
                origin: origin.to_owned(),
                found,
            });
        }
        cursor.position = 4;
        let version = cursor.u32(format_args!("version"))?;
        if !(2..=3).contains(&version) {
            let hint = match version {
                1 => " (the first draft; convert the model again)",
                _ if (1..=3).contains(&version.swap_bytes()) => {
                    " read backwards: a big-endian file"
                }
                _ => "",
            };
            return Err(GgufError::Version {
                origin: origin.to_owned(),
                version,
                hint,
            });
        }
        let tensor_count = cursor.u64(format_args!("tensor count"))?;
        cursor.limit(format_args!("tensor count"), tensor_count, MAX_TENSORS)?;
        let metadata_count = cursor.u64(format_args!("metadata count"))?;
        cursor.limit(format_args!("metadata count"), metadata_count, MAX_METADATA)?;

        let metadata = read_metadata(&mut cursor, metadata_count)?;
        let alignment = alignment(&metadata, origin)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
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
            bytes,
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
        let data = (*self.bytes)
            .as_ref()
            .get(tensor.range.clone())
            .unwrap_or_default();
        TensorView {
            name: &tensor.name,
            dtype: tensor.dtype,
            dims: &tensor.dims,
            data,
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

    /// An integer of any width that fits; `None` where the key is absent.
    ///
    /// # Errors
    /// Another type, or a number that does not fit; so for all getters here.
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

/// Reads little-endian values and never past the end.
struct Cursor<'a> {
    data: &'a [u8],
    position: usize,
    origin: &'a str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64, what: Arguments<'_>) -> Result<&'a [u8], GgufError> {
        let needs = (self.position as u64).saturating_add(length);
        let taken = usize::try_from(needs)
            .ok()
            .and_then(|end| self.data.get(self.position..end))
            .ok_or_else(|| GgufError::Truncated {
                origin: self.origin.to_owned(),
                what: what.to_string(),
                needs,
                has: self.data.len() as u64,
            })?;
        self.position += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: Arguments<'_>) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: Arguments<'_>) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: Arguments<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn limit(&self, what: Arguments<'_>, found: u64, limit: u64) -> Result<(), GgufError> {
        if found <= limit {
            return Ok(());
        }
        Err(GgufError::Limit {
            origin: self.origin.to_owned(),
            what: what.to_string(),
            found,
            limit,
        })
    }

    /// A string of at most `limit` bytes; `Err(None)` inside where it is no UTF-8.
    fn string(&mut self, limit: u64, what: Arguments<'_>) -> Result<Option<String>, GgufError> {
        let length = self.u64(what)?;
        self.limit(format_args!("{what}: string length"), length, limit)?;
        let bytes = self.take(length, what)?;
        Ok(std::str::from_utf8(bytes).ok().map(str::to_owned))
    }
}

fn read_metadata(
    cursor: &mut Cursor<'_>,
    count: u64,
) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let error = |key: &str, problem: String, cursor: &Cursor<'_>| GgufError::Metadata {
            origin: cursor.origin.to_owned(),
            key: key.to_owned(),
            problem,
        };
        let what = format!("metadata entry {} of {count}", index + 1);
        let key = cursor
            .string(MAX_NAME, format_args!("{what}"))?
            .ok_or_else(|| error(&what, "the key is not UTF-8".to_owned(), cursor))?;
        let what = format_args!("metadata {key:?}");
        let id = cursor.u32(what)?;
        let value_type = ValueType::from_id(id)
            .ok_or_else(|| error(&key, format!("unknown value type {id}"), cursor))?;
        let value = if value_type == ValueType::Array {
            Value::Array(read_array(cursor, &key)?)
        } else {
            read_scalar(cursor, value_type, &key)?
        };
        if metadata.contains_key(&key) {
            return Err(error(&key, "the key appears twice".to_owned(), cursor));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_bool(cursor: &mut Cursor<'_>, key: &str) -> Result<bool, GgufError> {
    match cursor.array::<1>(format_args!("metadata {key:?}"))? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(GgufError::Metadata {
            origin: cursor.origin.to_owned(),
            key: key.to_owned(),
            problem: format!("a bool is 0 or 1, not {other}"),
        }),
    }
}

fn read_text(cursor: &mut Cursor<'_>, key: &str) -> Result<String, GgufError> {
    let text = cursor.string(MAX_STRING, format_args!("metadata {key:?}"))?;
    text.ok_or_else(|| GgufError::Metadata {
        origin: cursor.origin.to_owned(),
        key: key.to_owned(),
        problem: "a string is not UTF-8".to_owned(),
    })
}

fn read_scalar(
    cursor: &mut Cursor<'_>,
    value_type: ValueType,
    key: &str,
) -> Result<Value, GgufError> {
    let what = format_args!("metadata {key:?}");
    Ok(match value_type {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        ValueType::Bool => Value::Bool(read_bool(cursor, key)?),
        ValueType::String => Value::String(read_text(cursor, key)?),
        ValueType::Array => Value::Array(read_array(cursor, key)?),
    })
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufError> {
    let what = format_args!("metadata {key:?}");
    let error = |problem: String, cursor: &Cursor<'_>| GgufError::Metadata {
        origin: cursor.origin.to_owned(),
        key: key.to_owned(),
        problem,
    };
    let id = cursor.u32(what)?;
    let element = ValueType::from_id(id)
        .ok_or_else(|| error(format!("unknown element type {id}"), cursor))?;
    let count = cursor.u64(what)?;
    cursor.limit(
        format_args!("metadata {key:?}: array length"),
        count,
        MAX_ARRAY,
    )?;

    // Before any memory is taken: the elements must at least fit into what is left of the file.
    let start = cursor.position;
    cursor.take(count * element.min_size(), what)?;
    cursor.position = start;

    macro_rules! numbers {
        ($variant:ident, $number:ty) => {{
            const SIZE: usize = size_of::<$number>();
            let bytes = cursor.take(count * SIZE as u64, what)?;
            let (chunks, _) = bytes.as_chunks::<SIZE>();
            Array::$variant(
                chunks
                    .iter()
                    .map(|&chunk| <$number>::from_le_bytes(chunk))
                    .collect(),
            )
        }};
    }
    Ok(match element {
        ValueType::U8 => numbers!(U8, u8),
        ValueType::I8 => numbers!(I8, i8),
        ValueType::U16 => numbers!(U16, u16),
        ValueType::I16 => numbers!(I16, i16),
        ValueType::U32 => numbers!(U32, u32),
        ValueType::I32 => numbers!(I32, i32),
        ValueType::F32 => numbers!(F32, f32),
        ValueType::U64 => numbers!(U64, u64),
        ValueType::I64 => numbers!(I64, i64),
        ValueType::F64 => numbers!(F64, f64),
        ValueType::Bool => Array::Bool(
            (0..count)
                .map(|_| read_bool(cursor, key))
                .collect::<Result<_, _>>()?,
        ),
        ValueType::String => Array::String(
            (0..count)
                .map(|_| read_text(cursor, key))
                .collect::<Result<_, _>>()?,
        ),
        ValueType::Array => return Err(error("arrays of arrays are not read".to_owned(), cursor)),
    })
}

fn alignment(metadata: &BTreeMap<String, Value>, origin: &str) -> Result<u64, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value
        .integer()
        .and_then(|number| u64::try_from(number).ok())
    {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => {
            Ok(alignment)
        }
        _ => Err(GgufError::Metadata {
            origin: origin.to_owned(),
            key: ALIGNMENT_KEY.to_owned(),
            problem: format!(
                "{} is not a power of two up to {MAX_ALIGNMENT}",
                value.describe()
            ),
        }),
    }
}

fn read_tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let error = |name: &str, problem: String, cursor: &Cursor<'_>| GgufError::Tensor {
        origin: cursor.origin.to_owned(),
        name: name.to_owned(),
        problem,
    };
    // (tensor without its range, offset and length in the data)
    let mut listed = Vec::new();
    for index in 0..count {
        let what = format!("tensor entry {} of {count}", index + 1);
        let name = cursor
            .string(MAX_NAME, format_args!("{what}"))?
            .ok_or_else(|| error(&what, "the name is not UTF-8".to_owned(), cursor))?;
        let what = format_args!("tensor {name:?}");
        let rank = cursor.u32(what)?;
        cursor.limit(
            format_args!("tensor {name:?}: number of dimensions"),
            rank.into(),
            MAX_DIMS.into(),
        )?;
        let dims = (0..rank)
            .map(|_| cursor.u64(what))
            .collect::<Result<Vec<_>, _>>()?;
        let id = cursor.u32(what)?;
        let offset = cursor.u64(what)?;

        let dtype = GgmlType::from_id(id).map_err(|problem| error(&name, problem, cursor))?;
        let first = dims.first().copied().unwrap_or(1);
        if dims.contains(&0) {
            return Err(error(
                &name,
                format!("dimensions {dims:?}: none may be 0"),
                cursor,
            ));
        }
        if !first.is_multiple_of(dtype.block_size() as u64) {
            let block = dtype.block_size();
            let problem = format!(
                "dimensions {dims:?}: rows of {first} are not whole {dtype} blocks of {block}"
            );
            return Err(error(&name, problem, cursor));
        }
        let length = dims
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .and_then(|elements| dtype.bytes_for(elements))
            .ok_or_else(|| error(&name, format!("dimensions {dims:?}: too large"), cursor))?;
        if !offset.is_multiple_of(alignment) {
            let problem = format!("offset {offset} is not a multiple of the alignment {alignment}");
            return Err(error(&name, problem, cursor));
        }
        listed.push((
            TensorInfo {
                name,
                dtype,
                dims,
                range: 0..0,
            },
            offset,
            length,
        ));
    }

    let base = (cursor.position as u64).next_multiple_of(alignment);
    let has = cursor.data.len() as u64;
    for (tensor, offset, length) in &mut listed {
        let start = base.saturating_add(*offset);
        let end = start.saturating_add(*length);
        let range = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .filter(|_| end <= has);
        let Some((start, end)) = range else {
            return Err(GgufError::Truncated {
                origin: cursor.origin.to_owned(),
                what: format!("tensor {:?}", tensor.name),
                needs: end,
                has,
            });
        };
        tensor.range = start..end;
    }
    let tensors: Vec<TensorInfo> = listed.into_iter().map(|(tensor, ..)| tensor).collect();
    check_apart(&tensors, cursor.origin)?;
    Ok(tensors)
}

/// No two tensors may share a name or a byte.
fn check_apart(tensors: &[TensorInfo], origin: &str) -> Result<(), GgufError> {
    let error = |name: &str, problem: String| GgufError::Tensor {
        origin: origin.to_owned(),
        name: name.to_owned(),
        problem,
    };
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    for pair in by_start.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(error(
                &pair[1].name,
                format!("its data overlaps that of {:?}", pair[0].name),
            ));
        }
    }
    let mut by_name: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    by_name.sort_unstable();
    match by_name.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(error(pair[0], "the name appears twice".to_owned())),
        None => Ok(()),
    }
}
