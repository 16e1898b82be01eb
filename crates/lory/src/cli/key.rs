//! `lory key`: makes, lists and revokes the API keys in a server's file.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde_json::json;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::flags::units::size_or_zero;
use crate::cli::output::print;
use crate::cli::output::table::Table;
use auth::key_entry::{self, KeyEntry, MAX_SHARE};
use auth::secret::{self, SecretHash};
use auth::{Quotas, Resource};
use auth::{key_edits, key_file};

/// Make, list and revoke the API keys of a server
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  lory key new ops --admin
  lory key list")]
pub(crate) enum Command {
    New(Box<NewArgs>),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// `--keys`, for all commands.
#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The file of API keys
    #[arg(long, value_name = "FILE", default_value = "keys.toml")]
    keys: PathBuf,
}

/// Make a key: print its secret once and store its SHA-256 in the file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A running server accepts the key within seconds. Only the secret is written to stdout.

Examples:
  lory key new ops --admin
  lory key new acme --persona 'acme-*' --requests-per-minute 60 --tokens-per-minute 20000
  lory key new ci --train --persona 'acme-*' --base --open-jobs 2 --file-bytes 500MB")]
pub(crate) struct NewArgs {
    /// The key's name, which is in the logs
    name: String,
    #[command(flatten)]
    file: FileArgs,
    /// A persona that the key may use; a `*` at the end matches all names that begin so; may be given several times
    /// [default: every persona and the base]
    #[arg(long = "persona", value_name = "NAME")]
    personas: Vec<String>,
    /// Allow the base, too
    #[arg(long)]
    base: bool,
    /// Allow changing personas, training, reading /metrics, and a priority below 0
    #[arg(long)]
    admin: bool,
    /// Allow uploading files and running training jobs for the personas that the key may use
    #[arg(long)]
    train: bool,
    /// Maximum requests per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Maximum tokens per minute, of prompts and answers [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_minute: Option<u32>,
    /// Its weight in fair scheduling: a key with twice the share gets twice the rows of a batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHARE)))]
    share: u32,
    /// Share the prefix cache with the keys of this group [default: with no other key]
    #[arg(long, value_name = "NAME")]
    cache_group: Option<String>,
    /// Print the key as JSON, including the secret
    #[arg(long)]
    json: bool,
    // Last, because its heading would apply to the flags after it.
    #[command(flatten)]
    quotas: QuotaArgs,
}

/// The flags of quotas.
#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Quotas [default: a quarter of the server's limit; never more than is free]"
)]
struct QuotaArgs {
    /// Training jobs that wait or run; 0 lets the key train nothing
    #[arg(long, value_name = "N")]
    open_jobs: Option<u64>,
    /// Stored training jobs; the oldest finished ones make room
    #[arg(long, value_name = "N")]
    stored_jobs: Option<u64>,
    /// Evaluations that wait or run
    #[arg(long, value_name = "N")]
    open_evaluations: Option<u64>,
    /// Stored evaluations; the oldest finished ones make room
    #[arg(long, value_name = "N")]
    stored_evaluations: Option<u64>,
    /// Uploaded files
    #[arg(long, value_name = "N")]
    files: Option<u64>,
    /// Bytes of uploaded files
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    file_bytes: Option<ByteSize>,
    /// Stored votes
    #[arg(long, value_name = "N")]
    votes: Option<u64>,
    /// Pairs of models with votes
    #[arg(long, value_name = "N")]
    vote_pairs: Option<u64>,
    /// Bytes of checkpoints and unpublished adapters of training jobs
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    adapter_bytes: Option<ByteSize>,
    /// Bytes of uploaded adapters that are not published yet
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    upload_bytes: Option<ByteSize>,
}

impl QuotaArgs {
    fn quotas(&self) -> Quotas {
        let bytes = |size: Option<ByteSize>| size.map(|size| size.as_u64());
        let mut quotas = Quotas::default();
        for resource in Resource::ALL {
            let quota = match resource {
                Resource::OpenJobs => self.open_jobs,
                Resource::StoredJobs => self.stored_jobs,
                Resource::OpenEvaluations => self.open_evaluations,
                Resource::StoredEvaluations => self.stored_evaluations,
                Resource::Files => self.files,
                Resource::FileBytes => bytes(self.file_bytes),
                Resource::Votes => self.votes,
                Resource::VotePairs => self.vote_pairs,
                Resource::AdapterBytes => bytes(self.adapter_bytes),
                Resource::UploadBytes => bytes(self.upload_bytes),
            };
            quotas.set(resource, quota);
        }
        quotas
    }
}

/// List the keys of a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory key list --keys /etc/lory/keys.toml")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Remove a key from the file: a running server refuses it within seconds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory key revoke acme")]
pub(crate) struct RevokeArgs {
    /// The key's name
    name: String,
    #[command(flatten)]
    file: FileArgs,
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::New(args) => new(*args),
        Command::List(args) => list(&args),
        Command::Revoke(args) => revoke(&args),
    }
}

