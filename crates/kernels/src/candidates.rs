//! The most probable tokens of rows of logits, for sampling without whole rows.

use crate::cpu;
use crate::device::{Device, Form, Kind};
use crate::gpu;
use crate::tensor::Tensor;
pub use kernels_common::candidates::{Candidates, MOST_CANDIDATES};

/// Buffers of [`Device::candidates`] that a caller keeps from step to step.
pub struct Search {
    form: Form<(), gpu::candidates::Search>,
}

impl Device {
    /// Empty buffers of a search.
    pub fn search(&self) -> Search {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(()),
            Kind::Gpu(gpu) => Form::Gpu(gpu.search()),
        };
        Search { form }
    }

    /// The `count` most probable tokens of each (row, count) in `rows`, read to the host; all tokens of a row that has fewer.
    /// Waits for the device. A row's result does not depend on the other rows.
    ///
    /// # Panics
    /// A row past the last; a count of 0 or more than [`MOST_CANDIDATES`].
    pub fn candidates(
        &self,
        search: &mut Search,
        logits: &Tensor,
        rows: &[(usize, usize)],
    ) -> Vec<Candidates> {
        let counts = 1..=MOST_CANDIDATES;
        assert!(rows.iter().all(|(_, count)| counts.contains(count)));
        match self.kind() {
            Kind::Cpu(_) => cpu::candidates::candidates(logits.form.cpu(), rows),
            Kind::Gpu(gpu) => gpu.candidates(search.form.gpu_mut(), logits.form.gpu(), rows),
        }
    }

    /// Whether its memory is the host's, so that a whole row costs no more to read than its candidates.
    pub fn shares_memory(&self) -> bool {
        matches!(self.kind(), Kind::Cpu(_))
    }
}
