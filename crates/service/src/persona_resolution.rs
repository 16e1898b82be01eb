//! Resolves the persona of a request to adapters with scales, a system prompt and sampling defaults.
//!
//! In a blend every part's adapter runs at its own scale. The system prompt, sampling, stop strings and length cannot be mixed:
//! they come from the part with the largest scale, the first of equals.

use engine::AdapterId;
use registry::{AdapterRef, PersonaRef, ScaledPersona};

use sampling::SamplingParams;

use crate::error::RequestError;
use crate::model_identity::{AdapterUse, ModelIdentity};
use crate::model_names::{self, ModelNames, NamedModel};
use crate::request::GenerateRequest;
use base::Base;

/// A persona, a blend or the base, resolved for one request.
#[derive(Debug)]
pub(super) struct ResolvedPersona<'a> {
    pub identity: ModelIdentity,
    /// The adapters, in the order of `identity.adapters`.
    pub adapters: Vec<(AdapterId, &'a AdapterRef)>,
    /// With the request's variables filled in; none if the request does not use it.
    pub system_prompt: Option<String>,
    pub sampling: SamplingParams,
    pub max_new_tokens: Option<usize>,
    pub stop: Vec<String>,
    /// The shadow version, whose answer is compared.
    pub shadow: Option<PersonaRef>,
}

impl<'a> ResolvedPersona<'a> {
    pub fn resolve(
        names: ModelNames<'a>,
        request: &GenerateRequest,
    ) -> Result<ResolvedPersona<'a>, RequestError> {
        let base = names.base;
        let field = request.names.persona;
        let caller = &request.caller;
        let name = request.persona.as_deref();
        let Some(name) = name else {
            let denied = |source| RequestError::Denied {
                field: Some(field),
                source,
            };
            caller.check_base(&base.name).map_err(denied)?;
            return ResolvedPersona::base_alone(base, request);
        };
        if name.trim().is_empty() {
            let base = base.name.clone();
            return Err(RequestError::NoPersona { field, base });
        }
        match names.resolve(caller, field, name, &|spec| request.hash(spec))? {
            NamedModel::Base => ResolvedPersona::base_alone(base, request),
            NamedModel::Personas { spec, parts } => {
                ResolvedPersona::of_parts(base, &spec, &parts, request)
            }
        }
    }

    /// The persona of the `parts` that `spec` names.
    fn of_parts(
        base: &Base,
        spec: &str,
        parts: &[ScaledPersona<'a>],
        request: &GenerateRequest,
    ) -> Result<ResolvedPersona<'a>, RequestError> {
        let mut persona = ResolvedPersona::base(base);
        spec.clone_into(&mut persona.identity.name);
        if let [only] = parts {
            persona.identity.name.clone_from(&only.persona.name);
            persona.identity.version = Some(only.persona.version);
            persona.shadow = only.shadow.map(|shadow| PersonaRef {
                name: shadow.name.clone(),
                version: Some(shadow.version),
            });
        }
        if let Some(lead) = model_names::lead(parts) {
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
        for part in parts {
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
    fn base_alone(
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
            sampling: SamplingParams::default(),
            max_new_tokens: None,
            stop: Vec::new(),
            shadow: None,
        }
    }
}
