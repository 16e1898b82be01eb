//! What each precision loses on a text: perplexity, and how far the next token's probabilities are from those in f32.
//!
//! ```text
//! cargo run --release --example precision -- BASE WORDING TEXT...
//! ```
//!
//! BASE is a Hugging Face folder of float weights; WORDING is the base whose tokenizer is taken, which may be BASE itself. A TEXT that
//! ends in .jsonl gives all strings of its rows. Products run as in serving: float weights in f32, quantized ones against int8
//! activations. docs/bases.md keeps what it output.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use base::open::load;
use base::quant_cache::OverlaidCheckpoint;
use base::{BaseFiles, BaseText, LoadOptions};
use formats::gguf::{Gguf, GgufWriter, dequantize, quantize};
use formats::tokenizer::Special;
use kernels::{Compute, Device, DeviceChoice, KvType};
use model::{Loading, Model, Precision};
use serde_json::Value;
use testkit::{log_probabilities, logits};

/// Most tokens of the texts that are looked at, and of them in one sequence.
const TOKENS: usize = 8192;
const WINDOW: usize = 512;

/// What one way of holding the weights does to the text.
#[derive(Default)]
struct Sums {
    loss: f64,
    divergence: f64,
    same: usize,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, base_text, texts @ ..] = args.as_slice() else {
        anyhow::bail!("usage: precision BASE WORDING TEXT...");
    };
    let base = Path::new(base);
    let base_text = BaseText::open(Path::new(base_text))?;
    let mut text = String::new();
    for path in texts {
        text += &read(Path::new(path)).with_context(|| path.clone())?;
    }
    let mut tokens = base_text.tokenizer.encode(&text, Special::AsText)?;
    tokens.truncate(TOKENS);
    anyhow::ensure!(tokens.len() > 1, "the texts have no two tokens");

    let device = Device::open(DeviceChoice::default())?;
    let mut models = Vec::new();
    for precision in Precision::ALL {
        let files = BaseFiles::open(base)?;
        let options = LoadOptions {
            precision: Some(precision),
            ..LoadOptions::default()
        };
        let model = load(base, &files, device.clone(), &options)?;
        models.push((precision.name(), model));
    }
    models.push(("q4, plain rounding", plainly_rounded(base, &device)?));

    let mut sums: Vec<Sums> = models.iter().map(|_| Sums::default()).collect();
    let (mut predicted, mut rows) = (0, 0);
    for window in tokens.chunks(WINDOW.min(base_text.context_length)) {
        let mut exact: Vec<Vec<f64>> = Vec::new();
        for ((_, model), sum) in models.iter().zip(&mut sums) {
            let output = logits(model, window, None, Compute::Int8, KvType::F16);
            for i in 0..window.len() {
                let row = log_probabilities(output.row(i));
                if exact.len() == i {
                    exact.push(row.clone());
                }
                sum.add(&exact[i], &row, window.get(i + 1));
            }
        }
        predicted += window.len() - 1;
        rows += window.len();
    }
    println!("{} tokens, {predicted} of them predicted", tokens.len());
    println!("| precision | weights | perplexity | divergence from f32 | same first choice |");
    println!("|---|---|---|---|---|");
    for ((name, model), sum) in models.iter().zip(&sums) {
        println!(
            "| {name} | {:.1} MB | {:.3} | {:.6} | {:.2}% |",
            model.weight_bytes() as f64 / 1e6,
            (sum.loss / predicted as f64).exp(),
            sum.divergence / rows as f64,
            100.0 * sum.same as f64 / rows as f64
        );
    }
    Ok(())
}

impl Sums {
    fn add(&mut self, exact: &[f64], row: &[f64], next: Option<&u32>) {
        if let Some(next) = next {
            self.loss -= row[*next as usize];
        }
        // Kullback and Leibler's divergence, in nats.
        let terms = exact.iter().zip(row).map(|(p, q)| p.exp() * (p - q));
        self.divergence += terms.sum::<f64>();
        let first = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        self.same += usize::from(first(exact) == first(row));
    }
}

/// The types of q4, scale and minimum of each group taken from its smallest and its largest weight: what the search is held against.
fn plainly_rounded(base: &Path, device: &Device) -> anyhow::Result<Model> {
    let files = BaseFiles::open(base)?;
    let source = files.checkpoint();
    let mut writer = GgufWriter::new();
    for (name, dtype, dims) in Model::converted(source, Precision::Q4)? {
        let tensor = source.tensor(&name).context(name.clone())?;
        let mut values = vec![0f32; dims.iter().product::<u64>() as usize];
        dequantize(tensor.dtype, tensor.data, &mut values)?;
        writer.tensor(&name, dtype, &dims, quantize(dtype, &values)?)?;
    }
    let quantized = Gguf::parse(Arc::new(writer.to_bytes()?), "plainly rounded")?;
    let overlaid = OverlaidCheckpoint {
        quantized: &quantized,
        source,
    };
    let loading = Loading {
        precision: Some(Precision::Q4),
        ..Loading::default()
    };
    Ok(Model::load_with(&overlaid, device.clone(), loading)?)
}

/// A text, or all strings of the rows of a .jsonl, a line each.
fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)?;
    if path.extension().is_none_or(|e| e != "jsonl") {
        return Ok(text);
    }
    let mut lines = String::new();
    for row in text.lines() {
        let row: serde_json::Map<String, Value> = serde_json::from_str(row)?;
        for text in row.values().filter_map(Value::as_str) {
            lines += text;
            lines.push('\n');
        }
    }
    Ok(lines)
}
