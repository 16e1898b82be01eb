//! `--base`, `--precision` and `--device`: finds a base, fetching it if needed, and plans how it runs on this machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use formats::folder;
use kernels::{Device, DeviceChoice, GpuApi};
use model::{ModelSizes, Precision};
use service::Settings;

use base::home::Home;
use base::hub::{self, HubSettings, PullSource, RepositoryId, RepositoryKind};
use base::plan::{self, DeviceKind, DevicePlan, HardwareProfile, Plan, PlanRequest};
use base::progress::Progress;
use base::quant_cache::QuantCache;
use base::{BaseFiles, BaseText, LoadOptions, files};

/// `--base`, for every command that needs a base.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BaseArgs {
    /// The base model: smollm2-135m (fetched if it is missing), a pulled repository (owner/name), or the path of a GGUF file or
    /// a Hugging Face folder
    #[arg(long, value_name = "ID|PATH", default_value = hub::KNOWN_BASES[0].id)]
    pub base: String,
    /// Put the system text in front of the first user's message if the base's chat template has no system role. An adapter that is
    /// trained this way is served this way only
    #[arg(long)]
    pub system_as_user: bool,
}

/// `--precision`, for every command that loads a base's weights.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PrecisionArgs {
    /// Type of a float base's weights in memory: auto, f32, bf16, f16, q8 or q4. auto is q8 if it fits into memory, else q4.
    /// Weights that are quantized in the file keep their type
    #[arg(long, value_name = "PRECISION", default_value = "auto", value_parser = precision)]
    precision: PrecisionChoice,
}

/// `--device`, for every command that runs a base without training it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// The device that runs the base: auto, cpu, or a GPU as `lory doctor` lists it, such as vulkan:0 or metal:0. auto measures
    /// the machine's GPUs, if it has any, and takes the fastest device; training always runs on the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    device: Named,
}

/// The device that the user named; none for `auto`.
#[derive(Debug, Clone, Copy)]
struct Named(Option<DeviceChoice>);

/// The device that is requested.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestedDevice {
    named: Named,
    /// Threads of the CPU, if it runs there; default: all.
    threads: Option<usize>,
}

impl DeviceArgs {
    /// The device, with `threads` threads if it is the CPU.
    pub fn requested(&self, threads: Option<usize>) -> RequestedDevice {
        RequestedDevice {
            named: self.device,
            threads,
        }
    }
}

impl RequestedDevice {
    /// The CPU with all threads.
    pub const CPU: RequestedDevice = RequestedDevice {
        named: Named(Some(DeviceChoice::Cpu { threads: None })),
        threads: None,
    };

    /// Whether GPUs are compared with the CPU.
    pub fn is_auto(self) -> bool {
        self.named.0.is_none()
    }

    /// Plans how a base runs. `auto` measures the devices if there is a GPU that it could choose.
    ///
    /// # Errors
    /// There is no such GPU.
    pub fn plan(
        self,
        hardware: &HardwareProfile,
        sizes: &ModelSizes,
        demand: &PlanRequest,
    ) -> anyhow::Result<(Plan, DeviceChoice)> {
        let plan = match self.named.0 {
            Some(DeviceChoice::Cpu { .. }) => plan::plan(hardware, sizes, demand),
            Some(DeviceChoice::Gpu { api, index }) => {
                let gpu = Device::find_gpu(api, index)?.into();
                plan::plan_on(&gpu, hardware, sizes, demand)
            }
            None => plan::plan_auto(hardware, sizes, demand, |plan| self.speed(plan, sizes)),
        };
        let choice = self.choice(&plan.chosen.device);
        Ok((plan, choice))
    }

    fn choice(self, device: &DeviceKind) -> DeviceChoice {
        let gpu = match device {
            DeviceKind::Cpu => None,
            DeviceKind::Gpu(name) => gpu(name),
        };
        gpu.unwrap_or(DeviceChoice::Cpu {
            threads: self.threads,
        })
    }

