//! Runs kernels on a graphics card through wgpu: buffers, pipelines, and the commands of a step.
//!
//! Launches are recorded and submitted together, when something is read or waited for. It knows shaders and buffers. It does
//! not know tensors or weights.

use kernels_common::error::KernelError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory of the card. Clones share it; it is freed with the last one.
#[derive(Clone)]
pub(crate) struct Buffer(Arc<Allocation>);

struct Allocation {
    raw: wgpu::Buffer,
    id: u64,
    /// Where the executor learns which buffers are gone.
    freed: Arc<Mutex<Vec<u64>>>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        lock(&self.freed).push(self.id);
    }
}

impl Buffer {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.raw.size()
    }
}

/// Whether a kernel writes a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A kernel: an entry of a shader. Its bindings are numbered from 0.
pub(crate) struct Kernel {
    /// The parts of the shader, one after the other.
    pub(crate) source: &'static [&'static str],
    /// Unique among all kernels.
    pub(crate) entry: &'static str,
    pub(crate) bindings: &'static [Access],
}

/// One launch of a kernel.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    /// Values of the shader's `override` constants; they are part of the pipeline.
    pub(crate) constants: &'a [(&'static str, u32)],
    pub(crate) buffers: &'a [&'a Buffer],
    /// The words of the shader's `var<immediate>`.
    pub(crate) parameters: &'a [u32],
    /// Workgroups in x, y and z.
    pub(crate) groups: [usize; 3],
}

struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    number: u32,
}

#[derive(Default)]
struct Recording {
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
}

