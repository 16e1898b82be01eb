//! What the kernels unpack is what the file format says: two implementations of every block format, compared value by value.
//! (`formats::gguf::dequantize` is itself compared with the `gguf` package's blocks.)

use formats::gguf::{GgmlType, dequantize};
use half::f16;
use kernels::{Device, DeviceChoice, SourceType, StepRows};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// Every run type, with where its blocks keep f16 scales.
const TYPES: [(GgmlType, SourceType, &[usize]); 12] = [
    (GgmlType::Q4_0, SourceType::Q4_0, &[0]),
    (GgmlType::Q4_1, SourceType::Q4_1, &[0, 2]),
    (GgmlType::Q5_0, SourceType::Q5_0, &[0]),
    (GgmlType::Q5_1, SourceType::Q5_1, &[0, 2]),
    (GgmlType::Q8_0, SourceType::Q8_0, &[0]),
    (GgmlType::Q2_K, SourceType::Q2_K, &[80, 82]),
    (GgmlType::Q3_K, SourceType::Q3_K, &[108]),
    (GgmlType::IQ4_NL, SourceType::IQ4_NL, &[0]),
    (GgmlType::IQ4_XS, SourceType::IQ4_XS, &[0]),
    (GgmlType::Q4_K, SourceType::Q4_K, &[0, 2]),
    (GgmlType::Q5_K, SourceType::Q5_K, &[0, 2]),
    (GgmlType::Q6_K, SourceType::Q6_K, &[208]),
];

#[test]
fn packed_rows_are_the_formats_values() {
    let (outputs, inputs) = (37, 512);
    let device = Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap();
    for (dtype, source, scales) in TYPES {
        assert_eq!(dtype.type_size(), source.block_bytes());
        let blocks = outputs * inputs / source.block_values();
        let mut bytes = vec![0; blocks * source.block_bytes()];
        SplitMix64::seed_from_u64(1).fill_bytes(&mut bytes);
        for (i, block) in bytes.chunks_exact_mut(source.block_bytes()).enumerate() {
            for &at in scales {
                let scale = f16::from_f32(0.003 * (1 + i % 7) as f32 - 0.001 * at as f32 / 2.0);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        let mut want = vec![0f32; outputs * inputs];
        dequantize(dtype, &bytes, &mut want).unwrap();
        let packed = device
            .pack(source, &bytes, (outputs, inputs), None)
            .unwrap();
        let mut got = device.tensor();
        let rows: Vec<u32> = (0..outputs as u32).collect();
        let step = device.step(StepRows {
            tokens: &rows,
            ..StepRows::default()
        });
        device.embed(&packed, &step, &mut got);
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 0.0);
        for (i, (got, want)) in got.read().iter().zip(&want).enumerate() {
            // A fused multiply-add rounds once where the format's own arithmetic rounds twice.
            assert!(
                (got - want).abs() <= 2e-7 * largest,
                "{dtype} value {i}: {got} and {want}"
            );
        }
    }
}