    /// Tokens per second of one answer on a device.
    fn speed(self, plan: &DevicePlan, sizes: &ModelSizes) -> Result<f64, String> {
        let mut progress = Progress::stderr();
        progress.spin(&format!("Measuring {}", plan.device));
        let device = Device::open(self.choice(&plan.device)).map_err(|e| e.to_string())?;
        let speed = plan::measure_speed(&device, sizes, plan.precision);
        progress.clear();
        let speed = speed.map_err(|error| error.to_string())?;
        let speed = speed.ok_or("a layer is too large to be measured")?;
        Ok(speed.tokens_per_s)
    }
}

/// Parses `--device`.
fn device(text: &str) -> Result<Named, String> {
    match text {
        "auto" => Ok(Named(None)),
        "cpu" => Ok(Named(Some(DeviceChoice::default()))),
        _ => Ok(Named(Some(gpu(text).ok_or_else(known_devices)?))),
    }
}

/// A GPU by the name that `lory doctor` lists.
fn gpu(name: &str) -> Option<DeviceChoice> {
    let (api, number) = name.split_once(':')?;
    let api = GpuApi::ALL.into_iter().find(|known| known.name() == api)?;
    let index = number.parse().ok()?;
    Some(DeviceChoice::Gpu { api, index })
}

/// What `--device` takes on this machine.
fn known_devices() -> String {
    let gpus: Vec<String> = Device::gpus()
        .iter()
        .map(|gpu| format!("{} ({})", gpu.name, gpu.model))
        .collect();
    match gpus.is_empty() {
        true => "must be auto, cpu, vulkan:N or metal:N; no Vulkan or Metal driver of this machine offers a GPU".to_owned(),
        false => format!("must be auto, cpu, or a GPU of this machine: {}", gpus.join(", ")),
    }
}

/// Opens the CPU with `threads` compute threads, or with as many as the machine has.
pub(crate) fn open_device(threads: Option<usize>) -> anyhow::Result<Device> {
    Ok(Device::open(DeviceChoice::Cpu { threads })?)
}

/// A precision; none for `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PrecisionChoice(Option<Precision>);

fn precision(text: &str) -> Result<PrecisionChoice, String> {
    if text == "auto" {
        return Ok(PrecisionChoice(None));
    }
    let named = text.parse();
    named
        .map(|precision| PrecisionChoice(Some(precision)))
        .map_err(|_| "must be auto, f32, bf16, f16, q8 or q4".to_owned())
}

impl PrecisionArgs {
    /// The requested precision; none if the planner chooses it.
    pub fn requested(&self) -> Option<Precision> {
        self.precision.0
    }
}

/// A base on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    /// Its name in requests; none for a path, whose file name is used.
    pub name: Option<String>,
    /// The GGUF file, or the folder.
    pub path: PathBuf,
    /// Its SHA-256, if it is known without reading the file.
    pub sha256: Option<&'static str>,
    /// `--system-as-user`
    pub system_as_user: bool,
}

/// How a base will run.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// The plan in one line.
    pub line: String,
    /// Precision and quant cache.
    pub load: LoadOptions,
    /// Bytes that training may take.
    pub train_memory: u64,
    /// Where it runs.
    pub device: DeviceChoice,
}

impl BaseArgs {
    /// Finds the file or folder. Fetches a known base that is missing.
    pub fn locate(&self) -> anyhow::Result<Located> {
        let path = Path::new(&self.base);
        match hub::known_base(&self.base) {
            Some(known) if !path.exists() => {
                let mut progress = Progress::stderr();
                let pulled = hub::pull(
                    known,
                    &Home::find()?,
                    &HubSettings::from_env(),
                    &mut progress,
                )?;
                if pulled.source != PullSource::Cache {
                    progress.say(&format!("{} is at {}", known.id, pulled.path.display()));
                }
                Ok(Located {
                    name: Some(known.id.to_owned()),
                    path: pulled.path,
                    sha256: Some(known.sha256),
                    system_as_user: self.system_as_user,
                })
            }
            _ if path.is_dir() && !folder::is_folder(path) => anyhow::bail!(
                "--base {}: the folder has no config.json; name the folder that contains it, or a GGUF file",
                self.base
            ),
            _ if path.exists() => Ok(Located {
                name: None,
                path: path.to_owned(),
                sha256: None,
                system_as_user: self.system_as_user,
            }),
            _ if RepositoryId::parse(&self.base).is_some() => {
                // The path of a missing file may look like a repository id, too.
                let pulled = |kind| {
                    let id = RepositoryId::parse(&self.base)?;
                    hub::pulled_repository(&id, kind, &Home::find().ok()?)
                };
                if pulled(RepositoryKind::Adapter).is_some() {
                    anyhow::bail!(
                        "--base {0} is an adapter: name it with --adapter {0}, and its base with --base",
                        self.base
                    )
                }
                let Some(path) = pulled(RepositoryKind::Base) else {
                    anyhow::bail!(
                        "--base {0}: no such file or folder, and no pulled repository; `lory pull {0}` fetches it",
                        self.base
                    )
                };
                let name = self.base.trim_end_matches('/').rsplit('/').next();
                let name = name.unwrap_or(&self.base);
                Ok(Located {
                    name: Some(name.to_lowercase()),
                    path,
                    sha256: None,
                    system_as_user: self.system_as_user,
                })
            }
            _ => anyhow::bail!(
                "--base {}: no such file or folder, and no known base; the known ones are {}; lory pull OWNER/NAME fetches another one \
                 from the Hugging Face hub",
                self.base,
                hub::known_base_ids()
            ),
        }
    }
}

