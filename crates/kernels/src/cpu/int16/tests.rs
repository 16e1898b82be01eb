use super::rounding::*;
use super::*;
use crate::cpu::check::Random;
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::simd::LANES;
use crate::cpu::weights::unpack::unpack_block;
use crate::cpu::weights::{GROUP, Layout, TileBytes as _};

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

fn rounded(isa: Isa, x: &[f32], rows: usize, units: &[f32]) -> Int16Rows {
    let mut int16 = Int16Rows::default();
    int16.resize(rows, x.len() / rows);
    let to = int16.writer();
    for group in 0..to.groups() {
        // SAFETY: one thread.
        unsafe { to.write(isa, group, x, units) };
    }
    int16
}

/// Weights of complete tiles of outputs, [output][input]: their units, and their panels.
fn panels(isa: Isa, weights: &[[f32; GROUP]]) -> (Vec<f32>, Vec<Panel>) {
    let largest = |w: &[f32; GROUP]| w.iter().fold(0f32, |most, w| most.max(w.abs()));
    let units: Vec<f32> = weights.iter().map(|w| unit_of(largest(w))).collect();
    let panel = |(weights, units): (&[[f32; GROUP]], &[f32])| {
        let mut panel = Panel::default();
        let tiles = weights
            .as_chunks::<LANES>()
            .0
            .iter()
            .zip(units.as_chunks::<LANES>().0);
        for ((tile, units), words) in tiles.zip(panel.tiles(weights.len() / LANES)) {
            let block: [[f32; LANES]; GROUP] =
                std::array::from_fn(|k| std::array::from_fn(|lane| tile[lane][k]));
            words::of_floats(isa, &block, units, words);
        }
        panel
    };
    let panels = weights
        .chunks(PANEL)
        .zip(units.chunks(PANEL))
        .map(panel)
        .collect();
    (units, panels)
}

#[test]
fn products_are_close_to_exact_ones_and_the_same_on_every_isa() {
    let mut r = Random::new(3);
    for (outputs, rows, heavy) in [
        (1024, 113, 1),
        (512, 6, 9),
        (1100, 7, 3),
        (40, 4, 5),
        (37, 3, 1),
    ] {
        let padded = usize::next_multiple_of(outputs, LANES);
        let mut weights = vec![[0f32; GROUP]; padded];
        for weights in &mut weights[..outputs] {
            let size = 10f32.powf(2.0 * r.value());
            weights.fill_with(|| size * r.value());
        }
        let x: Vec<f32> = (0..rows * outputs).map(|_| r.value().powi(heavy)).collect();
        let start: Vec<f32> = (0..rows * 40).map(|_| r.value()).collect();
        let mut first: Option<Vec<f32>> = None;
        for isa in isas() {
            let (units, panels) = panels(isa, &weights);
            let gradient = rounded(isa, &x, rows, &units);
            let mut got = start.clone();
            // SAFETY: rows of 40 columns, of which 32 are written.
            unsafe {
                for (index, panel) in panels.iter().enumerate() {
                    multiply(isa, &gradient, index, panel, got.as_mut_ptr(), 40, true);
                }
            }
            for m in 0..rows {
                let x = &x[m * outputs..][..outputs];
                // Either factor is off by half a step at most, with either sign, and the result is an f32.
                let steps = &gradient.steps[m * gradient.panels()..][..gradient.panels()];
                let step = f64::from(steps.iter().fold(0f32, |most, step| most.max(*step)));
                let off = |x: f32, unit: f32| {
                    (0.5 * f64::from((x * unit).abs())).powi(2)
                        + (0.5 * step * f64::from(WEIGHT_MAX)).powi(2)
                };
                let bound: f64 = x.iter().zip(&units).map(|(x, unit)| off(*x, *unit)).sum();
                let bound = 4.0 * bound.sqrt() + 1e-5;
                for k in 0..40 {
                    let mut want = f64::from(start[m * 40 + k]);
                    for (x, weights) in x.iter().zip(&weights) {
                        want += f64::from(*x) * weights.get(k).map_or(0.0, |w| f64::from(*w));
                    }
                    let off = (f64::from(got[m * 40 + k]) - want).abs();
                    assert!(
                        off < bound,
                        "{outputs} outputs, row {m}, input {k}: {off} {bound}"
                    );
                }
            }
            let first = first.get_or_insert_with(|| got.clone());
            assert_eq!(*first, got, "{}", isa.name());
        }
    }
}

