//! Answers that are constrained by a grammar.

use std::sync::Arc;

use engine::{Constraint, EngineConfig, FinishReason, Grammar, Progress, Request, Sampling};
use testkit::FakeModel;

use crate::fixtures::{SumGrammar, VOCAB, assert_idle, collect, greedy, limits, start};

#[test]
fn grammar_restricts_tokens_and_ends_the_request_when_complete() {
    let handle = start(FakeModel::new(limits(200)), EngineConfig::default());
    for (classes, length, temperature) in [(2, 25, 0.0), (3, 1, 1.0), (4, 40, 1.5)] {
        let grammar = Arc::new(SumGrammar { classes, length });
        let request = Request {
            grammar: Some(grammar.clone()),
            sampling: Sampling {
                temperature,
                seed: Some(5),
                ..Sampling::default()
            },
            ..greedy(vec![1, 2, 3], 60)
        };
        let answer = collect(handle.stream(request.clone()).unwrap());
        let tokens = answer.ids();
        assert_eq!(answer.finished.reason, FinishReason::Stop);
        assert_eq!(
            (tokens.len(), answer.finished.completion_tokens),
            (length, length)
        );
        for at in 0..tokens.len() {
            assert!(grammar.allows(&tokens[..at], tokens[at]), "{tokens:?}");
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
        assert_ne!(free[..length.min(free.len())], tokens[..]);
    }
    assert_idle(&handle);
}

/// Fails at its third token, in `mask` or in `commit`.
#[derive(Debug, Clone, Copy)]
struct Broken {
    committed: usize,
    in_mask: bool,
}

impl Grammar for Broken {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(*self)
    }
}

impl Constraint for Broken {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        if self.in_mask && self.committed == 2 {
            return Err("the mask is too hard".to_owned());
        }
        allowed.fill(u32::MAX);
        Ok(())
    }

    fn commit(&mut self, _token: u32) -> Result<Progress, String> {
        self.committed += 1;
        match self.committed == 3 {
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
fn failing_grammar_ends_only_its_own_request() {
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
            FinishReason::Constraint(message) => (answer.tokens.len(), message),
            other => panic!("{other:?}"),
        }
    };
    let broken = |in_mask| {
        Arc::new(Broken {
            committed: 0,
            in_mask,
        })
    };
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
    assert_idle(&handle);
}
