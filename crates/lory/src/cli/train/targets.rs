//! The adapters that the command line asks for.

use std::path::{Path, PathBuf};

use registry::Personas;
use train::TrainSettings;

use jobs::training::Target;

use super::out_folder::{self, RUN_FOLDER};
use super::preference::{self, PreferenceArgs};
use super::settings::SettingsArgs;
use crate::cli::exit::UsageError;
use crate::cli::flags::dataset::ColumnsArgs;
use crate::cli::flags::personas::{PersonasArgs, open_valid};

/// The flags that select what is trained.
pub(super) struct TargetArgs<'a> {
    pub names: &'a [String],
    pub personas: &'a PersonasArgs,
    pub data: Option<&'a Path>,
    pub eval: Option<&'a Path>,
    pub out: Option<&'a Path>,
    pub system_prompt: Option<&'a str>,
    pub settings: &'a SettingsArgs,
    pub columns: &'a ColumnsArgs,
    pub preference: &'a PreferenceArgs,
}

/// What to train, and the run's checkpoint.
pub(super) struct Targets {
    pub targets: Vec<Target>,
    pub checkpoint: PathBuf,
}

pub(super) fn targets(args: &TargetArgs<'_>) -> anyhow::Result<Targets> {
    if let (Some(data), Some(out)) = (args.data, args.out) {
        let target = from_file(args, data, out)?;
        out_folder::check(&target)?;
        return Ok(Targets {
            targets: vec![target],
            checkpoint: out.join(RUN_FOLDER).join("checkpoint.safetensors"),
        });
    }
    let dir = args.personas.find()?;
    let personas = open_valid(&dir)?;
    let mut targets: Vec<Target> = Vec::new();
    for name in args.names {
        if targets.iter().any(|target| target.name == *name) {
            return Err(UsageError(format!("--persona {name} is given twice")).into());
        }
        targets.push(from_persona(args, &personas, name)?);
    }
    let mut names = args.names.join("+");
    // File names have a maximum length, and this prefix is enough to tell runs apart.
    names.truncate(200);
    Ok(Targets {
        targets,
        checkpoint: dir.join(RUN_FOLDER).join(format!("{names}.safetensors")),
    })
}

/// The adapter of `--data` and `--out`.
fn from_file(args: &TargetArgs<'_>, data: &Path, out: &Path) -> anyhow::Result<Target> {
    let name = std::path::absolute(out)?.file_name().map_or_else(
        || "adapter".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let settings = args
        .columns
        .apply(args.settings.apply(TrainSettings::default()))?;
    let settings = args.preference.apply(&name, data, settings)?;
    let rejects = settings
        .preference
        .as_ref()
        .is_some_and(|p| !p.against.is_empty());
    let siblings = if rejects {
        preference::rejected_personas(&settings, &args.personas.open()?)?
    } else {
        Vec::new()
    };
    Ok(Target {
        name,
        data: data.to_owned(),
        eval: args.eval.map(Path::to_owned),
        system_prompt: args.system_prompt.map(str::to_owned),
        settings,
        siblings,
        from: args.preference.from().cloned(),
        out: out.to_owned(),
    })
}

/// The adapter of a persona.
fn from_persona(args: &TargetArgs<'_>, personas: &Personas, name: &str) -> anyhow::Result<Target> {
    let parts = registry::spec::parse(name)
        .map_err(|error| UsageError(format!("--persona {name}: {error}")))?;
    let [part] = parts.as_slice() else {
        return Err(UsageError(format!(
            "--persona {name}: a blend cannot be trained; name its parts one by one"
        ))
        .into());
    };
    if part.scale.is_some() || part.version.is_some() {
        return Err(UsageError(format!("--persona {name}: training takes a name alone")).into());
    }
    let persona = personas.find(part)?;
    let Some(train) = &persona.train else {
        anyhow::bail!(
            "{}: persona {name} has no [train] table; add one with data = \"train.jsonl\"",
            persona.dir.join(registry::persona_file::FILE).display()
        );
    };
    let settings = args.columns.apply(args.settings.apply(train.settings()?))?;
    let settings = args.preference.apply(name, &train.data, settings)?;
    Ok(Target {
        name: persona.name.clone(),
        data: train.data.clone(),
        eval: train.eval.clone(),
        system_prompt: persona.system_prompt_by_default()?,
        siblings: preference::rejected_personas(&settings, personas)?,
        from: args.preference.from().cloned(),
        settings,
        out: persona.dir.join(registry::persona_folder::ADAPTER),
    })
}