#[test]
fn softmax_gradient_product_is_close_to_the_exact_one_and_the_same_on_every_isa() {
    let mut r = Random::new(7);
    for (outputs, rows) in [(5000, 13), (1024, 6), (37, 3), (2049, 1)] {
        let padded = usize::next_multiple_of(outputs, LANES);
        let mut weights = vec![[0f32; GROUP]; padded];
        let tilt: [f32; GROUP] = std::array::from_fn(|_| 0.3 * r.value());
        for weights in &mut weights[..outputs] {
            *weights = tilt.map(|tilt| tilt + r.value());
        }
        let mean: [f32; GROUP] =
            std::array::from_fn(|k| weights.iter().map(|w| w[k]).sum::<f32>() / outputs as f32);
        // From uncertain to confident predictions, and a wrong one, where the small values matter in their sum.
        let x: Vec<f32> = (0..rows)
            .flat_map(|m| {
                let target = m * 7 % outputs;
                let sure = (20 * m + 1) as f32;
                let mut x: Vec<f32> = (0..outputs)
                    .map(|_| (sure * (r.value() - 1.0)).exp())
                    .collect();
                if m + 1 == rows {
                    x.fill_with(|| 0.7 + 0.3 * r.value());
                    x[target + 1] = 1e5;
                }
                let sum: f32 = x.iter().sum();
                x.into_iter()
                    .enumerate()
                    .map(move |(o, x)| x / sum - f32::from(u8::from(o == target)))
            })
            .collect();
        let mut first: Option<Vec<f32>> = None;
        for isa in isas() {
            let (units, panels) = panels(isa, &weights);
            let mut gradient = SparseRows::default();
            // Earlier contents are replaced.
            for _ in 0..2 {
                gradient.fill(isa, &Pool::new(3), &x, rows, &units);
            }
            let mut got = vec![0f32; rows * 40];
            // SAFETY: rows of 40 columns, of which 32 are written.
            unsafe {
                for (index, panel) in panels.iter().enumerate() {
                    gradient.multiply(isa, index, panel, got.as_mut_ptr(), 40);
                }
            }
            for (m, rest) in gradient.rest().enumerate() {
                for (got, mean) in got[m * 40..].iter_mut().zip(mean) {
                    *got += rest * mean;
                }
            }
            for m in 0..rows {
                let (mut off, mut size) = (0f64, 0f64);
                for k in 0..GROUP {
                    let each = x[m * outputs..][..outputs].iter().zip(&weights);
                    let want: f64 = each.map(|(x, w)| f64::from(*x) * f64::from(w[k])).sum();
                    off += (f64::from(got[m * 40 + k]) - want).powi(2);
                    size += want.powi(2);
                }
                let off = (off / size).sqrt();
                assert!(off < 1e-3, "{outputs} outputs, row {m}: {off}");
            }
            let all = rows.div_ceil(ROWS) * padded / 2;
            assert!(outputs < 5000 || 3 * gradient.counted() < 2 * all);
            let first = first.get_or_insert_with(|| got.clone());
            assert_eq!(*first, got, "{}", isa.name());
        }
    }
}

