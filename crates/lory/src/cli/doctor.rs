//! `lory doctor`: describes the machine and plans how a base would run on it.

use bytesize::ByteSize;

use kernels::{Device, DeviceChoice};
use model::ModelSizes;
use serde_json::{Value, json};

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::units::memory_size;
use crate::cli::output::print;
use crate::cli::output::table::Table;
use base::home::Home;
use base::plan::{self, HardwareProfile, MeasuredSpeed, PlanRequest, format_size};
use base::progress::Progress;
use base::quant_cache::{CacheEntry, QuantCache};
use base::{BaseFiles, BaseText};

/// Describe the machine, and plan how a base would run on it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --base, the plan has the device, the precision, the memory and the expected speed, each with its reason. The speed is
measured for half a second on steps of one answer after 128 tokens, as `lory bench --rows 1` runs them, with random weights of the
base's shapes. The base is not loaded. GPUs have the names that --device takes; those without a driver have none.

Examples:
  lory doctor
  lory doctor --base ./Llama-3.1-8B-Instruct --precision q4
  lory doctor --base ./Llama-3.1-8B-Instruct --device vulkan:0
  lory doctor --base Qwen/Qwen2.5-0.5B-Instruct --kv-memory 2GiB --json")]
pub(crate) struct Args {
    /// The base to plan for: a known one, a pulled repository, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, value_name = "ID|PATH")]
    base: Option<String>,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Memory for the KV cache of running requests
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = memory_size)]
    kv_memory: ByteSize,
    /// Memory for resident adapters
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory_size)]
    adapter_memory: ByteSize,
    /// Memory for training jobs [default: half of the memory that the plan leaves]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    train_memory: Option<ByteSize>,
    /// Check the chat template as it is with `lory serve --system-as-user`
    #[arg(long, requires = "base")]
    system_as_user: bool,
    /// Do not measure the speed
    #[arg(long)]
    no_probe: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let hardware = HardwareProfile::of_this_machine()?.with_drivers();
    let cached = Home::find().map(|home| QuantCache::in_folder(home.quant_cache()).list());
    let cached = cached.unwrap_or_default();
    let mut report = json!({"machine": hardware, "quantized": cached});
    let mut text = machine(&hardware, &cached);
    let mut status = ExitStatus::Success;
    if let Some(base) = &args.base {
        let (plan, starts) = plan_base(args, base, &hardware, &mut report)?;
        text += &plan;
        if !starts {
            status = ExitStatus::Failure;
        }
    }
    print(&if args.json {
        format!("{report:#}\n")
    } else {
        text
    })?;
    Ok(status)
}

/// Plans how `base` runs: the plan as text, and whether the base would start. Adds the plan to `report`.
fn plan_base(
    args: &Args,
    base: &str,
    hardware: &HardwareProfile,
    report: &mut Value,
) -> anyhow::Result<(String, bool)> {
    let base_args = BaseArgs {
        base: base.to_owned(),
        system_as_user: args.system_as_user,
    };
    let located = base_args.locate()?;
    let files = BaseFiles::open(&located.path)?;
    let sizes = ModelSizes::of(files.checkpoint())?;
    let demand = PlanRequest {
        precision: args.precision.requested(),
        kv_memory: args.kv_memory.as_u64(),
        adapter_memory: args.adapter_memory.as_u64(),
        train_memory: args.train_memory.map(|size| size.as_u64()),
        ..PlanRequest::default()
    };
    let requested = args.device.requested(None);
    let (plan, device) = requested.plan(hardware, &sizes, &demand)?;
    let refused = plan.check(hardware, &sizes, &demand).err();
    let probe = match (args.no_probe, &refused) {
        (false, None) => measure(device, &sizes, plan.chosen.precision)?,
        _ => None,
    };
    let mut text = format!(
        "\n{base}: {} of {:.2} billion weights, {} layers, context {}\n\n{}",
        sizes.config.architecture,
        sizes.parameters() as f64 / 1e9,
        sizes.config.layers,
        sizes.config.context_length,
        plan.chosen.lines(),
    );
    if let Some(probe) = probe {
        text += &format!(
            "  speed      about {:.1} tokens/s for one answer after 128 tokens (measured for {:.1} s on {} of weights)\n",
            probe.tokens_per_s,
            probe.seconds,
            format_size(probe.bytes as u64),
        );
    }
    if let Some(why) = &plan.why {
        text += &format!("  device     {why}\n");
    }
    for other in &plan.others {
        text += &format!("\n{}", other.lines());
    }
    if let Some(why) = &refused {
        text += &format!("\nwould not start: {why}\n");
    }
    text += &check_template(located.text(), report);
    report["base"] = json!(base);
    report["parameters"] = json!(sizes.parameters());
    report["plan"] = json!(plan);
    report["plan"]["peak_bytes"] = json!(plan.chosen.memory.peak());
    report["probe"] = json!(probe);
    report["refused"] = refused
        .as_ref()
        .map_or(Value::Null, |why| json!(why.to_string()));
    Ok((text, refused.is_none()))
}

