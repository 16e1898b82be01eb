//! Names in requests that are not for answers, but about models: those of jobs, gates, evaluations and votes. They mean what they mean in
//! a request for an answer.

use registry::{Persona, Personas, spec};

use auth::AuthError;

use super::Service;
use crate::caller::Caller;
use crate::error::RequestError;
use crate::model_names::NamedModel;

/// Why a name does not mean one persona.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The caller may not use what it means.
    #[error(transparent)]
    Denied(#[from] AuthError),
    /// Nothing has this name, or it means something else; what is wrong, for a message that begins with the field.
    #[error("{0}")]
    Unusable(String),
}

impl Service {
    /// The persona that `name` means for `caller`, itself or by an alias of the operator; `None` for the base. Without a version it is the
    /// current one, also while a canary runs.
    ///
    /// # Errors
    /// [`NameError`], also for a blend and a persona with a scale.
    pub fn find_single_persona<'p>(
        &'p self,
        personas: &'p Personas,
        caller: &Caller,
        name: &str,
    ) -> Result<Option<&'p Persona>, NameError> {
        let unusable = |message: &str| NameError::Unusable(message.to_owned());
        let Some(spec) = self.persona_spec(personas, caller, name)? else {
            return Ok(None);
        };
        let parts = spec::parse(&spec).map_err(|error| unusable(&error.to_string()))?;
        let [part] = parts.as_slice() else {
            return Err(unusable("is a blend; name one persona"));
        };
        if part.scale.is_some() {
            return Err(unusable("has a scale; name the persona without it"));
        }
        let persona = caller.find_persona(personas, part);
        persona
            .map(Some)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// What `name` means for `caller`, as a name that does not change its meaning: the base, or a persona or a blend with versions.
    ///
    /// # Errors
    /// [`NameError`], also for a persona that is named without its version.
    pub fn pinned_name(&self, caller: &Caller, name: &str) -> Result<String, NameError> {
        let personas = self.personas();
        let Some(spec) = self.persona_spec(&personas, caller, name)? else {
            return Ok(self.base().name.clone());
        };
        let parts = spec::parse(&spec).unwrap_or_default();
        for part in &parts {
            let found = caller.find_persona(&personas, part);
            let found = found.map_err(|error| NameError::Unusable(error.to_string()))?;
            if part.version.is_none() {
                return Err(NameError::Unusable(format!(
                    "{} has no version, and its current one may change; name one, such as {}@{}",
                    part.name, found.name, found.version
                )));
            }
        }
        // One model has one spelling.
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        Ok(parts.join("+"))
    }

    /// The spec that `name` means, after an alias was replaced; `None` for the base.
    fn persona_spec(
        &self,
        personas: &Personas,
        caller: &Caller,
        name: &str,
    ) -> Result<Option<String>, NameError> {
        match self.find_model(personas, caller, name) {
            Ok(NamedModel::Base) => Ok(None),
            Ok(NamedModel::Personas { spec, .. }) => Ok(Some(spec)),
            Err(RequestError::Denied { source, .. }) => Err(source.into()),
            Err(error) => {
                let message = error.to_string();
                let message = message.strip_prefix("model: ").unwrap_or(&message);
                Err(NameError::Unusable(message.to_owned()))
            }
        }
    }
}
