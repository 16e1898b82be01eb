//! Compares the tensors of the base that an adapter's file has with those of the base. Only the adapter's pairs run: a saved module that was
//! trained would be left out silently.

use std::path::Path;

use formats::checkpoint::Checkpoint;
use formats::gguf::{GgmlType, TensorView, dequantize};
use formats::peft::{BaseTensor, PeftError, ValuesHash};

use crate::files::BaseFiles;

/// Values that are widened at a time.
const PIECE: usize = 1 << 16;

/// Checks that `tensors`, of the adapter at `adapter`, are those of the base at `base`, a GGUF file or a folder. The base's values are rounded to
/// the type of the adapter's file.
///
/// # Errors
/// [`PeftError::Tensor`], naming the tensor that differs or cannot be compared.
pub fn check(base: &Path, tensors: &[BaseTensor], adapter: &Path) -> Result<(), PeftError> {
    let Some(first) = tensors.first() else {
        return Ok(());
    };
    let error = |tensor: &BaseTensor, problem: String| PeftError::Tensor {
        path: adapter.to_owned(),
        name: tensor.name.clone(),
        problem,
    };
    let files = BaseFiles::open(base)
        .map_err(|source| error(first, format!("the base cannot be read: {source}")))?;
    let checkpoint = files.checkpoint();
    for tensor in tensors {
        compare(checkpoint, tensor).map_err(|problem| error(tensor, problem))?;
    }
    Ok(())
}

fn compare(checkpoint: &dyn Checkpoint, tensor: &BaseTensor) -> Result<(), String> {
    let differs = |what: &str| {
        format!(
            "{what}; only LoRA weights run, so the adapter must be trained without this module in modules_to_save or target_modules"
        )
    };
    let config = checkpoint.config().map_err(|error| error.to_string())?;
    let own = checkpoint.tensor(&tensor.gguf_name);
    let own = own.or_else(|| match tensor.gguf_name.as_str() {
        "output.weight" if config.tie_word_embeddings => checkpoint.tensor("token_embd.weight"),
        _ => None,
    });
    let Some(own) = own else {
        return Err(differs("the base does not have it"));
    };
    // ggml lists the contiguous dimension first.
    let shape: Vec<u64> = tensor.shape.iter().rev().map(|&size| size as u64).collect();
    if shape != own.dims {
        let base: Vec<u64> = own.dims.iter().rev().copied().collect();
        return Err(differs(&format!(
            "shape {:?}, but the base's is {base:?}",
            tensor.shape
        )));
    }
    if !matches!(own.dtype, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
        return Err(format!(
            "the base is quantized ({}), so it cannot be compared with the base's: use a base of F32, F16 or BF16, or remove the tensor if it was not trained",
            own.dtype.name()
        ));
    }
    let heads = match tensor.gguf_name.rsplit_once('.') {
        Some((name, _)) if name.ends_with(".attn_q") => Some(config.heads),
        Some((name, _)) if name.ends_with(".attn_k") => Some(config.kv_heads),
        _ => None,
    };
    let order = heads.and_then(|heads| config.rotary_order(heads));
    let hash = hash(&own, order.as_deref(), tensor).map_err(|error| error.to_string())?;
    match hash == tensor.sha256 {
        true => Ok(()),
        false => Err(differs("differs from the base's")),
    }
}

