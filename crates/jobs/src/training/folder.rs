//! Writes the folder of a trained adapter: its PEFT files, its card and its loss curve.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use formats::peft::{Dtype, PeftError};
use formats::{atomic_file, disk};
use train::export::{Provenance, peft_adapter};
use train::metrics::parse_metrics;
use train::plot::{LossCurve, loss_curve};
use train::preference::RejectedPersona;
use train::progress::Validation;
use train::task::DataReport;
use train::trainer::TrainedAdapter;
use train::{PreferenceSettings, TrainError, TrainSettings};

use base::Base;
use base::hub;

/// Why the folder of a trained adapter cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteFolderError {
    /// The folder or the loss curve cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A PEFT file cannot be written, or the adapter has a value that PEFT files cannot hold.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The adapter cannot be exported.
    #[error(transparent)]
    Export(#[from] TrainError),
}
/// The file of the loss curve, in an adapter's folder.
pub const LOSS_CURVE: &str = "loss.svg";

/// One adapter to train.
#[derive(Debug, Clone)]
pub struct Target {
    /// The name of the persona or adapter.
    pub name: String,
    /// The training file.
    pub data: PathBuf,
    /// The validation file.
    pub eval: Option<PathBuf>,
    /// The system prompt of rows that have none.
    pub system_prompt: Option<String>,
    /// The settings of the run.
    pub settings: TrainSettings,
    /// The personas whose answers are rejected.
    pub siblings: Vec<RejectedPersona>,
    /// The adapter that training starts from.
    pub from: Option<PathBuf>,
    /// The PEFT folder to write.
    pub out: PathBuf,
}

/// The base that an adapter was trained on.
pub struct Origin<'a> {
    /// The base.
    pub base: &'a Base,
    /// The id of a base that Lory knows; `None` for any other file.
    pub known_base: Option<&'a str>,
    /// The sha256 of the base, in hex.
    pub sha256: &'a str,
}

/// Writes the folder of `target`. The loss curve is written first, because the last file of the adapter makes it visible.
///
/// # Errors
/// A file cannot be written, or the adapter has a value that PEFT files cannot hold.
pub fn write(
    trained: &TrainedAdapter,
    target: &Target,
    data: &DataReport,
    origin: &Origin<'_>,
) -> Result<(), WriteFolderError> {
    disk::create_folders(&target.out)?;
    let curve = LossCurve::new(&trained.name, &parse_metrics(&trained.metrics));
    let title = format!("{} on {}", trained.name, origin.base.name);
    let svg = loss_curve(&title, &[curve]);
    atomic_file::replace(&target.out.join(LOSS_CURVE), |file| {
        file.write_all(svg.as_bytes())
    })?;

    let upstream = origin
        .known_base
        .and_then(hub::known_base)
        .map(|known| known.upstream);
    let provenance = Provenance {
        base_name: upstream.unwrap_or(&origin.base.name).to_owned(),
        base_hash: origin.sha256.to_owned(),
        tokenizer_hash: origin.base.tokenizer.hash().to_owned(),
        template_hash: origin.base.template.hash(),
        system: target.system_prompt.clone(),
        data: data.clone(),
    };
    let adapter = peft_adapter(trained, &provenance)?;
    let card = card(trained, target, upstream, &provenance);
    adapter.write(&target.out, Dtype::BF16, &card)?;
    Ok(())
}

/// The model card.
fn card(
    trained: &TrainedAdapter,
    target: &Target,
    upstream: Option<&str>,
    provenance: &Provenance,
) -> String {
    let settings = &trained.settings;
    let head = upstream.map_or_else(String::new, |upstream| format!("base_model: {upstream}\n"));
    let system = target
        .system_prompt
        .as_ref()
        .map_or_else(String::new, |prompt| {
            format!("System prompt: `{}`\n\n", prompt.replace('`', "'"))
        });
    let preference = settings
        .preference
        .as_ref()
        .map_or_else(String::new, preference_sentence);
    let best = trained
        .best
        .as_ref()
        .map_or_else(String::new, best_sentence);
    let lr = settings
        .lr
        .map_or_else(String::new, |lr| format!(", learning rate {lr:e}"));
    let epochs = if settings.epochs == 1 {
        "epoch"
    } else {
        "epochs"
    };
    format!(
        "---\n{head}library_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n---\n\n# {}\n\n\
         A LoRA adapter for {} (sha256 of the file: `{}`), trained on the quantized weights by `lory train`.\n\n\
         {system}Data: `{}`. Rank {}, alpha {}, {} {epochs}{lr}, seed {}; {} steps.{preference}{best}\n\n\
         ![loss](loss.svg)\n\n\
         Made from (the header of the weights has the same under `lory.*`, and all settings):\n\n{}",
        trained.name,
        provenance.base_name,
        provenance.base_hash,
        file_name(&target.data),
        settings.rank,
        settings.alpha,
        settings.epochs,
        settings.seed,
        trained.steps,
        provenance_table(target, provenance),
    )
}

/// The card's sentence about the published state.
fn best_sentence(best: &Validation) -> String {
    match best.preference {
        None => format!(
            " Validation loss {:.4} nats a token, after epoch {}.",
            best.loss, best.epoch
        ),
        Some(preference) => format!(
            " Validation loss {:.4} a pair, after epoch {}; the preferred answer has gained on the other in {:.1}% of \
             {} pairs.",
            best.loss,
            best.epoch,
            preference.accuracy * 100.0,
            preference.pairs
        ),
    }
}

/// The card's sentence about preference training.
fn preference_sentence(preference: &PreferenceSettings) -> String {
    let over = match preference.against.as_slice() {
        [] => "the rejected ones of its rows".to_owned(),
        names => format!("those of {}", names.join(", ")),
    };
    format!(
        " Its answers are preferred over {over} (DPO, beta {}, SFT weight {}).",
        preference.beta, preference.sft_weight
    )
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The provenance as a Markdown table: what the adapter was trained from, with hashes.
fn provenance_table(target: &Target, provenance: &Provenance) -> String {
    let mut table = "| what | sha256 |\n|---|---|\n".to_owned();
    let mut row = |what: &str, hash: &str| table += &format!("| {what} | `{hash}` |\n");
    row("base, the file", &provenance.base_hash);
    row("tokenizer", &provenance.tokenizer_hash);
    row("chat template", &provenance.template_hash);
    let data = &provenance.data;
    row(
        &format!("data, `{}`", file_name(&target.data)),
        &data.train_file_hash,
    );
    if let (Some(eval), Some(hash)) = (&target.eval, &data.validation_file_hash) {
        row(&format!("validation data, `{}`", file_name(eval)), hash);
    }
    table
}