impl Located {
    /// Plans how the base runs on a device of this machine. Nothing is loaded.
    ///
    /// # Errors
    /// The base's files are invalid, there is no such device, or the base does not fit into its memory; the message has the
    /// sizes.
    pub fn plan(
        &self,
        precision: &PrecisionArgs,
        device: RequestedDevice,
        demand: PlanRequest,
    ) -> anyhow::Result<Planned> {
        let mut hardware = HardwareProfile::of_this_machine()?;
        // Drivers are loaded only if the system lists a GPU.
        if device.is_auto() && !hardware.gpus.is_empty() {
            hardware = hardware.with_drivers();
        }
        let sizes = ModelSizes::of(BaseFiles::open(&self.path)?.checkpoint())?;
        let demand = PlanRequest {
            precision: precision.requested(),
            ..demand
        };
        let (plan, device) = device.plan(&hardware, &sizes, &demand)?;
        plan.check(&hardware, &sizes, &demand)
            .with_context(|| format!("--base {} does not fit", self.path.display()))?;
        Ok(Planned {
            line: plan.line(),
            train_memory: plan.chosen.memory.training,
            load: LoadOptions {
                precision: plan.chosen.precision,
                quant_cache: quant_cache(),
                system_as_user: self.system_as_user,
            },
            device,
        })
    }

    /// The settings of a service of this base alone, which serves nobody else.
    ///
    /// # Errors
    /// As [`Located::plan`].
    pub fn settings(
        &self,
        precision: &PrecisionArgs,
        device: &DeviceArgs,
    ) -> anyhow::Result<Settings> {
        let planned = self.plan(precision, device.requested(None), PlanRequest::default())?;
        Ok(Settings {
            load: planned.load,
            device: planned.device,
            base_name: self.name.clone(),
            base_sha256: self.sha256.map(str::to_owned),
            ..Settings::default()
        })
    }

    /// Its tokenizer and chat template, without its weights.
    pub fn text(&self) -> anyhow::Result<BaseText> {
        read_text(&self.path, self.system_as_user)
    }

    /// The SHA-256 of the base, in hex.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        if let Some(sha256) = self.sha256 {
            return Ok(sha256.to_owned());
        }
        let hash = match quant_cache() {
            Some(cache) => cache.base_sha256(&self.path),
            None => files::sha256(&self.path),
        };
        hash.with_context(|| self.path.display().to_string())
    }
}

/// The tokenizer and chat template of the base at `path`, as `--system-as-user` changes it.
pub(crate) fn read_text(path: &Path, system_as_user: bool) -> anyhow::Result<BaseText> {
    let mut text = BaseText::open(path)?;
    if system_as_user {
        text.template.put_system_text_in_user_message();
    }
    Ok(text)
}

/// The cache of quantized weights and of hashes. Without a home folder there is none, and both are computed at every start.
fn quant_cache() -> Option<QuantCache> {
    Home::find()
        .ok()
        .map(|home| QuantCache::in_folder(home.quant_cache()))
}
