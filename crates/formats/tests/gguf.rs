//! GGUF files: written and read back, quantized as the `gguf` package has it (`fixtures/make_quants.py`), and broken in
//! every way that has a message.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::gguf::{
    Array, GgmlType, Gguf, GgufError, GgufWriter, PartName, Value, dequantize, part_files, quantize,
};
use serde::Deserialize;

fn parse(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    Gguf::parse(Arc::new(bytes), "test.gguf")
}

fn message(bytes: Vec<u8>) -> String {
    parse(bytes).unwrap_err().to_string()
}

fn small() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .metadata("a.u32", 7u32)
        .metadata("b.text", "grüße")
        .metadata("c.array", vec!["x".to_owned(), String::new()])
        .metadata("d.flag", true);
    writer
        .tensor("first", GgmlType::F32, &[3, 2], (0u8..24).collect())
        .unwrap();
    writer
        .tensor("second", GgmlType::Q4_1, &[64], vec![1; 40])
        .unwrap();
    writer
}

#[test]
fn written_files_are_read_back() {
    let mut writer = small();
    let values = [
        Value::U8(255),
        Value::I8(-1),
        Value::U16(65535),
        Value::I16(-2),
        Value::U32(1),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(false),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(-0.25),
        Value::String("s".into()),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![3])),
        Value::Array(Array::I16(vec![-4])),
        Value::Array(Array::U32(vec![5])),
        Value::Array(Array::I32(vec![-6, 6])),
        Value::Array(Array::F32(vec![1.5])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::U64(vec![7])),
        Value::Array(Array::I64(vec![-8])),
        Value::Array(Array::F64(vec![2.5])),
        Value::Array(Array::String(Vec::new())),
    ];
    for (index, value) in values.iter().enumerate() {
        writer.metadata(&format!("all.{index}"), value.clone());
    }
    let gguf = parse(writer.to_bytes().unwrap()).unwrap();
    for (index, value) in values.iter().enumerate() {
        assert_eq!(gguf.metadata().get(&format!("all.{index}")), Some(value));
    }
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.get_u32("a.u32").unwrap(), Some(7));
    assert_eq!(gguf.get_u64("a.u32").unwrap(), Some(7));
    assert_eq!(gguf.get_str("b.text").unwrap(), Some("grüße"));
    assert_eq!(gguf.get_str_array("c.array").unwrap().unwrap(), ["x", ""]);
    assert_eq!(gguf.get_bool("d.flag").unwrap(), Some(true));
    assert_eq!(gguf.get_f32("all.10").unwrap(), Some(-0.25));
    assert_eq!(gguf.get_i32_array("all.17").unwrap().unwrap(), [-6, 6]);
    assert_eq!(gguf.get_f32_array("all.18").unwrap().unwrap(), [1.5]);
    assert_eq!(gguf.get_u32("absent").unwrap(), None);

    let names: Vec<&str> = gguf.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["first", "second"]);
    let first = gguf.tensor("first").unwrap();
    assert_eq!(
        (first.dtype, first.dims, first.elements()),
        (GgmlType::F32, &[3u64, 2][..], 6)
    );
    assert_eq!(first.data, (0u8..24).collect::<Vec<u8>>());
    assert_eq!(gguf.tensor("second").unwrap().data, [1; 40]);
    assert!(gguf.tensor("third").is_none());
}

#[test]
fn getters_report_the_type_they_found() {
    let gguf = parse(
        small()
            .metadata("e.negative", Value::I32(-5))
            .to_bytes()
            .unwrap(),
    )
    .unwrap();
    let text = gguf.get_u32("b.text").unwrap_err().to_string();
    assert_eq!(
        text,
        "test.gguf: metadata \"b.text\" is string, but a number from 0 to 4294967295 is needed"
    );
    assert!(
        gguf.get_u64("e.negative")
            .unwrap_err()
            .to_string()
            .contains("i32 -5")
    );
    assert!(
        gguf.get_str("c.array")
            .unwrap_err()
            .to_string()
            .contains("an array of 2 string")
    );
    assert!(gguf.get_i32_array("c.array").is_err());
    assert!(gguf.get_bool("a.u32").is_err());
}

