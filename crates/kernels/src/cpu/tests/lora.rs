//! Adapters next to products.

use super::*;

#[test]
fn mixed_lora_equals_the_summed_deltas() {
    let mut r = Random::new(11);
    let (outputs, inputs) = (48, 64);
    let bytes = random_bytes(SourceType::F32, outputs * inputs, &mut r);
    let ranks = [4, 16, 24];
    let parts: Vec<(Vec<f32>, Vec<f32>)> = ranks
        .iter()
        .map(|n| (r.values(n * inputs), r.values(n * outputs)))
        .collect();
    let packs: Vec<LoraPack> = parts
        .iter()
        .zip(ranks)
        .map(|((a, b), n)| {
            LoraPack::new(
                &LoraArena::default(),
                a,
                b,
                (outputs, inputs, n),
                1.0,
                LoraType::F32,
            )
            .unwrap()
        })
        .collect();
    let packs: Vec<Option<&LoraPack>> = packs.iter().map(Some).collect();
    let x = Tensor::from_vec(3, inputs, r.values(3 * inputs));
    let slots = [vec![], vec![(1, 0.5)], vec![(0, 0.7), (2, -0.3)]];
    let runs: Vec<Run> = (1..3)
        .map(|i| Run {
            first: i,
            rows: 1,
            slots: slots[i].clone(),
        })
        .collect();
    for d in devices() {
        let w = d
            .pack(SourceType::F32, &bytes, (outputs, inputs), None)
            .unwrap();
        let lora = Lora {
            runs: &runs,
            packs: &packs,
            dropout: None,
        };
        let got = project(&d, &x, &w, lora, Compute::F32);
        for (row, slots) in slots.iter().enumerate() {
            let mut summed = rows_of(&w);
            for &(slot, scale) in slots {
                let ((a, b), rank) = (&parts[slot as usize], ranks[slot as usize]);
                for n in 0..outputs {
                    for k in 0..inputs {
                        let delta: f32 =
                            (0..rank).map(|i| b[n * rank + i] * a[i * inputs + k]).sum();
                        summed[n * inputs + k] += scale * delta;
                    }
                }
            }
            let want = reference::linear(x.row(row), &summed, 1, outputs, inputs);
            assert!(
                difference(got.row(row), &want) < 1e-5,
                "row {row} {}",
                d.describe()
            );
        }
    }
}

/// Adapters in bf16 next to int8 products use dot products of pairs if the machine has them. The base is zero here, so that only
/// the adapters' part is compared.
#[test]
fn lora_by_bf16_pairs_matches_the_reference() {
    let mut r = Random::new(12);
    let (outputs, inputs, ranks) = (80, 96, [3, 16, 40]);
    let bytes = vec![0; outputs * inputs / 32 * 34];
    let parts: Vec<(Vec<f32>, Vec<f32>)> = ranks
        .iter()
        .map(|n| (r.values(n * inputs), r.values(n * outputs)))
        .collect();
    let packs: Vec<LoraPack> = parts
        .iter()
        .zip(ranks)
        .map(|((a, b), n)| {
            let (arena, shape) = (LoraArena::default(), (outputs, inputs, n));
            LoraPack::new(&arena, a, b, shape, 1.5, LoraType::Bf16).unwrap()
        })
        .collect();
    let packs: Vec<Option<&LoraPack>> = packs.iter().map(Some).collect();
    let rows = 11;
    let x = Tensor::from_vec(rows, inputs, r.values(rows * inputs));
    let run = |first, rows, slots: &[(u32, f32)]| Run {
        first,
        rows,
        slots: slots.to_vec(),
    };
    let runs = [
        run(0, 6, &[(0, 1.0)]),
        run(6, 1, &[(1, 0.5), (2, -0.25)]),
        run(8, 3, &[(2, 2.0)]),
    ];
    for d in devices() {
        let w = d
            .pack(SourceType::Q8_0, &bytes, (outputs, inputs), None)
            .unwrap();
        let lora = Lora {
            runs: &runs,
            packs: &packs,
            dropout: None,
        };
        let got = project(&d, &x, &w, lora, Compute::Int8);
        for row in 0..rows {
            let slots = runs
                .iter()
                .filter(|run| (run.first..run.first + run.rows).contains(&row))
                .flat_map(|run| &run.slots);
            let mut want = vec![0.0; outputs];
            for &(slot, scale) in slots {
                let ((a, b), rank) = (&parts[slot as usize], ranks[slot as usize]);
                let h = reference::linear(x.row(row), a, 1, rank, inputs);
                let h: Vec<f32> = h.iter().map(|v| *v as f32).collect();
                for (want, y) in want
                    .iter_mut()
                    .zip(reference::linear(&h, b, 1, outputs, rank))
                {
                    *want += f64::from(scale) * 1.5 * y;
                }
            }
            if want.iter().all(|y| *y == 0.0) {
                assert_eq!(got.row(row), vec![0.0; outputs], "row {row}");
                continue;
            }
            assert!(
                difference(got.row(row), &want) < 1e-2,
                "row {row} {} {}",
                difference(got.row(row), &want),
                d.describe()
            );
        }
    }
}

