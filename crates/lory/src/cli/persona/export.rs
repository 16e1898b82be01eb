//! `lory persona export`: writes a persona's adapter as a GGUF file that llama.cpp loads with the base.

use std::path::PathBuf;

use formats::decimal::shortest;
use formats::peft::Dtype;
use serde_json::json;

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::BaseArgs;
use crate::cli::flags::personas::PersonasArgs;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::print;
use crate::cli::persona::adapter::{refuse_to_overwrite, select};

/// Write a persona's adapter as a GGUF for llama.cpp (llama-server --lora FILE)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file contains the persona's scale, so llama.cpp runs it at scale 1. It does not contain the system prompt: send it with each
request.

Example:
  lory persona export --gguf customer --out customer.gguf
  llama-server -m SmolLM2-135M-Instruct.Q4_1.gguf --lora customer.gguf")]
pub(crate) struct Args {
    /// The persona: a name, a version (customer@2), or a scale (customer*0.5)
    #[arg(long, value_name = "NAME", required = true)]
    gguf: String,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Type of the weights: f32, f16 or bf16. With f16 and bf16, llama.cpp rounds the activations to the same type
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

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let selected = select(
        &args.registry.catalog(&args.personas)?.personas(),
        &args.gguf,
    )?;
    let located = args.base.locate()?;
    refuse_to_overwrite(&args.out, &located.path)?;
    let base = located.text()?;
    selected.check_base(&located.path, &base.tokenizer, &base.template)?;

    let config = base.config.as_in_gguf();
    let mut file = selected
        .adapter
        .to_gguf(&config, selected.scale, args.dtype)?;
    file.metadata("general.name", selected.persona.name.as_str());
    file.metadata("lory.adapter_sha256", selected.sha256.as_str());
    file.write(&args.out)?;

    let (tensors, scale) = (2 * selected.adapter.pairs.len(), selected.scale);
    let bytes = std::fs::metadata(&args.out)?.len();
    let text = if args.json {
        let report = json!({
            "persona": selected.persona.name,
            "adapter": selected.sha256,
            "scale": shortest(scale),
            "out": args.out,
            "type": args.dtype.name(),
            "tensors": tensors,
            "bytes": bytes,
            "system_prompt": selected.persona.system_prompt,
        });
        format!("{report}\n")
    } else {
        format!(
            "{}: {tensors} tensors in {}, {}, scale {scale}\n{}",
            args.out.display(),
            args.dtype,
            bytesize::ByteSize(bytes),
            selected.remarks()
        )
    };
    print(&text)?;
    Ok(ExitStatus::Success)
}
