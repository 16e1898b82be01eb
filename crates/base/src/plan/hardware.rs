//! The hardware of this machine, as the operating system lists it. Needs no vendor's library.

use std::fs;
use std::path::Path;

use kernels::{Device, GpuInfo, GpuKind, Isa};
use serde::Serialize;

use crate::memory::{self, AvailableMemory};

/// The maker of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the makers' own")]
pub enum Vendor {
    Nvidia,
    Amd,
    Intel,
    Apple,
    Other,
}

/// A GPU that the system lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its maker.
    pub vendor: Vendor,
    /// Bytes of its own memory; `None` if the system does not report them.
    pub memory: Option<u64>,
    /// Bytes of it that are free, if its driver reports them.
    pub free: Option<u64>,
    /// Whether it shares the machine's memory.
    pub unified: bool,
    /// Its name for `--device`; `None` if no Vulkan or Metal driver offers it.
    pub device: Option<String>,
    /// The driver with its version; empty if there is none.
    pub driver: String,
    /// Whether it is a driver that computes on the CPU.
    pub software: bool,
}

impl From<GpuInfo> for Gpu {
    fn from(info: GpuInfo) -> Gpu {
        Gpu {
            vendor: match info.vendor {
                NVIDIA => Vendor::Nvidia,
                AMD => Vendor::Amd,
                INTEL => Vendor::Intel,
                // Metal has no number for Apple's own.
                _ if info.name.starts_with("metal") => Vendor::Apple,
                _ => Vendor::Other,
            },
            name: info.model,
            memory: info.memory,
            free: info.free,
            unified: matches!(info.kind, GpuKind::Integrated | GpuKind::Software),
            device: Some(info.name),
            driver: info.driver,
            software: info.kind == GpuKind::Software,
        }
    }
}

/// The makers' PCI numbers.
const NVIDIA: u32 = 0x10de;
const AMD: u32 = 0x1002;
const INTEL: u32 = 0x8086;

/// The hardware that the planner plans for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HardwareProfile {
    /// The number of threads that affinity and the control group's quota allow.
    pub threads: usize,
    /// The instruction sets that the kernels know and the machine has, the best one last.
    pub instruction_sets: Vec<&'static str>,
    /// The instruction set in use.
    pub instruction_set: &'static str,
    /// Bytes of memory that the process can get: the machine's, or the control group's limit. The same at every start.
    pub memory: Option<u64>,
    /// The memory that is available now.
    pub available: Option<AvailableMemory>,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
}

impl HardwareProfile {
    /// The profile of this machine, with the GPUs that the system lists. No driver is loaded.
    ///
    /// # Errors
    /// `LORY_ISA` names an instruction set that this machine lacks.
    pub fn of_this_machine() -> Result<HardwareProfile, kernels::KernelError> {
        let sets = Isa::ALL.into_iter().filter(|isa| isa.available());
        let mut gpus = gpus_under(Path::new("/"));
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            gpus.push(Gpu {
                name: "Apple GPU".to_owned(),
                vendor: Vendor::Apple,
                memory: None,
                free: None,
                unified: true,
                device: None,
                driver: String::new(),
                software: false,
            });
        }
        Ok(HardwareProfile {
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            instruction_sets: sets.map(Isa::name).collect(),
            instruction_set: Isa::from_env()?.name(),
            memory: memory::total(),
            available: memory::available(),
            gpus,
        })
    }

    /// Loads the Vulkan and Metal drivers. The GPUs are then those that they offer, followed by those that only the system
    /// lists.
    #[must_use]
    pub fn with_drivers(mut self) -> HardwareProfile {
        self.gpus = with_offered(Device::gpus(), self.gpus);
        self
    }
}

/// A driver's cards replace the system's entries of the same maker: their names and order differ.
fn with_offered(offered: Vec<GpuInfo>, listed: Vec<Gpu>) -> Vec<Gpu> {
    let mut gpus: Vec<Gpu> = offered.into_iter().map(Gpu::from).collect();
    let is_offered = |gpu: &Gpu| gpus.iter().any(|other| other.vendor == gpu.vendor);
    let rest: Vec<Gpu> = listed.into_iter().filter(|gpu| !is_offered(gpu)).collect();
    gpus.extend(rest);
    gpus
}

