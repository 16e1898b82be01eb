//! What a request may call a model: a persona, a blend, the base, or an alias that the operator set.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use formats::persona_name::is_persona_name;
use registry::spec::{self, MAX_SPEC};
use registry::{LookupError, Persona, Personas, ScaledPersona};

use auth::AuthError;
use base::Base;

use crate::caller::Caller;
use crate::error::{RequestError, ServiceStartError};

/// Another name for a persona, a blend or the base. Unlike a persona's name it may have any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAlias {
    /// The name that requests give.
    pub name: String,
    /// The persona, the blend or the base that it means.
    pub target: String,
}

impl FromStr for ModelAlias {
    type Err = String;

    /// Reads `NAME=TARGET`.
    fn from_str(text: &str) -> Result<ModelAlias, String> {
        let parts = text.split_once('=');
        let (name, target) = parts.ok_or("write NAME=PERSONA, such as gpt-4o-mini=customer")?;
        let (name, target) = (name.trim(), target.trim());
        if name.is_empty() || target.is_empty() {
            return Err("write NAME=PERSONA, such as gpt-4o-mini=customer".to_owned());
        }
        if name.len() > MAX_SPEC || name.chars().any(char::is_control) {
            return Err(format!(
                "an alias has at most {MAX_SPEC} bytes and no control characters"
            ));
        }
        Ok(ModelAlias {
            name: name.to_owned(),
            target: target.to_owned(),
        })
    }
}

impl fmt::Display for ModelAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.target)
    }
}

/// The aliases of a service: target by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelAliases(BTreeMap<String, String>);

impl ModelAliases {
    /// Checks the aliases of a service with this base.
    ///
    /// # Errors
    /// [`ServiceStartError::ModelAlias`] for the first that cannot be used.
    pub(crate) fn new(
        aliases: &[ModelAlias],
        base: &Base,
    ) -> Result<ModelAliases, ServiceStartError> {
        let mut targets = BTreeMap::new();
        let is_base = |name: &str| base.is_named(name);
        for alias in aliases {
            let ModelAlias { name, target } = alias;
            let refuse = |message: String| ServiceStartError::ModelAlias {
                alias: alias.to_string(),
                message,
            };
            check(alias, aliases, &is_base).map_err(&refuse)?;
            if targets.insert(name.clone(), target.clone()).is_some() {
                return Err(refuse(format!("{name:?} is set twice")));
            }
        }
        Ok(ModelAliases(targets))
    }

    /// What `name` means, if it is an alias.
    pub(crate) fn target(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether `name` is an alias of other models only: then no persona may have this name, or requests for it would reach that persona.
    pub(crate) fn is_of_others(&self, name: &str) -> bool {
        self.target(name).is_some_and(|target| {
            let parts = spec::parse(target).unwrap_or_default();
            parts.iter().all(|part| part.name != name)
        })
    }

    /// The aliases whose target is neither the base nor among `personas`, as `NAME=TARGET`, with the reason.
    pub(crate) fn without_target(
        &self,
        is_base: impl Fn(&str) -> bool,
        personas: &Personas,
    ) -> Vec<(String, LookupError)> {
        let targets = self.0.iter().filter(|(_, target)| !is_base(target));
        let missing = targets.filter_map(|(name, target)| {
            let error = personas.resolve(target).err()?;
            Some((format!("{name}={target}"), error))
        });
        missing.collect()
    }

    /// The aliases whose target the caller may use.
    pub(crate) fn usable_by(&self, caller: &Caller, base: &Base) -> Vec<&str> {
        let may_use = |target: &str| match base.is_named(target) {
            true => caller.check_base(&base.name).is_ok(),
            false => check_caller(caller, target).is_ok(),
        };
        let usable = self.0.iter().filter(|(_, target)| may_use(target));
        usable.map(|(name, _)| name.as_str()).collect()
    }
}

/// Checks one of the aliases. What it means must not depend on another alias: it would mean one model where the other is replaced, and
/// another where it is not.
///
/// # Errors
/// Why it cannot be used.
fn check(
    alias: &ModelAlias,
    aliases: &[ModelAlias],
    is_base: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    let ModelAlias { name, target } = alias;
    if is_base(name) {
        return Err(format!("{name:?} is a name of the base"));
    }
    let another =
        |named: &str| format!("{named:?} is an alias itself; name the persona that it means");
    if aliases.iter().any(|other| other.name == *target) {
        return Err(another(target));
    }
    if is_base(target) {
        return Ok(());
    }
    let parts = spec::parse(target).map_err(|error| error.to_string())?;
    let mut others = aliases.iter().filter(|other| other.name != *name);
    let named = others.find(|other| parts.iter().any(|part| part.name == other.name));
    named.map_or(Ok(()), |other| Err(another(&other.name)))
}

/// The name of a model as a client gives it, without spaces around it, as around the parts of a blend. Responses and records have it so. A
/// name cannot have other white space.
#[must_use]
pub fn requested_name(text: &str) -> &str {
    text.trim_matches(' ')
}

/// What a name means.
#[derive(Debug)]
pub enum NamedModel<'p> {
    /// The base alone.
    Base,
    /// A persona, or the parts of a blend.
    Personas {
        /// The spec, after an alias was replaced.
        spec: String,
        /// Its personas with their scales.
        parts: Vec<ScaledPersona<'p>>,
    },
}

