//! A job of preferences: rows matched to rejected answers, varied together, encoded together.

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::tokenizer::Tokenizer;

use super::pairs::{Pair, PairCounts, RejectedAnswers, RejectedPersona, holds_pairs, read_pairs};
use super::{PreferenceData, RejectedExamples};
use crate::dataset::{DataRow, Dataset};
use crate::error::TrainError;
use crate::example::{Encoder, Example, Fitted};
use crate::job::{DataReport, Job, JobSpec, VARY};
use crate::lora_init::{lora_init, target_linears};
use crate::rng::Rng;
use crate::vary::varied_together;

/// Reads `source` as [`Job::load`] does, for a job whose settings have a `preference`.
///
/// The rejected answers are the rows' own where the training file has them, else those of `siblings` to the same
/// questions. A row without one, or whose two answers are the same, is left out and counted.
///
/// # Errors
/// As [`Job::load`]; and where no row at all finds a rejected answer, or two sources of them are named, or none.
pub fn load(
    source: JobSpec<'_>,
    siblings: &[RejectedPersona],
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> Result<Job, TrainError> {
    source.settings.check()?;
    let settings = source.settings.clone().for_base(config.hidden_size);
    let Parts {
        train,
        validation,
        matched,
        mut loaded,
    } = read(&source, siblings)?;

    let mut train = train;
    let first = train.len();
    for copy in 0..settings.vary_identifiers {
        for index in 0..first {
            let Pair { chosen, rejected } = &train[index];
            let mut rng = Rng::new(settings.seed, &[VARY, copy, index as u64]);
            let again = varied_together([chosen, rejected], &mut rng);
            let [chosen, rejected] = again.unwrap_or_else(|| [chosen.clone(), rejected.clone()]);
            train.push(Pair { chosen, rejected });
        }
    }
    let encoder = Encoder {
        tokenizer,
        template,
        system: source.system,
        mask: settings.mask,
        max_length: settings.max_length.min(config.context_length),
        too_long: settings.too_long,
    };
    let (train, rejected_train) = encode(&encoder, &train, &mut loaded)?;
    let (validation, rejected_validation) = encode(&encoder, &validation, &mut loaded)?;
    let init = lora_init(&target_linears(config, &settings.modules()?), &settings);
    let rejected = |examples| RejectedExamples {
        examples,
        reference: Vec::new(),
    };
    Ok(Job {
        name: source.name.to_owned(),
        settings,
        train,
        validation,
        init,
        metrics: source.metrics,
        loaded,
        preference: Some(PreferenceData {
            train: rejected(rejected_train),
            validation: rejected(rejected_validation),
            matched,
        }),
        start: None,
    })
}

/// Pairs as they were read.
struct Parts {
    train: Vec<Pair>,
    validation: Vec<Pair>,
    matched: PairCounts,
    loaded: DataReport,
}

fn read(source: &JobSpec<'_>, siblings: &[RejectedPersona]) -> Result<Parts, TrainError> {
    let refuse = |message: String| TrainError::Data {
        file: source.train.display().to_string(),
        message,
    };
    let own = holds_pairs(source.train)?;
    if own && !siblings.is_empty() {
        let message = "its rows bring `rejected` answers of their own, so there is no other persona's to take; leave \
                       `against` (--prefer-over) out";
        return Err(refuse(message.to_owned()));
    }
    if !own && siblings.is_empty() {
        let message = "its rows have no `rejected` answer; name the persona whose answers are rejected \
                       (`against`, --prefer-over), or write rows of `prompt`, `chosen` and `rejected`";
        return Err(refuse(message.to_owned()));
    }
    let side = |path| {
        if own {
            read_pairs(path)
        } else {
            Ok((
                Dataset::read_as(path, &source.settings.columns)?,
                RejectedAnswers::of(siblings)?,
            ))
        }
    };
    let (data, answers) = side(source.train)?;
    let mut loaded = DataReport {
        train_file_hash: data.hash.clone(),
        ..DataReport::default()
    };
    let pairs = |rows: &[DataRow], answers: &RejectedAnswers| {
        let (pairs, matched) = answers.pairs(rows);
        if pairs.is_empty() && !rows.is_empty() {
            return Err(none_matched(rows, &matched, siblings));
        }
        Ok((pairs, matched))
    };
    let ((train, mut matched), (validation, of_validation)) = match source.validation {
        None => {
            let (rows, held_out) = data.split(source.settings.validation_fraction);
            loaded.held_out = held_out.len();
            (pairs(&rows, &answers)?, answers.pairs(&held_out))
        }
        Some(path) => {
            let (held_out, its_answers) = side(path)?;
            loaded.validation_file_hash = Some(held_out.hash);
            (
                pairs(&data.rows, &answers)?,
                pairs(&held_out.rows, &its_answers)?,
            )
        }
    };
    matched.add(&of_validation);
    Ok(Parts {
        train,
        validation,
        matched,
        loaded,
    })
}

fn none_matched(
    rows: &[DataRow],
    matched: &PairCounts,
    siblings: &[RejectedPersona],
) -> TrainError {
    let names: Vec<&str> = siblings
        .iter()
        .map(|sibling| sibling.name.as_str())
        .collect();
    let files: Vec<String> = siblings
        .iter()
        .flat_map(|sibling| &sibling.files)
        .map(|file| file.display().to_string())
        .collect();
    let whose = if siblings.is_empty() {
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
            matched.unanswered,
            matched.same
        ),
    }
}

/// The chosen and the rejected answers of `pairs` as tokens; a pair stays or goes as a whole.
fn encode(
    encoder: &Encoder<'_>,
    pairs: &[Pair],
    loaded: &mut DataReport,
) -> Result<(Vec<Example>, Vec<Example>), TrainError> {
    let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
    for pair in pairs {
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
            loaded.dropped += 1;
            continue;
        };
        loaded.truncated += usize::from(cut);
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
