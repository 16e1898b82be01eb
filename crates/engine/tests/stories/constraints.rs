//! Answers that must keep to a grammar.

use std::sync::Arc;

use engine::{Constraint, EngineConfig, FinishReason, Grammar, Progress, Request, Sampling};
use testkit::FakeModel;

use crate::scene::{Rhythm, VOCAB, assert_at_rest, collect, greedy, limits, start};

#[test]
fn only_what_is_allowed_is_said_and_the_end_of_the_grammar_is_the_end() {
    let handle = start(FakeModel::new(limits(200)), EngineConfig::default());
    for (beats, length, temperature) in [(2, 25, 0.0), (3, 1, 1.0), (4, 40, 1.5)] {
        let rhythm = Arc::new(Rhythm { beats, length });
        let request = Request {
            grammar: Some(rhythm.clone()),
            sampling: Sampling {
                temperature,
                seed: Some(5),
                ..Sampling::default()
            },
            ..greedy(vec![1, 2, 3], 60)
        };
        let answer = collect(handle.stream(request.clone()).unwrap());
        let said = answer.ids();
        assert_eq!(answer.finished.reason, FinishReason::Stop);
        assert_eq!(
            (said.len(), answer.finished.completion_tokens),
            (length, length)
        );
        for at in 0..said.len() {
            assert!(rhythm.allows(&said[..at], said[at]), "{said:?}");
        }
        let free = collect(
            handle
                .stream(Request {
                    grammar: None,
                    ..request
                })
                .unwrap(),
        )
        .ids();
        assert_ne!(free[..length.min(free.len())], said[..]);
    }
    assert_at_rest(&handle);
}

/// Fails at its third token, in one of its two ways.
#[derive(Debug, Clone, Copy)]
struct Broken {
    said: usize,
    in_mask: bool,
}

impl Grammar for Broken {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(*self)
    }
}

impl Constraint for Broken {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        if self.in_mask && self.said == 2 {
            return Err("the mask is too hard".to_owned());
        }
        allowed.fill(u32::MAX);
        Ok(())
    }

    fn commit(&mut self, _token: u32) -> Result<Progress, String> {
        self.said += 1;
        match self.said == 3 {
            true => Err("the token is too hard".to_owned()),
            false => Ok(Progress::Open),
        }
    }
}

/// Allows nothing.
#[derive(Debug, Clone, Copy)]
struct Closed;

impl Grammar for Closed {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Closed)
    }
}

impl Constraint for Closed {
    fn mask(&mut self, _allowed: &mut [u32]) -> Result<(), String> {
        Ok(())
    }

    fn commit(&mut self, _token: u32) -> Result<Progress, String> {
        Ok(Progress::Open)
    }
}

#[test]
fn a_grammar_that_fails_ends_its_own_request_alone() {
    let handle = start(FakeModel::new(limits(200)), EngineConfig::default());
    let expected = collect(handle.stream(greedy(vec![4, 5], 30)).unwrap()).ids();
    let neighbour = handle.stream(greedy(vec![4, 5], 30)).unwrap();
    let fails = |grammar: Arc<dyn Grammar>| {
        let request = Request {
            grammar: Some(grammar),
            ..greedy(vec![1, 2], 30)
        };
        let answer = collect(handle.stream(request).unwrap());
        match answer.finished.reason.clone() {
            FinishReason::Error(message) => (answer.tokens.len(), message),
            other => panic!("{other:?}"),
        }
    };
    let broken = |in_mask| Arc::new(Broken { said: 0, in_mask });
    assert_eq!(fails(broken(true)), (2, "the mask is too hard".to_owned()));
    assert_eq!(
        fails(broken(false)),
        (2, "the token is too hard".to_owned())
    );
    let (tokens, message) = fails(Arc::new(Closed));
    assert_eq!(tokens, 0);
    assert!(
        message.contains("allows no token at position 2"),
        "{message}"
    );
    assert_eq!(collect(neighbour).ids(), expected);
    assert_eq!(
        VOCAB % 32,
        29,
        "the last word of a mask has bits past the vocabulary"
    );
    assert_at_rest(&handle);
}