/// The hash of the base's values, rounded to the type of `tensor`. `order` has the row in the file for each row in Hugging Face's order.
fn hash(
    own: &TensorView<'_>,
    order: Option<&[u32]>,
    tensor: &BaseTensor,
) -> Result<[u8; 32], formats::gguf::GgufError> {
    let size = own.dtype.type_size();
    let mut hash = ValuesHash::default();
    let mut values = Vec::new();
    let mut add = |bytes: &[u8]| {
        values.resize(bytes.len() / size, 0.0);
        dequantize(own.dtype, bytes, &mut values)?;
        for value in &mut values {
            *value = tensor.dtype.round(*value);
        }
        hash.update(&values);
        Ok(())
    };
    match order {
        None => own.data.chunks(PIECE * size).try_for_each(&mut add)?,
        Some(order) => {
            let row = own.data.len() / order.len().max(1);
            let rows: Vec<&[u8]> = own.data.chunks_exact(row.max(1)).collect();
            for at in order {
                add(rows.get(*at as usize).copied().unwrap_or_default())?;
            }
        }
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use formats::gguf::Gguf;
    use formats::peft::Dtype;
    use testkit::tiny::tiny_gguf_as;

    use super::*;

    /// The base's tensor as an adapter's file would have it, in `dtype`, with `change` added to its first value.
    fn saved(base: &Gguf, gguf_name: &str, dtype: Dtype, change: f32) -> BaseTensor {
        let own = base.tensor(gguf_name).unwrap();
        let mut values = vec![0.0; own.elements()];
        dequantize(own.dtype, own.data, &mut values).unwrap();
        let config = base.config().unwrap();
        if gguf_name.contains("attn_q") {
            let order = config.rotary_order(config.heads).unwrap();
            let rows: Vec<&[f32]> = values.chunks_exact(own.dims[0] as usize).collect();
            values = order
                .iter()
                .flat_map(|&row| rows[row as usize])
                .copied()
                .collect();
        }
        values[0] += change;
        let values: Vec<f32> = values.iter().map(|&value| dtype.round(value)).collect();
        let mut hash = ValuesHash::default();
        hash.update(&values);
        BaseTensor {
            name: format!("saved.{gguf_name}"),
            gguf_name: gguf_name.to_owned(),
            dtype,
            shape: own.dims.iter().rev().map(|&size| size as usize).collect(),
            sha256: hash.finish(),
        }
    }

    #[test]
    fn tensors_of_the_base_are_accepted_and_others_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.gguf");
        let bytes = tiny_gguf_as(7, GgmlType::F32);
        std::fs::write(&path, &bytes).unwrap();
        let base = Gguf::parse(std::sync::Arc::new(bytes), "base").unwrap();
        let run = |tensor: BaseTensor| {
            let checked = check(&path, &[tensor], Path::new("adapter"));
            checked.map_err(|error| error.to_string())
        };
        for name in [
            "token_embd.weight",
            "blk.1.attn_q.weight",
            "output_norm.weight",
        ] {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
                run(saved(&base, name, dtype, 0.0)).unwrap();
            }
            let error = run(saved(&base, name, Dtype::F32, 0.5)).unwrap_err();
            assert!(
                error.starts_with(&format!("adapter: tensor saved.{name}: differs")),
                "{error}"
            );
        }
        // The head of a base that uses the embedding for it.
        assert!(base.tensor("output.weight").is_none());
        run(BaseTensor {
            gguf_name: "output.weight".to_owned(),
            ..saved(&base, "token_embd.weight", Dtype::BF16, 0.0)
        })
        .unwrap();
        let mut longer = saved(&base, "token_embd.weight", Dtype::F32, 0.0);
        longer.shape[0] += 1;
        assert!(run(longer).unwrap_err().contains("but the base's is"));
        let mut other = saved(&base, "token_embd.weight", Dtype::F32, 0.0);
        other.gguf_name = "blk.77.ffn_up.weight".to_owned();
        assert!(
            run(other)
                .unwrap_err()
                .contains("the base does not have it")
        );
        check(Path::new("nowhere"), &[], Path::new("adapter")).unwrap();
    }

    #[test]
    fn quantized_base_cannot_be_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.gguf");
        std::fs::write(&path, tiny_gguf_as(7, GgmlType::Q8_0)).unwrap();
        let base =
            Gguf::parse(std::sync::Arc::new(tiny_gguf_as(7, GgmlType::F32)), "base").unwrap();
        let tensor = saved(&base, "token_embd.weight", Dtype::F32, 0.0);
        let error = check(&path, &[tensor], Path::new("adapter")).unwrap_err();
        assert!(
            error.to_string().contains("the base is quantized (Q8_0)"),
            "{error}"
        );
    }
}
