//! Requests and settings that are rejected, and the messages that they get.

use engine::{Engine, EngineConfig, Limits, Request, Sampling, StartError, SubmitError};
use testkit::FakeModel;

use crate::fixtures::{CONTEXT, VOCAB, assert_idle, collect, greedy, limits, start, tone};

#[test]
fn request_that_cannot_run_is_rejected_by_name_and_nothing_is_clamped() {
    let handle = start(FakeModel::new(limits(20)), EngineConfig::default());
    let refused = |request: Request| handle.stream(request).map(|_| ()).unwrap_err();
    assert_eq!(refused(greedy(vec![], 1)), SubmitError::EmptyPrompt);
    assert_eq!(
        refused(greedy(vec![1; CONTEXT], 1)),
        SubmitError::PromptTooLong {
            tokens: CONTEXT,
            limit: CONTEXT
        }
    );
    let past = refused(greedy(vec![1; 100], 61));
    assert!(past.to_string().contains("at most 60 new tokens"), "{past}");
    assert!(matches!(
        refused(greedy(vec![1], usize::MAX)),
        SubmitError::PastContext { .. }
    ));
    assert_eq!(
        refused(greedy(vec![1, 2, 61], 1)).to_string(),
        "token 61 at position 2 of the prompt is not in the vocabulary (0 to 60)"
    );
    assert_eq!(
        refused(greedy(vec![1; 50], 40)),
        SubmitError::TooLargeForMemory {
            needed: 23,
            blocks: 20
        }
    );
    let unknown = tone(200);
    assert_eq!(
        refused(Request {
            adapters: vec![(tone(0), 1.0), (unknown, 1.0)],
            ..greedy(vec![1], 1)
        }),
        SubmitError::UnknownAdapter(unknown)
    );
    let fields = [
        greedy(vec![1], 0),
        Request {
            top_logprobs: Some(21),
            ..greedy(vec![1], 1)
        },
        Request {
            adapters: vec![(tone(0), f32::NAN)],
            ..greedy(vec![1], 1)
        },
        Request {
            adapters: vec![(tone(0), 1.0); 33],
            ..greedy(vec![1], 1)
        },
        Request {
            sampling: Sampling {
                top_p: 0.0,
                ..Sampling::default()
            },
            ..greedy(vec![1], 1)
        },
        Request {
            sampling: Sampling {
                logit_bias: vec![(0, 1.0), (VOCAB as u32, 1.0)],
                ..Sampling::default()
            },
            ..greedy(vec![1], 1)
        },
    ];
    let names: Vec<_> = fields
        .map(|request| match refused(request) {
            SubmitError::InvalidSampling { field, .. } => field,
            other => panic!("{other}"),
        })
        .into();
    assert_eq!(
        names,
        [
            "max_new_tokens",
            "top_logprobs",
            "adapters",
            "adapters",
            "top_p",
            "logit_bias"
        ]
    );
    assert_idle(&handle);
    assert_eq!(
        collect(handle.stream(greedy(vec![1; 50], 31)).unwrap())
            .tokens
            .len(),
        31
    );
}

#[test]
fn engine_does_not_start_with_settings_out_of_range() {
    let field = |limits: Limits, config: EngineConfig| match Engine::start(
        FakeModel::new(limits),
        config,
    ) {
        Err(StartError::InvalidConfig { field, .. }) => field,
        Err(other) => panic!("{other}"),
        Ok(_) => "started",
    };
    let with = |change: fn(&mut EngineConfig)| {
        let mut config = EngineConfig::default();
        change(&mut config);
        field(limits(10), config)
    };
    assert_eq!(with(|_| ()), "started");
    assert_eq!(with(|c| c.max_batch = 0), "max_batch");
    assert_eq!(with(|c| c.prefill_chunk = 0), "prefill_chunk");
    assert_eq!(with(|c| c.step_tokens = 31), "step_tokens");
    assert_eq!(field(limits(0), EngineConfig::default()), "blocks");
}

#[test]
fn queue_is_bounded_and_has_room_again_when_an_end_is_reported() {
    let config = EngineConfig {
        max_batch: 1,
        max_queue: 2,
        step_tokens: 64,
        ..EngineConfig::default()
    };
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, config);
    let mut streams: Vec<_> = (0..3)
        .map(|_| handle.stream(greedy(vec![1], 2)).unwrap())
        .collect();
    let full = handle.stream(greedy(vec![1], 2)).map(|_| ()).unwrap_err();
    assert!(
        matches!(full, SubmitError::QueueFull { limit: 2, .. }),
        "{full}"
    );
    gate.open();
    for _ in 0..50 {
        collect(streams.remove(0));
        streams.push(handle.stream(greedy(vec![1], 2)).unwrap());
    }
}
