//! Why a base cannot be opened.

/// Why a base cannot be opened. One variant for each cause that someone can act on.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The base cannot be read, is not a GGUF file, or is a damaged one.
    #[error(transparent)]
    Gguf(#[from] formats::gguf::GgufError),
    /// The base is a folder that is damaged or not supported.
    #[error(transparent)]
    Folder(#[from] formats::folder::FolderError),
    /// The base has no tokenizer, or one that is not supported.
    #[error(transparent)]
    Tokenizer(#[from] formats::tokenizer::TokenizerError),
    /// The base has no chat template, or a damaged one.
    #[error(transparent)]
    Template(#[from] formats::chat_template::TemplateError),
    /// The base's weights cannot be run.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] kernels::KernelError),
}
