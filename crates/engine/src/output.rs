//! From the logits of a step to the tokens of a sequence: emits the prompt's log-probabilities, samples, verifies draft
//! tokens, emits, and decides whether the sequence has ended. Does not know the scheduler.

use crate::constraint::{Progress, mask_words};
use crate::event::{FinishReason, Flow, Token};
use crate::logits::{Logits, Row};
use crate::plan::PlannedSequence;
use crate::sampler::{SampleError, Sampler};
use crate::sequence::Sequence;
use crate::stats::SharedStats;

/// Samples and emits, with the memory that this takes.
pub(crate) struct OutputProcessor {
    sampler: Sampler,
    /// The tokens that a constraint allows, a bit for each.
    mask: Vec<u32>,
    vocab_size: usize,
}

impl OutputProcessor {
    pub fn new(vocab_size: usize) -> Self {
        OutputProcessor {
            sampler: Sampler::default(),
            mask: vec![0; mask_words(vocab_size)],
            vocab_size,
        }
    }

    /// Processes what a sequence ran in a step with these `logits`. Returns why it ended, if it did.
    pub fn process<A>(
        &mut self,
        sequence: &mut Sequence<A>,
        planned: &PlannedSequence,
        logits: &Logits,
        stats: &SharedStats,
    ) -> Option<FinishReason> {
        let end = self.emit_prompt_logprobs(sequence, planned, logits);
        if end.is_some() {
            return end;
        }
        let Some(first) = planned.sample_row else {
            sequence.mark_computed(planned.rows);
            return None;
        };
        self.sample_and_emit(sequence, planned, first, logits, stats)
    }

    fn emit_prompt_logprobs<A>(
        &mut self,
        sequence: &mut Sequence<A>,
        planned: &PlannedSequence,
        logits: &Logits,
    ) -> Option<FinishReason> {
        let (first, count) = planned.prompt_logprobs;
        for row in first..first + count {
            let position = sequence.prompt_logprobs.next()?;
            let top = sequence.decoding.top_logprobs.unwrap_or(0);
            let id = sequence.tokens[position];
            let Ok(token) = self
                .sampler
                .score(logits.row(row, self.vocab_size), id, top)
            else {
                return Some(FinishReason::Error(not_numbers(position)));
            };
            if sequence.response.emit_prompt_token(token) == Flow::Stop {
                return Some(FinishReason::Cancelled);
            }
        }
        None
    }

    /// Samples from the rows of the last token and its drafts, as long as each draft is the token that was sampled. So the
    /// sampled tokens are the same with and without drafts.
    fn sample_and_emit<A>(
        &mut self,
        sequence: &mut Sequence<A>,
        planned: &PlannedSequence,
        first: usize,
        logits: &Logits,
        stats: &SharedStats,
    ) -> Option<FinishReason> {
        // Even if a draft was not run, its first token updates the acceptance rate.
        let draft = sequence.draft(1);
        let ngram = draft.map(|draft| draft.ngram);
        let unrun = draft
            .filter(|_| planned.drafts.is_empty())
            .and_then(|draft| draft.tokens.first().copied());
        let (mut sampled, mut accepted, mut end) = (0, 0, None);
        for row in first..=first + planned.drafts.len() {
            let token = match self.sample(sequence, logits.row(row, self.vocab_size)) {
                Ok(token) => token,
                Err(reason) => {
                    end = Some(reason);
                    break;
                }
            };
            let id = token.id;
            sampled += 1;
            let drafted = planned.drafts.get(row - first).copied();
            if let (Some(guess), Some(ngram)) = (drafted.or(unrun), ngram) {
                sequence.prompt_lookup.observe(ngram, guess == id);
            }
            end = emit(sequence, token);
            if end.is_some() || drafted != Some(id) {
                break;
            }
            accepted += 1;
        }
        sequence.mark_computed(planned.rows + accepted);
        let mut stats = stats.lock();
        stats.sampled_tokens += sampled;
        stats.drafted_tokens += planned.drafts.len() as u64;
        stats.accepted_tokens += accepted as u64;
        end
    }

    /// Samples one token from a row of logits.
    fn sample<A>(
        &mut self,
        sequence: &mut Sequence<A>,
        logits: Row<'_>,
    ) -> Result<Token, FinishReason> {
        let constrained = sequence.fill_mask(&mut self.mask);
        let constrained = constrained.map_err(FinishReason::Constraint)?;
        let allowed = constrained.then_some(&*self.mask);
        let position = sequence.tokens.len();
        let sampled = self
            .sampler
            .sample(logits, &sequence.sample_params(allowed));
        sampled.map_err(|error| match error {
            SampleError::NotADistribution => FinishReason::Error(not_numbers(position)),
            SampleError::NothingAllowed => {
                let message =
                    format!("the request's grammar allows no token at position {position}");
                FinishReason::Constraint(message)
            }
        })
    }
}

/// Appends one token to its sequence and emits it. Returns why the sequence ended, if it did.
fn emit<A>(sequence: &mut Sequence<A>, token: Token) -> Option<FinishReason> {
    sequence.response.count_token();
    if sequence.decoding.stop_tokens.contains(&token.id) {
        return Some(FinishReason::Stop);
    }
    let progress = match sequence.append(token.id) {
        Ok(progress) => progress,
        Err(message) => return Some(FinishReason::Constraint(message)),
    };
    if sequence.response.emit_token(token) == Flow::Stop {
        return Some(FinishReason::Cancelled);
    }
    if progress == Progress::Complete {
        return Some(FinishReason::Stop);
    }
    let full = sequence.response.completion_tokens() >= sequence.decoding.max_new_tokens;
    full.then_some(FinishReason::Length)
}

fn not_numbers(position: usize) -> String {
    format!("the model's logits for position {position} are not numbers")
}
