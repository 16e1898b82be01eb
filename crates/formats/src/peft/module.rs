//! The seven linears of a decoder layer that an adapter may change.

use crate::config::ModelConfig;

/// A linear of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// `q_proj`
    Q,
    /// `k_proj`
    K,
    /// `v_proj`
    V,
    /// `o_proj`
    O,
    /// `gate_proj`
    Gate,
    /// `up_proj`
    Up,
    /// `down_proj`
    Down,
}

impl Module {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Module; 7] = [
        Module::Q,
        Module::K,
        Module::V,
        Module::O,
        Module::Gate,
        Module::Up,
        Module::Down,
    ];

    /// The name in Hugging Face's models, such as `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// The name in GGUF files, such as `attn_q`: the weights are `blk.<layer>.attn_q.weight`.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Module::Q => "attn_q",
            Module::K => "attn_k",
            Module::V => "attn_v",
            Module::O => "attn_output",
            Module::Gate => "ffn_gate",
            Module::Up => "ffn_up",
            Module::Down => "ffn_down",
        }
    }

    /// For each row in Hugging Face's order, its row in the model's file; none if the orders are the same (see
    /// [`ModelConfig::rotary_order`]).
    pub fn file_rows(self, config: &ModelConfig) -> Option<Vec<u32>> {
        match self {
            Module::Q => config.rotary_order(config.heads),
            Module::K => config.rotary_order(config.kv_heads),
            _ => None,
        }
    }

    /// The part of the layer that it belongs to: `self_attn` or `mlp`.
    pub fn parent(self) -> &'static str {
        match self {
            Module::Q | Module::K | Module::V | Module::O => "self_attn",
            Module::Gate | Module::Up | Module::Down => "mlp",
        }
    }

    /// The path in the model, such as `model.layers.3.self_attn.q_proj`: PEFT's patterns are matched against it.
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.parent(), self.name())
    }

    /// Inputs and outputs in a model.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (queries, keys) = (
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        );
        match self {
            Module::Q => (config.hidden_size, queries),
            Module::K | Module::V => (config.hidden_size, keys),
            Module::O => (queries, config.hidden_size),
            Module::Gate | Module::Up => (config.hidden_size, config.intermediate_size),
            Module::Down => (config.intermediate_size, config.hidden_size),
        }
    }
}

impl std::fmt::Display for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Module {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Module::ALL
            .into_iter()
            .find(|module| module.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown module {name:?}; known: {}",
                    Module::ALL.map(Module::name).join(", ")
                )
            })
    }
}
