//! Recognises adapters in formats that are not read, so that messages say what is there.

use super::limits::WEIGHTS_FILE;

/// A format of adapters that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherFormat {
    /// PEFT's older weights, which run code when they are read.
    Pickle,
    /// The weights of mlx-lm.
    Mlx,
}

const FORMATS: [OtherFormat; 2] = [OtherFormat::Pickle, OtherFormat::Mlx];

impl OtherFormat {
    /// The file in which an adapter of this format has its weights.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            OtherFormat::Pickle => "adapter_model.bin",
            OtherFormat::Mlx => "adapters.safetensors",
        }
    }

    /// The format of an adapter without `adapter_model.safetensors`; `has` says which files there are.
    pub fn of(has: impl Fn(&str) -> bool) -> Option<OtherFormat> {
        if has(WEIGHTS_FILE) {
            return None;
        }
        FORMATS.into_iter().find(|format| has(format.file()))
    }
}

impl std::fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.file();
        match self {
            OtherFormat::Pickle => write!(
                f,
                "there is only {file}, a pickle, which is not read; save the adapter with safe_serialization=True"
            ),
            OtherFormat::Mlx => write!(
                f,
                "there is only {file}, the weights of an MLX adapter, which are not read; convert them to PEFT's {WEIGHTS_FILE}"
            ),
        }
    }
}
