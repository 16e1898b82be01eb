//! Who is examined, and on which rows.

use registry::{Persona, Personas};

use super::Args;
use jobs::evaluation::Candidate;

/// The personas that the command line names, or all that have rows.
pub(super) fn candidates(personas: &Personas, args: &Args) -> anyhow::Result<Vec<Candidate>> {
    let rows_of = |persona: &Persona| match &args.rows {
        Some(file) => Some(persona.dir.join(file)).filter(|path| path.is_file()),
        None => persona.train.as_ref().and_then(|train| train.eval.clone()),
    };
    let missing = match &args.rows {
        Some(file) => format!("put a file {} into its folder", file.display()),
        None => "name a file as `eval` in the [train] table of its persona.toml".to_owned(),
    };
    let names: Vec<String> = if args.who.is_empty() {
        let all = personas
            .names()
            .into_iter()
            .filter_map(|name| personas.get(name));
        all.filter(|persona| rows_of(persona).is_some())
            .map(|persona| persona.name.clone())
            .collect()
    } else {
        args.who.clone()
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
        let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
        candidates.push(Candidate::new(persona.clone(), rows, limit)?);
    }
    Ok(candidates)
}