#[test]
fn alignment_of_the_file_is_used() {
    for alignment in [1u32, 8, 64, 4096] {
        let mut writer = small();
        writer.metadata("general.alignment", alignment);
        let gguf = parse(writer.to_bytes().unwrap()).unwrap();
        assert_eq!(gguf.tensor("second").unwrap().data, [1; 40]);
    }
    for wrong in [0u32, 3, 1 << 30] {
        assert!(
            small()
                .metadata("general.alignment", wrong)
                .to_bytes()
                .is_err()
        );
    }
}

#[test]
fn version_2_is_read_and_other_versions_are_refused() {
    let mut bytes = small().to_bytes().unwrap();
    bytes[4] = 2;
    assert_eq!(parse(bytes.clone()).unwrap().version(), 2);
    bytes[4] = 1;
    assert!(message(bytes.clone()).contains("version 1"));
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(message(bytes.clone()).contains("big-endian"));
    bytes[..4].copy_from_slice(b"PK\x03\x04");
    assert!(message(bytes).contains("not a GGUF file"));
    assert!(message(Vec::new()).contains("not a GGUF file"));
}

#[test]
fn truncated_files_are_errors() {
    let bytes = small().to_bytes().unwrap();
    let whole = bytes.len();
    // The padding after the last tensor may be missing.
    let needed = whole - 24;
    assert!(parse(bytes[..needed].to_vec()).is_ok());
    for length in 4..needed {
        let text = message(bytes[..length].to_vec());
        assert!(
            text.contains("truncated: needs ") && text.ends_with(&format!("has {length}")),
            "{length}: {text}"
        );
    }
    let text = message(bytes[..needed - 1].to_vec());
    assert_eq!(
        text,
        format!(
            "test.gguf: tensor \"second\": truncated: needs {needed} bytes, has {}",
            needed - 1
        )
    );
}

