//! An adapter added to the weights of its base: W + scale * B A, as a new GGUF file.
//!
//! Plain and slow: it runs once.

use crate::error::ModelError;
use formats::config::ModelConfig;
use formats::gguf::{GgmlType, Gguf, GgufWriter, Value, dequantize, quantize};
use formats::peft::{self, LoraPair, Module};

/// The base's file with the adapter in it, at `scale`. Weights that the adapter touches are written in `to`, or in their own
/// type where that is none; all others, and the metadata, are carried over byte for byte.
///
/// # Errors
/// An adapter of another model; a type that cannot be read or written, by tensor name.
pub fn merge(
    base: &Gguf,
    adapter: &peft::Adapter,
    scale: f32,
    to: Option<GgmlType>,
) -> Result<GgufWriter, ModelError> {
    let config = ModelConfig::from_gguf(base)?;
    adapter.check(&config)?;
    let mut writer = GgufWriter::new();
    for (key, value) in base.metadata() {
        writer.metadata(key, value.clone());
    }
    if let Some(number) = to.and_then(GgmlType::file_type) {
        writer.metadata("general.file_type", Value::U32(number));
    }
    for tensor in base.tensors() {
        let failed = |source| ModelError::Merge {
            origin: base.origin().to_owned(),
            name: tensor.name.to_owned(),
            source: Box::new(source),
        };
        let of_tensor = |pair: &&LoraPair| {
            tensor.name == format!("blk.{}.{}.weight", pair.layer, pair.module.gguf_name())
        };
        let (dtype, data) = match adapter.pairs.iter().find(of_tensor) {
            None => (tensor.dtype, tensor.data.to_vec()),
            Some(pair) => {
                let mut weights = vec![0f32; tensor.elements()];
                dequantize(tensor.dtype, tensor.data, &mut weights).map_err(failed)?;
                add(&mut weights, pair, scale, &config);
                let dtype = to.unwrap_or(tensor.dtype);
                (dtype, quantize(dtype, &weights).map_err(failed)?)
            }
        };
        writer
            .tensor(tensor.name, dtype, tensor.dims, data)
            .map_err(failed)?;
    }
    Ok(writer)
}

/// Adds scale * B A to weights in the order of the file.
fn add(weights: &mut [f32], pair: &LoraPair, scale: f32, config: &ModelConfig) {
    let scale = scale * pair.scale;
    let order = Module::file_rows(pair.module, config);
    for (row, b) in pair.b.chunks_exact(pair.rank).enumerate() {
        let at = order.as_ref().map_or(row, |order| order[row] as usize);
        let to = &mut weights[at * pair.inputs..][..pair.inputs];
        for (b, a) in b.iter().zip(pair.a.chunks_exact(pair.inputs)) {
            let b = b * scale;
            to.iter_mut().zip(a).for_each(|(to, a)| *to += b * a);
        }
    }
}
