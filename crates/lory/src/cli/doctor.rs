//! `lory doctor`: what the machine has, and how a base would run on it.

use bytesize::ByteSize;

use model::ModelSizes;
use serde_json::{Value, json};

use super::base::{BaseArgs, PrecisionArgs, open_device};
use super::serve::size as bytes_of;
use super::table::Table;
use super::{Verdict, print};
use base::BaseFiles;
use base::home::Home;
use base::plan::{self, Demand, HardwareProfile, Probe, size};
use base::progress::Progress;
use base::quant_cache::{Entry, Kept};

/// Look at the machine, and plan how a base runs on it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --base: the device, the precision, the memory and the speed to expect, each with its reason. The speed is that of one
answer's products on weights of the base's shapes, measured for half a second; a long context takes its time beside them.
Nothing of the base is loaded. GPUs are listed and planned for, and not run on yet.

Examples:
  lory doctor
  lory doctor --base ./Llama-3.1-8B-Instruct --precision q4
  lory doctor --base Qwen/Qwen2.5-0.5B-Instruct --kv-memory 2GiB --json")]
pub(super) struct Args {
    /// The base to plan for: a known one, a repository that was pulled, or the path of a GGUF file or of a Hugging Face folder
    #[arg(long, value_name = "ID|PATH")]
    base: Option<String>,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Memory for the keys and values of running requests
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = bytes_of)]
    kv_memory: ByteSize,
    /// Memory for resident adapters
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes_of)]
    adapter_memory: ByteSize,
    /// Measure nothing
    #[arg(long)]
    no_probe: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let hardware = HardwareProfile::of_this_machine()?;
    let kept = Home::find().map(|home| Kept::in_folder(home.kept()).list());
    let kept = kept.unwrap_or_default();
    let mut report = json!({"machine": hardware, "quantized": kept});
    let mut text = machine(&hardware, &kept);
    let mut verdict = Verdict::Good;
    if let Some(base) = &args.base {
        let located = BaseArgs { base: base.clone() }.locate()?;
        let sizes = ModelSizes::of(BaseFiles::open(&located.path)?.checkpoint())?;
        let demand = Demand {
            precision: args.precision.wanted(),
            kv_memory: args.kv_memory.as_u64(),
            adapter_memory: args.adapter_memory.as_u64(),
            ..Demand::default()
        };
        let plan = plan::plan(&hardware, &sizes, &demand);
        let refused = plan.check(&hardware, &sizes, &demand).err();
        let probe = match (args.no_probe, &refused) {
            (false, None) => measured(&sizes, plan.chosen.precision)?,
            _ => None,
        };
        text += &format!(
            "\n{base}: {} of {:.2} billion weights, {} layers, context {}\n\n{}",
            sizes.config.architecture,
            sizes.parameters() as f64 / 1e9,
            sizes.config.layers,
            sizes.config.context_length,
            plan.chosen.lines(),
        );
        if let Some(probe) = probe {
            text += &format!(
                "  speed      about {:.1} tokens/s for one answer (measured for {:.1} s on {} of such weights)\n",
                probe.tokens_per_s,
                probe.seconds,
                size(probe.bytes as u64),
            );
        }
        for other in &plan.others {
            text += &format!("\n{}", other.lines());
        }
        report["base"] = json!(base);
        report["parameters"] = json!(sizes.parameters());
        report["plan"] = json!(plan);
        report["plan"]["peak_bytes"] = json!(plan.chosen.memory.peak());
        report["probe"] = json!(probe);
        report["refused"] = refused
            .as_ref()
            .map_or(Value::Null, |why| json!(why.to_string()));
        if let Some(why) = refused {
            text += &format!("\nwould not start: {why}\n");
            verdict = Verdict::Bad;
        }
    }
    print(&if args.json {
        format!("{report:#}\n")
    } else {
        text
    })?;
    Ok(verdict)
}

fn measured(
    sizes: &ModelSizes,
    precision: Option<model::Precision>,
) -> anyhow::Result<Option<Probe>> {
    let mut progress = Progress::stderr();
    progress.spin("Measuring");
    let probe = plan::probe(&open_device(None)?, sizes, precision)?;
    progress.clear();
    Ok(probe)
}

fn machine(hardware: &HardwareProfile, kept: &[Entry]) -> String {
    let mut table = Table::new(&["machine", ""]);
    let mut row = |what: &str, how: String| table.row([what.to_owned(), how]);
    row("threads", hardware.threads.to_string());
    row(
        "instruction sets",
        format!(
            "{} (in use: {})",
            hardware.instruction_sets.join(", "),
            hardware.instruction_set
        ),
    );
    let unknown = || "unknown".to_owned();
    row("memory", hardware.memory.map_or_else(unknown, size));
    if let Some(available) = hardware.available {
        row(available.limit.words(), size(available.bytes));
    }
    if hardware.gpus.is_empty() {
        row("GPUs", "none found".to_owned());
    }
    for gpu in &hardware.gpus {
        let memory = match gpu.memory {
            Some(bytes) => size(bytes),
            None if gpu.unified => "shares the machine's memory".to_owned(),
            None => "memory unknown".to_owned(),
        };
        row("GPU", format!("{}, {memory} (not run on yet)", gpu.name));
    }
    let mut text = table.render();
    if !kept.is_empty() {
        let mut table = Table::new(&["kept quantized", "precision", "size", "file"]);
        for entry in kept {
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
            table.row([
                or(&entry.source),
                or(&entry.precision),
                size(entry.bytes),
                entry.path.display().to_string(),
            ]);
        }
        text += &format!("\n{}", table.render());
    }
    text
}
