//! What the tests of the CPU share: the instruction sets at hand, and the helpers of all devices.

use crate::cpu::isa::Isa;
pub(crate) use kernels_common::check::*;

/// The instruction sets that this machine can run; the scalar one comes first.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

#[track_caller]
pub(crate) fn assert_same_bits(isa: Isa, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "{}: [{i}] is {got:e}, scalar {expected:e}",
            isa.name()
        );
    }
}
