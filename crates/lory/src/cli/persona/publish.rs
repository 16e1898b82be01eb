//! `lory persona publish`: publishes a new version from the folder of personas or from a PEFT folder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use registry::{AdapterContent, Persona, PersonaSettings, Personas, Publication};
use serde_json::json;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, read_text};
use crate::cli::flags::personas::{PersonasArgs, open_valid};
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::print;
use crate::cli::persona::adapter::check_base;
use base::home::Home;
use base::hub;

/// Publish a persona as a new version; running servers load it within seconds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
By default the adapter, the system prompt and the other settings are those of the persona in the folder of personas.
With --adapter only the adapter is new; the settings are those of the current version, unless there is a persona.toml next to the adapter.

Examples:
  lory persona publish customer
  lory persona publish customer --adapter out/adapter --not-current
  lory persona publish customer --as customer-eu")]
pub(crate) struct Args {
    /// The persona
    #[arg(value_name = "NAME")]
    name: String,
    /// Publish it under another name
    #[arg(long = "as", value_name = "NAME")]
    as_name: Option<String>,
    /// A PEFT folder with the new adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Keep the current version; the new one is available as NAME@VERSION, through a canary, or after a rollback to it
    #[arg(long)]
    not_current: bool,
    /// Fail if the name is already published
    #[arg(long)]
    only_new: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let registry = args.registry.open()?;
    let name = args.as_name.as_ref().unwrap_or(&args.name);
    let (folder, settings) = match &args.adapter {
        Some(adapter) => (Some(adapter.clone()), settings_next_to(adapter)?),
        None => {
            let persona = in_folder(args)?;
            let adapter = persona.adapter.as_ref().map(|adapter| adapter.path.clone());
            (adapter, Some(PersonaSettings::of(&persona)))
        }
    };
    let content = match &folder {
        Some(folder) => {
            let content = AdapterContent::read(folder)?;
            check(&content, &args.base, name)?;
            Some(content)
        }
        None => None,
    };
    let published = registry.publish(&Publication {
        name,
        content: content.as_ref(),
        settings,
        current: !args.not_current,
        only_new: args.only_new,
    })?;
    let text = if args.json {
        let report = json!({
            "name": published.name,
            "version": published.version,
            "current": !args.not_current,
            "sha256": published.sha256,
            "sequence": published.sequence,
            "registry": registry.name(),
        });
        format!("{report}\n")
    } else {
        let adapter = published.sha256.as_deref().unwrap_or("none");
        format!(
            "{}@{} is published{}\n  adapter   {adapter}\n  registry  {}\n",
            published.name,
            published.version,
            if args.not_current {
                ", not current"
            } else {
                ""
            },
            registry.name(),
        )
    };
    print(&text)?;
    Ok(ExitStatus::Success)
}

/// The settings of an adapter's folder that has them, which are those that `--adapter` of the other commands answers with.
fn settings_next_to(adapter: &Path) -> anyhow::Result<Option<PersonaSettings>> {
    if !adapter.join("persona.toml").is_file() {
        return Ok(None);
    }
    let persona = Personas::of_adapter(adapter).context("--adapter")?;
    Ok(Some(PersonaSettings::of(&persona)))
}

/// The persona in the folder of personas.
fn in_folder(args: &Args) -> anyhow::Result<Persona> {
    let personas = open_valid(&args.personas.find()?)?;
    let part = registry::BlendPart {
        name: args.name.clone(),
        version: None,
        scale: None,
    };
    let persona = personas.find(&part)?.clone();
    if persona.adapter.is_none() && persona.train.is_some() {
        anyhow::bail!(
            "{}: persona {} has no adapter yet; `lory train --persona {1}` trains one",
            persona.dir.display(),
            persona.name
        );
    }
    Ok(persona)
}

/// Checks the adapter's recorded base, as far as possible without fetching the base.
fn check(content: &AdapterContent, base: &BaseArgs, name: &str) -> anyhow::Result<()> {
    let path = Path::new(&base.base);
    let known = hub::known_base(&base.base).filter(|_| !path.exists());
    let (path, sha256) = match known {
        Some(known) => {
            let path = Home::find().map(|home| home.base(known.id).join(known.file));
            (
                path.ok().filter(|path| path.is_file()),
                known.sha256.to_owned(),
            )
        }
        None => {
            let located = base.locate()?;
            let sha256 = located.fingerprint()?;
            (Some(located.path), sha256)
        }
    };
    if let Some(found) = content.base_sha256().filter(|found| *found != sha256) {
        anyhow::bail!(
            "{name} was trained on the base with sha256 {found}, and --base {} has {sha256}; name the base that it was \
             trained on with --base",
            base.base
        );
    }
    let Some(path) = path else { return Ok(()) };
    let wording = read_text(&path, base.system_as_user)?;
    check_base(
        name,
        &content.adapter,
        &path,
        &wording.tokenizer,
        &wording.template,
    )?;
    content
        .adapter
        .check(&wording.config)
        .with_context(|| format!("{name} does not fit --base {}", base.base))
}
