//! The model families that the decoder runs, one row for each `model_type`.

use super::rope::RopeStyle;

/// What errors say instead of a family or a feature that is not supported.
pub(super) const SUPPORTED: &str = "the families that are run are Llama, Mistral, Qwen2, Qwen3 and SmolLM2, without experts, with \
                                    plain, linear or Llama 3 rotary positions";

/// When a family uses `sliding_window` of its `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlidingWindow {
    Always,
    /// Its files may name a window, but the model has none.
    Never,
    /// If `use_sliding_window` is set.
    IfEnabled,
}

/// What a family's files are called and which parts of the decoder it has.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The class of transformers, in `architectures` of `config.json`.
    pub class: &'static str,
    /// `general.architecture` of its GGUF files. Families of one architecture have the same `gguf_rope` and `qk_norm`.
    pub architecture: &'static str,
    /// How GGUF files pair the rows of queries and keys.
    pub gguf_rope: RopeStyle,
    /// Whether query, key and value projections have a bias. If not, `attention_bias` of `config.json` must not be set.
    pub qkv_bias: bool,
    /// Whether each head of the queries and keys is normed.
    pub qk_norm: bool,
    pub sliding_window: SlidingWindow,
}

const FAMILIES: [Family; 4] = [
    Family {
        model_type: "llama",
        class: "LlamaForCausalLM",
        architecture: "llama",
        gguf_rope: RopeStyle::Interleaved,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: SlidingWindow::Never,
    },
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        architecture: "llama",
        gguf_rope: RopeStyle::Interleaved,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: SlidingWindow::Always,
    },
    Family {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        architecture: "qwen2",
        gguf_rope: RopeStyle::HalfSplit,
        qkv_bias: true,
        qk_norm: false,
        sliding_window: SlidingWindow::IfEnabled,
    },
    Family {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        architecture: "qwen3",
        gguf_rope: RopeStyle::HalfSplit,
        qkv_bias: false,
        qk_norm: true,
        sliding_window: SlidingWindow::IfEnabled,
    },
];

/// The family with this `model_type`.
pub(super) fn of_model_type(model_type: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
}

/// The first family whose GGUF files have this architecture.
pub(super) fn of_architecture(architecture: &str) -> Option<&'static Family> {
    let mut families = FAMILIES.iter();
    families.find(|family| family.architecture == architecture)
}