fn new(args: NewArgs) -> anyhow::Result<ExitStatus> {
    key_entry::check_name(&args.name).map_err(UsageError)?;
    for persona in &args.personas {
        key_entry::check_pattern(persona)
            .map_err(|error| UsageError(format!("--persona: {error}")))?;
    }
    if let Some(group) = &args.cache_group {
        key_entry::check_group(group)
            .map_err(|error| UsageError(format!("--cache-group: {error}")))?;
    }
    let secret = secret::generate().map_err(auth::KeysError::Random)?;
    let all_personas = args.personas.is_empty();
    let entry = KeyEntry {
        name: args.name,
        sha256: SecretHash::of(&secret),
        personas: (!all_personas).then_some(args.personas),
        base: all_personas || args.base,
        admin: args.admin,
        train: args.train,
        requests_per_minute: args.requests_per_minute,
        tokens_per_minute: args.tokens_per_minute,
        share: args.share,
        quotas: args.quotas.quotas(),
        cache_group: args.cache_group,
    };
    let path = &args.file.keys;
    key_edits::add(path, &entry)?;
    if args.json {
        let mut shown = as_json(&entry);
        shown["key"] = json!(secret);
        print(&format!("{shown:#}\n"))?;
        return Ok(ExitStatus::Success);
    }
    print(&format!("{secret}\n"))?;
    eprintln!(
        "key {} is in {}; its secret is shown only this once",
        entry.name,
        path.display()
    );
    Ok(ExitStatus::Success)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitStatus> {
    let path = &args.file.keys;
    let entries = entries(path)?;
    if args.json {
        let keys: Vec<_> = entries.iter().map(as_json).collect();
        print(&format!("{:#}\n", json!(keys)))?;
        return Ok(ExitStatus::Success);
    }
    if entries.is_empty() {
        eprintln!("{} has no keys", path.display());
        return Ok(ExitStatus::Success);
    }
    let number = |limit: Option<u32>| limit.map_or("no limit".to_owned(), |n| n.to_string());
    let mut table = Table::new(&[
        "key",
        "admin",
        "train",
        "requests/min",
        "tokens/min",
        "share",
        "cache group",
        "quotas",
        "may use",
    ]);
    for entry in &entries {
        let mut may = match &entry.personas {
            Some(personas) => personas.clone(),
            None => vec!["every persona".to_owned()],
        };
        if entry.base {
            may.push("the base".to_owned());
        }
        table.row([
            entry.name.clone(),
            yes_or_no(entry.admin),
            yes_or_no(entry.train || entry.admin),
            number(entry.requests_per_minute),
            number(entry.tokens_per_minute),
            entry.share.to_string(),
            entry
                .cache_group
                .clone()
                .unwrap_or_else(|| "none".to_owned()),
            quotas_text(entry),
            may.join(", "),
        ]);
    }
    print(&table.render())?;
    Ok(ExitStatus::Success)
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<ExitStatus> {
    let path = &args.file.keys;
    let names: Vec<String> = entries(path)?.into_iter().map(|entry| entry.name).collect();
    if !key_edits::remove(path, &args.name)? {
        anyhow::bail!(
            "{}: there is no key {}; the keys are {}",
            path.display(),
            args.name,
            names.join(", ")
        );
    }
    eprintln!("key {} is revoked", args.name);
    Ok(ExitStatus::Success)
}

fn entries(path: &Path) -> anyhow::Result<Vec<KeyEntry>> {
    let place = path.display().to_string();
    let Some(text) = key_file::read_text(path)? else {
        anyhow::bail!(
            "{place}: no such file; make it with `lory key new NAME`, or name another one with --keys"
        );
    };
    Ok(key_file::parse(&place, &text)?)
}

/// A key as JSON, without its hash.
fn as_json(entry: &KeyEntry) -> serde_json::Value {
    json!({
        "name": entry.name,
        "personas": entry.personas,
        "base": entry.base,
        "admin": entry.admin,
        "train": entry.train || entry.admin,
        "requests_per_minute": entry.requests_per_minute,
        "tokens_per_minute": entry.tokens_per_minute,
        "share": entry.share,
        "cache_group": entry.cache_group,
        "quotas": quotas_json(entry),
    })
}

/// The quotas that the file sets for a key, with their names in it.
fn set_quotas(entry: &KeyEntry) -> impl Iterator<Item = (&'static str, u64)> {
    let set = |resource: Resource| Some((resource.key(), entry.quotas.get(resource)?));
    Resource::ALL.into_iter().filter_map(set)
}

fn quotas_text(entry: &KeyEntry) -> String {
    let set: Vec<String> = set_quotas(entry)
        .map(|(name, quota)| format!("{name} {quota}"))
        .collect();
    match set.is_empty() {
        true => "default".to_owned(),
        false => set.join(", "),
    }
}

fn quotas_json(entry: &KeyEntry) -> serde_json::Value {
    set_quotas(entry)
        .map(|(name, quota)| (name.to_owned(), json!(quota)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
