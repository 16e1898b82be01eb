//! `lory persona export`: a persona's adapter as a GGUF that llama.cpp loads beside the base.

use std::path::PathBuf;

use formats::decimal::shortest;
use formats::peft::Dtype;
use serde_json::json;

use super::{choose, keep_base};
use crate::cli::base::BaseArgs;
use crate::cli::personas::PersonasArgs;
use crate::cli::registry::RegistryArgs;
use crate::cli::{Verdict, print};
use base::Wording;

/// Write a persona's adapter as a GGUF for llama.cpp (llama-server --lora FILE)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The persona's serving scale is in the file, so llama.cpp runs it at scale 1. Its system prompt is not: send it along.

Example:
  lory persona export --gguf customer --out customer.gguf
  llama-server -m SmolLM2-135M-Instruct.Q4_1.gguf --lora customer.gguf")]
pub(in crate::cli) struct Args {
    /// The persona: a name, a version (customer@2), or a scale (customer*0.5)
    #[arg(long, value_name = "NAME", required = true)]
    gguf: String,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Type of the numbers: f32, f16 or bf16. llama.cpp rounds what it multiplies with bf16 and f16 to these too
    #[arg(long = "type", value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let chosen = choose(
        &args.registry.catalog(&args.personas)?.personas(),
        &args.gguf,
    )?;
    let located = args.base.locate()?;
    keep_base(&args.out, &located.path)?;
    let base = Wording::open(&located.path)?;
    chosen.fits(&base.tokenizer, &base.template)?;

    let config = base.config.as_in_gguf();
    let mut file = chosen.adapter.to_gguf(&config, chosen.scale, args.dtype)?;
    file.metadata("general.name", chosen.persona.name.as_str());
    file.metadata("lory.adapter_sha256", chosen.sha256.as_str());
    file.write(&args.out)?;

    let (tensors, scale) = (2 * chosen.adapter.pairs.len(), chosen.scale);
    let bytes = std::fs::metadata(&args.out)?.len();
    let text = if args.json {
        let report = json!({
            "persona": chosen.persona.name,
            "adapter": chosen.sha256,
            "scale": shortest(scale),
            "out": args.out,
            "type": args.dtype.name(),
            "tensors": tensors,
            "bytes": bytes,
            "system_prompt": chosen.persona.system_prompt,
        });
        format!("{report}\n")
    } else {
        format!(
            "{}: {tensors} tensors in {}, {}, scale {scale}\n{}",
            args.out.display(),
            args.dtype,
            bytesize::ByteSize(bytes),
            chosen.remarks()
        )
    };
    print(&text)?;
    Ok(Verdict::Good)
}
