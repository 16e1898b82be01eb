//! Metrics for TensorBoard: an events file of scalars.
//!
//! A TFRecord is `length:u64, masked crc32c of those 8 bytes:u32, data, masked crc32c of the data:u32`, little endian
//! (tensorflow, core/lib/io/record_writer.h). The data is an `Event` in protobuf's wire format (core/util/event.proto):
//! `wall_time`: double = 1, `step`: int64 = 2, `file_version`: string = 3, `summary` = 5 { `value` = 1 { `tag`: string = 1,
//! `simple_value`: float = 2 } }.
//!
//! The bytes depend on the records alone, as `metrics.jsonl` does: there is no clock in them, and an event's wall time is
//! its step, in seconds. Knows no kind of record: every number of one becomes a scalar.

use serde::Serialize;
use serde_json::Value;

/// The name of the events file; TensorBoard looks for `tfevents` in it.
pub const FILE: &str = "events.out.tfevents.0.lory";

/// The first record of every file.
#[must_use]
pub fn start() -> Vec<u8> {
    // Its wall time is 0, which protobuf leaves out.
    let mut event = Vec::new();
    bytes(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// One event a record of the metrics: its numbers as scalars `<kind>/<field>` (`<kind>/<field>/<part>` where a field is an
/// object), at its step. Nothing for a record without a step.
#[must_use]
pub fn event(metrics: &impl Serialize) -> Vec<u8> {
    let Ok(Value::Object(fields)) = serde_json::to_value(metrics) else {
        return Vec::new();
    };
    let Some(step) = fields.get("step").and_then(Value::as_u64) else {
        return Vec::new();
    };
    let kind = match fields.get("kind").and_then(Value::as_str) {
        None | Some("step") => "train",
        Some(kind) => kind,
    };
    let mut summary = Vec::new();
    let mut scalar = |name: &str, value: &Value| {
        let Some(scalar) = value.as_f64() else {
            return;
        };
        let mut entry = Vec::new();
        bytes(&mut entry, 1, format!("{kind}/{name}").as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend_from_slice(&(scalar as f32).to_le_bytes());
        bytes(&mut summary, 1, &entry);
    };
    for (name, value) in fields.iter().filter(|(name, _)| *name != "step") {
        match value {
            Value::Object(parts) => parts
                .iter()
                .for_each(|(part, value)| scalar(&format!("{name}/{part}"), value)),
            value => scalar(name, value),
        }
    }
    let mut event = Vec::new();
    number(&mut event, 1, step as f64);
    event.push(2 << 3);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    record(&event)
}

fn number(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked(crc32c(data)).to_le_bytes());
    out
}

/// TFRecord's mask, so that the crc of data that holds crcs is still of use.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few kilobytes a run need no table.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use base16ct::lower::encode_string;

    use super::*;
    use crate::metrics::MetricsRecord;

    #[test]
    fn checksum_is_crc32c() {
        // The check value of CRC-32C, and the first vector of RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn event_equals_that_of_tensorboards_writer() {
        // Made with tensorboard 2.21: its RecordWriter over Event(file_version="brain.Event:2").
        assert_eq!(
            encode_string(&start()),
            "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc985129"
        );
        let seen = MetricsRecord::Validation {
            step: 300,
            epoch: 2,
            loss: 0.25,
            tokens: 9,
            best: true,
            preference: None,
        };
        // The same, over Event(wall_time=300, step=300, summary=[validation/epoch, validation/loss, validation/tokens]).
        assert_eq!(encode_string(&event(&seen)), EXPECTED);
        let parts = event(&serde_json::json!({"step": 3, "preference": {"margin": 0.5}}));
        let parts = String::from_utf8_lossy(&parts).into_owned();
        assert!(parts.contains("train/preference/margin"), "{parts}");
    }

    const EXPECTED: &str = "59000000000000008a1d65b6090000000000c0724010ac022a4b\
        0a170a1076616c69646174696f6e2f65706f63681500000040\
        0a160a0f76616c69646174696f6e2f6c6f7373150000803e\
        0a180a1176616c69646174696f6e2f746f6b656e731500001041\
        7a77e9b4";
}
