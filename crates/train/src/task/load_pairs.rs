//! Loads a task of preference tuning: matches rows to rejected answers, varies both together, and encodes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::tokenizer::Tokenizer;

use super::load::Side;
use super::{DataReport, TrainTask, TrainTaskSpec};
use crate::error::TrainError;
use crate::example::{Encoder, Example, ExampleBudget, Fitted};
use crate::initial_params::InitialParams;
use crate::lora_init::target_linears;
use crate::preference::{
    PairCounts, PreferenceData, RejectedAnswers, RejectedExamples, RejectedPersona,
};
use crate::rng::Rng;
use crate::vary_identifiers::{IDENTIFIER_STREAM, vary_identifiers_together};
use dataset::stop::check_stop;
use dataset::{
    Columns, DataRow, Dataset, MAX_BYTES, PreferencePair, check_pairs, each_pair, holds_pairs,
};

impl TrainTask {
    /// Reads `spec` as [`TrainTask::load`] does, for a task whose settings have a `preference`.
    ///
    /// The rejected answers come from the training file if its rows have them, else from the rows of `rejected_personas` with
    /// the same question. A row without a rejected answer, or with two equal answers, is dropped and counted.
    ///
    /// # Errors
    /// As [`TrainTask::load`]. Also if no row has a rejected answer, or if the rejected answers have two sources or none.
    pub fn load_pairs(
        spec: TrainTaskSpec<'_>,
        rejected_personas: &[RejectedPersona],
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<TrainTask, TrainError> {
        spec.settings.check()?;
        let settings = spec.settings.clone().for_base(config.hidden_size);
        let LoadedPairs {
            train,
            validation,
            counts,
            mut report,
        } = read(&spec, rejected_personas)?;
        let encoder = Encoder {
            tokenizer,
            template,
            system: spec.system,
            mask: settings.mask,
            max_length: settings.max_length.min(config.context_length),
            too_long: settings.too_long,
        };
        let mut budget = ExampleBudget::new(spec.max_bytes);
        let mut encoding = PairEncoding::new(&encoder, &mut budget);
        train.for_each(spec.stop, &mut |_, pair| encoding.add(&pair))?;
        for copy in 0..settings.vary_identifiers {
            train.for_each(spec.stop, &mut |index, pair| {
                let mut rng = Rng::new(settings.seed, &[IDENTIFIER_STREAM, copy, index]);
                let again = vary_identifiers_together([&pair.chosen, &pair.rejected], &mut rng);
                let again = again.map(|[chosen, rejected]| PreferencePair { chosen, rejected });
                encoding.add(&again.unwrap_or(pair))
            })?;
        }
        let (train, rejected_train) = encoding.finish(&mut report)?;
        let mut encoding = PairEncoding::new(&encoder, &mut budget);
        validation.for_each(spec.stop, &mut |_, pair| encoding.add(&pair))?;
        let (validation, rejected_validation) = encoding.finish(&mut report)?;
        let init = InitialParams::drawn(&target_linears(config, &settings.modules()?), &settings);
        let rejected = |examples| RejectedExamples {
            examples,
            reference_logps: Vec::new(),
        };
        Ok(TrainTask {
            name: spec.name.to_owned(),
            settings,
            train,
            validation,
            init,
            metrics: spec.metrics,
            data: report,
            preference: Some(PreferenceData {
                train: rejected(rejected_train),
                validation: rejected(rejected_validation),
                counts,
            }),
            initial_adapter: None,
        })
    }
}

/// The pairs to train on and to validate with.
struct LoadedPairs {
    train: Pairs,
    validation: Pairs,
    counts: PairCounts,
    report: DataReport,
}

/// Pairs with two different answers.
enum Pairs {
    /// Rows with the answers of other personas.
    Matched(Vec<PreferencePair>),
    /// Rows with their own rejected answers, in a checked file that is read again for each pass over them.
    Own {
        path: PathBuf,
        columns: Columns,
        side: Side,
    },
}

impl Pairs {
    /// Calls `visit` with the index of each pair and the pair.
    fn for_each(
        &self,
        stop: &AtomicBool,
        visit: &mut dyn FnMut(u64, PreferencePair) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut index = 0;
        let mut visit = |pair: PreferencePair| {
            index += 1;
            visit(index - 1, pair)
        };
        match self {
            Pairs::Matched(pairs) => {
                for pair in pairs {
                    check_stop(stop)?;
                    visit(pair.clone())?;
                }
                Ok(())
            }
            Pairs::Own {
                path,
                columns,
                side,
            } => each_pair(
                path,
                columns,
                stop,
                &mut |pair| match side.has(&pair.chosen) && !pair.is_same() {
                    true => visit(pair),
                    false => Ok(()),
                },
            ),
        }
    }
}

fn read(
    spec: &TrainTaskSpec<'_>,
    rejected_personas: &[RejectedPersona],
) -> Result<LoadedPairs, TrainError> {
    let refuse = |message: String| TrainError::data(spec.train.display().to_string(), message);
    let own = holds_pairs(spec.train, &spec.settings.columns)?;
    if own && !rejected_personas.is_empty() {
        let message = "its rows have their own `rejected` answers, so those of another persona cannot be used; leave \
                       `against` (--prefer-over) out";
        return Err(refuse(message.to_owned()));
    }
    if !own && rejected_personas.is_empty() {
        let message = "its rows have no `rejected` answer; name the persona whose answers are rejected \
                       (`against`, --prefer-over), or write rows of `prompt`, `chosen` and `rejected`";
        return Err(refuse(message.to_owned()));
    }
    match own {
        true => check_own(spec),
        false => match_personas(spec, rejected_personas),
    }
}

/// Checks the files of rows with their own rejected answers, and counts their pairs.
fn check_own(spec: &TrainTaskSpec<'_>) -> Result<LoadedPairs, TrainError> {
    let columns = &spec.settings.columns;
    let check = |path| check_pairs(path, columns, MAX_BYTES, spec.stop);
    let data = check(spec.train)?;
    let mut report = DataReport {
        train_file_hash: data.hash,
        fields: data.fields,
        ..DataReport::default()
    };
    let fraction = spec.settings.validation_fraction;
    let (train_side, (validation_path, validation_side)) = match spec.validation {
        None => {
            let (train, held_out) = Side::split(data.hold_out, fraction);
            (train, (spec.train, held_out))
        }
        Some(path) => {
            let validation = check(path)?;
            report.validation_file_hash = Some(validation.hash);
            report.fields.add(&validation.fields);
            (Side::All, (path, Side::All))
        }
    };
    let count = |path: &Path, side: Side| {
        let mut counts = PairCounts::default();
        each_pair(path, columns, spec.stop, &mut |pair| {
            if side.has(&pair.chosen) {
                counts.add_row(Some(&pair));
            }
            Ok::<(), TrainError>(())
        })?;
        Ok::<PairCounts, TrainError>(counts)
    };
    let matched = |path: &Path, counts: PairCounts| match counts.pairs {
        0 if counts.rows > 0 => Err(none_matched(&path.display().to_string(), &counts, &[])),
        _ => Ok(counts),
    };
    let mut counts = matched(spec.train, count(spec.train, train_side)?)?;
    let mut of_validation = count(validation_path, validation_side)?;
    match spec.validation {
        None => report.held_out = of_validation.rows,
        Some(path) => of_validation = matched(path, of_validation)?,
    }
    counts.add(&of_validation);
    let pairs = |path: &Path, side| Pairs::Own {
        path: path.to_owned(),
        columns: columns.clone(),
        side,
    };
    Ok(LoadedPairs {
        train: pairs(spec.train, train_side),
        validation: pairs(validation_path, validation_side),
        counts,
        report,
    })
}

/// Matches rows to the answers of other personas.
fn match_personas(
    spec: &TrainTaskSpec<'_>,
    rejected_personas: &[RejectedPersona],
) -> Result<LoadedPairs, TrainError> {
    let mut report = DataReport::default();
    let mut scan = |path| {
        let scan = Dataset::scan_until(path, &spec.settings.columns, spec.stop)?;
        report.fields.add(&scan.fields);
        scan.whole()
    };
    let data = scan(spec.train)?;
    let held_out = spec.validation.map(scan).transpose()?;
    let answers = RejectedAnswers::of(rejected_personas)?;
    report.train_file_hash.clone_from(&data.hash);
    let pairs = |rows: &[DataRow]| {
        let (pairs, counts) = answers.pairs(rows);
        if let (true, Some(first)) = (pairs.is_empty(), rows.first()) {
            return Err(none_matched(
                &first.location.file,
                &counts,
                rejected_personas,
            ));
        }
        Ok((pairs, counts))
    };
    let ((train, mut counts), (validation, of_validation)) = match held_out {
        None => {
            let (rows, held_out) = data.split(spec.settings.validation_fraction);
            report.held_out = held_out.len();
            (pairs(&rows)?, answers.pairs(&held_out))
        }
        Some(held_out) => {
            report.validation_file_hash = Some(held_out.hash);
            (pairs(&data.rows)?, pairs(&held_out.rows)?)
        }
    };
    counts.add(&of_validation);
    Ok(LoadedPairs {
        train: Pairs::Matched(train),
        validation: Pairs::Matched(validation),
        counts,
        report,
    })
}

fn none_matched(
    file: &str,
    counts: &PairCounts,
    rejected_personas: &[RejectedPersona],
) -> TrainError {
    let names: Vec<&str> = rejected_personas
        .iter()
        .map(|persona| persona.name.as_str())
        .collect();
    let files: Vec<String> = rejected_personas
        .iter()
        .flat_map(|persona| &persona.files)
        .map(|file| file.display().to_string())
        .collect();
    let whose = if rejected_personas.is_empty() {
        String::new()
    } else {
        format!(" of {} ({})", names.join(", "), files.join(", "))
    };
    TrainError::data(
        file,
        format!(
            "none of its {} rows has another answer{whose} to the same question: {} questions found none, {} found the \
             same answer; a pair needs two different answers to a question that is the same word for word",
            counts.rows, counts.unanswered, counts.same
        ),
    )
}

/// The chosen and the rejected answers as tokens; a pair stays or goes as a whole.
struct PairEncoding<'a> {
    encoder: &'a Encoder<'a>,
    budget: &'a mut ExampleBudget,
    chosen: Vec<Example>,
    rejected: Vec<Example>,
    dropped: usize,
    truncated: usize,
    /// The file of the first pair.
    file: Option<Arc<str>>,
    pairs: usize,
}

