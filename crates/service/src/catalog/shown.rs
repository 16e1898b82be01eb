//! Personas, versions and log entries as JSON, for `lory persona ... --json` and the admin routes.

use registry::{
    CollectedGarbage, LogEntry, Persona, PersonaRef, PersonaSettings, RegistryError, RegistryState,
    Release, VerifiedAdapter,
};
use serde_json::{Value, json};

use super::Catalog;

/// Every persona, by name, with its current version; then the aliases.
pub fn list(catalog: &Catalog) -> Value {
    let state = catalog.registry().map(|registry| registry.state());
    let personas = catalog.personas();
    let one = |name: &str| match &state {
        Some(state) if state.record(name).is_ok() => published(state, name),
        _ => in_folder(personas.get(name)),
    };
    let data: Vec<Value> = personas.names().into_iter().map(one).collect();
    let aliases: serde_json::Map<String, Value> = personas
        .aliases()
        .map(|(alias, target)| (alias.to_owned(), json!(target.to_string())))
        .collect();
    json!({"object": "list", "data": data, "aliases": aliases})
}

fn published(state: &RegistryState, name: &str) -> Value {
    let Ok(record) = state.record(name) else {
        return Value::Null;
    };
    let current = record.versions.get(&record.current);
    let adapter = current.and_then(|release| release.adapter.as_ref());
    json!({
        "object": "persona",
        "name": name,
        "source": "registry",
        "version": record.current,
        "versions": record.versions.keys().collect::<Vec<_>>(),
        "description": current.map_or("", |release| &release.settings.description),
        "adapter": adapter,
        "published": current.map(|release| release.time),
        "canary": record.canary,
        "shadow": record.shadow,
    })
}

fn in_folder(persona: Option<&Persona>) -> Value {
    let Some(persona) = persona else {
        return Value::Null;
    };
    json!({
        "object": "persona",
        "name": persona.name,
        "source": "folder",
        "version": persona.version,
        "versions": [persona.version],
        "description": persona.description,
        "adapter": folder_adapter(persona),
        "published": null,
        "canary": null,
        "shadow": null,
    })
}

fn folder_adapter(persona: &Persona) -> Option<Value> {
    persona.adapter.as_ref().map(
        |adapter| json!({"sha256": adapter.sha256_hex(), "bytes": adapter.bytes, "base_sha256": null}),
    )
}

/// One version of a published persona, with its settings; by default the current one.
///
/// # Errors
/// [`RegistryError::Unknown`], [`RegistryError::NoVersion`].
pub fn version(
    state: &RegistryState,
    name: &str,
    version: Option<u32>,
) -> Result<Value, RegistryError> {
    let record = state.record(name)?;
    let (version, release) = state.release(name, version)?;
    let Release {
        adapter,
        settings,
        time,
    } = release;
    Ok(json!({
        "object": "persona.version",
        "name": name,
        "source": "registry",
        "version": version,
        "current": version == record.current,
        "published": time,
        "adapter": adapter,
        "settings": settings,
        "canary": record.canary.filter(|split| split.version == version),
        "shadow": record.shadow.filter(|split| split.version == version),
        "aliases": aliases(state, name, version == record.current, version),
    }))
}

/// Every version of a published persona, the newest first.
///
/// # Errors
/// [`RegistryError::Unknown`].
pub fn versions(state: &RegistryState, name: &str) -> Result<Value, RegistryError> {
    let record = state.record(name)?;
    let each = record.versions.keys().rev();
    let data: Result<Vec<Value>, _> = each.map(|one| version(state, name, Some(*one))).collect();
    Ok(json!({"object": "list", "data": data?}))
}

/// A version of a persona in the folder.
pub fn folder_version(persona: &Persona) -> Value {
    json!({
        "object": "persona.version",
        "name": persona.name,
        "source": "folder",
        "version": persona.version,
        "current": true,
        "published": null,
        "adapter": folder_adapter(persona),
        "settings": PersonaSettings::of(persona),
        "canary": null,
        "shadow": null,
        "aliases": [],
    })
}

/// The aliases of a version.
fn aliases(state: &RegistryState, name: &str, current: bool, version: u32) -> Vec<String> {
    let leads = |(_, target): &(&String, &PersonaRef)| {
        target.name == name && target.version.map_or(current, |pinned| pinned == version)
    };
    let aliases = state.aliases.iter().filter(leads);
    aliases.map(|(alias, _)| alias.clone()).collect()
}

/// The log entries of one persona, or all of them, the oldest first.
pub fn history(state: &RegistryState, name: Option<&str>) -> Value {
    let about = |entry: &LogEntry| name.is_none_or(|name| entry.concerns(name));
    let data: Vec<Value> = state
        .entries
        .iter()
        .filter(|entry| about(entry))
        .map(|entry| {
            json!({
                "sequence": entry.sequence,
                "time": entry.time,
                "summary": entry.change.to_string(),
                "change": entry.change,
            })
        })
        .collect();
    json!({"object": "list", "data": data})
}

/// The result of a verification.
pub fn verified(verified: &[VerifiedAdapter]) -> Value {
    let data: Vec<Value> = verified
        .iter()
        .map(|one| {
            let used_by: Vec<String> = one.used_by.iter().map(ToString::to_string).collect();
            json!({
                "sha256": one.sha256,
                "used_by": used_by,
                "ok": one.problem.is_none(),
                "problem": one.problem,
            })
        })
        .collect();
    let broken = verified.iter().filter(|one| one.problem.is_some()).count();
    json!({"object": "list", "data": data, "broken": broken})
}

/// The result of a garbage collection.
pub fn collected(collected: &CollectedGarbage, dry_run: bool) -> Value {
    json!({
        "object": "registry.gc",
        "dry_run": dry_run,
        "removed": collected.removed,
        "too_young": collected.too_young,
        "used": collected.used,
    })
}
