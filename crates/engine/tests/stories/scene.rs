//! What the stories share: sizes, requests, and an answer collected to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    AdapterId, Constraint, Engine, EngineConfig, Event, FinishReason, Finished, Grammar, Handle,
    Limits, Progress, Request, Sampling, Stats, Stream, Token,
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

/// A greedy request of the base.
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
        deadline: None,
    }
}

/// The events of one request.
#[derive(Debug)]
pub struct Answer {
    /// Those of the prompt, where they were asked for.
    pub prompt: Vec<Token>,
    pub tokens: Vec<Token>,
    pub finished: Finished,
}

impl Answer {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// Everything but the times.
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

/// Reads a stream to its end, and checks that its end is one `Finished`, the last event.
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

/// Nothing is held any more.
pub fn assert_at_rest(handle: &FakeHandle) {
    settled(handle, |s| {
        (s.in_flight, s.running, s.waiting, s.free_blocks) == (0, 0, 0, s.blocks)
    });
    let leased: Vec<_> = handle
        .adapters()
        .into_iter()
        .filter(|info| info.leases > 0)
        .collect();
    assert_eq!(leased, [], "leases leaked");
}

/// Waits until the engine's numbers are as wished.
pub fn settled(handle: &FakeHandle, wish: impl Fn(&Stats) -> bool) -> Stats {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = handle.stats();
        if wish(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "never came to be: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A grammar whose next token depends on all tokens before: of `beats` classes of ids, the sum of what was said chooses the one
/// that is silent. After `length` tokens nothing may come.
#[derive(Debug)]
pub struct Rhythm {
    pub beats: u32,
    pub length: usize,
}

impl Rhythm {
    pub fn allows(&self, said: &[u32], token: u32) -> bool {
        token % self.beats != said.iter().sum::<u32>() % self.beats
    }
}

impl Grammar for Rhythm {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Beat {
            rhythm: Rhythm { ..*self },
            said: Vec::new(),
        })
    }
}

struct Beat {
    rhythm: Rhythm,
    said: Vec<u32>,
}

impl Constraint for Beat {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        assert!(
            allowed.iter().all(|word| *word == 0),
            "a mask that is not clean"
        );
        for token in 0..VOCAB as u32 {
            if self.rhythm.allows(&self.said, token) {
                allowed[token as usize / 32] |= 1 << (token % 32);
            }
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<Progress, String> {
        assert!(
            self.rhythm.allows(&self.said, token),
            "a token that was not allowed"
        );
        self.said.push(token);
        Ok(match self.said.len() < self.rhythm.length {
            true => Progress::Open,
            false => Progress::Complete,
        })
    }
}

/// Seeded dice.
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

    /// A request of any kind: any tones, any settings, short and long.
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
                0 => Some(Arc::new(Rhythm {
                    beats: 2 + self.below(3) as u32,
                    length: 1 + self.below(60),
                })),
                _ => None,
            },
            priority: self.pick(&[0, 0, -1, 3]),
            client: None,
            deadline: None,
        }
    }
}
