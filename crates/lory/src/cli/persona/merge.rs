//! `lory persona merge`: writes base and adapter as one GGUF file, and measures the change of the loss.

use std::path::{Path, PathBuf};

use formats::decimal::shortest;
use formats::gguf::GgmlType;

use serde_json::json;
use train::measures::loss_table;
use train::{Example, LoraParams, LossSum};

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, open_device};
use crate::cli::flags::personas::PersonasArgs;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::output::print;
use crate::cli::output::table::Table;
use crate::cli::persona::adapter::{SelectedAdapter, refuse_to_overwrite, select};
use base::progress::Progress;
use base::{Base, LoadOptions, files};
use jobs::evaluation;
use jobs::training;

/// The most tokens of one call of the learner.
const BATCH_TOKENS: usize = 2048;
/// Rows per update of the progress.
const ROWS_PER_UPDATE: usize = 8;

/// Merge base and adapter into one model, and measure the change of the loss
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only the weights that the adapter changes get the new type. The loss on the persona's evaluation rows is measured with the
adapter unmerged, as it is served, and with the merged file.

Examples:
  lory persona merge customer --out customer.gguf
  lory persona merge customer --out customer-f16.gguf --type f16 --limit 50")]
pub(crate) struct Args {
    /// The persona: a name, a version (customer@2), or a scale (customer*0.5)
    #[arg(value_name = "NAME")]
    name: String,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Type of the merged weights: keep (the base's own), f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "keep", value_parser = merged_type)]
    to: MergedType,
    /// Measure on the first N evaluation rows; 0 skips the measurement [default: all rows]
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

/// The type of the merged weights; none for the base's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MergedType(Option<GgmlType>);

/// Parses a type that GGUF files can be written in, or `keep`.
fn merged_type(name: &str) -> Result<MergedType, String> {
    if name == "keep" {
        return Ok(MergedType(None));
    }
    let written = |dtype: &GgmlType| dtype.file_type().is_some();
    let found: Option<GgmlType> = name.to_ascii_uppercase().parse().ok();
    found
        .filter(written)
        .map(|dtype| MergedType(Some(dtype)))
        .ok_or_else(|| {
            let known: Vec<String> = GgmlType::all()
                .filter(written)
                .map(|dtype| dtype.name().to_ascii_lowercase())
                .collect();
            format!("must be keep, {}", known.join(", "))
        })
}

/// One row of the comparison.
struct Measured {
    what: String,
    loss: LossSum,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let selected = select(
        &args.registry.catalog(&args.personas)?.personas(),
        &args.name,
    )?;
    let located = args.base.locate()?;
    anyhow::ensure!(
        !located.path.is_dir(),
        "--base {}: merging needs a GGUF file, and this is a folder; convert it with llama.cpp's convert_hf_to_gguf.py",
        located.path.display()
    );
    refuse_to_overwrite(&args.out, &located.path)?;
    let load = LoadOptions {
        system_as_user: located.system_as_user,
        ..LoadOptions::default()
    };
    let name = located.name.as_deref();
    let base = Base::open_with(&located.path, name, open_device(None)?, &load)?;
    selected.check_base(&located.path, &base.tokenizer, &base.template)?;

    let mut progress = Progress::stderr();
    progress.spin("Merging");
    write(&selected, &located.path, &located.fingerprint()?, args)?;
    progress.clear();
    let measured = measure(&selected, base, args)?;
    report(&selected, &measured, args)?;
    Ok(ExitStatus::Success)
}

fn write(
    selected: &SelectedAdapter,
    base: &Path,
    fingerprint: &str,
    args: &Args,
) -> anyhow::Result<()> {
    let gguf = files::open_gguf(base)?;
    let mut file = model::merge(&gguf, &selected.adapter, selected.scale, args.to.0)?;
    let name = match gguf.get_str("general.name")? {
        Some(name) => format!("{name} {}", selected.persona.name),
        None => selected.persona.name.clone(),
    };
    file.metadata("general.name", name.as_str())
        .metadata("lory.base_sha256", fingerprint)
        .metadata("lory.merged_adapter_sha256", selected.sha256.as_str())
        .metadata("lory.merged_scale", selected.scale);
    Ok(file.write(&args.out)?)
}

/// Losses on the persona's evaluation rows: base, base with the unmerged adapter, merged. Empty if it has no rows.
fn measure(selected: &SelectedAdapter, base: Base, args: &Args) -> anyhow::Result<Vec<Measured>> {
    let rows = selected.persona.train.as_ref().and_then(|t| t.eval.clone());
    let Some(rows) = rows else {
        return Ok(Vec::new());
    };
    let rows = jobs::evaluation::rows(&rows, &selected.persona)?;
    let rows = &rows[..args.limit.unwrap_or(rows.len()).min(rows.len())];
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let examples = evaluation::examples(&base, &selected.persona, rows)?;
    let mut adapter = LoraParams {
        pairs: selected.adapter.pairs.clone(),
    };
    for pair in &mut adapter.pairs {
        pair.scale *= selected.scale;
    }
    let mut progress = Progress::stderr();
    progress.count("Measuring losses", 3 * examples.len() as u64);
    let no_adapter = LoraParams::default();
    let unmerged = [("base", &no_adapter), ("adapter", &adapter)];
    let mut losses = losses(&base, &examples, &unmerged, &progress)?;
    // Only one model is in memory at a time.
    drop(base);
    let merged = Base::open(&args.out, None, open_device(None)?)?;
    let alone = [("merged", &no_adapter)];
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
    for rows in examples.chunks(ROWS_PER_UPDATE) {
        let table = loss_table(&mut learner, &[("rows", rows)], adapters, BATCH_TOKENS)?;
        for (sum, loss) in sums.iter_mut().zip(table.losses.into_iter().flatten()) {
            sum.add(loss);
        }
        progress.add((adapters.len() * rows.len()) as u64);
    }
    Ok(sums)
}

fn report(selected: &SelectedAdapter, measured: &[Measured], args: &Args) -> anyhow::Result<()> {
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
            "persona": selected.persona.name,
            "adapter": selected.sha256,
            "scale": shortest(selected.scale),
            "out": args.out,
            "bytes": bytes,
            "losses": losses,
            "loss_by_merging": by_merging,
            "system_prompt": selected.persona.system_prompt,
        });
        return print(&format!("{report}\n"));
    }
    let head = format!("rows of {}", selected.persona.name);
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
            "\n{}\nmerging changes the loss by {change:+.4} nats per token\n",
            table.render()
        ),
        None if args.limit == Some(0) => "not measured: --limit 0\n".to_owned(),
        None => format!(
            "not measured: persona {} has no evaluation rows (`eval` in the [train] table of its persona.toml)\n",
            selected.persona.name
        ),
    };
    print(&format!(
        "{}: {}, scale {}\n{}{measured}",
        args.out.display(),
        bytesize::ByteSize(bytes),
        selected.scale,
        selected.remarks()
    ))
}
