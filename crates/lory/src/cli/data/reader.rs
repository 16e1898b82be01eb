//! Reads dataset files with the settings of the flags and of a persona.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dataset::{
    Columns, DataRow, Dataset, DatasetError, DatasetScan, RowLocation, holds_pairs, scan_pairs,
};
use train::TrainSettings;
use train::example::Encoder;

use base::BaseText;

use crate::cli::exit::UsageError;
use crate::cli::flags::base::BaseArgs;
use crate::cli::flags::dataset::DatasetArgs;
use crate::cli::flags::personas::PersonasArgs;

/// The persona whose system prompt and settings apply, and the base whose template and tokenizer do.
#[derive(Debug, clap::Args)]
pub(crate) struct ReaderArgs {
    /// Read the rows as this persona's training does: its files, its system prompt and its [train] table
    #[arg(long, value_name = "NAME", conflicts_with = "system_prompt")]
    persona: Option<String>,
    /// The system prompt of rows that have none
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
}

/// The settings of the flags and the persona.
pub(crate) struct Reader {
    pub settings: TrainSettings,
    system_prompt: Option<String>,
    /// The persona's training files.
    files: Vec<PathBuf>,
    /// The persona's evaluation file.
    pub eval: Option<PathBuf>,
}

/// The rows of the file at `path`. Of preference pairs, it returns the chosen rows and adds the others to `rejected`.
pub(crate) fn scan(
    path: &Path,
    columns: &Columns,
    rejected: &mut BTreeMap<RowLocation, DataRow>,
) -> Result<DatasetScan, DatasetError> {
    if !holds_pairs(path, columns)? {
        return Dataset::scan(path, columns);
    }
    let mut pairs = scan_pairs(path, columns)?;
    rejected.append(&mut pairs.rejected);
    Ok(pairs.chosen)
}

impl ReaderArgs {
    pub fn reader(&self) -> anyhow::Result<Reader> {
        let mut reader = Reader {
            settings: TrainSettings::default(),
            system_prompt: self.system_prompt.clone(),
            files: Vec::new(),
            eval: None,
        };
        if let Some(name) = &self.persona {
            let personas = self.personas.open()?;
            let chosen = personas.resolve(name)?;
            let [chosen] = chosen.as_slice() else {
                return Err(UsageError(format!("--persona {name}: name one persona")).into());
            };
            reader.system_prompt = chosen.persona.system_prompt_by_default()?;
            if let Some(train) = &chosen.persona.train {
                reader.settings = train.settings()?;
                reader.files = vec![train.data.clone()];
                reader.eval = train.eval.clone();
            }
        }
        reader.settings = self.dataset.apply(reader.settings)?;
        reader.settings.check()?;
        Ok(reader)
    }

    pub fn wording(&self) -> anyhow::Result<BaseText> {
        self.base.locate()?.text()
    }
}

impl Reader {
    pub fn encoder<'a>(&'a self, wording: &'a BaseText) -> Encoder<'a> {
        Encoder {
            tokenizer: &wording.tokenizer,
            template: &wording.template,
            system: self.system_prompt.as_deref(),
            mask: self.settings.mask,
            max_length: self.settings.max_length.min(wording.context_length),
            too_long: self.settings.too_long,
        }
    }

    /// `named`, or the persona's files if it is empty.
    pub fn files_or(&self, named: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
        if !named.is_empty() {
            return Ok(named.to_vec());
        }
        if self.files.is_empty() {
            let message = "name a FILE, or a --persona whose persona.toml has a [train] table";
            return Err(UsageError(message.to_owned()).into());
        }
        Ok(self.files.clone())
    }
}