/// Dropout against plain loops, mixed with rows without dropout; more rows than one block.
#[test]
fn dropout_masks_the_adapter_input_only() {
    let mut r = Random::new(13);
    let (outputs, inputs, rank, rows, scale) = (48, 96, 5, 150, 1.5f32);
    let bytes = random_bytes(SourceType::F32, outputs * inputs, &mut r);
    let (a, b) = (r.values(rank * inputs), r.values(rank * outputs));
    let arena = LoraArena::default();
    let shape = (outputs, inputs, rank);
    let pack = LoraPack::new(&arena, &a, &b, shape, scale, LoraType::F32).unwrap();
    let x = Tensor::from_vec(rows, inputs, r.values(rows * inputs));
    let dy = Tensor::from_vec(rows, outputs, r.values(rows * outputs));
    let runs = [Run {
        first: 3,
        rows: 140,
        slots: vec![(0, 1.0)],
    }];
    // Two of three rows drop something.
    let drops: Vec<RowDropout> = (0..rows as u32)
        .map(|row| RowDropout {
            share: [0.0, 0.2, 0.5][row as usize % 3],
            key: row * 77,
        })
        .collect();
    let dropout = Dropout {
        rows: &drops,
        linear: 4,
    };
    let mut mask = vec![1f32; rows * inputs];
    dropout.apply_rows(Isa::Scalar, 0, inputs, &mut mask);
    let masked: Vec<f32> = x.values().iter().zip(&mask).map(|(x, m)| x * m).collect();
    let narrow = |wide: Vec<f64>| wide.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let h = narrow(reference::linear(&masked, &a, rows, rank, inputs));
    let through = reference::linear(&h, &b, rows, outputs, rank);
    for d in devices() {
        let w = d
            .pack(SourceType::F32, &bytes, (outputs, inputs), None)
            .unwrap();
        let lora = Lora {
            runs: &runs,
            packs: &[Some(&pack)],
            dropout: Some(dropout),
        };
        let got = project(&d, &x, &w, lora, Compute::F32);
        let mut want = reference::linear(x.values(), &rows_of(&w), rows, outputs, inputs);
        for i in 3 * outputs..143 * outputs {
            want[i] += f64::from(scale) * through[i];
        }
        assert!(
            difference(got.values(), &want) < 1e-5,
            "forward {}",
            d.describe()
        );

        let before = r.values(rows * inputs);
        let mut dx = Tensor::from_vec(rows, inputs, before.clone());
        let (mut da, mut db) = (vec![0f32; rank * inputs], vec![0f32; rank * outputs]);
        let mut pair = LoraGrad {
            a: &a,
            b: &b,
            rank,
            scale,
            da: &mut da,
            db: &mut db,
        };
        d.lora_backward(
            &x,
            &dy,
            &runs,
            &mut [Some(&mut pair)],
            Some(dropout),
            &mut dx,
        );
        let mut want: Vec<f64> = before.iter().map(|v| f64::from(*v)).collect();
        let (mut want_da, mut want_db) = (vec![0f64; rank * inputs], vec![0f64; rank * outputs]);
        for m in 3..143 {
            for i in 0..rank {
                let dh: f64 = (0..outputs)
                    .map(|n| f64::from(scale * dy.row(m)[n] * b[n * rank + i]))
                    .sum();
                for n in 0..outputs {
                    want_db[n * rank + i] += f64::from(scale * dy.row(m)[n] * h[m * rank + i]);
                }
                for k in 0..inputs {
                    let at = m * inputs + k;
                    want_da[i * inputs + k] += dh * f64::from(masked[at]);
                    want[at] += dh * f64::from(a[i * inputs + k] * mask[at]);
                }
            }
        }
        for (what, got, want) in [
            ("da", &da[..], &want_da),
            ("db", &db, &want_db),
            ("dx", dx.values(), &want),
        ] {
            assert!(difference(got, want) < 1e-5, "{what} {}", d.describe());
        }
    }
}
