//! A graphics card as a device.

use crate::cards;
use crate::executor::{Buffer, Executor};
use crate::heap::Heap;
use crate::info::{GpuApi, GpuInfo};
use crate::tables::Tables;
use kernels_common::error::KernelError;
use std::sync::{Arc, Mutex};

/// An opened card. What it makes and computes are methods in the modules of their subjects.
pub struct GpuDevice {
    info: GpuInfo,
    executor: Arc<Executor>,
    /// The adapters of all tones.
    heap: Arc<Heap>,
    tables: Tables,
    /// Metadata buffers of steps that are over.
    pub(crate) spare: Arc<Mutex<Vec<Buffer>>>,
    /// For bindings that a launch does not use.
    unread: Buffer,
    unwritten: [Buffer; 3],
}

impl GpuDevice {
    /// Opens a card.
    ///
    /// # Errors
    /// There is no such card, it lacks something that the kernels need, or it has no memory.
    pub fn open(api: GpuApi, index: usize) -> Result<GpuDevice, KernelError> {
        let (card, info) = cards::find(api, index)?;
        let executor = Arc::new(Executor::open(&card, &info.name)?);
        let unwritten = [
            executor.buffer(16)?,
            executor.buffer(16)?,
            executor.buffer(16)?,
        ];
        Ok(GpuDevice {
            info,
            heap: Arc::new(Heap::new(executor.clone())?),
            tables: Tables::new(&executor)?,
            spare: Arc::default(),
            unread: executor.buffer(16)?,
            unwritten,
            executor,
        })
    }

    /// For people: `vulkan:0, NVIDIA L4`.
    pub fn describe(&self) -> String {
        format!("{}, {}", self.info.name, self.info.model)
    }

    /// Its name, driver and memory.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    pub(crate) fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// Where words for this launch are, and in which buffer.
    pub(crate) fn table(&self, words: Vec<u32>) -> (Buffer, u32) {
        self.tables.place(&self.executor, words)
    }

    pub(crate) fn unread(&self) -> &Buffer {
        &self.unread
    }

    pub(crate) fn unwritten(&self, i: usize) -> &Buffer {
        &self.unwritten[i]
    }

    /// Returns when the card has computed everything that was recorded, or has failed: see [`GpuDevice::fault`].
    pub fn wait(&self) {
        self.executor.wait();
    }

    /// What went wrong on the card since it was opened, and what to do.
    pub fn fault(&self) -> Option<String> {
        self.executor.fault()
    }

    /// Loses the card.
    #[cfg(feature = "faults")]
    pub fn lose(&self) {
        self.executor.lose();
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        self.executor.launches()
    }

    /// Bytes a second at which the card reads and writes its memory, measured on copies of `bytes` bytes.
    ///
    /// # Errors
    /// The card has no memory for two such buffers.
    pub fn copy_bandwidth(&self, bytes: u64) -> Result<f64, KernelError> {
        self.executor.copy_bandwidth(bytes)
    }

    /// Threads of this machine that prepare what the card computes.
    pub fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, Into::into)
    }
}
