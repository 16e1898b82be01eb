//! `lory data`: looks over data files, and shows what training makes of them.

mod lint;
mod show;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use train::dataset::{Columns, DataRow, Dataset, DatasetScan, RowLocation};
use train::example::Encoder;
use train::preference::{holds_pairs, scan_pairs};
use train::{TrainError, TrainSettings};

use super::base::BaseArgs;
use super::personas::PersonasArgs;
use super::rows::RowsArgs;
use super::{Usage, Verdict};
use base::Wording;

/// Look over data files
#[derive(Debug, clap::Subcommand)]
pub(super) enum Data {
    Lint(lint::Args),
    Show(show::Args),
}

pub(super) fn run(data: Data) -> anyhow::Result<Verdict> {
    match data {
        Data::Lint(args) => lint::run(&args),
        Data::Show(args) => show::run(&args),
    }
}

/// For whom rows are looked at: a persona's system prompt and settings, and whose template and tokenizer.
#[derive(Debug, clap::Args)]
struct ReaderArgs {
    /// Read as this persona's training does: its files, its system prompt and its [train] table
    #[arg(long, value_name = "NAME", conflicts_with = "system_prompt")]
    persona: Option<String>,
    /// The system prompt of rows that bring none
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    rows: RowsArgs,
}

/// What the flags and the persona say together.
struct Reader {
    settings: TrainSettings,
    system_prompt: Option<String>,
    /// The persona's training rows, and its evaluation rows.
    files: Vec<PathBuf>,
    eval: Option<PathBuf>,
}

/// The rows of the file at `path`; of pairs, those with the chosen answers, and the others go into `rejected`.
fn scan(
    path: &Path,
    columns: &Columns,
    rejected: &mut BTreeMap<RowLocation, DataRow>,
) -> Result<DatasetScan, TrainError> {
    if !holds_pairs(path)? {
        return Dataset::scan(path, columns);
    }
    let mut pairs = scan_pairs(path)?;
    rejected.append(&mut pairs.rejected);
    Ok(pairs.chosen)
}

impl ReaderArgs {
    fn reader(&self) -> anyhow::Result<Reader> {
        let mut reader = Reader {
            settings: TrainSettings::default(),
            system_prompt: self.system_prompt.clone(),
            files: Vec::new(),
            eval: None,
        };
        if let Some(who) = &self.persona {
            let personas = self.personas.open()?;
            let chosen = personas.resolve(who)?;
            let [chosen] = chosen.as_slice() else {
                return Err(Usage(format!("--persona {who}: name one persona")).into());
            };
            reader.system_prompt = chosen.persona.system_prompt_by_default()?;
            if let Some(train) = &chosen.persona.train {
                reader.settings = train.settings()?;
                reader.files = vec![train.data.clone()];
                reader.eval = train.eval.clone();
            }
        }
        reader.settings = self.rows.over(reader.settings)?;
        reader.settings.check()?;
        Ok(reader)
    }

    fn wording(&self) -> anyhow::Result<Wording> {
        Ok(Wording::open(&self.base.locate()?.path)?)
    }
}

impl Reader {
    fn encoder<'a>(&'a self, wording: &'a Wording) -> Encoder<'a> {
        Encoder {
            tokenizer: &wording.tokenizer,
            template: &wording.template,
            system: self.system_prompt.as_deref(),
            mask: self.settings.mask,
            max_length: self.settings.max_length.min(wording.context_length),
            too_long: self.settings.too_long,
        }
    }

    /// The files that were named, else the persona's.
    fn files_or(&self, named: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
        if !named.is_empty() {
            return Ok(named.to_vec());
        }
        if self.files.is_empty() {
            let message = "name a FILE, or a --persona whose persona.toml has a [train] table";
            return Err(Usage(message.to_owned()).into());
        }
        Ok(self.files.clone())
    }
}
