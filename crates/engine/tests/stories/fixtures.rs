//! Shared by the stories: sizes, requests, and an answer collected to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    AdapterId, CacheSalt, Constraint, Engine, EngineConfig, Event, FinishReason, Finished, Grammar,
    Handle, Limits, Progress, Request, Sampling, Stats, Stream, Token,
};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use testkit::{FakeAdapter, FakeModel};

pub const VOCAB: usize = 61;
pub const CONTEXT: usize = 160;
pub const BLOCK: usize = 4;
/// Blocks for one request of the whole context.
pub const CONTEXT_BLOCKS: usize = CONTEXT / BLOCK;
pub const TONES: u8 = 6;

pub type FakeHandle = Handle<FakeAdapter>;

pub fn limits(blocks: usize) -> Limits {
    Limits {
        vocab_size: VOCAB,
        context_length: CONTEXT,
        block_tokens: BLOCK,
        blocks,
    }
}

pub fn tone(n: u8) -> AdapterId {
    AdapterId([n; 32])
}

pub fn fake_adapter(n: u8) -> FakeAdapter {
    FakeAdapter(1000 + u64::from(n))
}

/// Starts an engine with `TONES` adapters of 10 bytes each.
pub fn start(model: FakeModel, config: EngineConfig) -> FakeHandle {
    let handle = Engine::start(model, config).unwrap();
    for n in 0..TONES {
        handle
            .insert_adapter(tone(n), Arc::new(fake_adapter(n)), 10)
            .unwrap();
    }
    handle
}

/// A greedy request to the base.
pub fn greedy(prompt: Vec<u32>, max_new_tokens: usize) -> Request {
    Request {
        prompt,
        adapters: Vec::new(),
        sampling: Sampling::greedy(),
        max_new_tokens,
        stop_tokens: Vec::new(),
        top_logprobs: None,
        prompt_logprobs: false,
        grammar: None,
        priority: 0,
        client: None,
        cache_salt: CacheSalt::default(),
        deadline: None,
    }
}

/// The events of one request.
#[derive(Debug)]
pub struct Answer {
    /// The prompt's tokens, if the request asked for them.
    pub prompt: Vec<Token>,
    pub tokens: Vec<Token>,
    pub finished: Finished,
}

impl Answer {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// Everything except the times.
    pub fn content(&self) -> (&[Token], &[Token], &FinishReason, usize, usize) {
        let f = &self.finished;
        (
            &self.prompt,
            &self.tokens,
            &f.reason,
            f.prompt_tokens,
            f.completion_tokens,
        )
    }
}

/// Reads a stream to its end, and checks that exactly one `Finished` is its last event.
pub fn collect(stream: Stream) -> Answer {
    let (mut prompt, mut tokens) = (Vec::new(), Vec::new());
    let mut finished = None;
    for event in stream {
        assert!(finished.is_none(), "an event after the end: {event:?}");
        match event {
            Event::Prompt(token) => prompt.push(token),
            Event::Token(token) => tokens.push(token),
            Event::Finished(end) => finished = Some(end),
        }
    }
    let finished = finished.expect("a stream that ended without Finished");
    Answer {
        prompt,
        tokens,
        finished,
    }
}

/// Asserts that no request holds anything any more.
pub fn assert_idle(handle: &FakeHandle) {
    wait_for_stats(handle, |s| {
        (s.in_flight, s.running, s.waiting, s.free_blocks) == (0, 0, 0, s.blocks)
    });
    let leased: Vec<_> = handle
        .adapters()
        .into_iter()
        .filter(|info| info.leases > 0)
        .collect();
    assert_eq!(leased, [], "leases leaked");
}

/// Waits until the engine's statistics match `condition`.
pub fn wait_for_stats(handle: &FakeHandle, condition: impl Fn(&Stats) -> bool) -> Stats {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = handle.stats();
        if condition(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "timed out: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A grammar whose next token depends on all tokens before it: of `classes` classes of ids, the sum of the earlier tokens
/// chooses the one that is not allowed. It is complete after `length` tokens.
#[derive(Debug)]
pub struct SumGrammar {
    pub classes: u32,
    pub length: usize,
}

impl SumGrammar {
    pub fn allows(&self, tokens: &[u32], token: u32) -> bool {
        token % self.classes != tokens.iter().sum::<u32>() % self.classes
    }
}

impl Grammar for SumGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(SumConstraint {
            grammar: SumGrammar { ..*self },
            tokens: Vec::new(),
        })
    }
}

struct SumConstraint {
    grammar: SumGrammar,
    tokens: Vec<u32>,
}

impl Constraint for SumConstraint {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        assert!(
            allowed.iter().all(|word| *word == 0),
            "the mask is not zeroed"
        );
        for token in 0..VOCAB as u32 {
            if self.grammar.allows(&self.tokens, token) {
                allowed[token as usize / 32] |= 1 << (token % 32);
            }
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<Progress, String> {
        assert!(
            self.grammar.allows(&self.tokens, token),
            "this token was not allowed"
        );
        self.tokens.push(token);
        Ok(match self.tokens.len() < self.grammar.length {
            true => Progress::Open,
            false => Progress::Complete,
        })
    }
}

/// A seeded random generator.
pub struct Dice(SplitMix64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(SplitMix64::seed_from_u64(seed))
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: usize) -> usize {
        (self.0.next_u64() % sides as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A random request: any tones, any settings, short or long.
    pub fn request(&mut self) -> Request {
        let prompt_tokens = 1 + self.pick(&[3, 20, 90]).min(1 + self.below(90));
        let adapters = (0..self.pick(&[0, 1, 1, 2, 3]))
            .map(|_| {
                (
                    tone(self.below(usize::from(TONES)) as u8),
                    self.pick(&[1.0, 0.7, 0.3]),
                )
            })
            .collect();
        let top_logprobs = self.pick(&[None, Some(0), Some(3)]);
        let sampling = Sampling {
            temperature: self.pick(&[0.0, 0.5, 1.0]),
            top_k: self.pick(&[0, 5, 40]),
            top_p: self.pick(&[1.0, 0.8]),
            min_p: self.pick(&[0.0, 0.1]),
            repetition_penalty: self.pick(&[1.0, 1.3]),
            frequency_penalty: self.pick(&[0.0, 0.4]),
            presence_penalty: self.pick(&[0.0, -0.4]),
            logit_bias: match self.below(3) {
                0 => vec![(self.below(VOCAB) as u32, 3.0)],
                _ => Vec::new(),
            },
            seed: Some(self.below(1000) as u64),
        };
        Request {
            prompt: (0..prompt_tokens)
                .map(|_| self.below(VOCAB) as u32)
                .collect(),
            adapters,
            sampling,
            max_new_tokens: 1 + self.below(60),
            stop_tokens: if self.below(2) == 0 {
                vec![7, 8]
            } else {
                Vec::new()
            },
            top_logprobs,
            prompt_logprobs: top_logprobs.is_some() && self.below(3) == 0,
            grammar: match self.below(4) {
                0 => Some(Arc::new(SumGrammar {
                    classes: 2 + self.below(3) as u32,
                    length: 1 + self.below(60),
                })),
                _ => None,
            },
            priority: self.pick(&[0, 0, -1, 3]),
            client: None,
            cache_salt: CacheSalt::default(),
            deadline: None,
        }
    }
}
