//! The device: where tensors are stored and products run.
//!
//! A device of another kind (CUDA) is a variant of [`Kind`], a variant of [`Form`], and an arm in each verb.

use crate::cpu::device::CpuDevice;
use crate::cpu::isa::Isa;
use crate::cpu::pause::pausing;
use crate::cpu::weights::packed_bytes;
use crate::dtype::SourceType;
use crate::error::KernelError;
use crate::gpu;
use crate::gpu::device::GpuDevice;
use crate::gpu::info::{GpuApi, GpuInfo};
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
    /// A graphics card.
    Gpu {
        /// The interface to its driver.
        api: GpuApi,
        /// Its number among the cards of that interface, as [`Device::gpus`] lists them.
        index: usize,
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
    /// A graphics card.
    Gpu,
}

impl Backend {
    /// Bytes that a matrix takes in the device's memory once it is packed; none if its rows are not whole blocks.
    pub fn packed_bytes(self, source: SourceType, outputs: usize, inputs: usize) -> Option<u64> {
        match self {
            Backend::Cpu => packed_bytes(source, outputs, inputs),
            Backend::Gpu => gpu::weights::packed_bytes(source, outputs, inputs),
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
    Gpu(GpuDevice),
}

/// Something that a device made, in the form of the device's kind.
pub(crate) enum Form<C, G> {
    Cpu(C),
    Gpu(G),
}

impl<C, G> Form<C, G> {
    /// The CPU's form.
    pub(crate) fn cpu(&self) -> &C {
        match self {
            Form::Cpu(form) => form,
            Form::Gpu(_) => wrong_device(),
        }
    }

    /// The CPU's form.
    pub(crate) fn cpu_mut(&mut self) -> &mut C {
        match self {
            Form::Cpu(form) => form,
            Form::Gpu(_) => wrong_device(),
        }
    }

    /// The graphics card's form.
    pub(crate) fn gpu(&self) -> &G {
        match self {
            Form::Gpu(form) => form,
            Form::Cpu(_) => wrong_device(),
        }
    }

    /// The graphics card's form.
    pub(crate) fn gpu_mut(&mut self) -> &mut G {
        match self {
            Form::Gpu(form) => form,
            Form::Cpu(_) => wrong_device(),
        }
    }
}

fn wrong_device() -> ! {
    panic!("a device was given what another device made")
}

/// Callers check [`Device::trains`] first.
pub(crate) fn no_backward() -> ! {
    panic!("training on a graphics card is not supported")
}

impl Device {
    /// Opens the device that was chosen. The CPU runs on the instruction set of `LORY_ISA`, by default on its best.
    ///
    /// # Errors
    /// `LORY_ISA` names an instruction set that this machine lacks; or there is no such graphics card, or it cannot be used.
    pub fn open(choice: DeviceChoice) -> Result<Device, KernelError> {
        let kind = match choice {
            DeviceChoice::Cpu { threads } => Kind::Cpu(CpuDevice::open(threads, Isa::from_env()?)?),
            DeviceChoice::Gpu { api, index } => Kind::Gpu(GpuDevice::open(api, index)?),
        };
        Ok(Device(Arc::new(kind)))
    }

    /// A description for people: `cpu, 2 threads, avx512 + bf16`, `vulkan:0, NVIDIA L4`.
    pub fn describe(&self) -> String {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.describe(),
            Kind::Gpu(gpu) => gpu.describe(),
        }
    }

    /// Its kind.
    pub fn backend(&self) -> Backend {
        match self.kind() {
            Kind::Cpu(_) => Backend::Cpu,
            Kind::Gpu(_) => Backend::Gpu,
        }
    }

    /// Threads of this machine that work for the device: those that compute, or prepare what a card computes.
    pub fn threads(&self) -> usize {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.threads(),
            Kind::Gpu(gpu) => gpu.threads(),
        }
    }

    /// Returns when the device has computed everything that it was given. The CPU computes before a verb returns.
    pub fn wait(&self) {
        match self.kind() {
            Kind::Cpu(_) => {}
            Kind::Gpu(gpu) => gpu.wait(),
        }
    }

    /// Runs `work`, whose operations call `pause` between two parts about every 20 ms, so that background work lets other work compute in
    /// between. The results are the same bits. If `pause` returns false, the rest of the work is abandoned and the result is `None`;
    /// what it was writing then has unspecified values. A graphics card runs `work` without pauses.
    pub fn pausing<R>(&self, pause: Rc<dyn Fn() -> bool>, work: impl FnOnce() -> R) -> Option<R> {
        match self.kind() {
            Kind::Cpu(_) => pausing(pause, work),
            // A card computes what was submitted to it to its end, and its verbs return before that. A pause here would only delay
            // the recording of more work, and free nothing for others.
            Kind::Gpu(_) => Some(work()),
        }
    }

    /// The graphics cards that the drivers of this machine offer, software ones too. Loads the drivers.
    pub fn gpus() -> Vec<GpuInfo> {
        gpu::cards::list()
    }

    /// What the driver says about one of [`Device::gpus`].
    ///
    /// # Errors
    /// There is no such card; the message lists those that there are.
    pub fn find_gpu(api: GpuApi, index: usize) -> Result<GpuInfo, KernelError> {
        gpu::cards::named(api, index)
    }

    /// What the driver says about it, if it is a graphics card.
    pub fn gpu_info(&self) -> Option<&GpuInfo> {
        match self.kind() {
            Kind::Cpu(_) => None,
            Kind::Gpu(gpu) => Some(gpu.info()),
        }
    }

    /// Whether it computes gradients: every verb whose name ends in `backward`, and dropout.
    pub fn trains(&self) -> bool {
        matches!(self.kind(), Kind::Cpu(_))
    }

    /// What went wrong on the device, once something did; from then on its results are not valid. Always none for the CPU.
    pub fn fault(&self) -> Option<String> {
        match self.kind() {
            Kind::Cpu(_) => None,
            Kind::Gpu(gpu) => gpu.fault(),
        }
    }

    /// Makes a graphics card fail as one that is pulled out, for tests of what follows.
    #[cfg(feature = "faults")]
    pub fn lose(&self) {
        match self.kind() {
            Kind::Cpu(_) => {}
            Kind::Gpu(gpu) => gpu.lose(),
        }
    }

    /// Kernels that it was given so far; 0 for the CPU, which has no launches.
    pub fn launches(&self) -> u64 {
        match self.kind() {
            Kind::Cpu(_) => 0,
            Kind::Gpu(gpu) => gpu.launches(),
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
            Kind::Gpu(gpu) => gpu.copy_bandwidth(bytes as u64),
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }
}
