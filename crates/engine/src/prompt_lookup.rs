//! Prompt lookup: drafts the next tokens of a sequence from its own earlier tokens. It finds an earlier occurrence of the last
//! n-gram and drafts the tokens that followed it there. A copied order number, name or phrase of the prompt is drafted right,
//! and a step that also runs the draft then gives several tokens. After Saxena, "Prompt Lookup Decoding" (2023).
//!
//! A draft token is accepted only if sampling from the row before it gives the same token, so the output is the same with and
//! without drafts.

/// The lengths of the n-grams that are looked up; the longer first, as its drafts are better.
const NGRAMS: [usize; 2] = [3, 2];
/// The acceptance rate assumed before the first draft, for each of [`NGRAMS`].
const INITIAL_RATES: [f64; 2] = [0.6, 0.3];
/// The weight of each draft token in the running acceptance rate.
const RATE_STEP: f64 = 0.15;
/// How far a draft token's probability must be above its cost.
const MARGIN: f64 = 1.2;

/// The acceptance rates of one sequence's drafts, by the n-gram that they came from.
pub(crate) struct PromptLookup {
    rates: [f64; NGRAMS.len()],
}

impl Default for PromptLookup {
    fn default() -> Self {
        PromptLookup {
            rates: INITIAL_RATES,
        }
    }
}

/// Tokens that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Draft<'a> {
    pub tokens: &'a [u32],
    /// The index in [`NGRAMS`] of the n-gram that was found.
    pub ngram: usize,
}

impl PromptLookup {
    /// The first tokens of a draft that are worth a row each, where a row costs `row_cost` as a fraction of the cost of a
    /// token. A draft token is accepted only if all before it are, so its probability is a power of the acceptance rate.
    pub fn profitable<'a>(&self, draft: Draft<'a>, row_cost: f64) -> &'a [u32] {
        let threshold = row_cost * MARGIN;
        let mut rate = 1.0;
        let mut count = 0;
        while count < draft.tokens.len() {
            rate *= self.rates[draft.ngram];
            if rate <= threshold {
                break;
            }
            count += 1;
        }
        &draft.tokens[..count]
    }

    /// A draft token was accepted or rejected.
    pub fn observe(&mut self, ngram: usize, accepted: bool) {
        let outcome = if accepted { 1.0 } else { 0.0 };
        let rate = &mut self.rates[ngram];
        *rate += RATE_STEP * (outcome - *rate);
    }
}

/// At most `most` tokens that followed the latest earlier occurrence of the last n-gram.
pub(crate) fn draft(tokens: &[u32], most: usize) -> Option<Draft<'_>> {
    for (ngram, n) in NGRAMS.into_iter().enumerate() {
        let Some(start) = tokens.len().checked_sub(n) else {
            continue;
        };
        let last = &tokens[start..];
        let earlier = &tokens[..tokens.len() - 1];
        if let Some(at) = earlier.windows(n).rposition(|window| window == last) {
            let from = at + n;
            let tokens = &tokens[from..tokens.len().min(from + most)];
            return Some(Draft { tokens, ngram });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draft_is_what_followed_the_latest_earlier_occurrence() {
        let drafted =
            |tokens: &'static [u32], most| draft(tokens, most).map(|d| (d.tokens, d.ngram));
        let found = |tokens: &'static [u32], ngram| Some((tokens, ngram));
        assert_eq!(drafted(&[1, 2, 3, 4, 9, 1, 2, 3], 2), found(&[4, 9], 0));
        assert_eq!(
            drafted(&[1, 2, 3, 4, 9, 1, 2, 3], 9),
            found(&[4, 9, 1, 2, 3], 0)
        );
        assert_eq!(drafted(&[1, 2, 5, 1, 2, 6, 1, 2], 1), found(&[6], 1));
        // The longer n-gram is tried first.
        assert_eq!(
            drafted(&[8, 1, 2, 5, 7, 1, 2, 6, 8, 1, 2], 1),
            found(&[5], 0)
        );
        // A repeated token matches itself.
        assert_eq!(drafted(&[7, 7, 7], 4), found(&[7], 1));
        for none in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert_eq!(draft(none, 4), None, "{none:?}");
        }
    }

    #[test]
    fn draft_is_as_long_as_it_pays() {
        let mut lookup = PromptLookup::default();
        let tokens = [5; 8];
        let length = |lookup: &PromptLookup, ngram, row_cost| {
            let draft = Draft {
                tokens: &tokens,
                ngram,
            };
            lookup.profitable(draft, row_cost).len()
        };
        assert_eq!(length(&lookup, 0, 0.4), 1);
        assert_eq!(length(&lookup, 0, 0.25), 2);
        assert_eq!(length(&lookup, 0, 0.6), 0);
        assert_eq!(length(&lookup, 1, 0.4), 0);
        assert_eq!(length(&lookup, 0, 1.0), 0);
        assert_eq!(length(&lookup, 1, 0.0), 8);
        for _ in 0..30 {
            lookup.observe(1, true);
        }
        assert_eq!(length(&lookup, 1, 0.3), 8);
        assert_eq!(length(&lookup, 0, 0.4), 1);
        for _ in 0..30 {
            lookup.observe(1, false);
        }
        assert_eq!(length(&lookup, 1, 0.3), 0);
    }
}
