//! Writes the float path's logits for some tokens, with an adapter or without, so that others can compare theirs:
//!
//! ```text
//! cargo run --release --example logits -- BASE.gguf ADAPTER_DIR|- OUT.safetensors TOKEN...
//! ```
//!
//! The file holds `logits`, tokens x vocabulary in float32. `bench/peers/peft_parity.py` reads it.

use std::collections::BTreeMap;
use std::path::Path;

use formats::peft;
use kernels::{BLOCK_TOKENS, Compute, Device, KvType, Run, Span, Tensor};
use lory::service::Base;
use model::{Adapter, Batch, Buffers};
use safetensors::tensor::{Dtype, TensorView};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, out, tokens @ ..] = args.as_slice() else {
        anyhow::bail!("usage: logits BASE.gguf ADAPTER_DIR|- OUT.safetensors TOKEN...");
    };
    let base = Base::open(Path::new(base), None, Device::cpu(None)?)?;
    let model = &base.model;
    let tokens = tokens
        .iter()
        .map(|t| t.parse())
        .collect::<Result<Vec<u32>, _>>()?;
    anyhow::ensure!(!tokens.is_empty(), "no tokens");
    anyhow::ensure!(
        tokens
            .iter()
            .all(|&t| (t as usize) < model.config().vocab_size),
        "a token is past the vocabulary"
    );
    let adapters: Vec<Adapter> = match adapter.as_str() {
        "-" => vec![],
        dir => vec![model.load_adapter(&peft::Adapter::read(Path::new(dir))?)?],
    };
    let adapters: Vec<&Adapter> = adapters.iter().collect();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model.new_cache(model.config().layers, blocks.len(), KvType::F32)?;
    let rows = tokens.len();
    let run = Run {
        first: 0,
        rows,
        slots: vec![(0, 1.0)],
    };
    let span = Span {
        first: 0,
        rows,
        past: 0,
        blocks: &blocks,
    };
    let batch = Batch {
        tokens: &tokens,
        spans: &[span],
        runs: if adapters.is_empty() {
            &[]
        } else {
            std::slice::from_ref(&run)
        },
        adapters: &adapters,
    };
    let mut logits = Tensor::default();
    let all: Vec<u32> = (0..rows as u32).collect();
    model.forward(
        batch,
        &mut cache,
        &mut Buffers::default(),
        &all,
        Compute::F32,
        &mut logits,
    );
    let bytes: Vec<u8> = logits
        .values()
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, vec![rows, logits.columns()], &bytes)?;
    safetensors::serialize_to_file(BTreeMap::from([("logits", view)]), None, Path::new(out))?;
    Ok(())
}
