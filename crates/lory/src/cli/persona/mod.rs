//! `lory persona`: publishing personas and what becomes of them, and personas as files for other programs.

mod change;
mod export;
mod look;
mod merge;
mod publish;
mod tend;

use std::path::Path;

use formats::chat_template::ChatTemplate;
use formats::peft::Adapter;
use formats::tokenizer::Tokenizer;
use registry::{Persona, Personas};

use super::{Usage, Verdict};

/// Publish personas, go back, look after them; take an adapter to other programs
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Publish(publish::Args),
    List(look::List),
    Show(look::Show),
    History(look::History),
    Rollback(change::Rollback),
    Alias(change::Alias),
    Canary(change::Canary),
    Shadow(change::Shadow),
    Remove(change::Remove),
    Verify(tend::Verify),
    Gc(tend::Gc),
    Export(export::Args),
    Merge(merge::Args),
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Publish(args) => publish::run(&args),
        Command::List(args) => look::list(&args),
        Command::Show(args) => look::show(&args),
        Command::History(args) => look::history(&args),
        Command::Rollback(args) => change::rollback(&args),
        Command::Alias(args) => change::alias(&args),
        Command::Canary(args) => change::canary(&args),
        Command::Shadow(args) => change::shadow(&args),
        Command::Remove(args) => change::remove(&args),
        Command::Verify(args) => tend::verify(&args),
        Command::Gc(args) => tend::gc(&args),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
    }
}

/// One persona, and the version of it if one was named.
fn named(text: &str) -> anyhow::Result<(String, Option<u32>)> {
    let parts = registry::spec::parse(text).map_err(|error| Usage(format!("{text}: {error}")))?;
    match parts.as_slice() {
        [part] if part.scale.is_none() => Ok((part.name.clone(), part.version)),
        _ => Err(Usage(format!(
            "{text}: name one persona, such as customer or customer@3"
        ))
        .into()),
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
    Ok(Chosen {
        persona: one.persona.clone(),
        adapter: adapter.read()?,
        sha256: adapter.sha256_hex(),
        scale: one.scale,
    })
}

impl Chosen {
    /// [`fits`].
    fn fits(&self, tokenizer: &Tokenizer, template: &ChatTemplate) -> anyhow::Result<()> {
        fits(&self.persona.name, &self.adapter, tokenizer, template)
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

/// Refuses a base of another tokenizer or chat template than those that the adapter of persona `name` records.
fn fits(
    name: &str,
    adapter: &Adapter,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> anyhow::Result<()> {
    let base = [
        (
            "lory.tokenizer_hash",
            "tokenizer",
            tokenizer.hash().to_owned(),
        ),
        ("lory.template_hash", "chat template", template.hash()),
    ];
    for (key, what, base) in base {
        if let Some(found) = adapter.metadata.get(key).filter(|found| **found != base) {
            anyhow::bail!(
                "persona {name}: it was trained with another {what} ({found}) than the base's ({base}); name the base that \
                 it was trained on with --base"
            );
        }
    }
    Ok(())
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
