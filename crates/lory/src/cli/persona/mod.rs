//! `lory persona`: personas as files for other programs.

mod export;
mod merge;

use std::path::Path;

use formats::chat_template::ChatTemplate;
use formats::peft::Adapter;
use formats::tokenizer::Tokenizer;
use registry::{Persona, Personas};

use super::{Usage, Verdict};

/// Take a persona's adapter to other programs
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Export(export::Args),
    Merge(merge::Args),
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
    }
}

/// A persona and its adapter, with the scale that it is asked for at.
struct Chosen {
    persona: Persona,
    adapter: Adapter,
    sha256: String,
    scale: f32,
}

/// The one persona that `name` names, such as `customer`, `customer@2` or `customer*0.5`.
fn choose(personas: &Personas, name: &str) -> anyhow::Result<Chosen> {
    let chosen = personas.resolve(name)?;
    let [one] = chosen.as_slice() else {
        return Err(Usage(format!(
            "{name}: a blend is several adapters; name its parts one by one"
        ))
        .into());
    };
    let Some(adapter) = &one.persona.adapter else {
        anyhow::bail!(
            "{}: persona {} has no adapter yet; lory train --persona {0} makes one",
            one.persona.dir.display(),
            one.persona.name
        );
    };
    let (read, sha256) = Adapter::read_hashed(&adapter.path)?;
    Ok(Chosen {
        persona: one.persona.clone(),
        adapter: read,
        sha256,
        scale: one.scale,
    })
}

impl Chosen {
    /// Refuses a base of another tokenizer or chat template than those that the adapter records.
    fn fits(&self, tokenizer: &Tokenizer, template: &ChatTemplate) -> anyhow::Result<()> {
        let base = [
            (
                "lory.tokenizer_hash",
                "tokenizer",
                tokenizer.hash().to_owned(),
            ),
            ("lory.template_hash", "chat template", template.hash()),
        ];
        for (key, what, base) in base {
            if let Some(found) = self
                .adapter
                .metadata
                .get(key)
                .filter(|found| **found != base)
            {
                anyhow::bail!(
                    "persona {}: it was trained with another {what} ({found}) than the base's ({base}); name the base \
                     that it was trained on with --base",
                    self.persona.name
                );
            }
        }
        Ok(())
    }

    /// What the file does not hold and whoever uses it must know.
    fn remarks(&self) -> String {
        let mut remarks = String::new();
        if let Some(prompt) = &self.persona.system_prompt {
            remarks += &format!("not in the file: the system prompt, {prompt:?}\n");
        }
        if !self.persona.stop.is_empty() {
            remarks += &format!(
                "not in the file: the stop strings, {:?}\n",
                self.persona.stop
            );
        }
        remarks
    }
}

/// Refuses to write over the base, which may be the only copy.
fn keep_base(out: &Path, base: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(out).is_some_and(|out| Some(out) == real(base)) {
        return Err(Usage(format!(
            "--out {} is the base itself; name another file",
            out.display()
        ))
        .into());
    }
    Ok(())
}
