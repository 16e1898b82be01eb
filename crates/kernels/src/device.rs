//! The device: where tensors are stored and products run.
//!
//! A device of another kind (Vulkan, Metal, CUDA) is a variant of [`Kind`], a variant of [`Form`], and an arm in each verb.

use crate::cpu::device::CpuDevice;
use crate::cpu::isa::Isa;
use crate::cpu::pause::pausing;
use crate::cpu::weights::packed_bytes;
use crate::dtype::SourceType;
use crate::error::KernelError;
use std::rc::Rc;
use std::sync::Arc;

/// The device that a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    Cpu {
        /// Threads that compute; default: as many as affinity and the cgroup's quota allow.
        threads: Option<usize>,
    },
}

impl Default for DeviceChoice {
    fn default() -> Self {
        DeviceChoice::Cpu { threads: None }
    }
}

/// The kinds of devices, for what is known of a device before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The CPU.
    Cpu,
}

impl Backend {
    /// Bytes that a matrix takes in the device's memory once it is packed; none if its rows are not whole blocks.
    pub fn packed_bytes(self, source: SourceType, outputs: usize, inputs: usize) -> Option<u64> {
        match self {
            Backend::Cpu => packed_bytes(source, outputs, inputs),
        }
    }
}

/// A handle to a device; clones share it. Everything that computes is a method of it, and everything it computes with is made
/// by it.
#[derive(Clone)]
pub struct Device(Arc<Kind>);

/// The kinds of devices. Each verb matches on it once.
pub(crate) enum Kind {
    Cpu(CpuDevice),
}

/// Something that a device made, in the form of the device's kind.
pub(crate) enum Form<C> {
    Cpu(C),
}

impl<C> Form<C> {
    /// The CPU's form.
    pub(crate) fn cpu(&self) -> &C {
        let Form::Cpu(form) = self;
        form
    }

    /// The CPU's form.
    pub(crate) fn cpu_mut(&mut self) -> &mut C {
        let Form::Cpu(form) = self;
        form
    }
}

impl Device {
    /// Opens the device that was chosen. The CPU runs on the instruction set of `LORY_ISA`, by default on its best.
    ///
    /// # Errors
    /// `LORY_ISA` names an instruction set that this machine lacks.
    pub fn open(choice: DeviceChoice) -> Result<Device, KernelError> {
        let kind = match choice {
            DeviceChoice::Cpu { threads } => Kind::Cpu(CpuDevice::open(threads, Isa::from_env()?)?),
        };
        Ok(Device(Arc::new(kind)))
    }

    /// A description for people: `cpu, 2 threads, avx512 + bf16`.
    pub fn describe(&self) -> String {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.describe(),
        }
    }

    /// Its kind.
    pub fn backend(&self) -> Backend {
        match self.kind() {
            Kind::Cpu(_) => Backend::Cpu,
        }
    }

    /// Threads of this machine that work for the device: those that compute, or prepare what a card computes.
    pub fn threads(&self) -> usize {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.threads(),
        }
    }

    /// Returns when the device has computed everything that it was given. The CPU computes before a verb returns.
    pub fn wait(&self) {
        match self.kind() {
            Kind::Cpu(_) => {}
        }
    }

    /// Runs `work`, whose operations call `pause` between two parts about every 20 ms, so that background work lets other work compute in
    /// between. The results are the same bits. If `pause` returns false, the rest of the work is abandoned and the result is `None`;
    /// what it was writing then has unspecified values.
    pub fn pausing<R>(&self, pause: Rc<dyn Fn() -> bool>, work: impl FnOnce() -> R) -> Option<R> {
        match self.kind() {
            Kind::Cpu(_) => pausing(pause, work),
        }
    }

    /// Bytes a second at which the device reads `bytes` bytes of its memory, in order, again and again: the ceiling of a step
    /// on weights of that size.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64, KernelError> {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.read_bandwidth(bytes),
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }
}
