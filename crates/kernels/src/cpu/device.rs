//! The CPU as a device: its thread pool, the arena of its weights, its instruction set.

use crate::cpu::arena::Arena;
use crate::cpu::isa::{Isa, has_bf16_dot};
use crate::cpu::pool::Pool;
use crate::error::KernelError;

pub(crate) struct CpuDevice {
    pool: Pool,
    /// Memory of the weights.
    arena: Arena,
    isa: Isa,
    bf16_dot: bool,
}

impl CpuDevice {
    /// `threads` threads (default: as many as affinity and the cgroup's quota allow) on one instruction set.
    ///
    /// # Errors
    /// This machine lacks the instruction set.
    pub(crate) fn open(threads: Option<usize>, isa: Isa) -> Result<CpuDevice, KernelError> {
        if !isa.available() {
            return Err(KernelError::Isa {
                name: isa.name().into(),
            });
        }
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
            .unwrap_or(1)
            .clamp(1, 256);
        Ok(CpuDevice {
            pool: Pool::new(threads),
            arena: Arena::default(),
            isa,
            bf16_dot: isa == Isa::Avx512 && has_bf16_dot(),
        })
    }

    /// For people: `cpu, 2 threads, avx512 + bf16`.
    pub(crate) fn describe(&self) -> String {
        let bf16 = if self.bf16_dot { " + bf16" } else { "" };
        format!("cpu, {} threads, {}{bf16}", self.threads(), self.isa.name())
    }

    /// Threads that work in a region.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn bf16_dot(&self) -> bool {
        self.bf16_dot
    }
}
