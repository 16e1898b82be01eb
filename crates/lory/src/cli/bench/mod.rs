//! `lory bench`: times the model on this machine, in this process, without HTTP, scheduler and tokenizer.
//!
//! Batches go through the runner that serves requests. Adapters are random, so any base can be measured.

mod measure;

use std::sync::Arc;

use kernels::Device;
use model::Model;
use serde_json::{Value, json};

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::output::print;
use crate::cli::output::table::Table;
use base::BaseFiles;
use base::open::load;
use base::plan::PlanRequest;
use base::progress::Progress;
use measure::{Bench, Case, Sample};

/// Measure prefill, decode by batch size, mixed adapters and adapter loading
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Speeds are medians over the rounds, with the minimum and the maximum. `read` is this machine's read bandwidth over as many
bytes as the weights have; `of read` is the share of it that a step reaches with its weights and adapters.
On a GPU, `read` is measured on copies, and the launches of a step are counted.

Examples:
  lory bench
  lory bench --rows 1,8,32 --adapters 0,8 --rounds 7 --json
  lory bench --device vulkan:0 --rounds 3
  lory bench --base random-8b.gguf --rows 1,8 --prefill 128")]
pub(crate) struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Prompt lengths to prefill, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [512], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefill: Vec<u32>,
    /// Batch sizes to decode
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32], value_parser = clap::value_parser!(u32).range(1..=1024))]
    rows: Vec<u32>,
    /// Numbers of adapters among the rows; 0 is the base without adapters
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 8], value_parser = clap::value_parser!(u32).range(0..=1024))]
    adapters: Vec<u32>,
    /// Rank of the adapters
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    rank: u32,
    /// Tokens that each row already has when decoding starts
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    past: u32,
    /// Tokens that each row decodes
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    new: u32,
    /// Maximum rows of a prefill step
    #[arg(long, value_name = "ROWS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    chunk: u32,
    /// Rounds over all cases
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Compute threads [default: as many as the machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &adapters in &self.adapters {
            for &tokens in &self.prefill {
                cases.push(Case::Prefill {
                    tokens: tokens as usize,
                    chunk: self.chunk as usize,
                    adapters: adapters as usize,
                });
            }
            for &rows in &self.rows {
                cases.push(Case::Decode {
                    rows: rows as usize,
                    past: self.past as usize,
                    new: self.new as usize,
                    adapters: adapters as usize,
                });
            }
        }
        cases.push(Case::AdapterLoad);
        cases
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let located = args.base.locate()?;
    let choice = args
        .device
        .requested(args.threads.map(|threads| threads as usize));
    let planned = located.plan(&args.precision, choice, PlanRequest::default())?;
    let device = Device::open(planned.device)?;
    // Only the weights are loaded, so a base without a tokenizer can be measured too.
    let files = BaseFiles::open(&located.path)?;
    let model = Arc::new(load(&located.path, &files, device, &planned.load)?);
    drop(files);
    let cases = args.cases();
    let adapters = args.adapters.iter().max().copied().unwrap_or(0) as usize;
    let mut bench = Bench::new(model.clone(), &cases, adapters, args.rank as usize)?;
    let measured = measure(&mut bench, &model, &cases, args.rounds)?;

    let device = model.device();
    let text = if args.json {
        let samples = cases.iter().zip(&measured.samples);
        let results: Vec<Value> = samples
            .map(|(case, samples)| as_json(case, samples))
            .collect();
        let config = model.config();
        let report = json!({
            "base": args.base.base,
            "precision": planned.load.precision.map_or("as in the file", model::Precision::name),
            "device": device.describe(),
            "threads": device.threads(),
            "weight_bytes": model.weight_bytes(),
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "rank": args.rank,
            "adapter_bytes": bench.adapter_bytes(),
            "read_bytes_per_s": measured.read,
            "results": results,
        });
        format!("{report:#}\n")
    } else {
        format!(
            "\n{} · {} · {:.0} MB of weights · read {:.1} GB/s\n\n{}",
            args.base.base,
            device.describe(),
            model.weight_bytes() as f64 / 1e6,
            measured.read / 1e9,
            table(&cases, &measured).render()
        )
    };
    print(&text)?;
    Ok(ExitStatus::Success)
}

