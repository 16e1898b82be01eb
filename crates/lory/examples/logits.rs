//! Writes the float path's logits for some tokens, with or without an adapter, so that other programs can compare theirs:
//!
//! ```text
//! cargo run --release --example logits -- BASE.gguf ADAPTER_DIR|- OUT.safetensors TOKEN...
//! ```
//!
//! The file holds `logits`, tokens x vocabulary in float32. `bench/peers/peft_parity.py` reads it.

use std::collections::BTreeMap;
use std::path::Path;

use base::Base;
use formats::peft;
use kernels::{Compute, Device, DeviceChoice, KvType};
use model::Adapter;
use safetensors::tensor::{Dtype, TensorView};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, out, tokens @ ..] = args.as_slice() else {
        anyhow::bail!("usage: logits BASE.gguf ADAPTER_DIR|- OUT.safetensors TOKEN...");
    };
    let base = Base::open(
        Path::new(base),
        None,
        Device::open(DeviceChoice::default())?,
    )?;
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
    let adapter = adapters.first().map(|adapter| (adapter, 1.0));
    let logits = testkit::logits(model, &tokens, adapter, Compute::F32, KvType::F32);
    let bytes: Vec<u8> = logits
        .values()
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, vec![tokens.len(), logits.columns()], &bytes)?;
    safetensors::serialize_to_file(BTreeMap::from([("logits", view)]), None, Path::new(out))?;
    Ok(())
}
