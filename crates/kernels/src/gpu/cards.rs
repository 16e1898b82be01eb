//! The graphics cards of this machine, by name.

use crate::device::{GpuApi, GpuInfo, GpuKind};
use crate::error::KernelError;

/// Instances are cheap to make, but drivers are loaded: only for an API that is used.
fn instance(api: GpuApi) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends(api);
    descriptor.flags = wgpu::InstanceFlags::empty();
    // The driver's own budget counts what other processes take.
    descriptor.memory_budget_thresholds.for_resource_creation = Some(95);
    wgpu::Instance::new(descriptor)
}

fn backends(api: GpuApi) -> wgpu::Backends {
    match api {
        GpuApi::Vulkan => wgpu::Backends::VULKAN,
        GpuApi::Metal => wgpu::Backends::METAL,
    }
}

fn enumerate(api: GpuApi) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance(api).enumerate_adapters(backends(api)))
}

/// The cards that drivers offer, software ones too.
pub(crate) fn list() -> Vec<GpuInfo> {
    GpuApi::ALL
        .into_iter()
        .flat_map(|api| {
            let cards = enumerate(api);
            cards
                .into_iter()
                .enumerate()
                .map(move |(i, card)| info(api, i, &card))
        })
        .collect()
}

fn info(api: GpuApi, index: usize, card: &wgpu::Adapter) -> GpuInfo {
    let info = card.get_info();
    GpuInfo {
        name: format!("{}:{index}", api.name()),
        model: info.name,
        vendor: info.vendor,
        driver: format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => GpuKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => GpuKind::Integrated,
            wgpu::DeviceType::Cpu => GpuKind::Software,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => GpuKind::Virtual,
        },
        memory: memory(card),
    }
}

/// Bytes of the largest heap of the card's own memory, where the API says it.
#[cfg(not(target_vendor = "apple"))]
fn memory(card: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handles are only read, while the adapter is alive.
    let heaps = unsafe {
        let card = card.as_hal::<wgpu::hal::api::Vulkan>()?;
        card.shared_instance()
            .raw_instance()
            .get_physical_device_memory_properties(card.raw_physical_device())
    };
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    // Bit 0 of a heap's flags: the memory is the device's own (VK_MEMORY_HEAP_DEVICE_LOCAL_BIT).
    let own = heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0);
    own.map(|heap| heap.size).max()
}

/// Metal's working set is not available through wgpu.
#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// The card of that number.
///
/// # Errors
/// There is none.
pub(crate) fn find(api: GpuApi, index: usize) -> Result<(wgpu::Adapter, GpuInfo), KernelError> {
    let mut cards = enumerate(api);
    if index < cards.len() {
        let card = cards.swap_remove(index);
        let info = info(api, index, &card);
        return Ok((card, info));
    }
    let known = list();
    Err(KernelError::NoCard {
        name: format!("{}:{index}", api.name()),
        known: match known.is_empty() {
            true => "none; install the card's Vulkan driver, or use --device cpu".to_owned(),
            false => known
                .into_iter()
                .map(|card| card.name)
                .collect::<Vec<_>>()
                .join(", "),
        },
    })
}