/// The samples of all rounds.
struct Measured {
    /// By case.
    samples: Vec<Vec<Sample>>,
    /// Median read bandwidth, in bytes per second.
    read: f64,
}

/// Each round runs every case once, so that a slow minute of the machine affects all cases.
fn measure(
    bench: &mut Bench,
    model: &Model,
    cases: &[Case],
    rounds: u32,
) -> anyhow::Result<Measured> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); cases.len()];
    let mut reads = Vec::new();
    let mut progress = Progress::stderr();
    progress.count("Measuring", u64::from(rounds) * cases.len() as u64);
    for _ in 0..rounds {
        reads.push(model.device().read_bandwidth(model.weight_bytes())?);
        for (case, samples) in cases.iter().zip(&mut samples) {
            samples.push(bench.measure(case)?);
            progress.add(1);
        }
    }
    progress.clear();
    Ok(Measured {
        samples,
        read: median(&reads),
    })
}

fn table(cases: &[Case], measured: &Measured) -> Table {
    let launches = |samples: &Vec<Sample>| samples.first().map_or(0, |s| s.launches_per_step);
    let on_gpu = measured.samples.iter().any(|s| launches(s) > 0);
    let mut columns = vec![
        "work", "adapters", "tok/s", "min", "max", "ms/step", "of read",
    ];
    columns.extend(on_gpu.then_some("launches/step"));
    let mut table = Table::new(&columns);
    for (case, samples) in cases.iter().zip(&measured.samples) {
        let mut row = table_row(case, samples, measured.read);
        row.extend(on_gpu.then(|| launches(samples).to_string()));
        table.row(row);
    }
    table
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// (tokens/s, seconds per step) of every round.
fn rates(samples: &[Sample]) -> (Vec<f64>, Vec<f64>) {
    let rate = |sample: &Sample| sample.tokens as f64 / sample.seconds;
    let step = |sample: &Sample| sample.seconds / sample.steps as f64;
    (
        samples.iter().map(rate).collect(),
        samples.iter().map(step).collect(),
    )
}

fn table_row(case: &Case, samples: &[Sample], read: f64) -> Vec<String> {
    let (rates, steps) = rates(samples);
    let min = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let max = rates.iter().copied().fold(0.0, f64::max);
    let step = median(&steps);
    let bytes = samples.first().map_or(0, |sample| sample.bytes_per_step);
    let ms = format!("{:.2}", step * 1e3);
    match case {
        Case::AdapterLoad => vec![
            "load an adapter".into(),
            "1".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            ms,
            "-".into(),
        ],
        Case::Prefill { tokens, .. } | Case::Decode { rows: tokens, .. } => {
            let (work, share) = match case {
                Case::Decode { .. } => (
                    format!("decode {tokens}"),
                    format!("{:.0}%", 100.0 * bytes as f64 / step / read),
                ),
                _ => (format!("prefill {tokens}"), "-".into()),
            };
            vec![
                work,
                case.adapters().to_string(),
                format!("{:.1}", median(&rates)),
                format!("{min:.1}"),
                format!("{max:.1}"),
                ms,
                share,
            ]
        }
    }
}

fn as_json(case: &Case, samples: &[Sample]) -> Value {
    let (rates, steps) = rates(samples);
    let mut value = match case {
        Case::Prefill {
            tokens,
            chunk,
            adapters,
        } => {
            json!({"name": "prefill", "tokens": tokens, "chunk": chunk, "adapters": adapters})
        }
        Case::Decode {
            rows,
            past,
            new,
            adapters,
        } => {
            json!({"name": "decode", "rows": rows, "past": past, "new": new, "adapters": adapters})
        }
        Case::AdapterLoad => {
            json!({"name": "adapter_load", "ms": median(&steps) * 1e3, "runs_s": steps})
        }
    };
    if !matches!(case, Case::AdapterLoad) {
        value["tokens_per_s"] = json!(median(&rates));
        value["ms_per_step"] = json!(median(&steps) * 1e3);
        value["bytes_per_step"] = json!(samples.first().map_or(0, |sample| sample.bytes_per_step));
        value["launches_per_step"] =
            json!(samples.first().map_or(0, |sample| sample.launches_per_step));
        value["runs_tokens_per_s"] = json!(rates);
    }
    value
}
