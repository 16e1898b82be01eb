//! The adapter that a command writes, and checks of the base that it is for.

use std::path::Path;

use anyhow::Context as _;
use base::adapter_tensors;
use formats::chat_template::ChatTemplate;
use formats::peft::{self, Adapter};
use formats::tokenizer::Tokenizer;
use registry::{Persona, Personas};

use crate::cli::exit::UsageError;

/// A persona with its adapter.
pub(crate) struct SelectedAdapter {
    pub persona: Persona,
    pub adapter: Adapter,
    pub sha256: String,
    /// The requested scale of the adapter.
    pub scale: f32,
}

/// Selects one persona by a name such as `customer`, `customer@2` or `customer*0.5`, and reads its adapter.
pub(crate) fn select(personas: &Personas, name: &str) -> anyhow::Result<SelectedAdapter> {
    let parts = personas.resolve(name)?;
    let [one] = parts.as_slice() else {
        return Err(UsageError(format!(
            "{name}: a blend has several adapters; name one of its parts"
        ))
        .into());
    };
    let Some(adapter) = &one.persona.adapter else {
        anyhow::bail!(
            "{}: persona {} has no adapter yet; `lory train --persona {1}` trains one",
            one.persona.dir.display(),
            one.persona.name
        );
    };
    Ok(SelectedAdapter {
        persona: one.persona.clone(),
        adapter: adapter.read()?,
        sha256: adapter.sha256_hex(),
        scale: one.scale,
    })
}

impl SelectedAdapter {
    /// [`check_base`] for this adapter and the base at `path`.
    pub fn check_base(
        &self,
        path: &Path,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> anyhow::Result<()> {
        check_base(&self.persona.name, &self.adapter, path, tokenizer, template)
    }

    /// The settings of the persona that are not in the file, one per line.
    pub fn remarks(&self) -> String {
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

/// Checks the tokenizer and chat template of the base at `path` against the hashes that the adapter of persona `name` records, and its tensors
/// against those in the adapter's file.
pub(crate) fn check_base(
    name: &str,
    adapter: &Adapter,
    path: &Path,
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
                "persona {name} was trained with another {what} ({found}) than the base's ({base}); name the base that it \
                 was trained on with --base"
            );
        }
    }
    adapter_tensors::check(path, &adapter.base_tensors, Path::new(peft::WEIGHTS_FILE))
        .with_context(|| format!("persona {name}"))
}

/// Refuses to overwrite the base, which may be the only copy.
pub(crate) fn refuse_to_overwrite(out: &Path, base: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    let base = base::files::all_files(base)?;
    if real(out).is_some_and(|out| base.iter().any(|file| real(file).as_ref() == Some(&out))) {
        return Err(UsageError(format!(
            "--out {} is the base itself; name another file",
            out.display()
        ))
        .into());
    }
    Ok(())
}
