//! `lory persona merge`: base and adapter as one GGUF, and what merging costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use formats::decimal::shortest;
use formats::gguf::{GgmlType, Gguf};

use serde_json::json;
use train::measures::loss_table;
use train::{Example, LoraParams, LossSum};

use super::{Chosen, choose, keep_base};
use crate::cli::base::{BaseArgs, open_device};
use crate::cli::personas::PersonasArgs;
use crate::cli::registry::RegistryArgs;
use crate::cli::table::Table;
use crate::cli::{Verdict, print};
use base::Base;
use base::progress::Progress;
use jobs::evaluation;
use jobs::training;

/// Most tokens of one call of the learner.
const BATCH_TOKENS: usize = 2048;
/// Rows that are measured before the progress moves.
const AT_ONCE: usize = 8;

/// Write base and adapter as one model, and measure what that loses
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only the weights that the adapter touches change their type. The loss on the persona's evaluation rows is measured with the
adapter beside the base, as it is served, and with the merged file.

Examples:
  lory persona merge customer --out customer.gguf
  lory persona merge customer --out customer-f16.gguf --type f16 --limit 50")]
pub(in crate::cli) struct Args {
    /// The persona: a name, a version (customer@2), or a scale (customer*0.5)
    #[arg(value_name = "NAME")]
    name: String,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Type of the merged weights: keep (the base's own), f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "keep", value_parser = target)]
    to: Target,
    /// Measure on the first N evaluation rows alone; 0 measures nothing [default: all of them]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
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

/// A type, or none for the base's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target(Option<GgmlType>);

fn target(name: &str) -> Result<Target, String> {
    if name == "keep" {
        return Ok(Target(None));
    }
    let written = |dtype: &GgmlType| dtype.file_type().is_some();
    let found: Option<GgmlType> = name.to_ascii_uppercase().parse().ok();
    found
        .filter(written)
        .map(|dtype| Target(Some(dtype)))
        .ok_or_else(|| {
            let known: Vec<String> = GgmlType::all()
                .filter(written)
                .map(|dtype| dtype.name().to_ascii_lowercase())
                .collect();
            format!("known are keep, {}", known.join(", "))
        })
}

/// One line of the comparison.
struct Measured {
    what: String,
    loss: LossSum,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let chosen = choose(
        &args.registry.catalog(&args.personas)?.personas(),
        &args.name,
    )?;
    let located = args.base.locate()?;
    anyhow::ensure!(
        !located.path.is_dir(),
        "--base {}: a folder; merging writes the base's GGUF file anew, so it needs one: convert the folder with llama.cpp's \
         convert_hf_to_gguf.py",
        located.path.display()
    );
    keep_base(&args.out, &located.path)?;
    let base = Base::open(&located.path, located.name.as_deref(), open_device(None)?)?;
    chosen.fits(&base.tokenizer, &base.template)?;

    let mut progress = Progress::stderr();
    progress.spin("Merging");
    write(&chosen, &located.path, &located.fingerprint()?, args)?;
    progress.clear();
    let measured = measure(&chosen, base, args)?;
    report(&chosen, &measured, args)?;
    Ok(Verdict::Good)
}

fn write(chosen: &Chosen, base: &Path, fingerprint: &str, args: &Args) -> anyhow::Result<()> {
    let origin = base.display().to_string();
    let mapped = kernels::map_file(base).with_context(|| origin.clone())?;
    let gguf = Gguf::parse(Arc::new(mapped), &origin)?;
    let mut file = model::merge(&gguf, &chosen.adapter, chosen.scale, args.to.0)?;
    let name = match gguf.get_str("general.name")? {
        Some(name) => format!("{name} {}", chosen.persona.name),
        None => chosen.persona.name.clone(),
    };
    file.metadata("general.name", name.as_str())
        .metadata("lory.base_sha256", fingerprint)
        .metadata("lory.merged_adapter_sha256", chosen.sha256.as_str())
        .metadata("lory.merged_scale", chosen.scale);
    Ok(file.write(&args.out)?)
}

/// Losses of the persona's evaluation rows: base, base with the adapter beside it, merged. None where it has no rows.
fn measure(chosen: &Chosen, base: Base, args: &Args) -> anyhow::Result<Vec<Measured>> {
    let rows = chosen.persona.train.as_ref().and_then(|t| t.eval.clone());
    let Some(rows) = rows else {
        return Ok(Vec::new());
    };
    let rows = jobs::evaluation::rows(&rows, &chosen.persona)?;
    let rows = &rows[..args.limit.unwrap_or(rows.len()).min(rows.len())];
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let examples = evaluation::examples(&base, &chosen.persona, rows)?;
    let mut adapter = LoraParams {
        pairs: chosen.adapter.pairs.clone(),
    };
    for pair in &mut adapter.pairs {
        pair.scale *= chosen.scale;
    }
    let mut progress = Progress::stderr();
    progress.count("Measuring losses", 3 * examples.len() as u64);
    let bare = LoraParams::default();
    let beside = [("base", &bare), ("adapter", &adapter)];
    let mut losses = losses(&base, &examples, &beside, &progress)?;
    // One model in memory at a time.
    drop(base);
    let merged = Base::open(&args.out, None, open_device(None)?)?;
    let alone = [("merged", &bare)];
    losses.extend(self::losses(&merged, &examples, &alone, &progress)?);
    progress.clear();
    let merged = match args.to.0 {
        None => "merged, in the base's types".to_owned(),
        Some(dtype) => format!("merged, in {dtype}"),
    };
    let what = ["base", "base and adapter, unmerged"].map(str::to_owned);
    let what = what.into_iter().chain([merged]);
    Ok(what
        .zip(losses)
        .map(|(what, loss)| Measured { what, loss })
        .collect())
}

fn losses(
    base: &Base,
    examples: &[Example],
    adapters: &[(&str, &LoraParams)],
    progress: &Progress,
) -> anyhow::Result<Vec<LossSum>> {
    let mut learner = training::learner(base);
    let mut sums = vec![LossSum::default(); adapters.len()];
    for rows in examples.chunks(AT_ONCE) {
        let table = loss_table(&mut learner, &[("rows", rows)], adapters, BATCH_TOKENS)?;
        for (sum, loss) in sums.iter_mut().zip(table.losses.into_iter().flatten()) {
            sum.add(loss);
        }
        progress.add((adapters.len() * rows.len()) as u64);
    }
    Ok(sums)
}

fn report(chosen: &Chosen, measured: &[Measured], args: &Args) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(&args.out)?.len();
    let by_merging = match measured {
        [_, unmerged, merged] => Some(merged.loss.mean() - unmerged.loss.mean()),
        _ => None,
    };
    if args.json {
        let losses: Vec<_> = measured
            .iter()
            .map(|m| json!({"what": m.what, "loss": m.loss.mean(), "perplexity": m.loss.perplexity()}))
            .collect();
        let report = json!({
            "persona": chosen.persona.name,
            "adapter": chosen.sha256,
            "scale": shortest(chosen.scale),
            "out": args.out,
            "bytes": bytes,
            "losses": losses,
            "loss_by_merging": by_merging,
            "system_prompt": chosen.persona.system_prompt,
        });
        return print(&format!("{report}\n"));
    }
    let head = format!("rows of {}", chosen.persona.name);
    let mut table = Table::new(&[&head, "loss", "perplexity"]);
    for Measured { what, loss } in measured {
        table.row([
            what.clone(),
            format!("{:.4}", loss.mean()),
            format!("{:.2}", loss.perplexity()),
        ]);
    }
    let measured = match by_merging {
        Some(change) => format!(
            "\n{}\nmerging changes the loss by {change:+.4} nats a token\n",
            table.render()
        ),
        None if args.limit == Some(0) => "not measured: --limit 0\n".to_owned(),
        None => format!(
            "not measured: persona {} has no evaluation rows (`eval` in the [train] table of its persona.toml)\n",
            chosen.persona.name
        ),
    };
    print(&format!(
        "{}: {}, scale {}\n{}{measured}",
        args.out.display(),
        bytesize::ByteSize(bytes),
        chosen.scale,
        chosen.remarks()
    ))
}
