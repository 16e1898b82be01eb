//! `lory bench`: what the model does on this machine, in this process: no HTTP, no scheduler, no text.
//!
//! Rows go through the same runner that serves. Adapters are random, of the base's shapes, so any base can be measured.

mod measure;

use std::sync::Arc;

use serde_json::{Value, json};

use super::base::{BaseArgs, PrecisionArgs, open_device};
use super::table::Table;
use super::{Verdict, print};
use base::BaseFiles;
use base::open::load;
use base::plan::Demand;
use base::progress::Progress;
use measure::{Case, Rig, Sample};

/// Measure prefill, decode by batch size, mixed tones and adapter loading
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every figure is the median over the rounds, with the least and the most beside it. `read` is how fast this
machine reads as many bytes as the weights take, over and over, and `of it` what a step's weights and adapters come to.

Examples:
  lory bench
  lory bench --rows 1,8,32 --adapters 0,8 --rounds 7 --json
  lory bench --base random-8b.gguf --rows 1,8 --prefill 128")]
pub(super) struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Prompt lengths to prefill, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [512], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefill: Vec<u32>,
    /// Batch sizes to decode
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32], value_parser = clap::value_parser!(u32).range(1..=1024))]
    rows: Vec<u32>,
    /// How many adapters the rows carry between them; 0 is the base alone
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
    /// Most rows of a prefill step
    #[arg(long, value_name = "ROWS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    chunk: u32,
    /// Rounds over all cases
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Compute threads [default: as many as the machine gives]
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

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    let located = args.base.locate()?;
    let planned = located.planned(&args.precision, Demand::default())?;
    let device = open_device(args.threads.map(|threads| threads as usize))?;
    // The weights alone: a base without a tokenizer can be measured too.
    let files = BaseFiles::open(&located.path)?;
    let model = load(&located.path, &files, device, &planned.load)?;
    drop(files);
    let model = Arc::new(model);
    let cases = args.cases();
    let most = args.adapters.iter().max().copied().unwrap_or(0) as usize;
    let mut rig = Rig::new(model.clone(), &cases, most, args.rank as usize)?;

    // Rounds go over all cases, so that a slow minute of the machine touches all alike.
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); cases.len()];
    let mut reads = Vec::new();
    let mut progress = Progress::stderr();
    let rounds = u64::from(args.rounds);
    progress.count("Measuring", rounds * cases.len() as u64);
    for _ in 0..rounds {
        reads.push(model.device().read_bandwidth(model.weight_bytes())?);
        for (case, samples) in cases.iter().zip(&mut samples) {
            samples.push(rig.measure(case)?);
            progress.add(1);
        }
    }
    progress.clear();

    let read = median(&reads);
    if args.json {
        let results: Vec<Value> = cases
            .iter()
            .zip(&samples)
            .map(|(case, samples)| as_json(case, samples))
            .collect();
        let config = model.config();
        let report = json!({
            "base": args.base.base,
            "precision": planned.load.precision.map_or("as in the file", model::Precision::name),
            "device": model.device().describe(),
            "threads": model.device().threads(),
            "weight_bytes": model.weight_bytes(),
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "rank": args.rank,
            "adapter_bytes": rig.adapter_bytes(),
            "read_bytes_per_s": read,
            "results": results,
        });
        print(&format!("{report:#}\n"))?;
        return Ok(Verdict::Good);
    }
    let mut table = Table::new(&[
        "work",
        "tones",
        "tok/s",
        "least",
        "most",
        "ms a step",
        "of it",
    ]);
    for (case, samples) in cases.iter().zip(&samples) {
        table.row(case_row(case, samples, read));
    }
    print(&format!(
        "\n{} · {} · {:.0} MB of weights · read {:.1} GB/s\n\n{}",
        args.base.base,
        model.device().describe(),
        model.weight_bytes() as f64 / 1e6,
        read / 1e9,
        table.render()
    ))?;
    Ok(Verdict::Good)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// (tokens/s of every round, seconds a step of every round).
fn rates(samples: &[Sample]) -> (Vec<f64>, Vec<f64>) {
    let rate = |sample: &Sample| sample.tokens as f64 / sample.seconds;
    let step = |sample: &Sample| sample.seconds / sample.steps as f64;
    (
        samples.iter().map(rate).collect(),
        samples.iter().map(step).collect(),
    )
}

fn case_row(case: &Case, samples: &[Sample], read: f64) -> Vec<String> {
    let (rates, steps) = rates(samples);
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let step = median(&steps);
    let bytes = samples.first().map_or(0, |sample| sample.bytes_a_step);
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
                format!("{least:.1}"),
                format!("{most:.1}"),
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
        value["bytes_per_step"] = json!(samples.first().map_or(0, |sample| sample.bytes_a_step));
        value["runs_tokens_per_s"] = json!(rates);
    }
    value
}