type PipelineKey = (&'static str, Vec<u32>);

/// Bind groups by pipeline and buffers: the same ones return in every step.
type BindGroups = HashMap<(u32, Vec<u64>), wgpu::BindGroup>;

pub(crate) struct Executor {
    /// The card's name, for messages.
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    recording: Mutex<Recording>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    bind_groups: Mutex<BindGroups>,
    /// The host's copy of what is read.
    staging: Mutex<Option<wgpu::Buffer>>,
    next: AtomicU64,
    freed: Arc<Mutex<Vec<u64>>>,
    /// What went wrong on the card, once something did.
    fault: Arc<Mutex<Option<String>>>,
    launches: AtomicU64,
}

// What is shared between threads is Send and Sync. The implementations below say so again, because each crate that uses a
// `Device` would otherwise prove it through all of wgpu's types, which exceeds the compiler's recursion limit.
const fn is_shared<T: Send + Sync>() {}
const _: () = {
    is_shared::<wgpu::Buffer>();
    is_shared::<wgpu::Device>();
    is_shared::<wgpu::Queue>();
    is_shared::<Mutex<Recording>>();
    is_shared::<Mutex<HashMap<PipelineKey, Arc<Pipeline>>>>();
    is_shared::<Mutex<BindGroups>>();
    is_shared::<Mutex<Option<wgpu::Buffer>>>();
};
// SAFETY: the compiler proves it for the fields that are wgpu's, just above; the others are of the standard library.
unsafe impl Send for Executor {}
// SAFETY: as above.
unsafe impl Sync for Executor {}
// SAFETY: as above.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

/// A panic elsewhere does not make the state here wrong: every change is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor {
    /// Opens an adapter with all its limits.
    ///
    /// # Errors
    /// It lacks something that the kernels need, or its driver refuses.
    pub(crate) fn open(adapter: &wgpu::Adapter, name: &str) -> Result<Executor, KernelError> {
        let refused = |reason: String| KernelError::Card {
            name: name.to_owned(),
            reason,
        };
        let limits = adapter.limits();
        let needed = u64::from(MOST_BINDINGS);
        for (what, has, needed) in [
            (
                "storage buffers of a shader",
                u64::from(limits.max_storage_buffers_per_shader_stage),
                needed,
            ),
            (
                "bytes of immediate parameters",
                u64::from(limits.max_immediate_size),
                u64::from(PARAMETER_BYTES),
            ),
            (
                "threads of a workgroup",
                u64::from(limits.max_compute_invocations_per_workgroup),
                256,
            ),
        ] {
            if has < needed {
                return Err(refused(format!(
                    "it has {has} {what}, and Lory needs {needed}; use --device cpu"
                )));
            }
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("lory"),
            required_features: wgpu::Features::IMMEDIATES,
            required_limits: limits,
            ..Default::default()
        }))
        .map_err(|error| refused(error.to_string()))?;
        let fault = Arc::<Mutex<Option<String>>>::default();
        let on_error = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&on_error).get_or_insert(error.to_string());
        }));
        let on_loss = fault.clone();
        device.set_device_lost_callback(move |_, message| {
            lock(&on_loss).get_or_insert(format!("it was lost ({message})"));
        });
        Ok(Executor {
            name: name.to_owned(),
            device,
            queue,
            recording: Mutex::default(),
            pipelines: Mutex::default(),
            bind_groups: Mutex::default(),
            staging: Mutex::default(),
            next: AtomicU64::new(0),
            freed: Arc::default(),
            fault,
            launches: AtomicU64::new(0),
        })
    }

    /// The most bytes of a buffer that a kernel can use.
    pub(crate) fn largest_buffer(&self) -> u64 {
        let limits = self.device.limits();
        limits
            .max_storage_buffer_binding_size
            .min(limits.max_buffer_size)
            / 4
            * 4
    }

    /// Memory for `bytes` bytes, zeroed, rounded up to whole words.
    ///
    /// # Errors
    /// The card has no memory for them, or a buffer cannot be so large.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<Buffer, KernelError> {
        let bytes = bytes.next_multiple_of(16).max(16);
        let largest = self.largest_buffer();
        if bytes > largest {
            return Err(KernelError::DeviceMemory {
                bytes,
                reason: format!("a buffer of this device has at most {largest} bytes"),
            });
        }
        let scopes = [
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Validation,
        ]
        .map(|filter| self.device.push_error_scope(filter));
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let [memory, validation] = scopes;
        let error = pollster::block_on(validation.pop()).or(pollster::block_on(memory.pop()));
        if let Some(error) = error {
            return Err(KernelError::DeviceMemory {
                bytes,
                reason: error.to_string(),
            });
        }
        Ok(Buffer(Arc::new(Allocation {
            raw,
            id: self.next.fetch_add(1, Ordering::Relaxed),
            freed: self.freed.clone(),
        })))
    }

    /// Writes words at a byte offset, after everything that was recorded.
    pub(crate) fn write(&self, buffer: &Buffer, at: u64, words: &[u32]) {
        self.submit();
        self.write_unused(buffer, at, words);
    }

    /// Writes words that no recorded launch reads or writes.
    pub(crate) fn write_unused(&self, buffer: &Buffer, at: u64, words: &[u32]) {
        if !words.is_empty() {
            self.queue
                .write_buffer(&buffer.0.raw, at, bytemuck::cast_slice(words));
        }
    }

    /// Copies the first `bytes` bytes of a buffer to another, in order with the launches.
    pub(crate) fn copy(&self, from: &Buffer, to: &Buffer, bytes: u64) {
        if bytes > 0 {
            let mut recording = lock(&self.recording);
            self.encoder(&mut recording)
                .copy_buffer_to_buffer(&from.0.raw, 0, &to.0.raw, 0, bytes);
        }
    }

    /// Zeroes the first `bytes` bytes of a buffer, in order with the launches.
    pub(crate) fn clear(&self, buffer: &Buffer, bytes: u64) {
        if bytes > 0 {
            let mut recording = lock(&self.recording);
            self.encoder(&mut recording)
                .clear_buffer(&buffer.0.raw, 0, Some(bytes));
        }
    }

    fn encoder<'a>(&self, recording: &'a mut Recording) -> &'a mut wgpu::CommandEncoder {
        recording.pass = None;
        recording
            .encoder
            .get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Records a launch.
    pub(crate) fn launch(&self, launch: &Launch) {
        assert_eq!(
            launch.kernel.bindings.len(),
            launch.buffers.len(),
            "{}",
            launch.kernel.entry
        );
        if launch.groups.contains(&0) {
            return;
        }
        self.launches.fetch_add(1, Ordering::Relaxed);
        let pipeline = self.pipeline(launch.kernel, launch.constants);
        let bind_group = self.bind_group(&pipeline, launch.buffers);
        let mut recording = lock(&self.recording);
        if recording.pass.is_none() {
            let pass = self
                .encoder(&mut recording)
                .begin_compute_pass(&Default::default())
                .forget_lifetime();
            recording.pass = Some(pass);
        }
        if let Some(pass) = &mut recording.pass {
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.set_immediates(0, bytemuck::cast_slice(launch.parameters));
            let [x, y, z] = launch.groups.map(|n| n as u32);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    fn pipeline(&self, kernel: &Kernel, constants: &[(&'static str, u32)]) -> Arc<Pipeline> {
        let key = (kernel.entry, constants.iter().map(|c| c.1).collect());
        let mut pipelines = lock(&self.pipelines);
        let number = pipelines.len() as u32;
        let make = || Arc::new(self.make_pipeline(kernel, constants, number));
        pipelines.entry(key).or_insert_with(make).clone()
    }

    fn make_pipeline(
        &self,
        kernel: &Kernel,
        constants: &[(&'static str, u32)],
        number: u32,
    ) -> Pipeline {
        let entry = |(binding, access): (usize, &Access)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: *access == Access::Read,
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = kernel.bindings.iter().enumerate().map(entry).collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(kernel.entry),
                entries: &entries,
            });
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.entry),
                source: wgpu::ShaderSource::Wgsl(kernel.source.concat().into()),
            });
        let constants: Vec<(&str, f64)> = constants.iter().map(|c| (c.0, f64::from(c.1))).collect();
        let raw = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.entry),
                layout: Some(&self.device.create_pipeline_layout(
                    &wgpu::PipelineLayoutDescriptor {
                        label: Some(kernel.entry),
                        bind_group_layouts: &[Some(&layout)],
                        immediate_size: PARAMETER_BYTES,
                    },
                )),
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    // Every kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
        Pipeline {
            raw,
            layout,
            number,
        }
    }

    fn bind_group(&self, pipeline: &Pipeline, buffers: &[&Buffer]) -> wgpu::BindGroup {
        let mut groups = lock(&self.bind_groups);
        let freed = std::mem::take(&mut *lock(&self.freed));
        if !freed.is_empty() {
            groups.retain(|(_, ids), _| !ids.iter().any(|id| freed.contains(id)));
        }
        let ids = buffers.iter().map(|b| b.0.id).collect();
        let make = || {
            let resources = buffers.iter().map(|b| b.0.raw.as_entire_binding());
            let entries: Vec<_> = (0..)
                .zip(resources)
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            })
        };
        groups
            .entry((pipeline.number, ids))
            .or_insert_with(make)
            .clone()
    }

    /// Gives the card everything that was recorded.
    pub(crate) fn submit(&self) {
        let mut recording = lock(&self.recording);
        recording.pass = None;
        if let Some(encoder) = recording.encoder.take() {
            self.queue.submit([encoder.finish()]);
        }
    }

    /// Returns when the card has computed everything that was recorded, or has failed: see [`Executor::fault`].
    pub(crate) fn wait(&self) {
        self.submit();
        if let Err(error) = self.device.poll(wgpu::PollType::wait_indefinitely()) {
            lock(&self.fault).get_or_insert(error.to_string());
        }
    }

    /// What went wrong on the card since it was opened, and what to do.
    pub(crate) fn fault(&self) -> Option<String> {
        let fault = lock(&self.fault);
        let fault = fault.as_ref()?;
        Some(format!(
            "{}: {fault}; restart Lory, with --device cpu if it happens again",
            self.name
        ))
    }

    /// Loses the card.
    #[cfg(feature = "faults")]
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }

    /// Reads the first `out.len()` words of a buffer. Waits for the card.
    ///
    /// # Panics
    /// The card has failed.
    pub(crate) fn read(&self, buffer: &Buffer, out: &mut [u32]) {
        let bytes = size_of_val(out) as u64;
        if bytes == 0 {
            return self.wait();
        }
        let mut staging = lock(&self.staging);
        let enough = staging.as_ref().is_some_and(|s| s.size() >= bytes);
        if !enough {
            *staging = Some(self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: bytes.next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
        }
        let Some(staging) = &*staging else { return };
        self.encoder(&mut lock(&self.recording))
            .copy_buffer_to_buffer(&buffer.0.raw, 0, staging, 0, bytes);
        self.submit();
        staging.map_async(wgpu::MapMode::Read, ..bytes, |_| {});
        self.wait();
        if let Some(fault) = self.fault() {
            panic!("{fault}");
        }
        match staging.get_mapped_range(..bytes) {
            Ok(view) => bytemuck::cast_slice_mut(out).copy_from_slice(&view),
            Err(error) => panic!("{}: its memory cannot be read: {error}", self.name),
        }
        staging.unmap();
    }

    /// Bytes a second at which the card reads and writes its memory, measured on copies of `bytes` bytes.
    ///
    /// # Errors
    /// The card has no memory for two such buffers.
    pub(crate) fn copy_bandwidth(&self, bytes: u64) -> Result<f64, KernelError> {
        const TIMES: u64 = 8;
        let bytes = bytes.min(self.largest_buffer() / 16 * 16);
        let (from, to) = (self.buffer(bytes)?, self.buffer(bytes)?);
        let copy = || (0..TIMES).for_each(|_| self.copy(&from, &to, from.bytes().min(to.bytes())));
        copy();
        self.wait();
        let start = std::time::Instant::now();
        copy();
        self.wait();
        Ok((2 * TIMES * from.bytes()) as f64 / start.elapsed().as_secs_f64())
    }

    /// Launches so far.
    pub(crate) fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }
}

/// Bindings of the kernel that has the most.
const MOST_BINDINGS: u32 = 18;

/// Vulkan guarantees as many.
const PARAMETER_BYTES: u32 = 128;
