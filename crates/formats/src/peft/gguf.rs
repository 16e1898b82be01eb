//! Converts an adapter to the GGUF file of type `adapter` that llama.cpp reads.
//!
//! Names, shapes and the order of rows are those of llama.cpp's own converter (convert_lora_to_gguf.py): the rows of B for
//! q_proj and k_proj are put in the order of the base's file. The scale is not: the converter writes lora_alpha and
//! llama.cpp divides it by the rank, which is wrong for rsLoRA and for alpha_pattern. Here `adapter.lora.alpha` is the number
//! that gives the true scale after that division; for pairs with another scale, B is multiplied by the rest.

use std::path::Path;

use super::adapter::{Adapter, tensor_name};
use super::error::PeftError;
use super::limits::WEIGHTS_FILE;
use crate::config::ModelConfig;
use crate::gguf::{GgmlType, GgufWriter, Value, quantize};
use crate::safetensors::Dtype;

impl Adapter {
    /// The adapter for the base that `model` describes, its tensors rounded to `dtype`. `scale` multiplies it, as the
    /// scale of a persona does.
    ///
    /// Lory's metadata about the adapter's origin (`lory.*`) is copied.
    ///
    /// # Errors
    /// [`PeftError`]: an adapter of another model, or values that `dtype` cannot hold.
    pub fn to_gguf(
        &self,
        model: &ModelConfig,
        scale: f32,
        dtype: Dtype,
    ) -> Result<GgufWriter, PeftError> {
        self.check(model)?;
        let wanted = self
            .pairs
            .iter()
            .map(|pair| scale * pair.scale * pair.rank as f32);
        // llama.cpp takes an alpha of 0 as absent; the zeros are then in B.
        let alpha = wanted.clone().find(|alpha| *alpha != 0.0).unwrap_or(1.0);
        let ggml = match dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
        };
        let mut writer = GgufWriter::new();
        writer
            .metadata("general.type", "adapter")
            .metadata("general.architecture", model.architecture.as_str())
            .metadata("general.quantization_version", Value::U32(2))
            .metadata("adapter.type", "lora")
            .metadata("adapter.lora.alpha", alpha);
        if let Some(number) = ggml.file_type() {
            writer.metadata("general.file_type", Value::U32(number));
        }
        for (key, value) in &self.metadata {
            if key.starts_with("lory.") {
                writer.metadata(key, value.as_str());
            }
        }
        for (pair, wanted) in self.pairs.iter().zip(wanted) {
            let rest = if wanted == alpha { 1.0 } else { wanted / alpha };
            let mut b = vec![0.0; pair.b.len()];
            let order = pair.module.file_rows(model);
            for (row, values) in pair.b.chunks_exact(pair.rank).enumerate() {
                let at = order.as_ref().map_or(row, |order| order[row] as usize);
                let to = &mut b[at * pair.rank..][..pair.rank];
                to.iter_mut()
                    .zip(values)
                    .for_each(|(to, value)| *to = value * rest);
            }
            let name = format!("blk.{}.{}.weight", pair.layer, pair.module.gguf_name());
            let (rank, inputs, outputs) =
                (pair.rank as u64, pair.inputs as u64, pair.outputs as u64);
            for (side, values, dims) in [('A', &pair.a, [inputs, rank]), ('B', &b, [rank, outputs])]
            {
                if let Some(value) = values
                    .iter()
                    .find(|value| !dtype.round(**value).is_finite())
                {
                    return Err(PeftError::Tensor {
                        path: Path::new(WEIGHTS_FILE).to_owned(),
                        name: tensor_name(pair.layer, pair.module, side),
                        problem: format!("{value} does not fit into {dtype}"),
                    });
                }
                let name = format!("{name}.lora_{}", side.to_ascii_lowercase());
                writer.tensor(&name, ggml, &dims, quantize(ggml, values)?)?;
            }
        }
        Ok(writer)
    }
}
