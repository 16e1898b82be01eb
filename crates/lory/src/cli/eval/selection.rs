//! The personas to evaluate, and their rows.

use std::path::Path;

use registry::{Persona, Personas};

use jobs::evaluation::Candidate;

/// The personas in `named`, or all that have evaluation rows if it is empty, with at most `limit` rows of each.
///
/// `rows` is the name of a file in each persona's folder that replaces the persona's `eval` file. For the names in `adapters` it is a path from
/// the current folder.
pub(crate) fn select(
    personas: &Personas,
    named: &[String],
    adapters: &[String],
    rows: Option<&Path>,
    limit: usize,
) -> anyhow::Result<Vec<Candidate>> {
    let rows_of = |persona: &Persona| match rows {
        Some(file) if adapters.contains(&persona.name) => Some(file.to_owned()),
        Some(file) => Some(persona.dir.join(file)).filter(|path| path.is_file()),
        None => persona.train.as_ref().and_then(|train| train.eval.clone()),
    };
    let missing = match rows {
        Some(file) => format!("put a file {} into its folder", file.display()),
        None if !adapters.is_empty() => "name a file of rows with --rows".to_owned(),
        None => "set `eval` in the [train] table of its persona.toml".to_owned(),
    };
    let names: Vec<String> = if named.is_empty() {
        let all = personas
            .names()
            .into_iter()
            .filter_map(|name| personas.get(name));
        all.filter(|persona| rows_of(persona).is_some())
            .map(|persona| persona.name.clone())
            .collect()
    } else {
        named.to_vec()
    };
    if names.is_empty() {
        anyhow::bail!("no persona has evaluation rows; {missing}");
    }
    let mut candidates = Vec::new();
    for name in &names {
        let part = registry::BlendPart {
            name: name.clone(),
            version: None,
            scale: None,
        };
        let persona = personas.find(&part)?;
        let Some(path) = rows_of(persona) else {
            anyhow::bail!(
                "{}: persona {name} has no evaluation rows; {missing}",
                persona.dir.display()
            );
        };
        let rows = jobs::evaluation::rows(&path, persona)?;
        candidates.push(Candidate::new(persona.clone(), rows, limit)?);
    }
    Ok(candidates)
}
