//! Parses a GGUF file. All checks are here: every range that is returned is inside the file.

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::ops::Range;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAX_ALIGNMENT, MAX_ARRAY,
    MAX_DIMS, MAX_METADATA, MAX_NAME, MAX_STRING, MAX_TENSORS, Value, ValueType,
};

/// A tensor's type, dimensions and byte range in the file.
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: GgmlType,
    pub(super) dims: Vec<u64>,
    /// The part of a split file that has it, from 0.
    pub(super) part: usize,
    pub(super) range: Range<usize>,
}

/// The header of a file: metadata and tensor list.
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
}

impl Contents {
    pub(super) fn read(data: &[u8], origin: &str) -> Result<Contents, GgufError> {
        let mut cursor = Cursor {
            data,
            position: 0,
            origin,
        };
        read_magic(&mut cursor)?;
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.u64(format_args!("tensor count"))?;
        cursor.limit(format_args!("tensor count"), tensor_count, MAX_TENSORS)?;
        let metadata_count = cursor.u64(format_args!("metadata count"))?;
        cursor.limit(format_args!("metadata count"), metadata_count, MAX_METADATA)?;
        let metadata = read_metadata(&mut cursor, metadata_count)?;
        let alignment = alignment(&metadata, origin)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        Ok(Contents {
            version,
            metadata,
            tensors,
        })
    }
}

/// Reads little-endian values, never past the end.
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

    /// A string of at most `limit` bytes; `None` if it is not UTF-8.
    fn string(&mut self, limit: u64, what: Arguments<'_>) -> Result<Option<String>, GgufError> {
        let length = self.u64(what)?;
        self.limit(format_args!("{what}: string length"), length, limit)?;
        let bytes = self.take(length, what)?;
        Ok(std::str::from_utf8(bytes).ok().map(str::to_owned))
    }
}

fn read_magic(cursor: &mut Cursor<'_>) -> Result<(), GgufError> {
    let magic = &cursor.data[..cursor.data.len().min(4)];
    if magic != b"GGUF" {
        let found = String::from_utf8_lossy(magic).into_owned();
        return Err(GgufError::Magic {
            origin: cursor.origin.to_owned(),
            found,
        });
    }
    cursor.position = magic.len();
    Ok(())
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let version = cursor.u32(format_args!("version"))?;
    let hint = match version {
        2 | 3 => return Ok(version),
        1 => " (the first draft; convert the model again)",
        _ if (1..=3).contains(&version.swap_bytes()) => " read backwards: a big-endian file",
        _ => "",
    };
    Err(GgufError::Version {
        origin: cursor.origin.to_owned(),
        version,
        hint,
    })
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

    // Before memory is allocated: the elements must fit into the rest of the file.
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
    let mut listed = Vec::new();
    for index in 0..count {
        let what = format!("tensor entry {} of {count}", index + 1);
        listed.push(read_tensor_entry(cursor, &what, alignment)?);
    }
    let base = (cursor.position as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(listed.len());
    for entry in listed {
        tensors.push(entry.at(base, cursor)?);
    }
    check_apart(&tensors, cursor.origin)?;
    Ok(tensors)
}

/// A tensor as the header lists it.
struct TensorEntry {
    name: String,
    dtype: GgmlType,
    dims: Vec<u64>,
    /// In bytes, from the beginning of the data.
    offset: u64,
    /// In bytes.
    length: u64,
}

impl TensorEntry {
    /// The tensor in a file whose data begin at `base`.
    fn at(self, base: u64, cursor: &Cursor<'_>) -> Result<TensorInfo, GgufError> {
        let has = cursor.data.len() as u64;
        let start = base.saturating_add(self.offset);
        let end = start.saturating_add(self.length);
        let range = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .filter(|_| end <= has);
        let Some((start, end)) = range else {
            return Err(GgufError::Truncated {
                origin: cursor.origin.to_owned(),
                what: format!("tensor {:?}", self.name),
                needs: end,
                has,
            });
        };
        Ok(TensorInfo {
            name: self.name,
            dtype: self.dtype,
            dims: self.dims,
            part: 0,
            range: start..end,
        })
    }
}

/// Reads the next entry of the tensor list; `what` names it in errors until its name is read.
fn read_tensor_entry(
    cursor: &mut Cursor<'_>,
    what: &str,
    alignment: u64,
) -> Result<TensorEntry, GgufError> {
    let error = |name: &str, problem: String, cursor: &Cursor<'_>| GgufError::Tensor {
        origin: cursor.origin.to_owned(),
        name: name.to_owned(),
        problem,
    };
    let name = cursor
        .string(MAX_NAME, format_args!("{what}"))?
        .ok_or_else(|| error(what, "the name is not UTF-8".to_owned(), cursor))?;
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
        let problem = format!("dimensions {dims:?}: none may be 0");
        return Err(error(&name, problem, cursor));
    }
    if !first.is_multiple_of(dtype.block_size() as u64) {
        let block = dtype.block_size();
        let problem =
            format!("dimensions {dims:?}: rows of {first} are not whole {dtype} blocks of {block}");
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
    Ok(TensorEntry {
        name,
        dtype,
        dims,
        offset,
        length,
    })
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