impl<'a> PairEncoding<'a> {
    fn new(encoder: &'a Encoder<'a>, budget: &'a mut ExampleBudget) -> PairEncoding<'a> {
        PairEncoding {
            encoder,
            budget,
            chosen: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
            truncated: 0,
            file: None,
            pairs: 0,
        }
    }

    /// Encodes one pair, within the budget.
    fn add(&mut self, pair: &PreferencePair) -> Result<(), TrainError> {
        self.pairs += 1;
        self.file
            .get_or_insert_with(|| pair.chosen.location.file.clone());
        let encoder = self.encoder;
        let fitted =
            [&pair.chosen, &pair.rejected].map(|row| encoder.fit(encoder.encode(row)?, row));
        let [one, other] = fitted;
        let (one, other) = (one?, other?);
        let cut = matches!(one, Fitted::Truncated(_)) || matches!(other, Fitted::Truncated(_));
        let (
            Fitted::Whole(mut one) | Fitted::Truncated(mut one),
            Fitted::Whole(mut other) | Fitted::Truncated(mut other),
        ) = (one, other)
        else {
            self.dropped += 1;
            return Ok(());
        };
        self.truncated += usize::from(cut);
        self.budget.take(&mut one, &pair.chosen)?;
        self.budget.take(&mut other, &pair.rejected)?;
        self.chosen.push(one);
        self.rejected.push(other);
        Ok(())
    }

    /// The chosen and the rejected answers; an error if all pairs were too long.
    fn finish(self, report: &mut DataReport) -> Result<(Vec<Example>, Vec<Example>), TrainError> {
        report.dropped += self.dropped;
        report.truncated += self.truncated;
        match self.file {
            Some(file) if self.chosen.is_empty() => Err(TrainError::data(
                file.to_string(),
                format!(
                    "every one of the {} pairs has an answer longer than `max_length` = {} tokens; raise it",
                    self.pairs, self.encoder.max_length
                ),
            )),
            _ => Ok((self.chosen, self.rejected)),
        }
    }
}