impl<'p> NamedModel<'p> {
    /// The persona whose system prompt, sampling, stop strings and length apply: that with the largest scale, the first of equals. The
    /// base has none.
    #[must_use]
    pub fn lead(&self) -> Option<&'p Persona> {
        match self {
            NamedModel::Base => None,
            NamedModel::Personas { parts, .. } => lead(parts),
        }
    }
}

/// [`NamedModel::lead`] of these parts.
pub(crate) fn lead<'p>(parts: &[ScaledPersona<'p>]) -> Option<&'p Persona> {
    let parts = parts.iter().rev();
    let lead = parts.max_by(|a, b| a.scale.total_cmp(&b.scale))?;
    Some(lead.persona)
}

/// Where names are looked up.
#[derive(Clone, Copy)]
pub(crate) struct ModelNames<'p> {
    pub(crate) base: &'p Base,
    pub(crate) aliases: &'p ModelAliases,
    pub(crate) personas: &'p Personas,
}

impl<'p> ModelNames<'p> {
    /// What `name`, which `field` of a request gives, means for `caller`. `hash` decides between the versions of a canary, from the spec.
    ///
    /// Permissions are checked before the lookup: a caller that may not use a persona must not learn whether it exists.
    ///
    /// # Errors
    /// [`RequestError`]: nothing has this name, or the caller may not use what it means.
    pub(crate) fn resolve(
        self,
        caller: &Caller,
        field: &'static str,
        name: &str,
        hash: &dyn Fn(&str) -> u64,
    ) -> Result<NamedModel<'p>, RequestError> {
        let name = requested_name(name);
        let alias = self.aliases.target(name);
        let spec = alias.unwrap_or(name);
        let unknown = || RequestError::UnknownModel {
            field,
            name: name.chars().take(SHOWN_CHARS).collect(),
            available: self.available(caller),
        };
        let denied = |source| match alias {
            // Without the alias this name would be unknown, so a refusal would show that it exists.
            Some(_) if !is_persona_name(name) && !name.contains(OPERATORS) => unknown(),
            // What an alias means is the operator's business.
            Some(_) => RequestError::Denied {
                field: Some(field),
                source: requested_as(name, source),
            },
            None => RequestError::Denied {
                field: Some(field),
                source,
            },
        };
        if self.base.is_named(spec) {
            caller.check_base(&self.base.name).map_err(denied)?;
            return Ok(NamedModel::Base);
        }
        check_caller(caller, spec).map_err(denied)?;
        // An alias has no versions and no weight: what a request adds to it must not reach a persona of the same name.
        let named = spec::parse(spec).unwrap_or_default();
        if alias.is_none() && named.iter().any(|p| self.aliases.is_of_others(&p.name)) {
            return Err(unknown());
        }
        let parts = self.personas.resolve_for(spec, hash(spec));
        let parts = parts.map_err(|source| match source {
            // Names of other servers' models, and misspelled ones.
            LookupError::Spec(_) if self.has_unknown_name(caller, spec) => unknown(),
            source => RequestError::Persona {
                field,
                source: self.with_requestable_names(caller, source),
                base: self.base_for(caller),
                aliases: self.aliases_for(caller),
            },
        })?;
        Ok(NamedModel::Personas {
            spec: spec.to_owned(),
            parts,
        })
    }

    /// Whether an invalid spec names something else than a persona that the caller may use, whatever its weights and versions are.
    fn has_unknown_name(self, caller: &Caller, spec: &str) -> bool {
        let named = |part: &str| {
            part.split(['@', '*'])
                .next()
                .map_or("", str::trim)
                .to_owned()
        };
        let is_known = |name: &str| self.personas.get(name).is_some() && caller.may_use(name);
        !spec.contains(OPERATORS)
            || (spec.split('+').map(named)).any(|name| !name.is_empty() && !is_known(&name))
    }

    /// The names that the caller may use: the base, aliases and personas.
    fn available(self, caller: &Caller) -> Vec<String> {
        let base = self.base_for(caller).into_iter();
        let personas = self.personas_for(caller).map(str::to_owned);
        let names = base.chain(self.aliases_for(caller));
        names.chain(personas).collect()
    }

    /// The base's name, if the caller may use it.
    fn base_for(self, caller: &Caller) -> Option<String> {
        let base = &self.base.name;
        caller.check_base(base).is_ok().then(|| base.clone())
    }

    /// The aliases of the operator and of the registry that the caller may use.
    fn aliases_for(self, caller: &Caller) -> Vec<String> {
        let registry = self.personas.aliases().map(|(alias, _)| alias);
        let registry = registry.filter(|alias| self.means_persona(caller, alias));
        let operator = self.aliases.usable_by(caller, self.base).into_iter();
        operator.chain(registry).map(str::to_owned).collect()
    }

    /// The personas that the caller may request by their names.
    fn personas_for(self, caller: &'p Caller) -> impl Iterator<Item = &'p str> {
        let names = self.personas.names().into_iter();
        names.filter(move |name| self.means_persona(caller, name))
    }

    /// Whether the caller may request what the registry calls `name`, and `name` does not mean an alias of the operator or the base.
    fn means_persona(self, caller: &Caller, name: &str) -> bool {
        caller.may_use(name) && self.aliases.target(name).is_none() && !self.base.is_named(name)
    }

    /// The same error with the names of personas that the caller may request.
    fn with_requestable_names(self, caller: &Caller, error: LookupError) -> LookupError {
        match error {
            LookupError::Unknown { name, .. } => LookupError::Unknown {
                name,
                available: self.personas_for(caller).map(str::to_owned).collect(),
            },
            error => error,
        }
    }
}