#[test]
fn quantized_weights_round_as_their_values_do_on_every_isa() {
    let mut r = Random::new(11);
    for (bits, offset, wide_scales, minimum, halves) in [
        (4, 8, false, false, false),
        (4, 0, false, true, false),
        (4, 0, true, true, true),
        (8, 128, false, false, false),
        (8, 16, false, false, false),
        (8, 32, true, false, true),
        (8, 0, true, true, false),
    ] {
        let layout = Layout {
            bits,
            offset,
            wide_scales,
            minimum,
            halves,
        };
        let mut bytes = vec![0u8; layout.block()];
        bytes.fill_with(|| (r.value().to_bits() >> 8) as u8);
        let lines = &mut bytes[layout.quants()..];
        if wide_scales {
            for value in lines.as_chunks_mut::<4>().0 {
                *value = r.value().to_le_bytes();
            }
        } else {
            for value in lines.as_chunks_mut::<2>().0 {
                *value = half::f16::from_f32(r.value()).to_le_bytes();
            }
        }
        let mut values = [[0f32; LANES]; GROUP];
        unpack_block(Isa::Scalar, &layout, &bytes, &mut values);
        let mut units: [f32; LANES] = std::array::from_fn(|lane| {
            unit_of(
                values
                    .iter()
                    .fold(0f32, |most, row| most.max(row[lane].abs())),
            )
        });
        units[3] = 0.0;
        for isa in isas() {
            let mut panel = Panel::default();
            for words in panel.tiles(1) {
                words::of_quantized(isa, &layout, &bytes, &units, words);
            }
            for (k, row) in values.iter().enumerate() {
                for (lane, value) in row.iter().enumerate() {
                    let word = panel.halves[k / LANES][lane / 2][k % LANES];
                    let got = (word >> (16 * (lane % 2))) as i16;
                    let want = match units[lane] {
                        0.0 => 0.0,
                        unit => (value * (1.0 / unit)).round_ties_even(),
                    };
                    assert_eq!(f32::from(got), want, "{layout:?} {} {k} {lane}", isa.name());
                }
            }
        }
    }
}

#[test]
fn largest_sums_fit_in_32_bits() {
    // One value that fills 16 bits, values that fill the sum, and cases between.
    for large in [1, 10, 100, PANEL] {
        let mut x = [0f32; PANEL];
        x[..large].fill(-1.0);
        for isa in isas() {
            let (units, panels) = panels(isa, &[[0.5; GROUP]; PANEL]);
            let gradient = rounded(isa, &x, 1, &units);
            let mut out = [7f32; GROUP];
            // SAFETY: one row of 32.
            unsafe {
                multiply(
                    isa,
                    &gradient,
                    0,
                    &panels[0],
                    out.as_mut_ptr(),
                    GROUP,
                    false,
                )
            };
            let want = -0.5 * large as f32;
            assert!(
                out.iter().all(|x| (x / want - 1.0).abs() < 1e-3),
                "{large} values: {out:?}"
            );
        }
    }
}

#[test]
fn zero_and_non_finite_rows_are_preserved() {
    let mut r = Random::new(5);
    let weights: Vec<[f32; GROUP]> = (0..32)
        .map(|_| std::array::from_fn(|_| r.value()))
        .collect();
    let mut x = vec![0f32; 4 * 32];
    x[32 + 3] = f32::NAN;
    x[64 + 3] = f32::INFINITY;
    x[96 + 3] = 1e-35;
    for isa in isas() {
        let (units, panels) = panels(isa, &weights);
        let rows = rounded(isa, &x, 4, &units);
        let mut out = vec![7f32; 4 * GROUP];
        // SAFETY: four rows of 32.
        unsafe { multiply(isa, &rows, 0, &panels[0], out.as_mut_ptr(), GROUP, false) };
        assert!(out[..GROUP].iter().all(|x| *x == 0.0));
        assert!(out[GROUP..3 * GROUP].iter().all(|x| x.is_nan()));
        assert!(out[3 * GROUP..].iter().all(|x| *x == 0.0));
    }
}
