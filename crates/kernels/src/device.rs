//! A device: where tensors live and products run. Today always the CPU.

use crate::arena::Arena;
use crate::isa::has_bf16_dot;
use crate::pool::Pool;
use crate::weights::{SourceType, Weights};
use crate::{Isa, KernelError};
use std::sync::Arc;

struct Cpu {
    pool: Pool,
    /// Where weights lie.
    arena: Arena,
    isa: Isa,
    bf16_dot: bool,
}

/// A handle on a device; clones share it.
#[derive(Clone)]
pub struct Device(Arc<Cpu>);

impl Device {
    /// The CPU, with `threads` threads (default: as many as affinity and the cgroup's quota allow), on the instruction set
    /// of `LORY_ISA`, else the best.
    ///
    /// # Errors
    /// `LORY_ISA` names what this machine lacks.
    pub fn cpu(threads: Option<usize>) -> Result<Device, KernelError> {
        Device::cpu_with(threads, Isa::from_env()?)
    }

    /// The CPU on a given instruction set.
    ///
    /// # Errors
    /// This machine lacks it.
    pub fn cpu_with(threads: Option<usize>, isa: Isa) -> Result<Device, KernelError> {
        if !isa.available() {
            return Err(KernelError::Isa {
                name: isa.name().into(),
            });
        }
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
            .unwrap_or(1)
            .clamp(1, 256);
        Ok(Device(Arc::new(Cpu {
            pool: Pool::new(threads),
            arena: Arena::default(),
            isa,
            bf16_dot: isa == Isa::Avx512 && has_bf16_dot(),
        })))
    }

    /// What it is, for people: `cpu, 2 threads, avx512 + bf16`.
    pub fn describe(&self) -> String {
        let bf16 = if self.0.bf16_dot { " + bf16" } else { "" };
        format!(
            "cpu, {} threads, {}{bf16}",
            self.threads(),
            self.0.isa.name()
        )
    }

    /// Threads that work in a region.
    pub fn threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// Packs a linear layer's weights, `outputs x inputs` row-major as `source` encodes them, for products on this device.
    /// Output `i` is source row `order[i]` (row `i` if no order is given).
    ///
    /// # Errors
    /// The bytes do not fit the shape, or there is no memory.
    pub fn pack(
        &self,
        source: SourceType,
        bytes: &[u8],
        (outputs, inputs): (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, KernelError> {
        let place = (&self.0.pool, &self.0.arena);
        Weights::pack(place, source, bytes, outputs, inputs, order)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    pub(crate) fn isa(&self) -> Isa {
        self.0.isa
    }

    pub(crate) fn bf16_dot(&self) -> bool {
        self.0.bf16_dot
    }
}
