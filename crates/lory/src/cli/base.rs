//! `--base`: a known name, fetched when it is missing, or the path of a GGUF file or of a Hugging Face folder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use formats::folder;
use kernels::{Device, DeviceChoice};
use model::{ModelSizes, Precision};

use base::home::Home;
use base::hub::{self, HubSettings, RepositoryId, Source};
use base::plan::{self, Demand, HardwareProfile};
use base::progress::Progress;
use base::quant_cache::Kept;
use base::{BaseFiles, LoadOptions, files};

/// The flag, for every command that needs a base.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BaseArgs {
    /// The base model: smollm2-135m (fetched when it is missing), a repository that was pulled (owner/name), or the path of a GGUF
    /// file or of a Hugging Face folder
    #[arg(long, value_name = "ID|PATH", default_value = hub::KNOWN[0].id)]
    pub base: String,
}

/// The flag, for every command that loads a base's weights.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PrecisionArgs {
    /// How exactly the weights of a float base are held: auto, f32, bf16, f16, q8 or q4. auto takes q8 where the machine's memory
    /// has room for it, else q4. Weights that are quantized in the file keep their values
    #[arg(long, value_name = "PRECISION", default_value = "auto", value_parser = precision)]
    precision: Choice,
}

/// Opens the device of a command that loads a base: the CPU, with as many threads as the machine allows, or with `threads`.
pub(super) fn open_device(threads: Option<usize>) -> anyhow::Result<Device> {
    Ok(Device::open(DeviceChoice::Cpu { threads })?)
}

/// A precision, or the planner's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice(Option<Precision>);

fn precision(text: &str) -> Result<Choice, String> {
    if text == "auto" {
        return Ok(Choice(None));
    }
    let named = text.parse();
    named
        .map(|precision| Choice(Some(precision)))
        .map_err(|_| "must be auto, f32, bf16, f16, q8 or q4".to_owned())
}

impl PrecisionArgs {
    /// What is asked for; none where the planner is to choose.
    pub fn wanted(&self) -> Option<Precision> {
        self.precision.0
    }
}

/// Where a base lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// What requests call it; none for a path, which is called by its name.
    pub name: Option<String>,
    /// The GGUF file, or the folder.
    pub path: PathBuf,
    /// Its sha256, where it is known without reading it.
    pub sha256: Option<&'static str>,
}

/// How a base will run.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    /// The plan in a line, for people.
    pub line: String,
    /// How its weights are held.
    pub load: LoadOptions,
}

impl BaseArgs {
    /// Finds the file, fetching it if need be.
    pub fn locate(&self) -> anyhow::Result<Located> {
        let path = Path::new(&self.base);
        match hub::known(&self.base) {
            Some(known) if !path.exists() => {
                let mut progress = Progress::stderr();
                let pulled = hub::pull(
                    known,
                    &Home::find()?,
                    &HubSettings::from_env(),
                    &mut progress,
                )?;
                if pulled.source != Source::Cache {
                    progress.say(&format!("{} is at {}", known.id, pulled.path.display()));
                }
                Ok(Located {
                    name: Some(known.id.to_owned()),
                    path: pulled.path,
                    sha256: Some(known.sha256),
                })
            }
            _ if path.is_dir() && !folder::is_folder(path) => anyhow::bail!(
                "--base {}: a folder without config.json; give the folder that holds it, or a GGUF file",
                self.base
            ),
            _ if path.exists() => Ok(Located {
                name: None,
                path: path.to_owned(),
                sha256: None,
            }),
            _ if RepositoryId::parse(&self.base).is_some() => {
                // A path that is not there may look like one, too.
                let id = RepositoryId::parse(&self.base);
                let found = id.and_then(|id| hub::fetched(&id, &Home::find().ok()?));
                let Some(path) = found else {
                    anyhow::bail!(
                        "--base {0}: no such file or folder, and no repository that was pulled; lory pull {0} fetches it",
                        self.base
                    )
                };
                let name = self.base.rsplit('/').next().unwrap_or(&self.base);
                Ok(Located {
                    name: Some(name.to_lowercase()),
                    path,
                    sha256: None,
                })
            }
            _ => anyhow::bail!(
                "--base {}: no such file or folder, and no known base; the known ones are {}",
                self.base,
                hub::known_ids()
            ),
        }
    }
}

impl Located {
    /// Plans how the base runs on this machine, and refuses what does not fit before any of it is loaded.
    ///
    /// # Errors
    /// The base's files are not understood, or it does not fit, with numbers.
    pub fn planned(&self, precision: &PrecisionArgs, demand: Demand) -> anyhow::Result<Planned> {
        let hardware = HardwareProfile::of_this_machine()?;
        let sizes = ModelSizes::of(BaseFiles::open(&self.path)?.checkpoint())?;
        let demand = Demand {
            precision: precision.wanted(),
            ..demand
        };
        let plan = plan::plan(&hardware, &sizes, &demand);
        plan.check(&hardware, &sizes, &demand)
            .with_context(|| format!("--base {} does not fit", self.path.display()))?;
        Ok(Planned {
            line: plan.line(),
            load: LoadOptions {
                precision: plan.chosen.precision,
                kept: kept(),
            },
        })
    }

    /// The sha256 that the base is known by, in hex.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        if let Some(sha256) = self.sha256 {
            return Ok(sha256.to_owned());
        }
        let hash = match kept() {
            Some(kept) => kept.fingerprint(&self.path),
            None => files::sha256(&self.path),
        };
        hash.with_context(|| self.path.display().to_string())
    }
}

/// Where bases are kept; without a home a base is quantized, and read for its hash, at every start.
fn kept() -> Option<Kept> {
    Home::find().ok().map(|home| Kept::in_folder(home.kept()))
}
