//! `lory key`: the API keys of a server, in a file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::table::Table;
use super::{Usage, Verdict, print};
use auth::file::{self, Entry, MAX_SHARE};
use auth::secret::{self, Digest};

/// Make, list and revoke the API keys of a server
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    New(NewArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// The flag, for all of them.
#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The file of keys
    #[arg(long, value_name = "FILE", default_value = "keys.toml")]
    keys: PathBuf,
}

/// Make a key: its secret is printed once, the file keeps its SHA-256
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A running server takes it within seconds. The secret alone goes to stdout.

Examples:
  lory key new ops --admin
  lory key new acme --persona 'acme-*' --requests-per-minute 60 --tokens-per-minute 20000")]
pub(super) struct NewArgs {
    /// What logs call it
    name: String,
    #[command(flatten)]
    file: FileArgs,
    /// A persona that it may use, `*` at the end for all that begin so; may be given several times [default: every persona, and
    /// the base]
    #[arg(long = "persona", value_name = "NAME")]
    personas: Vec<String>,
    /// May ask the base, too
    #[arg(long)]
    base: bool,
    /// May change personas, read /metrics, and go before others
    #[arg(long)]
    admin: bool,
    /// May upload files and run training jobs, for the personas that it may use
    #[arg(long)]
    train: bool,
    /// The most requests a minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// The most tokens a minute, of prompts and answers [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_minute: Option<u32>,
    /// Its weight where requests wait: twice the share, twice the rows
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHARE)))]
    share: u32,
    /// Print everything as JSON, the secret included
    #[arg(long)]
    json: bool,
}

/// List the keys of a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory key list --keys /etc/lory/keys.toml")]
pub(super) struct ListArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Take a key out of a file: a running server refuses it within seconds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory key revoke acme")]
pub(super) struct RevokeArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    file: FileArgs,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::New(args) => new(args),
        Command::List(args) => list(&args),
        Command::Revoke(args) => revoke(&args),
    }
}

fn new(args: NewArgs) -> anyhow::Result<Verdict> {
    file::check_name(&args.name).map_err(Usage)?;
    for persona in &args.personas {
        file::check_pattern(persona).map_err(|said| Usage(format!("--persona: {said}")))?;
    }
    let secret = secret::fresh().map_err(auth::KeysError::Random)?;
    let everybody = args.personas.is_empty();
    let entry = Entry {
        name: args.name,
        sha256: Digest::of(&secret),
        personas: (!everybody).then_some(args.personas),
        base: everybody || args.base,
        admin: args.admin,
        train: args.train,
        requests_per_minute: args.requests_per_minute,
        tokens_per_minute: args.tokens_per_minute,
        share: args.share,
    };
    let path = &args.file.keys;
    file::add(path, &entry)?;
    if args.json {
        let mut shown = shown(&entry);
        shown["key"] = json!(secret);
        print(&format!("{shown:#}\n"))?;
        return Ok(Verdict::Good);
    }
    print(&format!("{secret}\n"))?;
    eprintln!(
        "key {} is in {}; this is the only time that its secret is shown",
        entry.name,
        path.display()
    );
    Ok(Verdict::Good)
}

fn list(args: &ListArgs) -> anyhow::Result<Verdict> {
    let path = &args.file.keys;
    let entries = entries(path)?;
    if args.json {
        let keys: Vec<_> = entries.iter().map(shown).collect();
        print(&format!("{:#}\n", json!(keys)))?;
        return Ok(Verdict::Good);
    }
    if entries.is_empty() {
        eprintln!("{} holds no keys", path.display());
        return Ok(Verdict::Good);
    }
    let number = |limit: Option<u32>| limit.map_or("no limit".to_owned(), |n| n.to_string());
    let mut table = Table::new(&[
        "key",
        "admin",
        "requests/min",
        "tokens/min",
        "share",
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
            if entry.admin { "yes" } else { "no" }.to_owned(),
            number(entry.requests_per_minute),
            number(entry.tokens_per_minute),
            entry.share.to_string(),
            may.join(", "),
        ]);
    }
    print(&table.render())?;
    Ok(Verdict::Good)
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<Verdict> {
    let path = &args.file.keys;
    let names: Vec<String> = entries(path)?.into_iter().map(|entry| entry.name).collect();
    if !file::remove(path, &args.name)? {
        anyhow::bail!(
            "{}: there is no key {}; the keys are {}",
            path.display(),
            args.name,
            names.join(", ")
        );
    }
    eprintln!("key {} is revoked", args.name);
    Ok(Verdict::Good)
}

fn entries(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let place = path.display().to_string();
    let Some(text) = file::text(path)? else {
        anyhow::bail!(
            "{place}: no such file; `lory key new NAME` makes it, --keys names another one"
        );
    };
    Ok(file::parse(&place, &text)?)
}

/// What may be shown of a key.
fn shown(entry: &Entry) -> serde_json::Value {
    json!({
        "name": entry.name,
        "personas": entry.personas,
        "base": entry.base,
        "admin": entry.admin,
        "requests_per_minute": entry.requests_per_minute,
        "tokens_per_minute": entry.tokens_per_minute,
        "share": entry.share,
    })
}
