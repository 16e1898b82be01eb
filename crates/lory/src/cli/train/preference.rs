//! `--prefer-over`, `--beta`, `--sft-weight`, `--from`: whose answers are rejected, and what a run starts from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use formats::peft;
use registry::{BlendPart, Personas};
use train::preference::{PairCounts, RejectedPersona, holds_pairs};
use train::{Job, TrainSettings};

use crate::cli::Usage;
use base::Base;
use jobs::training::Target;

/// What makes a run one of preferences, and what it starts from.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Preferences")]
pub(super) struct PreferenceArgs {
    /// Make each answer more likely than this persona's to the same question; several may be named
    #[arg(long, value_name = "NAME")]
    prefer_over: Vec<String>,
    /// How much a difference in log-probability counts [default: 0.1]
    #[arg(long, value_name = "X")]
    beta: Option<f64>,
    /// Weight of the preferred answers' own loss beside the preference; 0 for none [default: 1]
    #[arg(long, value_name = "X")]
    sft_weight: Option<f64>,
    /// Start from this adapter, a PEFT folder, with its rank, scale and modules
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rank", "alpha", "rslora", "target_modules"])]
    from: Option<PathBuf>,
}

impl PreferenceArgs {
    /// `settings` of the adapter `name` with what the flags say; rows at `data` that bring rejected answers of their own
    /// need no flag.
    pub fn over(
        &self,
        name: &str,
        data: &Path,
        mut settings: TrainSettings,
    ) -> anyhow::Result<TrainSettings> {
        let asked = !self.prefer_over.is_empty() || self.beta.or(self.sft_weight).is_some();
        if settings.preference.is_none() && !asked && !holds_pairs(data)? {
            return Ok(settings);
        }
        let preference = settings.preference.get_or_insert_default();
        if !self.prefer_over.is_empty() {
            // With several personas in the run, a flag may name one of them for the others.
            let others = self.prefer_over.iter().filter(|other| *other != name);
            preference.against = others.cloned().collect();
            if preference.against.is_empty() {
                let message = format!(
                    "--prefer-over {name}: a tone is not preferred over itself; name another persona"
                );
                return Err(Usage(message).into());
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

/// The personas whose answers `settings` reject, with their files.
pub(super) fn siblings(
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
                "{}: persona {name} has no [train] table, so it has no answers that could be rejected",
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

/// Says how many rows of `name` found a rejected answer.
pub(super) fn tell(name: &str, settings: &TrainSettings, counts: &PairCounts) {
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
            format!("; left out: {unanswered} without one, {same} with the same answer")
        }
    };
    eprintln!(
        "{name}: {} of {} rows have another answer{by}, to reject{left_out}",
        counts.pairs, counts.rows
    );
}

/// Where the run keeps a copy of the adapter that it starts from and will write over.
fn kept(target: &Target, checkpoint: &Path) -> PathBuf {
    checkpoint.with_file_name(format!("{}.start", target.name))
}

/// Lets `job` start from the adapter of its target.
pub(super) fn start(
    job: &mut Job,
    target: &Target,
    checkpoint: &Path,
    base: &Base,
) -> anyhow::Result<()> {
    let Some(from) = &target.from else {
        return Ok(());
    };
    let kept = kept(target, checkpoint);
    let folder = if is_kept(target, from, checkpoint) {
        &kept
    } else {
        from
    };
    let (adapter, hash) = peft::Adapter::read_hashed(folder)?;
    job.init_from_adapter(&adapter, hash, base.model.config())
        .with_context(|| format!("--from {}", from.display()))
}

/// Copies an adapter that the run starts from and will replace beside the checkpoint: if the run is killed just after it has
/// written the new one, the same command still finds what it started from.
pub(super) fn keep(target: &Target, checkpoint: &Path) -> anyhow::Result<()> {
    let Some(from) = &target.from else {
        return Ok(());
    };
    if !same(from, &target.out) || is_kept(target, from, checkpoint) {
        return Ok(());
    }
    let kept = kept(target, checkpoint);
    copy(from, &kept).with_context(|| kept.display().to_string())
}

/// Whether a run that is under way has a copy of what it started from.
fn is_kept(target: &Target, from: &Path, checkpoint: &Path) -> bool {
    same(from, &target.out) && checkpoint.exists() && kept(target, checkpoint).exists()
}

/// Removes what [`keep`] copied.
pub(super) fn finished(target: &Target, checkpoint: &Path) {
    if target.from.is_some() {
        std::fs::remove_dir_all(kept(target, checkpoint)).ok();
    }
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Copies an adapter's two files into `to`, which is whole or not there.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let beside = to.with_extension("partial");
    for folder in [to, &beside] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
    }
    std::fs::create_dir_all(&beside)?;
    for name in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
        std::fs::copy(from.join(name), beside.join(name))?;
    }
    std::fs::rename(&beside, to)
}
