//! Identifies what answers a request: the base, a version of a persona, or a blend, and its adapters.

use engine::AdapterId;

/// The base, or the persona or blend, that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelIdentity {
    /// The base's name.
    pub base: String,
    /// The persona or blend as the request names it, or the base's name.
    pub name: String,
    /// The persona's version; none for a blend and for the base.
    pub version: Option<u32>,
    /// The adapters, in the order in which they are added.
    pub adapters: Vec<AdapterUse>,
}

impl ModelIdentity {
    /// Whether it is a blend of several personas.
    pub fn is_blend(&self) -> bool {
        self.version.is_none() && self.name.contains('+')
    }
}

/// One adapter of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterUse {
    /// Its content hash.
    pub id: AdapterId,
    /// Multiplies it, in addition to its alpha.
    pub scale: f32,
}
