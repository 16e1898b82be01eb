//! Which graphics cards there are, before one is opened.

/// The interfaces to graphics cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuApi {
    /// Vulkan: NVIDIA, AMD, Intel, and software.
    Vulkan,
    /// Metal: Apple.
    Metal,
}

impl GpuApi {
    /// All of them.
    pub const ALL: [GpuApi; 2] = [GpuApi::Vulkan, GpuApi::Metal];

    /// Its name in `vulkan:0`.
    pub fn name(self) -> &'static str {
        match self {
            GpuApi::Vulkan => "vulkan",
            GpuApi::Metal => "metal",
        }
    }
}

/// What a driver says about a graphics card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name for Lory: `vulkan:0`.
    pub name: String,
    /// Its name on the market.
    pub model: String,
    /// The maker's PCI number; 0 if the driver does not say.
    pub vendor: u32,
    /// The driver with its version.
    pub driver: String,
    /// What it is made of.
    pub kind: GpuKind,
    /// Bytes of its largest memory, where the driver says so.
    pub memory: Option<u64>,
    /// Bytes of it that this process may still allocate, where the driver reports them (VK_EXT_memory_budget). Memory of other
    /// processes counts as taken.
    pub free: Option<u64>,
}

/// What a graphics card is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuKind {
    /// A card with memory of its own.
    Discrete,
    /// Part of the processor, with the system's memory.
    Integrated,
    /// A card that a hypervisor shares, or one whose driver does not say what it is.
    Virtual,
    /// A driver that computes on the CPU, such as llvmpipe: for tests.
    Software,
}
