//! The graphics cards of this machine, by name.

use crate::info::{GpuApi, GpuInfo, GpuKind};
use kernels_common::error::KernelError;

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
pub fn list() -> Vec<GpuInfo> {
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
    let (memory, free) = memory(card);
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
        memory,
        free,
    }
}

/// Bytes of the largest heap of the card's own memory, and how many of them are free, where the API reports them.
#[cfg(not(target_vendor = "apple"))]
fn memory(card: &wgpu::Adapter) -> (Option<u64>, Option<u64>) {
    use ash::{ext, vk};
    // SAFETY: the handles are only read, while the adapter is alive.
    let Some(card) = (unsafe { card.as_hal::<wgpu::hal::api::Vulkan>() }) else {
        return (None, None);
    };
    let instance = card.shared_instance();
    let capabilities = card.physical_device_capabilities();
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceMemoryProperties2::default();
    let reports_budget = capabilities.supports_extension(ext::memory_budget::NAME)
        && instance.instance_api_version() >= vk::API_VERSION_1_1;
    // SAFETY: as above; the structures live until the call returns, and the one for the budget is only given to a driver that knows
    // it.
    unsafe {
        let (instance, card) = (instance.raw_instance(), card.raw_physical_device());
        if reports_budget {
            all = all.push_next(&mut budget);
            instance.get_physical_device_memory_properties2(card, &mut all);
        } else {
            all.memory_properties = instance.get_physical_device_memory_properties(card);
        }
    }
    let properties = all.memory_properties;
    let heaps = properties.memory_heaps.iter().enumerate();
    let own = heaps
        .take(properties.memory_heap_count as usize)
        .filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let Some((largest, heap)) = own.max_by_key(|(_, heap)| heap.size) else {
        return (None, None);
    };
    let free = budget.heap_budget[largest].saturating_sub(budget.heap_usage[largest]);
    (Some(heap.size), reports_budget.then_some(free))
}

/// Metal's working set is not available through wgpu.
#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> (Option<u64>, Option<u64>) {
    (None, None)
}

/// What the driver says about the card of that number.
///
/// # Errors
/// There is none; the message lists those that there are.
pub fn named(api: GpuApi, index: usize) -> Result<GpuInfo, KernelError> {
    Ok(find(api, index)?.1)
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
