//! The precision of weights: float checkpoints converted on load, tensor by tensor.
//!
//! | precision | linear layers | embedding and head |
//! |---|---|---|
//! | f32, bf16, f16 | that type | that type |
//! | q8 | 8 bits, a scale for 32 weights | the same |
//! | q4 | 4 bits, a searched scale and minimum for 32 weights | 8 bits |
//!
//! Norms and biases are always f32. Tensors that are quantized in the file keep their values in every precision, and so do rows
//! that are not a multiple of 32.

use formats::gguf::{GgmlType, TensorView, dequantize, quantize, quantize_q4_searched};

/// The version of the quantizer: files of another version are quantized again.
pub const QUANTIZER: u32 = 1;

/// The type in which the weights of a float checkpoint are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// 4 bits, in groups of 32 with a scale and a minimum.
    Q4,
    /// 8 bits, in groups of 32 with a scale.
    Q8,
    /// Half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Single precision.
    F32,
}

impl Precision {
    /// All of them, the most exact one first.
    pub const ALL: [Precision; 5] = [
        Precision::F32,
        Precision::Bf16,
        Precision::F16,
        Precision::Q8,
        Precision::Q4,
    ];

    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Q8 => "q8",
            Precision::Q4 => "q4",
        }
    }

    /// Whether weights become integers, which takes time, so that the result is worth keeping.
    pub fn is_quantized(self) -> bool {
        matches!(self, Precision::Q8 | Precision::Q4)
    }

    /// The type in which a tensor is held that has `dtype` in the file. `name` is GGUF's.
    pub fn held(self, name: &str, dtype: GgmlType, inputs: usize) -> GgmlType {
        if !is_float(dtype) {
            return dtype;
        }
        match self {
            Precision::F32 => GgmlType::F32,
            Precision::Bf16 => GgmlType::BF16,
            Precision::F16 => GgmlType::F16,
            _ if !inputs.is_multiple_of(GgmlType::Q4_1.block_size()) => dtype,
            Precision::Q8 => GgmlType::Q8_0,
            // A wrong bit costs more there: every token passes both, and nothing comes after the head.
            Precision::Q4 if matches!(name, "token_embd.weight" | "output.weight") => {
                GgmlType::Q8_0
            }
            Precision::Q4 => GgmlType::Q4_1,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Precision::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| {
            let known = Precision::ALL.map(Precision::name).join(", ");
            format!("unknown precision {name:?}; known: {known}")
        })
    }
}

pub(crate) fn is_float(dtype: GgmlType) -> bool {
    matches!(dtype, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
}

/// The bytes of a matrix in another type, its rows shared out to `threads` threads.
///
/// # Errors
/// A value that is not a number or is out of the type's range.
pub(crate) fn convert(
    tensor: &TensorView<'_>,
    to: GgmlType,
    inputs: usize,
    threads: usize,
) -> Result<Vec<u8>, String> {
    let row_in = tensor.dtype.bytes_for(inputs as u64).unwrap_or(0) as usize;
    let row_out = to.bytes_for(inputs as u64).unwrap_or(0) as usize;
    if row_in == 0 || row_out == 0 || !tensor.data.len().is_multiple_of(row_in) {
        return Err(format!("rows of {inputs} are not whole {to} blocks"));
    }
    let rows = tensor.data.len() / row_in;
    let mut out = vec![0u8; rows * row_out];
    let share = rows.div_ceil(threads.max(1)).max(1);
    let work = |from: &[u8], to_bytes: &mut [u8]| -> Result<(), String> {
        let mut values = vec![0f32; inputs];
        let pairs = from
            .chunks_exact(row_in)
            .zip(to_bytes.chunks_exact_mut(row_out));
        for (from, to_row) in pairs {
            dequantize(tensor.dtype, from, &mut values).map_err(|error| error.to_string())?;
            check(&values, to)?;
            let bytes = match to {
                GgmlType::Q4_1 => quantize_q4_searched(&values),
                _ => quantize(to, &values),
            };
            to_row.copy_from_slice(&bytes.map_err(|error| error.to_string())?);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let shares = tensor
            .data
            .chunks(share * row_in)
            .zip(out.chunks_mut(share * row_out));
        let running: Vec<_> = shares
            .map(|(from, to)| scope.spawn(|| work(from, to)))
            .collect();
        let ended = running.into_iter().map(|thread| {
            let panicked = || Err("the thread that converted it panicked".to_owned());
            thread.join().unwrap_or_else(|_| panicked())
        });
        ended.collect::<Result<(), String>>()
    })?;
    Ok(out)
}

/// Whether the values can be held.
fn check(values: &[f32], to: GgmlType) -> Result<(), String> {
    // Scales of the quantized types are f16; the largest weight of a group is at most 127 of them.
    let limit = match to {
        GgmlType::F16 | GgmlType::Q8_0 | GgmlType::Q4_1 => 65_504.0,
        _ => f32::MAX,
    };
    match values
        .iter()
        .find(|value| value.is_nan() || value.abs() > limit)
    {
        None => Ok(()),
        Some(value) => Err(format!(
            "a weight of {value}, which {to} does not hold; take the weights as they are, or as f32 or bf16"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_does_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..7 * 64)
            .map(|i| ((i * 37) % 101) as f32 - 50.0)
            .collect();
        let data = quantize(GgmlType::BF16, &values).unwrap();
        let tensor = TensorView {
            name: "t",
            dtype: GgmlType::BF16,
            dims: &[64, 7],
            data: &data,
        };
        for to in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_1] {
            let alone = convert(&tensor, to, 64, 1).unwrap();
            assert_eq!(alone.len() as u64, to.bytes_for(7 * 64).unwrap());
            for threads in [2, 3, 50] {
                assert_eq!(convert(&tensor, to, 64, threads).unwrap(), alone, "{to}");
            }
            let mut back = vec![0f32; values.len()];
            dequantize(to, &alone, &mut back).unwrap();
            let off = values.iter().zip(&back).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) <= 4.0, "{to}");
        }
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        for value in [f32::NAN, f32::INFINITY, 1e6] {
            let data = quantize(GgmlType::F32, &[value; 32]).unwrap();
            let tensor = TensorView {
                name: "t",
                dtype: GgmlType::F32,
                dims: &[32, 1],
                data: &data,
            };
            let error = convert(&tensor, GgmlType::F16, 32, 1).unwrap_err();
            assert!(error.contains("F16 does not hold"), "{error}");
            assert_eq!(
                convert(&tensor, GgmlType::BF16, 32, 1).is_ok(),
                value == 1e6
            );
        }
    }

    #[test]
    fn quantized_tensors_and_odd_rows_keep_their_type() {
        let held = |name, dtype, inputs| Precision::Q4.held(name, dtype, inputs);
        assert_eq!(
            held("blk.0.attn_q.weight", GgmlType::BF16, 64),
            GgmlType::Q4_1
        );
        assert_eq!(held("output.weight", GgmlType::BF16, 64), GgmlType::Q8_0);
        assert_eq!(
            held("blk.0.attn_q.weight", GgmlType::BF16, 48),
            GgmlType::BF16
        );
        assert_eq!(
            held("blk.0.attn_q.weight", GgmlType::Q6_K, 256),
            GgmlType::Q6_K
        );
    }
}
