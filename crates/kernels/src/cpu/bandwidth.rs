//! The memory bandwidth of this machine: the ceiling of a step with few rows, which reads every weight once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cpu::arena::Arena;
use crate::cpu::device::CpuDevice;
use crate::cpu::simd::{LANES, Simd, instantiate, unroll};
use crate::error::KernelError;

/// Values that one task reads: enough that the cost of starting it does not matter.
const PART: usize = 1 << 18;
/// Measuring time: long compared with the clock's resolution and with waking the threads.
const MIN_DURATION: Duration = Duration::from_millis(100);

impl CpuDevice {
    /// Bytes a second at which all threads together read `bytes` bytes, in order, again and again: what a step could reach
    /// on weights of that size, in memory of the same kind.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64, KernelError> {
        let len = (bytes / size_of::<f32>()).max(PART).next_multiple_of(PART);
        let mut slab = Arena::with_capacity(Arena::bytes_for::<f32>(len))?.zeros::<f32>(len)?;
        // Untouched pages are all the same page of zeros.
        slab.fill(1.0);
        let parts = slab.len() / PART;
        let pass = || {
            self.pool().run(parts, &|i| {
                let part = &slab[i * PART..(i + 1) * PART];
                let mut sum = 0.0;
                // SAFETY: `PART` values start there, a multiple of every vector's unrolled length.
                unsafe { read(self.isa(), part.as_ptr(), part.len(), &mut sum) };
                black_box(sum);
            });
        };
        pass();
        let started = Instant::now();
        let mut passes = 0;
        while started.elapsed() < MIN_DURATION {
            pass();
            passes += 1;
        }
        Ok((passes * slab.len() * size_of::<f32>()) as f64 / started.elapsed().as_secs_f64())
    }
}

instantiate!(fn read(p: *const f32, len: usize, sum: &mut f32) = sum_of);

/// The sum of `len` values at `p`; `len` is a multiple of 8 vectors.
#[inline(always)]
unsafe fn sum_of<S: Simd>(p: *const f32, len: usize, sum: &mut f32) {
    // SAFETY: by the caller's contract.
    unsafe {
        let mut sums = [S::zero(); 8];
        for at in (0..len).step_by(8 * LANES) {
            unroll!(8, |i| {
                let p = p.add(at + i * LANES);
                S::prefetch(p.cast::<u8>().wrapping_add(4096));
                sums[i] = S::add(sums[i], S::load(p));
            });
        }
        let mut total = S::zero();
        unroll!(8, |i| { total = S::add(total, sums[i]) });
        let mut lanes = [0.0; LANES];
        S::store(lanes.as_mut_ptr(), total);
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    #[test]
    fn every_value_is_read() {
        let values: Vec<f32> = (0..1024).map(|i| i as f32).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut sum = 0.0;
            // SAFETY: 1024 is a multiple of 8 vectors of any width, and the values are there.
            unsafe { read(isa, values.as_ptr(), values.len(), &mut sum) };
            assert_eq!(sum, 1023.0 * 1024.0 / 2.0, "{isa:?}");
        }
    }
}
