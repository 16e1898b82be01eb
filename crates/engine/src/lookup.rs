//! Guesses what a sequence says next from what it has said before: where its last tokens stood earlier, what followed them
//! there. An order number, a name or a phrase of the prompt that is being copied is guessed right, and a step that runs the
//! guess beside the latest token then gives several tokens. After Saxena, "Prompt Lookup Decoding" (2023).
//!
//! A guess is never taken on trust: each of its tokens is kept only if the draw from the row before gives that very token, so
//! what is said is the same with and without.

/// How many of the last tokens must have stood together before; the longer is tried first.
const MATCHED: [usize; 2] = [3, 2];
/// The share of guessed tokens that were right, before any was tried.
const FIRST_RATE: f64 = 0.5;
/// How much of it each guessed token takes over.
const STEP: f64 = 0.15;

/// What guesses for one sequence have been worth.
pub(crate) struct Lookup {
    rate: f64,
}

impl Default for Lookup {
    fn default() -> Self {
        Lookup { rate: FIRST_RATE }
    }
}

impl Lookup {
    /// How many tokens of a guess are worth a row each, where a row costs the `price`th part of what a token does: the
    /// last one is right only if all before it are.
    pub fn worth(&self, price: f64, most: usize) -> usize {
        if price <= 0.0 {
            return most;
        }
        // The largest k with rate^k > price; of a price of 1 and above nothing is.
        let longest = price.ln() / self.rate.ln();
        if longest.is_nan() || longest <= 0.0 {
            return 0;
        }
        (longest.ceil() as usize - 1).min(most)
    }

    /// A guessed token was drawn, or another one.
    pub fn learn(&mut self, right: bool) {
        let outcome = if right { 1.0 } else { 0.0 };
        // Never quite certain, so that logarithms have something to work with.
        self.rate = (self.rate + STEP * (outcome - self.rate)).clamp(0.001, 0.999);
    }
}

/// At most `most` tokens that followed the latest earlier place with the same last tokens; empty: there is none.
pub(crate) fn guess(tokens: &[u32], most: usize) -> &[u32] {
    for n in MATCHED {
        let Some(start) = tokens.len().checked_sub(n) else {
            continue;
        };
        let last = &tokens[start..];
        let earlier = &tokens[..tokens.len() - 1];
        if let Some(at) = earlier.windows(n).rposition(|window| window == last) {
            let from = at + n;
            return &tokens[from..tokens.len().min(from + most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_latest_earlier_place_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2, 3], 2), [4, 9]);
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2, 3], 9), [4, 9, 1, 2, 3]);
        assert_eq!(guess(&[1, 2, 5, 1, 2, 6, 1, 2], 1), [6]);
        // Three tokens say more than two.
        assert_eq!(guess(&[8, 1, 2, 5, 7, 1, 2, 6, 8, 1, 2], 1), [5]);
        // What goes on alike is its own example.
        assert_eq!(guess(&[7, 7, 7], 4), [7]);
        for none in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert!(guess(none, 4).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn a_guess_is_as_long_as_it_pays() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.worth(0.3, 8), 1);
        assert_eq!(lookup.worth(0.2, 8), 2);
        assert_eq!(lookup.worth(0.5, 8), 0);
        assert_eq!(lookup.worth(1.0, 8), 0);
        assert_eq!(lookup.worth(1.5, 8), 0);
        assert_eq!(lookup.worth(0.0, 8), 8);
        for _ in 0..30 {
            lookup.learn(true);
        }
        assert_eq!(lookup.worth(0.3, 8), 8);
        for _ in 0..30 {
            lookup.learn(false);
        }
        assert_eq!(lookup.worth(0.3, 8), 0);
    }
}
