//! `--prefer-over`, `--beta`, `--sft-weight` and `--from`: preference training, and the adapter that a run starts from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dataset::holds_pairs;
use formats::atomic_file::{self, AtomicFolder};
use formats::{disk, peft};
use registry::{BlendPart, Personas};
use train::params::LoraParams;
use train::preference::{PairCounts, RejectedPersona};
use train::{TrainSettings, TrainTask};

use crate::cli::exit::UsageError;
use base::{Base, adapter_tensors};
use jobs::training::Target;

/// The flags of preference training.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Preferences")]
pub(crate) struct PreferenceArgs {
    /// Make each answer more likely than this persona's answer to the same question; may be given several times
    #[arg(long, value_name = "NAME")]
    prefer_over: Vec<String>,
    /// Weight of the difference in log-probability (DPO's beta) [default: 0.1]
    #[arg(long, value_name = "X")]
    beta: Option<f64>,
    /// Weight of the chosen answers' cross-entropy, which is added to the preference loss; 0 for none [default: 1]
    #[arg(long, value_name = "X")]
    sft_weight: Option<f64>,
    /// Start from this adapter (a PEFT folder), with its rank, scale and modules
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rank", "alpha", "rslora", "target_modules"])]
    from: Option<PathBuf>,
}

impl PreferenceArgs {
    /// `settings` of the adapter `name` with the values of the flags. Rows in `data` that have rejected answers need no flag.
    pub fn apply(
        &self,
        name: &str,
        data: &Path,
        mut settings: TrainSettings,
    ) -> anyhow::Result<TrainSettings> {
        let requested = !self.prefer_over.is_empty() || self.beta.or(self.sft_weight).is_some();
        if settings.preference.is_none() && !requested && !holds_pairs(data, &settings.columns)? {
            return Ok(settings);
        }
        let preference = settings.preference.get_or_insert_default();
        if !self.prefer_over.is_empty() {
            // With several personas in the run, the flag may name one of them; it applies to the others.
            let others = self.prefer_over.iter().filter(|other| *other != name);
            preference.against = others.cloned().collect();
            if preference.against.is_empty() {
                let message = format!(
                    "--prefer-over {name}: a persona cannot be preferred over itself; name another one"
                );
                return Err(UsageError(message).into());
            }
        }
        if preference.against.iter().any(|other| other == name) {
            anyhow::bail!(
                "[train.preference] against: `{name}` is the persona itself; name another one"
            );
        }
        preference.beta = self.beta.unwrap_or(preference.beta);
        preference.sft_weight = self.sft_weight.unwrap_or(preference.sft_weight);
        Ok(settings)
    }

    /// The adapter that the run starts from.
    pub fn from(&self) -> Option<&PathBuf> {
        self.from.as_ref()
    }
}

/// The personas whose answers are rejected, with their files.
pub(crate) fn rejected_personas(
    settings: &TrainSettings,
    personas: &Personas,
) -> anyhow::Result<Vec<RejectedPersona>> {
    let against = settings
        .preference
        .iter()
        .flat_map(|preference| &preference.against);
    let sibling = |name: &String| {
        let persona = personas.find(&BlendPart {
            name: name.clone(),
            version: None,
            scale: None,
        })?;
        let Some(train) = &persona.train else {
            anyhow::bail!(
                "{}: persona {name} has no [train] table, so it has no answers to reject",
                persona.dir.join(registry::persona_file::FILE).display()
            );
        };
        Ok(RejectedPersona {
            name: name.clone(),
            files: std::iter::once(&train.data)
                .chain(&train.eval)
                .cloned()
                .collect(),
            columns: train.settings::<TrainSettings>()?.columns,
        })
    };
    against.map(sibling).collect()
}

/// Reports on stderr how many rows of `name` have a rejected answer.
pub(crate) fn report_pairs(name: &str, settings: &TrainSettings, counts: &PairCounts) {
    let against = settings
        .preference
        .iter()
        .flat_map(|preference| &preference.against);
    let against: Vec<&str> = against.map(String::as_str).collect();
    let by = if against.is_empty() {
        String::new()
    } else {
        format!(" by {}", against.join(", "))
    };
    let left_out = match (counts.unanswered, counts.same) {
        (0, 0) => String::new(),
        (unanswered, same) => {
            format!(
                "; left out: {unanswered} without a rejected answer, {same} with the same answer"
            )
        }
    };
    eprintln!(
        "{name}: {} of {} rows have a rejected answer{by}{left_out}",
        counts.pairs, counts.rows
    );
}

/// The run's copy of the adapter that it starts from and will overwrite.
fn start_copy(target: &Target, checkpoint: &Path) -> PathBuf {
    checkpoint.with_file_name(format!("{}.start", target.name))
}

/// Initializes `task` from the adapter that `--from` names.
pub(crate) fn load_start(
    task: &mut TrainTask,
    target: &Target,
    checkpoint: &Path,
    base: &Base,
) -> anyhow::Result<()> {
    let Some(from) = &target.from else {
        return Ok(());
    };
    let copy = start_copy(target, checkpoint);
    let folder = if has_start_copy(target, from, checkpoint) {
        &copy
    } else {
        from
    };
    let (adapter, hash) = peft::Adapter::read_hashed(folder)?;
    if let Some(path) = base.fingerprint.path() {
        adapter_tensors::check(path, &adapter.base_tensors, folder)?;
    }
    let start = LoraParams {
        pairs: adapter.pairs,
    };
    task.init_from_adapter(start.into(), hash, base.model.config())
        .with_context(|| format!("--from {}", from.display()))
}

/// Copies the adapter that the run starts from next to the checkpoint, if the run will overwrite it. If the run is killed after it
/// wrote the new adapter, the same command still finds the old one.
pub(crate) fn save_start(target: &Target, checkpoint: &Path) -> anyhow::Result<()> {
    let Some(from) = &target.from else {
        return Ok(());
    };
    if !is_same_folder(from, &target.out) || has_start_copy(target, from, checkpoint) {
        return Ok(());
    }
    let copy = start_copy(target, checkpoint);
    copy_adapter(from, &copy).with_context(|| copy.display().to_string())
}

/// Whether an unfinished run has a copy of the adapter that it started from.
fn has_start_copy(target: &Target, from: &Path, checkpoint: &Path) -> bool {
    is_same_folder(from, &target.out)
        && checkpoint.exists()
        && start_copy(target, checkpoint).exists()
}

/// Removes the copy of [`save_start`].
pub(crate) fn remove_start(target: &Target, checkpoint: &Path) {
    if target.from.is_some() {
        atomic_file::remove_folder(&start_copy(target, checkpoint)).ok();
    }
}

/// Whether both paths are the same folder.
fn is_same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Copies an adapter's two files into the folder `to`, which is complete or missing.
fn copy_adapter(from: &Path, to: &Path) -> std::io::Result<()> {
    let parent = to.parent().unwrap_or(Path::new("."));
    disk::create_folders(parent)?;
    if to.exists() {
        // A run that was given up left it.
        atomic_file::remove_folder(to)?;
    }
    let copy = AtomicFolder::create_in(parent)?;
    for name in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
        disk::write(&copy.path().join(name), &std::fs::read(from.join(name))?)?;
    }
    copy.commit(to)
}
