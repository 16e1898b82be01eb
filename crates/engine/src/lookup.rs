//! Guesses what a sequence says next from what it has said before: where its last tokens stood earlier, what followed them
//! there. An order number, a name or a phrase of the prompt that is being copied is guessed right, and a step that runs the
//! guess beside the latest token then gives several tokens. After Saxena, "Prompt Lookup Decoding" (2023).
//!
//! A guess is never taken on trust: each of its tokens is kept only if the draw from the row before gives that very token, so
//! what is said is the same with and without.

/// How many of the last tokens must have stood together before; the longer is tried first, as it says more.
const MATCHED: [usize; 2] = [3, 2];
/// The share of guessed tokens that were right, before any was tried, for each of those.
const FIRST_RATES: [f64; 2] = [0.6, 0.3];
/// How much of it each guessed token takes over.
const STEP: f64 = 0.15;
/// How much better than even a guess must promise to be.
const MARGIN: f64 = 1.2;

/// What guesses for one sequence have been worth, by how long a match they came from.
pub(crate) struct Lookup {
    rates: [f64; MATCHED.len()],
}

impl Default for Lookup {
    fn default() -> Self {
        Lookup { rates: FIRST_RATES }
    }
}

/// Tokens that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Guess<'a> {
    pub tokens: &'a [u32],
    /// From which of [`MATCHED`].
    pub kind: usize,
}

impl Lookup {
    /// The first tokens of a guess that are worth a row each, where a row costs the `price`th part of what a token does: one is
    /// right only if all before it are.
    pub fn worth<'a>(&self, guess: Guess<'a>, price: f64) -> &'a [u32] {
        let price = price * MARGIN;
        let mut rate = 1.0;
        let mut count = 0;
        while count < guess.tokens.len() {
            rate *= self.rates[guess.kind];
            if rate <= price {
                break;
            }
            count += 1;
        }
        &guess.tokens[..count]
    }

    /// A guessed token was drawn, or another one.
    pub fn learn(&mut self, kind: usize, right: bool) {
        let outcome = if right { 1.0 } else { 0.0 };
        let rate = &mut self.rates[kind];
        *rate += STEP * (outcome - *rate);
    }
}

/// At most `most` tokens that followed the latest earlier place with the same last tokens.
pub(crate) fn guess(tokens: &[u32], most: usize) -> Option<Guess<'_>> {
    for (kind, n) in MATCHED.into_iter().enumerate() {
        let Some(start) = tokens.len().checked_sub(n) else {
            continue;
        };
        let last = &tokens[start..];
        let earlier = &tokens[..tokens.len() - 1];
        if let Some(at) = earlier.windows(n).rposition(|window| window == last) {
            let from = at + n;
            let tokens = &tokens[from..tokens.len().min(from + most)];
            return Some(Guess { tokens, kind });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_latest_earlier_place_is_guessed() {
        let guessed =
            |tokens: &'static [u32], most| guess(tokens, most).map(|g| (g.tokens, g.kind));
        let found = |tokens: &'static [u32], kind| Some((tokens, kind));
        assert_eq!(guessed(&[1, 2, 3, 4, 9, 1, 2, 3], 2), found(&[4, 9], 0));
        assert_eq!(
            guessed(&[1, 2, 3, 4, 9, 1, 2, 3], 9),
            found(&[4, 9, 1, 2, 3], 0)
        );
        assert_eq!(guessed(&[1, 2, 5, 1, 2, 6, 1, 2], 1), found(&[6], 1));
        // Three tokens say more than two.
        assert_eq!(
            guessed(&[8, 1, 2, 5, 7, 1, 2, 6, 8, 1, 2], 1),
            found(&[5], 0)
        );
        // What goes on alike is its own example.
        assert_eq!(guessed(&[7, 7, 7], 4), found(&[7], 1));
        for none in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert_eq!(guess(none, 4), None, "{none:?}");
        }
    }

    #[test]
    fn a_guess_is_as_long_as_it_pays() {
        let mut lookup = Lookup::default();
        let tokens = [5; 8];
        let worth = |lookup: &Lookup, kind, price| {
            let guess = Guess {
                tokens: &tokens,
                kind,
            };
            lookup.worth(guess, price).len()
        };
        assert_eq!(worth(&lookup, 0, 0.4), 1);
        assert_eq!(worth(&lookup, 0, 0.25), 2);
        assert_eq!(worth(&lookup, 0, 0.6), 0);
        assert_eq!(worth(&lookup, 1, 0.4), 0);
        assert_eq!(worth(&lookup, 0, 1.0), 0);
        assert_eq!(worth(&lookup, 1, 0.0), 8);
        for _ in 0..30 {
            lookup.learn(1, true);
        }
        assert_eq!(worth(&lookup, 1, 0.3), 8);
        assert_eq!(worth(&lookup, 0, 0.4), 1);
        for _ in 0..30 {
            lookup.learn(1, false);
        }
        assert_eq!(worth(&lookup, 1, 0.3), 0);
    }
}