/// What the base's chat template does not render, as text. Adds it to `report`.
fn check_template(base: anyhow::Result<BaseText>, report: &mut Value) -> String {
    let template = match base {
        Ok(base) => base.template,
        Err(error) => {
            report["chat_template"] = json!({"error": error.to_string()});
            return format!("\nno tokenizer or chat template: {error}\n");
        }
    };
    let problems: Vec<String> = template
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect();
    let has_system_role = template.has_system_role();
    let mut text = match problems.as_slice() {
        [] => "\nthe chat template renders every conversation that was tried\n".to_owned(),
        _ => "\nthe chat template does not render:\n".to_owned(),
    };
    for problem in &problems {
        text += &format!("  {problem}\n");
    }
    if !has_system_role {
        text += "  --system-as-user puts the system text in front of the first user's message\n";
    }
    report["chat_template"] = json!({"has_system_role": has_system_role, "problems": problems});
    text
}

/// Measures the speed of one answer on weights of the base's shapes.
fn measure(
    device: DeviceChoice,
    sizes: &ModelSizes,
    precision: Option<model::Precision>,
) -> anyhow::Result<Option<MeasuredSpeed>> {
    let mut progress = Progress::stderr();
    progress.spin("Measuring");
    let probe = plan::measure_speed(&Device::open(device)?, sizes, precision)?;
    progress.clear();
    Ok(probe)
}

/// The table of the machine, and the table of the quant cache if it has entries.
fn machine(hardware: &HardwareProfile, cached: &[CacheEntry]) -> String {
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
    row("memory", hardware.memory.map_or_else(unknown, format_size));
    if let Some(available) = hardware.available {
        row(available.limit.description(), format_size(available.bytes));
    }
    if hardware.gpus.is_empty() {
        row("GPUs", "none found".to_owned());
    }
    for gpu in &hardware.gpus {
        let memory = match gpu.memory {
            Some(bytes) => format_size(bytes),
            None if gpu.unified => "shares the machine's memory".to_owned(),
            None => "memory unknown".to_owned(),
        };
        let device = gpu.device.as_deref().unwrap_or("GPU without a driver");
        let mut about = format!("{}, {memory}", gpu.name);
        if !gpu.driver.is_empty() {
            about += &format!(", {}", gpu.driver);
        }
        if gpu.software {
            about += " (computes on the CPU, for tests)";
        }
        row(device, about);
    }
    let mut text = table.render();
    if !cached.is_empty() {
        let mut table = Table::new(&["quant cache", "precision", "size", "file"]);
        for entry in cached {
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
            table.row([
                or(&entry.source),
                or(&entry.precision),
                format_size(entry.bytes),
                entry.path.display().to_string(),
            ]);
        }
        text += &format!("\n{}", table.render());
    }
    text
}