/// A file by hand: metadata entries and tensor entries as raw bytes, then 64 bytes of data.
fn raw(metadata: &[&[u8]], tensors: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for part in metadata.iter().chain(tensors) {
        bytes.extend(*part);
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn tensor(name: &str, dims: &[u64], dtype: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name.as_bytes());
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(dtype.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn invalid_tensors_are_named() {
    let check = |tensors: &[Vec<u8>], expected: &str| {
        let parts: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
        let text = message(raw(&[], &parts));
        assert!(
            text.contains("tensor \"t\"") && text.contains(expected),
            "{text}"
        );
    };
    check(&[tensor("t", &[4], 99, 0)], "unknown type 99");
    check(&[tensor("t", &[4], 4, 0)], "removed");
    check(&[tensor("t", &[4, 0], 0, 0)], "none may be 0");
    check(
        &[tensor("t", &[33], 3, 0)],
        "rows of 33 are not whole Q4_1 blocks of 32",
    );
    check(&[tensor("t", &[1 << 33, 1 << 33], 0, 0)], "too large");
    check(&[tensor("t", &[u64::MAX], 0, 0)], "too large");
    check(
        &[tensor("t", &[4], 0, 7)],
        "offset 7 is not a multiple of the alignment 32",
    );
    check(&[tensor("t", &[17], 0, 0)], "truncated: needs ");
    check(&[tensor("t", &[4], 0, u64::MAX - 31)], "truncated: needs ");
    check(
        &[tensor("t", &[1, 1, 1, 1, 1], 0, 0)],
        "number of dimensions is 5; at most 4",
    );
    check(
        &[tensor("a", &[16], 0, 0), tensor("t", &[8], 0, 32)],
        "overlaps that of \"a\"",
    );
    check(
        &[tensor("t", &[8], 0, 0), tensor("t", &[8], 0, 32)],
        "the name appears twice",
    );
}

#[test]
fn invalid_metadata_is_named() {
    let entry = |key: &[u8], rest: &[u8]| [string(key), rest.to_vec()].concat();
    let check = |entries: &[Vec<u8>], expected: &str| {
        let parts: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        let text = message(raw(&parts, &[]));
        assert!(text.contains(expected), "{text}");
    };
    let kind = |id: u32| id.to_le_bytes().to_vec();
    let array =
        |element: u32, count: u64| [kind(9), kind(element), count.to_le_bytes().to_vec()].concat();
    check(
        &[entry(b"k", &kind(13))],
        "metadata \"k\": unknown value type 13",
    );
    check(
        &[entry(b"k", &[kind(7), vec![2]].concat())],
        "a bool is 0 or 1, not 2",
    );
    check(
        &[entry(b"k", &[kind(8), string(b"\xff")].concat())],
        "metadata \"k\": a string is not UTF-8",
    );
    check(&[entry(b"\xff", &kind(0))], "the key is not UTF-8");
    check(
        &[entry(
            b"k",
            &[kind(8), (1u64 << 60).to_le_bytes().to_vec()].concat(),
        )],
        "string length is 1152921504606846976",
    );
    check(
        &[entry(b"k", &array(4, 1 << 60))],
        "array length is 1152921504606846976; at most 16777216",
    );
    check(
        &[entry(b"k", &array(4, 1 << 20))],
        "metadata \"k\": truncated: needs ",
    );
    check(
        &[entry(b"k", &array(8, 1 << 20))],
        "metadata \"k\": truncated: needs ",
    );
    check(
        &[entry(b"k", &array(9, 1))],
        "arrays of arrays are not read",
    );
    check(&[entry(b"k", &array(77, 1))], "unknown element type 77");
    let twice = entry(b"k", &[kind(0), vec![1]].concat());
    check(
        &[twice.clone(), twice],
        "metadata \"k\": the key appears twice",
    );
    check(
        &[entry(b"general.alignment", &[kind(4), kind(33)].concat())],
        "u32 33 is not a power of two",
    );

    let mut bytes = raw(&[], &[]);
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(message(bytes).contains("tensor count is 18446744073709551615; at most 65536"));
}

#[test]
fn writer_and_reader_refuse_the_same() {
    let mut writer = GgufWriter::new();
    let mut error = |dtype, dims: &[u64], length| {
        writer
            .tensor("t", dtype, dims, vec![0; length])
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(error(GgmlType::F32, &[2], 7).contains("needs 8 bytes, but 7 were given"));
    assert!(error(GgmlType::Q8_0, &[31], 34).contains("whole Q8_0 blocks"));
    assert!(error(GgmlType::F32, &[0], 0).contains("none of them 0"));
    assert!(error(GgmlType::F32, &[1; 5], 4).contains("at most 4"));
    assert_eq!(error(GgmlType::F32, &[1], 4), "");
    assert!(error(GgmlType::F32, &[1], 4).contains("twice"));
}

#[derive(Deserialize)]
struct Quants {
    dequantized: BTreeMap<String, Dequantized>,
    values: String,
    quantized: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Dequantized {
    bytes: String,
    values: String,
}

fn quants() -> Quants {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quants.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn floats(hex: &str) -> Vec<f32> {
    bytes(hex)
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&chunk| f32::from_le_bytes(chunk))
        .collect()
}

#[test]
fn dequantized_values_equal_the_gguf_package() {
    let fixture = quants();
    assert_eq!(fixture.dequantized.len(), 15);
    for (name, case) in fixture.dequantized {
        let expected = floats(&case.values);
        let mut values = vec![f32::NAN; expected.len()];
        dequantize(name.parse().unwrap(), &bytes(&case.bytes), &mut values).unwrap();
        assert_eq!(values, expected, "{name}");
    }
}

#[test]
fn quantized_blocks_equal_the_gguf_package() {
    let fixture = quants();
    let values = floats(&fixture.values);
    assert_eq!(fixture.quantized.len(), 8);
    for (name, expected) in fixture.quantized {
        let dtype: GgmlType = name.parse().unwrap();
        assert_eq!(
            quantize(dtype, &values).unwrap(),
            bytes(&expected),
            "{name}"
        );
    }
}

#[test]
fn blocks_worked_by_hand_are_dequantized() {
    // Q4_1, d = 0.5, m = -1: nibbles 0..15 in the low halves, 15 in the high ones.
    let mut block = vec![0x00, 0x38, 0x00, 0xbc];
    block.extend((0u8..16).map(|q| q | 0xf0));
    let mut values = [0.0; 32];
    dequantize(GgmlType::Q4_1, &block, &mut values).unwrap();
    assert_eq!(values[..4], [-1.0, -0.5, 0.0, 0.5]);
    assert_eq!(values[16..], [6.5; 16]);

    // Q6_K with scale 1 and all bits set: (63 - 32) * d; the seventh group scaled by -2.
    let mut block = vec![0xff; 192];
    block.extend([1u8; 16]);
    block[192 + 6] = -2i8 as u8;
    block.extend([0x00, 0x3c]);
    let mut values = [0.0; 256];
    dequantize(GgmlType::Q6_K, &block, &mut values).unwrap();
    assert_eq!(values[..96], [31.0; 96]);
    assert_eq!(values[96..112], [-62.0; 16]);
    assert_eq!(values[112..], [31.0; 144]);
}

#[test]
fn unsupported_types_and_wrong_lengths_are_refused() {
    let mut values = [0.0; 256];
    for dtype in GgmlType::all() {
        let data = vec![0; dtype.bytes_for(256).unwrap() as usize];
        match dequantize(dtype, &data, &mut values) {
            Ok(()) => assert!(values.iter().all(|value| *value == 0.0) || dtype != GgmlType::F32),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.starts_with(&format!("{dtype} tensors are not dequantized")),
                    "{text}"
                );
            }
        }
        assert!(
            dequantize(dtype, &data[1..], &mut values).is_err(),
            "{dtype}"
        );
    }
    assert!(dequantize(GgmlType::Q8_0, &[0; 34], &mut [0.0; 31]).is_err());
    assert!(quantize(GgmlType::Q8_0, &[0.0; 31]).is_err());
    assert!(
        quantize(GgmlType::Q4_K, &[0.0; 256])
            .unwrap_err()
            .to_string()
            .contains("Q4_K tensors are not quantized")
    );
}

/// The files of `small`, split into one part for each tensor, as gguf-split names and marks them.
fn parts(
    folder: &std::path::Path,
    change: impl Fn(u16, &mut GgufWriter),
) -> Vec<std::path::PathBuf> {
    (0u16..2)
        .map(|number| {
            let mut writer = GgufWriter::new();
            if number == 0 {
                writer.metadata("general.name", "small");
                writer
                    .tensor("first", GgmlType::F32, &[3, 2], (0u8..24).collect())
                    .unwrap();
            } else {
                writer
                    .tensor("second", GgmlType::Q4_1, &[64], vec![1; 40])
                    .unwrap();
            }
            writer
                .metadata("split.no", Value::U16(number))
                .metadata("split.count", Value::U16(2))
                .metadata("split.tensors.count", Value::I32(2));
            change(number, &mut writer);
            let path = folder.join(format!("small-{:05}-of-00002.gguf", number + 1));
            writer.write(&path).unwrap();
            path
        })
        .collect()
}

fn open_parts(path: &std::path::Path) -> Result<Gguf, GgufError> {
    Gguf::open_parts(path, &|path| Ok(Arc::new(std::fs::read(path)?)))
}

#[test]
fn parts_of_a_split_file_are_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let parts = parts(folder.path(), |_, _| ());
    for path in &parts {
        let whole = open_parts(path).unwrap();
        let names: Vec<&str> = whole.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["first", "second"]);
        let second = whole.tensor("second").unwrap();
        assert_eq!((second.dims, second.data), (&[64u64][..], &[1u8; 40][..]));
        assert_eq!(whole.tensor("first").unwrap().data[5], 5);
        let keys: Vec<&String> = whole.metadata().keys().collect();
        assert_eq!(keys, ["general.name"]);
        assert_eq!(part_files(path), parts);
    }
    // A file whose name ends like a part's, and which is whole.
    let path = folder.path().join("other-00001-of-00009.gguf");
    small().write(&path).unwrap();
    assert_eq!(open_parts(&path).unwrap().tensors().len(), 2);
    assert_eq!(part_files(&path), [path]);
}

#[test]
fn incomplete_or_mixed_parts_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| open_parts(path).unwrap_err().to_string();
    let broken = |change: &dyn Fn(u16, &mut GgufWriter)| {
        let parts = parts(folder.path(), change);
        error(&parts[0])
    };
    for (change, expected) in [
        // A copy of the first part under the name of the second.
        (
            (&|_: u16, writer: &mut GgufWriter| {
                writer.metadata("split.no", Value::U16(0));
            }) as &dyn Fn(u16, &mut GgufWriter),
            "small-00002-of-00002.gguf: metadata \"split.no\": is 0, but this is part 2 of 2",
        ),
        (
            &|number, writer| {
                writer.metadata("split.count", Value::U16(2 + number));
            },
            "small-00002-of-00002.gguf: metadata \"split.count\": is 3",
        ),
        (
            &|number, writer| {
                writer.metadata("split.tensors.count", Value::I32(2 + i32::from(number)));
            },
            "00002-of-00002.gguf: metadata \"split.tensors.count\": is not that of",
        ),
        (
            &|_, writer| {
                writer.metadata("split.tensors.count", Value::I32(3));
            },
            "metadata \"split.tensors.count\": is 3, but the parts have 2",
        ),
        (
            &|number, writer| {
                let name = ["small", "large"][usize::from(number)];
                writer.metadata("general.name", name);
            },
            "metadata \"general.name\": is not that of",
        ),
        (
            &|_, writer| {
                writer
                    .tensor("both", GgmlType::F32, &[1], vec![0; 4])
                    .unwrap();
                writer.metadata("split.tensors.count", Value::I32(4));
            },
            "tensor \"both\": is in part 1, too",
        ),
        (
            &|_, writer| {
                writer.metadata("split.count", Value::U32(u32::MAX));
            },
            "split.count is 4294967295; at most 1024 is read",
        ),
        (
            &|_, writer| {
                writer.metadata("split.count", "two");
            },
            "metadata \"split.count\" is",
        ),
        (
            &|_, writer| {
                writer.metadata("split.count", Value::U16(3));
            },
            "the file is one of 3 parts, whose names must end in -00001-of-00003.gguf",
        ),
    ] {
        let text = broken(change);
        assert!(text.contains(expected), "{text}");
    }
    let whole = parts(folder.path(), |_, _| ());
    std::fs::remove_file(&whole[0]).unwrap();
    let text = error(&whole[1]);
    assert!(
        text.contains("small-00001-of-00002.gguf: part 1 of 2 is missing"),
        "{text}"
    );
    assert_eq!(part_files(&whole[1]), [whole[1].clone()]);
}

#[test]
fn names_of_parts_have_a_number_and_a_count() {
    let part = PartName::parse("Q4/model-of-x-00002-of-00003.gguf").unwrap();
    assert_eq!(
        (part.stem, part.number, part.count),
        ("Q4/model-of-x", 2, 3)
    );
    let all: Vec<String> = part.all().collect();
    assert_eq!(all[2], "Q4/model-of-x-00003-of-00003.gguf");
    for other in [
        "model.gguf",
        "model-00001-of-00001.gguf",
        "model-00000-of-00002.gguf",
        "model-00003-of-00002.gguf",
        "model-1-of-2.gguf",
        "model-00001-of-0000é.gguf",
        "model-00001-of-00002.safetensors",
        "00001-of-00002.gguf",
    ] {
        assert_eq!(PartName::parse(other), None, "{other}");
    }
}
