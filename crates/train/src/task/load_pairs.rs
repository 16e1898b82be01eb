//! Loads a task of preference tuning: matches rows to rejected answers, varies both together, and encodes them.

use std::sync::atomic::AtomicBool;

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::tokenizer::Tokenizer;

use super::{DataReport, TrainTask, TrainTaskSpec};
use crate::dataset::{DataRow, Dataset};
use crate::error::TrainError;
use crate::example::{Encoder, Example, Fitted, TokenBudget};
use crate::lora_init::{lora_init, target_linears};
use crate::preference::{
    PairCounts, PreferenceData, PreferencePair, RejectedAnswers, RejectedExamples, RejectedPersona,
    holds_pairs, read_pairs,
};
use crate::rng::Rng;
use crate::stop::check_stop;
use crate::vary_identifiers::{IDENTIFIER_STREAM, vary_identifiers_together};

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

        let mut train = train;
        let first = train.len();
        for copy in 0..settings.vary_identifiers {
            for index in 0..first {
                check_stop(spec.stop)?;
                let PreferencePair { chosen, rejected } = &train[index];
                let mut rng = Rng::new(settings.seed, &[IDENTIFIER_STREAM, copy, index as u64]);
                let again = vary_identifiers_together([chosen, rejected], &mut rng);
                let [chosen, rejected] =
                    again.unwrap_or_else(|| [chosen.clone(), rejected.clone()]);
                train.push(PreferencePair { chosen, rejected });
            }
        }
        let encoder = Encoder {
            tokenizer,
            template,
            system: spec.system,
            mask: settings.mask,
            max_length: settings.max_length.min(config.context_length),
            too_long: settings.too_long,
        };
        let mut budget = TokenBudget::new(spec.max_tokens);
        let (train, rejected_train) =
            encode(&encoder, &train, &mut report, &mut budget, spec.stop)?;
        let (validation, rejected_validation) =
            encode(&encoder, &validation, &mut report, &mut budget, spec.stop)?;
        let init = lora_init(&target_linears(config, &settings.modules()?), &settings);
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

/// Pairs as they were read.
struct LoadedPairs {
    train: Vec<PreferencePair>,
    validation: Vec<PreferencePair>,
    counts: PairCounts,
    report: DataReport,
}

fn read(
    spec: &TrainTaskSpec<'_>,
    rejected_personas: &[RejectedPersona],
) -> Result<LoadedPairs, TrainError> {
    let refuse = |message: String| TrainError::Data {
        file: spec.train.display().to_string(),
        message,
    };
    let own = holds_pairs(spec.train)?;
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
    let side = |path| {
        if own {
            read_pairs(path, spec.stop)
        } else {
            Ok((
                Dataset::scan_until(path, &spec.settings.columns, spec.stop)?.whole()?,
                RejectedAnswers::of(rejected_personas)?,
            ))
        }
    };
    let (data, answers) = side(spec.train)?;
    let mut report = DataReport {
        train_file_hash: data.hash.clone(),
        ..DataReport::default()
    };
    let pairs = |rows: &[DataRow], answers: &RejectedAnswers| {
        let (pairs, counts) = answers.pairs(rows);
        if pairs.is_empty() && !rows.is_empty() {
            return Err(none_matched(rows, &counts, rejected_personas));
        }
        Ok((pairs, counts))
    };
    let ((train, mut counts), (validation, of_validation)) = match spec.validation {
        None => {
            let (rows, held_out) = data.split(spec.settings.validation_fraction);
            report.held_out = held_out.len();
            (pairs(&rows, &answers)?, answers.pairs(&held_out))
        }
        Some(path) => {
            let (held_out, its_answers) = side(path)?;
            report.validation_file_hash = Some(held_out.hash);
            (
                pairs(&data.rows, &answers)?,
                pairs(&held_out.rows, &its_answers)?,
            )
        }
    };
    counts.add(&of_validation);
    Ok(LoadedPairs {
        train,
        validation,
        counts,
        report,
    })
}

fn none_matched(
    rows: &[DataRow],
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
    TrainError::Data {
        file: rows[0].location.file.to_string(),
        message: format!(
            "none of its {} rows has another answer{whose} to the same question: {} questions found none, {} found the \
             same answer; a pair needs two different answers to a question that is the same word for word",
            rows.len(),
            counts.unanswered,
            counts.same
        ),
    }
}

/// The chosen and the rejected answers of `pairs` as tokens; a pair stays or goes as a whole.
fn encode(
    encoder: &Encoder<'_>,
    pairs: &[PreferencePair],
    report: &mut DataReport,
    budget: &mut TokenBudget,
    stop: &AtomicBool,
) -> Result<(Vec<Example>, Vec<Example>), TrainError> {
    let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
    for pair in pairs {
        check_stop(stop)?;
        let fitted =
            [&pair.chosen, &pair.rejected].map(|row| encoder.fit(encoder.encode(row)?, row));
        let [one, other] = fitted;
        let (one, other) = (one?, other?);
        let cut = matches!(one, Fitted::Truncated(_)) || matches!(other, Fitted::Truncated(_));
        let (
            Fitted::Whole(one) | Fitted::Truncated(one),
            Fitted::Whole(other) | Fitted::Truncated(other),
        ) = (one, other)
        else {
            report.dropped += 1;
            continue;
        };
        report.truncated += usize::from(cut);
        budget.take(&one, &pair.chosen)?;
        budget.take(&other, &pair.rejected)?;
        chosen.push(one);
        rejected.push(other);
    }
    match pairs.first() {
        Some(pair) if chosen.is_empty() => Err(TrainError::Data {
            file: pair.chosen.location.file.to_string(),
            message: format!(
                "every one of the {} pairs has an answer longer than `max_length` = {} tokens; raise it",
                pairs.len(),
                encoder.max_length
            ),
        }),
        _ => Ok((chosen, rejected)),
    }
}
