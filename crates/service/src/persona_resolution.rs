//! Whom a request asks for: its persona spec becomes adapters with scales, a system prompt and defaults.
//!
//! In a blend every part's adapter runs at its own scale; what cannot be mixed (system prompt, sampling, stop strings,
//! length) is that of the part with the largest scale, the first of equals.

use engine::AdapterId;
use registry::{AdapterRef, PersonaRef, Personas, SamplingDefaults};

use crate::error::RequestError;
use crate::request::GenerateRequest;
use base::Base;

/// The alias of the base, where no persona bears it.
const BASE: &str = "base";

/// Who answers, as an answer tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelIdentity {
    /// The base's name.
    pub base: String,
    /// The persona or blend as it was asked for, or the base's name.
    pub name: String,
    /// The persona's version; none for a blend and for the base.
    pub version: Option<u32>,
    /// The adapters, in the order in which they are added.
    pub adapters: Vec<AdapterUse>,
}

impl ModelIdentity {
    /// Whether it is several personas at once.
    pub fn is_blend(&self) -> bool {
        self.version.is_none() && self.name.contains('+')
    }
}

/// One adapter at work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterUse {
    /// Its content hash.
    pub id: AdapterId,
    /// What multiplies it, beyond its own alpha.
    pub scale: f32,
}

/// A resolved spec.
#[derive(Debug)]
pub(super) struct ResolvedPersona<'a> {
    pub identity: ModelIdentity,
    /// Where the speaker's adapters lie, in its order.
    pub adapters: Vec<(AdapterId, &'a AdapterRef)>,
    /// With the request's variables in it; none where the request does not use it.
    pub system_prompt: Option<String>,
    pub sampling: SamplingDefaults,
    pub max_new_tokens: Option<usize>,
    pub stop: Vec<String>,
    /// The version that answers too, for comparison.
    pub shadow: Option<PersonaRef>,
}

impl<'a> ResolvedPersona<'a> {
    pub fn resolve(
        base: &Base,
        personas: &'a Personas,
        request: &GenerateRequest,
    ) -> Result<ResolvedPersona<'a>, RequestError> {
        let field = request.names.persona;
        let denied = |source| RequestError::Denied {
            field: Some(field),
            source,
        };
        let Some(spec) = request.persona.as_deref().map(str::trim) else {
            request.caller.check_base(&base.name).map_err(denied)?;
            return ResolvedPersona::base_for(base, request);
        };
        if spec.is_empty() {
            let base = base.name.clone();
            return Err(RequestError::NoPersona { field, base });
        }
        if spec == base.name || (spec == BASE && personas.get(BASE).is_none()) {
            request.caller.check_base(&base.name).map_err(denied)?;
            return ResolvedPersona::base_for(base, request);
        }
        // Before it is looked up: who may not use a persona shall not learn whether it is there.
        for part in registry::spec::parse(spec).into_iter().flatten() {
            request.caller.check_persona(&part.name).map_err(denied)?;
        }
        let parts = personas
            .resolve_for(spec, request.draw())
            .map_err(|source| RequestError::Persona {
                field,
                source: request.caller.seen(source),
                base: base.name.clone(),
            })?;
        let lead = parts
            .iter()
            .rev()
            .max_by(|a, b| a.scale.total_cmp(&b.scale))
            .map(|part| part.persona);
        let mut persona = ResolvedPersona::base(base);
        spec.clone_into(&mut persona.identity.name);
        if let [only] = parts.as_slice() {
            persona.identity.name.clone_from(&only.persona.name);
            persona.identity.version = Some(only.persona.version);
            persona.shadow = only.shadow.map(|shadow| PersonaRef {
                name: shadow.name.clone(),
                version: Some(shadow.version),
            });
        }
        if let Some(lead) = lead {
            registry::variables::check_given(
                &request.variables,
                parts.iter().map(|part| &part.persona.variables),
            )?;
            if request.takes_system_prompt() {
                persona.system_prompt = lead.system_prompt_with(&request.variables)?;
            }
            persona.sampling = lead.sampling;
            persona.max_new_tokens = lead.max_new_tokens;
            persona.stop.clone_from(&lead.stop);
        }
        for part in &parts {
            // At scale 0 an adapter adds nothing.
            if let Some(adapter) = part.persona.adapter.as_ref().filter(|_| part.scale != 0.0) {
                let (id, scale) = (AdapterId(adapter.sha256), part.scale);
                persona.identity.adapters.push(AdapterUse { id, scale });
                persona.adapters.push((id, adapter));
            }
        }
        Ok(persona)
    }

    /// The base, which has no system prompt.
    fn base_for(
        base: &Base,
        request: &GenerateRequest,
    ) -> Result<ResolvedPersona<'a>, RequestError> {
        registry::variables::check_given(&request.variables, [])?;
        Ok(ResolvedPersona::base(base))
    }

    fn base(base: &Base) -> ResolvedPersona<'a> {
        ResolvedPersona {
            identity: ModelIdentity {
                base: base.name.clone(),
                name: base.name.clone(),
                version: None,
                adapters: Vec::new(),
            },
            adapters: Vec::new(),
            system_prompt: None,
            sampling: SamplingDefaults::default(),
            max_new_tokens: None,
            stop: Vec::new(),
            shadow: None,
        }
    }
}