/// What a spec has in addition to names: weights, blends and versions.
const OPERATORS: [char; 3] = ['*', '+', '@'];
/// The most characters of an unknown name in an error.
const SHOWN_CHARS: usize = 100;

/// A refusal that names what the client asked for.
fn requested_as(name: &str, mut denied: AuthError) -> AuthError {
    if let AuthError::PersonaNotAllowed { requested, .. }
    | AuthError::ScaleNotAllowed { requested, .. } = &mut denied
    {
        name.clone_into(requested);
    }
    denied
}

/// Checks that a caller may use the personas of `spec` with their scales.
fn check_caller(caller: &Caller, spec: &str) -> Result<(), AuthError> {
    let named = registry::spec::parse(spec).unwrap_or_default();
    for part in &named {
        caller.check_persona(&part.name)?;
    }
    if named.is_empty() {
        return Ok(());
    }
    let scales: Vec<f32> = named.iter().map(|part| part.scale.unwrap_or(1.0)).collect();
    caller.check_scales(spec, &scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alias_takes_the_name_of_personas_that_it_does_not_mean() {
        let aliases = [
            ("gpt-x", "customer"),
            ("gpt-y", "customer*0.7+partner*0.3"),
            ("gpt-z", "tiny"),
            ("customer", "customer*0.7"),
        ];
        let aliases = aliases.map(|(name, target)| (name.to_owned(), target.to_owned()));
        let aliases = ModelAliases(aliases.into_iter().collect());
        for (name, expected) in [
            ("gpt-x", true),
            ("gpt-y", true),
            ("gpt-z", true),
            ("customer", false),
            ("partner", false),
        ] {
            assert_eq!(aliases.is_of_others(name), expected, "{name}");
        }
    }

    #[test]
    fn alias_that_depends_on_another_alias_is_refused() {
        let all = [
            "mix=customer*0.5+nice*0.5",
            "old=nice@2",
            "nice=partner",
            "customer=customer*0.7",
            "chain=old",
            "b=tiny",
            "tiny=partner",
            "good=formal*0.5+partner",
        ];
        let all = all.map(|text| text.parse::<ModelAlias>().unwrap());
        let is_base = |name: &str| name == "tiny";
        let another = |name: &str| {
            Err(format!(
                "{name:?} is an alias itself; name the persona that it means"
            ))
        };
        for (alias, expected) in [
            ("mix", another("nice")),
            ("old", another("nice")),
            ("nice", Ok(())),
            ("customer", Ok(())),
            ("chain", another("old")),
            ("tiny", Err("\"tiny\" is a name of the base".to_owned())),
            ("good", Ok(())),
        ] {
            let alias = all.iter().find(|one| one.name == alias).unwrap();
            assert_eq!(check(alias, &all, &is_base), expected, "{alias}");
        }
    }

    #[test]
    fn alias_is_read_up_to_the_first_equals_sign() {
        let alias: ModelAlias = " gpt-4o = customer*0.7+partner*0.3".parse().unwrap();
        assert_eq!(alias.name, "gpt-4o");
        assert_eq!(alias.target, "customer*0.7+partner*0.3");
        assert_eq!(alias.to_string(), "gpt-4o=customer*0.7+partner*0.3");
        let long = format!("{}=customer", "x".repeat(MAX_SPEC + 1));
        for (text, expected) in [
            ("customer", "write NAME=PERSONA"),
            ("=customer", "write NAME=PERSONA"),
            ("gpt-4o=", "write NAME=PERSONA"),
            (
                "a\nb=customer",
                "at most 1024 bytes and no control characters",
            ),
            (&long, "at most 1024 bytes"),
        ] {
            let message = text.parse::<ModelAlias>().unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn alias_of_an_unknown_persona_is_found() {
        let targets = [("a", "nobody"), ("b", "nobody*0.5+tiny"), ("c", "tiny")];
        let targets = targets.map(|(name, target)| (name.to_owned(), target.to_owned()));
        let aliases = ModelAliases(BTreeMap::from(targets));
        let missing = aliases.without_target(|name| name == "tiny", &Personas::default());
        let missing: Vec<String> = missing
            .iter()
            .map(|(alias, error)| format!("{alias}: {error}"))
            .collect();
        assert_eq!(missing.len(), 2);
        assert_eq!(
            missing[0],
            "a=nobody: unknown persona `nobody`; there are none"
        );
    }
}
