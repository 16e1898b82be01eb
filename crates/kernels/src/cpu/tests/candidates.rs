//! The most probable tokens of rows against sorted rows.

use crate::cpu::candidates::candidates;
use crate::cpu::check::numbers;
use crate::cpu::reference;
use crate::cpu::tensor::Tensor;
use kernels_common::candidates::Candidates;

#[test]
fn candidates_are_those_of_a_sorted_row_ties_included() {
    for columns in [1, 2, 129, 1000] {
        let row: Vec<f32> = numbers(1, columns).iter().map(|x| 20.0 * x).collect();
        let rounded: Vec<f32> = row.iter().map(|x| x.round()).collect();
        let zeros: Vec<f32> = (0..columns).map(|i| [-0.0, 0.0][i % 2]).collect();
        for values in [row, rounded, zeros] {
            let logits = Tensor::from_vec(1, columns, values.clone());
            for count in [1, 2, 20, 128] {
                let got = candidates(&logits, &[(0, count)]);
                let want = reference::candidates(&values, count);
                assert_eq!(got[0].tokens, want.tokens);
                assert!((got[0].log_sum - want.log_sum).abs() < 1e-9);
            }
        }
    }
    for wrong in [f32::NAN, f32::INFINITY] {
        let logits = Tensor::from_vec(1, 2, vec![0.0, wrong]);
        assert_eq!(candidates(&logits, &[(0, 1)]), [Candidates::default()]);
    }
}
