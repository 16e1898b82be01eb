//! The most probable tokens of rows.

use super::*;
use kernels_common::candidates::{Candidates, MOST_CANDIDATES};
use kernels_common::check::Random;
use kernels_common::reference;

fn assert_candidates(what: &str, got: &Candidates, want: &Candidates) {
    assert_eq!(got.tokens, want.tokens, "{what}");
    assert!(
        (got.log_sum - want.log_sum).abs() <= 2e-6 * (1.0 + want.log_sum.abs()),
        "{what}: {} is not {}",
        got.log_sum,
        want.log_sum
    );
}

/// Rows of random logits: as they are, rounded so that many are equal, all equal, and with signed zeros and -inf.
fn rows_of_logits(columns: usize) -> Vec<Vec<f32>> {
    let mut r = Random::new(columns as u64);
    let random: Vec<f32> = r.values(columns).iter().map(|x| 20.0 * x).collect();
    let mut zeros: Vec<f32> = (0..columns).map(|i| [-0.0, 0.0, -1.0][i % 3]).collect();
    zeros[columns / 2..].fill(f32::NEG_INFINITY);
    vec![
        random.clone(),
        random.iter().map(|x| x.round()).collect(),
        random.iter().map(|x| (x / 20.0).round() - 3e38).collect(),
        vec![-2.5; columns],
        zeros,
    ]
}

#[test]
fn candidates_are_those_of_a_sorted_row_ties_included() {
    let Some(gpu) = gpu() else { return };
    let mut search = gpu.search();
    // Less than a workgroup, a chunk, one more, and several chunks with a short one.
    for columns in [3, 300, 4096, 4097, 20_000] {
        let all = rows_of_logits(columns);
        let logits = upload(gpu, all.len(), columns, &all.concat());
        for count in [1, 2, 20, MOST_CANDIDATES] {
            let wanted: Vec<(usize, usize)> =
                (0..all.len()).rev().map(|row| (row, count)).collect();
            let got = gpu.candidates(&mut search, &logits, &wanted);
            for ((row, _), got) in wanted.iter().zip(&got) {
                let what = format!("{count} of {columns}, row {row}");
                assert_candidates(&what, got, &reference::candidates(&all[*row], count));
            }
        }
    }
}

#[test]
fn rows_that_are_no_distribution_have_no_candidates() {
    let Some(gpu) = gpu() else { return };
    let columns = 5000;
    for (at, wrong) in [
        (0, f32::NAN),
        (4999, f32::from_bits(0xffc0_0001)),
        (4200, f32::INFINITY),
    ] {
        let mut row = numbers(1, columns);
        row[at] = wrong;
        let logits = upload(gpu, 1, columns, &row);
        let got = gpu.candidates(&mut gpu.search(), &logits, &[(0, 3)]);
        assert_eq!(got, [Candidates::default()], "{wrong}");
    }
    let logits = upload(gpu, 1, columns, &vec![f32::NEG_INFINITY; columns]);
    let got = gpu.candidates(&mut gpu.search(), &logits, &[(0, 1)]);
    assert_eq!(got, [Candidates::default()]);
}

#[test]
fn candidates_of_a_row_alone_have_the_bits_of_company() {
    let Some(gpu) = gpu() else { return };
    let columns = 9000;
    let all = rows_of_logits(columns);
    let company = upload(gpu, all.len(), columns, &all.concat());
    let counts = [(0, 5), (1, 128), (2, 1), (3, 7), (4, 20)];
    let company = gpu.candidates(&mut gpu.search(), &company, &counts);
    for ((row, count), want) in counts.into_iter().zip(&company) {
        let alone = upload(gpu, 1, columns, &all[row]);
        let alone = gpu.candidates(&mut gpu.search(), &alone, &[(0, count)]);
        assert_eq!(alone[0].log_sum.to_bits(), want.log_sum.to_bits());
        assert_eq!(alone[0].tokens, want.tokens);
    }
}