/// The GPUs that Linux lists under `root`: NVIDIA's driver lists its own, the direct rendering manager (DRM) lists all.
fn gpus_under(root: &Path) -> Vec<Gpu> {
    let mut gpus = nvidia(root);
    let drm = root.join("sys/class/drm");
    let mut cards: Vec<_> = fs::read_dir(&drm)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        // card0, not card0-HDMI-A-1 or renderD128.
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let number = name.strip_prefix("card").unwrap_or("no");
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        })
        .collect();
    cards.sort();
    for card in cards {
        let device = card.join("device");
        let Some(vendor) = hex(&device.join("vendor")) else {
            continue;
        };
        let (vendor, maker) = match vendor {
            // The driver's list has names. If the driver is not loaded, only DRM lists the card.
            NVIDIA if gpus.iter().any(|gpu| gpu.vendor == Vendor::Nvidia) => continue,
            NVIDIA => (Vendor::Nvidia, "NVIDIA"),
            AMD => (Vendor::Amd, "AMD"),
            INTEL => (Vendor::Intel, "Intel"),
            // Display adapters of virtual machines and of server management are not GPUs.
            _ => continue,
        };
        let id = hex(&device.join("device")).unwrap_or(0);
        let memory = fs::read_to_string(device.join("mem_info_vram_total"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        gpus.push(Gpu {
            name: format!("{maker} GPU {id:04x}"),
            vendor,
            memory,
            free: None,
            unified: vendor == Vendor::Intel && memory.is_none(),
            device: None,
            driver: String::new(),
            software: false,
        });
    }
    gpus
}

/// The GPUs in `/proc/driver/nvidia/gpus/<bus>/information`. It does not report their memory, so that is read from the PCI windows.
fn nvidia(root: &Path) -> Vec<Gpu> {
    let folder = root.join("proc/driver/nvidia/gpus");
    let mut cards: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    cards.sort();
    let gpu = |card: &Path| {
        let text = fs::read_to_string(card.join("information")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().to_owned())
        };
        let bus = card.file_name()?.to_string_lossy().to_lowercase();
        let resource = root.join("sys/bus/pci/devices").join(bus).join("resource");
        Some(Gpu {
            name: field("Model").unwrap_or_else(|| "NVIDIA GPU".to_owned()),
            vendor: Vendor::Nvidia,
            memory: fs::read_to_string(resource)
                .ok()
                .and_then(|text| window(&text)),
            free: None,
            unified: false,
            device: None,
            driver: String::new(),
            software: false,
        })
    };
    cards.iter().filter_map(|card| gpu(card)).collect()
}

/// The largest window of a PCI device's resources, if it can be the whole memory of a card. Resizable windows cover all of it;
/// other windows have 256 MiB.
fn window(resources: &str) -> Option<u64> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let length = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = (number(fields.next()?)?, number(fields.next()?)?);
        (end > start).then(|| end - start + 1)
    };
    let largest = resources.lines().filter_map(length).max()?;
    (largest > 1 << 30).then_some(largest)
}

fn hex(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Vec<Gpu> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        gpus_under(root.path())
    }

    #[test]
    fn gpus_are_listed_and_display_adapters_are_not() {
        assert_eq!(machine(&[]), []);
        let found = machine(&[
            ("sys/class/drm/card0/device/vendor", "0x1234\n"),
            ("sys/class/drm/card1/device/vendor", "0x1002\n"),
            ("sys/class/drm/card1/device/device", "0x744c\n"),
            (
                "sys/class/drm/card1/device/mem_info_vram_total",
                "25753026560\n",
            ),
            ("sys/class/drm/card1-DP-1/device/vendor", "0x1002\n"),
            ("sys/class/drm/renderD128/device/vendor", "0x1002\n"),
            ("sys/class/drm/card2/device/vendor", "0x8086\n"),
            ("sys/class/drm/card2/device/device", "0x46a6\n"),
        ]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "AMD GPU 744c");
        assert_eq!(found[0].memory, Some(25_753_026_560));
        assert!(found[1].unified && found[1].vendor == Vendor::Intel);
    }

    #[test]
    fn cards_of_a_driver_replace_the_systems_entries_of_their_maker() {
        let offered = |name: &str, vendor, kind| GpuInfo {
            name: name.to_owned(),
            model: "a card".to_owned(),
            vendor,
            driver: "a driver".to_owned(),
            kind,
            memory: Some(8 << 30),
            free: None,
        };
        let listed = machine(&[
            ("sys/class/drm/card0/device/vendor", "0x1002\n"),
            ("sys/class/drm/card1/device/vendor", "0x10de\n"),
        ]);
        let found = with_offered(
            vec![
                offered("vulkan:0", AMD, GpuKind::Discrete),
                offered("vulkan:1", 0x10005, GpuKind::Software),
            ],
            listed,
        );
        let devices: Vec<Option<&str>> = found.iter().map(|gpu| gpu.device.as_deref()).collect();
        assert_eq!(devices, [Some("vulkan:0"), Some("vulkan:1"), None]);
        assert_eq!(found[2].vendor, Vendor::Nvidia);
        assert!(found[1].software && !found[0].software);
    }

    #[test]
    fn nvidia_names_come_from_the_driver_and_memory_from_the_bus() {
        let information = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 69\n";
        let resource = "0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n\
                        0x0000030000000000 0x0000031fffffffff 0x000000000014220c\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let found = machine(&[
            (
                "proc/driver/nvidia/gpus/0000:1B:00.0/information",
                information,
            ),
            ("sys/bus/pci/devices/0000:1b:00.0/resource", resource),
            ("sys/class/drm/card0/device/vendor", "0x10de\n"),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "NVIDIA H100 80GB HBM3");
        assert_eq!(found[0].memory, Some(128 << 30));
        let small = resource.replace("0x0000031fffffffff", "0x000003000fffffff");
        assert_eq!(window(&small), None);
        // If the driver is not loaded, the name and the memory are unknown.
        let found = machine(&[("sys/class/drm/card0/device/vendor", "0x10de\n")]);
        assert_eq!((found[0].vendor, found[0].memory), (Vendor::Nvidia, None));
    }
}
