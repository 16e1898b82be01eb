//! A graphics card as a device.

use crate::error::KernelError;
use crate::gpu::cards;
use crate::gpu::executor::{Buffer, Executor};
use crate::gpu::heap::Heap;
use crate::gpu::tables::Tables;
use crate::gpu_info::{GpuApi, GpuInfo};
use std::sync::{Arc, Mutex};

pub(crate) struct GpuDevice {
    info: GpuInfo,
    executor: Arc<Executor>,
    /// The adapters of all tones.
    heap: Arc<Heap>,
    tables: Tables,
    /// Metadata buffers of steps that are over.
    pub(super) spare: Arc<Mutex<Vec<Buffer>>>,
    /// For bindings that a launch does not use.
    unread: Buffer,
    unwritten: [Buffer; 3],
}

impl GpuDevice {
    /// Opens a card.
    ///
    /// # Errors
    /// There is no such card, it lacks something that the kernels need, or it has no memory.
    pub(crate) fn open(api: GpuApi, index: usize) -> Result<GpuDevice, KernelError> {
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
    pub(crate) fn describe(&self) -> String {
        format!("{}, {}", self.info.name, self.info.model)
    }

    /// Its name, driver and memory.
    pub(crate) fn info(&self) -> &GpuInfo {
        &self.info
    }

    pub(crate) fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// Where words for this launch are, and in which buffer.
    pub(super) fn table(&self, words: Vec<u32>) -> (Buffer, u32) {
        self.tables.place(&self.executor, words)
    }

    pub(super) fn unread(&self) -> &Buffer {
        &self.unread
    }

    pub(super) fn unwritten(&self, i: usize) -> &Buffer {
        &self.unwritten[i]
    }

    /// Threads of this machine that prepare what the card computes.
    pub(crate) fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, Into::into)
    }
}
