//! The names of tensors in an adapter's weights, as PEFT writes them and as programs around it do.
//!
//! ```text
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            PEFT
//! base_model.model.base_model.model.model.layers.0...                       an adapter of a model that PEFT had wrapped already
//! base_model.model._orig_mod.model.layers.0...                              torch.compile
//! base_model.model.model.language_model.layers.0...                         the language model of a multimodal one
//! model.layers.0... or layers.0...                                          saved without PEFT
//! ```

use super::limits::MAX_LAYERS;
use super::module::Module;
use crate::folder;

/// The parts that may come before the names of a decoder.
const WRAPPERS: [&str; 5] = ["base_model", "model", "module", "language_model", COMPILED];
/// The wrapper of torch.compile, which may also be within a name.
const COMPILED: &str = "_orig_mod";
/// Most wrappers of a name.
const MAX_WRAPPERS: usize = 16;

/// A tensor of an adapter's file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TensorName {
    /// A or B of a pair.
    Lora {
        layer: usize,
        module: Module,
        /// 0 for A, 1 for B.
        side: usize,
        /// The path of the linear in the model that was trained, without PEFT's wrappers; PEFT's patterns match it.
        path: String,
    },
    /// A tensor of the base, under its name in GGUF files.
    Base(String),
}

impl TensorName {
    /// # Errors
    /// What is not supported about a name.
    pub(super) fn parse(name: &str) -> Result<TensorName, String> {
        let parts: Vec<&str> = name.split('.').filter(|part| *part != COMPILED).collect();
        let wrappers = parts.iter().take_while(|part| WRAPPERS.contains(part));
        let wrappers = wrappers.count();
        if wrappers > MAX_WRAPPERS {
            return Err(unknown(name));
        }
        let own = &parts[wrappers..];
        if !own.iter().any(|part| part.starts_with("lora_")) {
            let base = base_tensor(own).ok_or_else(|| unknown(name))?;
            return Ok(TensorName::Base(base));
        }
        let (number, parent, linear, side) = match own {
            ["layers", number, parent, linear, side, "weight"]
            | ["layers", number, parent, linear, side, "default", "weight"] => {
                (*number, *parent, *linear, *side)
            }
            _ => return Err(unknown(name)),
        };
        let module: Module = linear.parse().map_err(|_| unknown(name))?;
        let side = ["lora_A", "lora_B"].iter().position(|name| *name == side);
        let side = side.ok_or_else(|| unknown(name))?;
        let layer: usize = number.parse().map_err(|_| unknown(name))?;
        if module.parent() != parent || layer.to_string() != number {
            return Err(unknown(name));
        }
        if layer >= MAX_LAYERS {
            return Err(format!(
                "layer {layer}; at most {MAX_LAYERS} layers are read"
            ));
        }
        Ok(TensorName::Lora {
            layer,
            module,
            side,
            path: trained_path(&parts[..wrappers], &own[..4]),
        })
    }
}

/// The path of a linear in the model that was trained: without the wrappers of PEFT, which are in front.
fn trained_path(mut wrappers: &[&str], own: &[&str]) -> String {
    while let ["base_model", "model", rest @ ..] = wrappers {
        wrappers = rest;
    }
    [wrappers, own].concat().join(".")
}

/// GGUF's name of a tensor of the base, which PEFT saves for modules in `modules_to_save`, and for the embedding if its size may have changed.
fn base_tensor(own: &[&str]) -> Option<String> {
    let mut parts = own.to_vec();
    if let Some(saved) = parts.iter().position(|part| *part == "modules_to_save") {
        let is_adapter = parts.get(saved + 1) == Some(&"default");
        parts.drain(saved..=saved + usize::from(is_adapter));
    }
    parts.retain(|part| !["original_module", "base_layer"].contains(part));
    let name = parts.join(".");
    match parts.first() {
        Some(&"lm_head") => folder::gguf_name(&name),
        _ => folder::gguf_name(&format!("model.{name}")),
    }
}

fn unknown(name: &str) -> String {
    let reason = if name.contains("lora_embedding_")
        || (name.contains("lora_") && (name.contains("embed_tokens") || name.contains("lm_head")))
    {
        "LoRA on the embedding or the head is not supported"
    } else if name.contains("lora_magnitude_vector") {
        "DoRA is not supported"
    } else if name.contains("modules_to_save") {
        "saved modules are supported only if they are modules of the base"
    } else if name.ends_with(".bias") {
        "biases are not supported"
    } else {
        "unknown; names look like base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    };
    reason.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_in_front_of_a_name_are_accepted() {
        let own = "layers.12.mlp.up_proj";
        for (wrappers, trained) in [
            ("base_model.model.model.", "model."),
            ("base_model.model.base_model.model.model.", "model."),
            ("base_model.model._orig_mod.model.", "model."),
            ("_orig_mod.base_model.model.model.", "model."),
            (
                "base_model.model.model.language_model.",
                "model.language_model.",
            ),
            (
                "base_model.model.language_model.model.",
                "language_model.model.",
            ),
            (
                "module.base_model.model.model.",
                "module.base_model.model.model.",
            ),
            ("model.", "model."),
            ("", ""),
        ] {
            for side in ["lora_B.weight", "lora_B.default.weight"] {
                let parsed = TensorName::parse(&format!("{wrappers}{own}.{side}"));
                let expected = TensorName::Lora {
                    layer: 12,
                    module: Module::Up,
                    side: 1,
                    path: format!("{trained}{own}"),
                };
                assert_eq!(parsed, Ok(expected), "{wrappers}");
            }
        }
        let compiled = "base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight";
        assert!(TensorName::parse(compiled).is_ok());
    }

    #[test]
    fn tensors_of_the_base_have_their_gguf_name() {
        for (name, gguf) in [
            (
                "base_model.model.model.embed_tokens.weight",
                "token_embd.weight",
            ),
            (
                "base_model.model.lm_head.modules_to_save.default.weight",
                "output.weight",
            ),
            (
                "base_model.model.model.language_model.norm.weight",
                "output_norm.weight",
            ),
            (
                "model.embed_tokens.original_module.weight",
                "token_embd.weight",
            ),
            (
                "base_model.model.model.layers.3.mlp.up_proj.base_layer.weight",
                "blk.3.ffn_up.weight",
            ),
        ] {
            assert_eq!(
                TensorName::parse(name),
                Ok(TensorName::Base(gguf.to_owned()))
            );
        }
    }

    #[test]
    fn other_names_are_refused_with_a_reason() {
        for (name, reason) in [
            (
                "vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
                "unknown",
            ),
            ("model.layers.0.mlp.q_proj.lora_A.weight", "unknown"),
            ("model.layers.01.mlp.up_proj.lora_A.weight", "unknown"),
            (
                "model.layers.4096.mlp.up_proj.lora_A.weight",
                "at most 4096 layers",
            ),
            ("model.layers.0.mlp.up_proj.lora_C.weight", "unknown"),
            (
                "base_model.model.score.modules_to_save.weight",
                "saved modules",
            ),
            (
                "model.embed_tokens.lora_embedding_A.default",
                "LoRA on the embedding",
            ),
            (
                "base_model.model.lm_head.lora_A.weight",
                "LoRA on the embedding or the head",
            ),
            ("model.layers.0.mlp.up_proj.lora_magnitude_vector", "DoRA"),
            ("", "unknown"),
        ] {
            let error = TensorName::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
        let many = format!("{}layers.0.mlp.up_proj.lora_A.weight", "model.".repeat(17));
        assert!(TensorName::parse(&many).is_err());
    }
}
