use super::*;
use crate::logits_processor::TokenCounts;

/// Published answers are reproducible by their seed, so these bits may never change.
#[test]
fn random_numbers_are_stable() {
    assert_eq!(
        [0, 1, 7, u64::MAX].map(mix),
        [
            0xe220_a839_7b1d_cdaf,
            0x910a_2dec_8902_5cc1,
            0x63cb_e1e4_5932_0dd7,
            0xe4d9_7177_1b65_2c20,
        ]
    );
    let bits = |seed, position| (uniform(seed, position) * (1u64 << 53) as f64) as u64;
    assert_eq!(
        [bits(0, 0), bits(7, 0), bits(7, 1), bits(u64::MAX, 4095)],
        [
            0x14_e0db_a5e9_a32f,
            0x17_1698_52ef_d579,
            0x0d_cf9c_094c_758f,
            0x1e_5c8e_3721_3f29,
        ]
    );
}

/// Samples without penalties and mask.
fn sample(sampling: &Sampling, seed: u64, position: usize, logits: &[f32]) -> u32 {
    let token_counts = TokenCounts::new(&Sampling::greedy(), &[]);
    let params = SampleParams {
        processor: LogitsProcessor {
            sampling,
            token_counts: &token_counts,
            allowed: None,
        },
        seed,
        position,
        top_logprobs: None,
    };
    Sampler::default()
        .sample(Row::Whole(logits), &params)
        .unwrap()
        .id
}

/// The slow, obvious way: sort everything, then apply one rule after the other.
fn reference(sampling: &Sampling, seed: u64, position: usize, logits: &[f32]) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits
        .iter()
        .map(|l| exp((l - max) / sampling.temperature))
        .collect();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    if sampling.top_k > 0 {
        ids.truncate(sampling.top_k);
    }
    let total: f64 = ids.iter().map(|id| f64::from(weights[*id])).sum();
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for id in ids {
        // 1e-9: the fast sum runs in another order.
        if sum >= total * f64::from(sampling.top_p) - 1e-9 && sampling.top_p < 1.0 {
            break;
        }
        sum += f64::from(weights[id]);
        if weights[id] >= sampling.min_p {
            kept.push(id);
        }
    }
    if sampling.top_p >= 1.0 && !(1..logits.len()).contains(&sampling.top_k) {
        kept.sort_unstable();
    }
    let target =
        uniform(seed, position as u64) * kept.iter().map(|id| f64::from(weights[*id])).sum::<f64>();
    let mut sum = 0.0;
    for id in &kept {
        sum += f64::from(weights[*id]);
        if sum > target {
            return *id as u32;
        }
    }
    *kept.last().unwrap() as u32
}

fn random_logits(seed: u64, vocab: usize) -> Vec<f32> {
    (0..vocab as u64)
        .map(|i| (uniform(seed, i) * 12.0 - 6.0) as f32)
        .collect()
}

#[test]
fn every_mix_of_settings_samples_like_the_reference() {
    for round in 0..3000u64 {
        let pick = |n: u64, of: u64| mix(round * 31 + n) % of;
        let sampling = Sampling {
            temperature: [0.3, 0.7, 1.0, 2.0][pick(1, 4) as usize],
            top_k: [0, 1, 5, 50, 5000][pick(2, 5) as usize],
            top_p: [1.0, 0.9, 0.5, 0.99, 0.01][pick(3, 5) as usize],
            min_p: [0.0, 0.05, 0.5, 1.0][pick(4, 4) as usize],
            ..Sampling::default()
        };
        let mut logits = random_logits(round, 1 + pick(5, 700) as usize);
        if pick(6, 3) == 0 {
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        let expected = reference(&sampling, round, 7, &logits);
        assert_eq!(
            sample(&sampling, round, 7, &logits),
            expected,
            "{sampling:?}"
        );
    }
}

/// What a model gives of a row for sampling that needs `count` tokens; by sorting the vocabulary.
fn candidates(logits: &[f32], count: usize) -> Candidates {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize];
    ids.sort_by(|a, b| logit(*b).partial_cmp(&logit(*a)).unwrap().then(a.cmp(b)));
    ids.truncate(count);
    Candidates {
        tokens: ids.into_iter().map(|id| (id, logit(id))).collect(),
        log_sum: logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln(),
    }
}

#[test]
fn candidates_of_a_row_give_the_token_of_the_whole_row() {
    for round in 0..3000u64 {
        let pick = |n: u64, of: u64| mix(round * 37 + n) % of;
        let sampling = Sampling {
            temperature: [0.0, 0.3, 1.0, 2.0][pick(1, 4) as usize],
            top_k: [1, 5, 50, 128][pick(2, 4) as usize],
            top_p: [1.0, 0.9, 0.5, 0.01][pick(3, 4) as usize],
            min_p: [0.0, 0.05, 1.0][pick(4, 3) as usize],
            ..Sampling::default()
        };
        let top_logprobs = [None, Some(0), Some(3), Some(20)][pick(5, 4) as usize];
        let mut logits = random_logits(round, 129 + pick(6, 700) as usize);
        if pick(7, 2) == 0 {
            // Many equals.
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        if pick(8, 3) == 0 {
            logits[100..].fill(f32::NEG_INFINITY);
        }
        let token_counts = TokenCounts::new(&sampling, &[]);
        let params = SampleParams {
            processor: LogitsProcessor {
                sampling: &sampling,
                token_counts: &token_counts,
                allowed: None,
            },
            seed: round,
            position: 5,
            top_logprobs,
        };
        let count = if sampling.temperature == 0.0 {
            1
        } else {
            sampling.top_k
        };
        let count = count.max(top_logprobs.unwrap_or(0).into());
        let mut sampler = Sampler::default();
        let whole = sampler.sample(Row::Whole(&logits), &params).unwrap();
        let few = candidates(&logits, count);
        let few = sampler.sample(Row::Candidates(&few), &params).unwrap();
        assert_eq!(few.id, whole.id, "{sampling:?}");
        assert_eq!(few.logprob.is_some(), whole.logprob.is_some());
        let logprobs = |token: &Token| -> Vec<(u32, f32)> {
            let own = token.logprob.map(|logprob| (token.id, logprob));
            own.into_iter().chain(token.top.iter().copied()).collect()
        };
        for (few, whole) in logprobs(&few).iter().zip(logprobs(&whole)) {
            assert_eq!(few.0, whole.0);
            assert!(
                few.1 == whole.1 || (few.1 - whole.1).abs() < 1e-5,
                "{few:?}"
            );
        }
        assert_eq!(few.top.len(), whole.top.len());
    }
    let params = SampleParams {
        processor: LogitsProcessor {
            sampling: &Sampling::greedy(),
            token_counts: &TokenCounts::new(&Sampling::greedy(), &[]),
            allowed: None,
        },
        seed: 0,
        position: 0,
        top_logprobs: None,
    };
    assert_eq!(
        Sampler::default().sample(Row::Candidates(&Candidates::default()), &params),
        Err(SampleError::NotADistribution)
    );
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let logits = [1.0, f32::NEG_INFINITY, 3.0, -0.5, 3.0];
    assert_eq!(sample(&Sampling::greedy(), 1, 1, &logits), 2);
    assert_eq!(sample(&Sampling::greedy(), 1, 1, &[-0.0, 0.0]), 0);
}

#[test]
fn samples_follow_the_distribution_and_depend_on_seed_and_position_only() {
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln(), f32::NEG_INFINITY];
    let mut counts = [0; 4];
    for position in 0..20_000 {
        let id = sample(&Sampling::default(), 42, position, &logits);
        assert_eq!(id, sample(&Sampling::default(), 42, position, &logits));
        counts[id as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([10_000, 6_000, 4_000, 0i32]) {
        assert!((count - expected).abs() < 300, "{counts:?}");
    }
}

#[test]
fn mask_and_biases_change_the_sampled_token_but_not_its_log_probability() {
    for round in 0..500u64 {
        let pick = |n: u64, of: u64| mix(round * 17 + n) % of;
        let vocab = 1 + pick(1, 200) as usize;
        let logits = random_logits(round, vocab);
        let mut allowed = vec![0u32; crate::constraint::mask_words(vocab)];
        for id in 0..vocab {
            if pick(10 + id as u64, 3) == 0 {
                allowed[id / 32] |= 1 << (id % 32);
            }
        }
        let biased = pick(2, vocab as u64) as usize;
        let sampling = Sampling {
            temperature: [0.0, 0.8, 1.5][pick(3, 3) as usize],
            top_k: [0, 3][pick(4, 2) as usize],
            top_p: [1.0, 0.7][pick(5, 2) as usize],
            logit_bias: vec![(biased as u32, [-100.0, 2.5, 100.0][pick(6, 3) as usize])],
            ..Sampling::default()
        };
        // The slow way: change the logits one by one, and sample from the result.
        let mut changed = logits.clone();
        changed[biased] += sampling.logit_bias[0].1;
        for (id, logit) in changed.iter_mut().enumerate() {
            if allowed[id / 32] >> (id % 32) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token_counts = TokenCounts::new(&sampling, &[]);
        let params = SampleParams {
            processor: LogitsProcessor {
                sampling: &sampling,
                token_counts: &token_counts,
                allowed: Some(&allowed),
            },
            seed: round,
            position: 3,
            top_logprobs: Some(2),
        };
        let sampled = Sampler::default().sample(Row::Whole(&logits), &params);
        if changed.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            assert_eq!(sampled, Err(SampleError::NothingAllowed));
            continue;
        }
        let token = sampled.unwrap();
        let unbiased = Sampling {
            logit_bias: Vec::new(),
            ..sampling.clone()
        };
        assert_eq!(token.id, sample(&unbiased, round, 3, &changed));
        let norm: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        let expected = f64::from(logits[token.id as usize]) - norm;
        assert!((f64::from(token.logprob.unwrap()) - expected).abs() < 1e-5);
    }
}

#[test]
fn log_probabilities_are_the_models_own_in_descending_order() {
    let sampling = Sampling {
        repetition_penalty: 10.0,
        ..Sampling::greedy()
    };
    let token_counts = TokenCounts::new(&sampling, &[1]);
    let params = SampleParams {
        processor: LogitsProcessor {
            sampling: &sampling,
            token_counts: &token_counts,
            allowed: None,
        },
        seed: 0,
        position: 0,
        top_logprobs: Some(3),
    };
    let logits = [0.25f32.ln(), 0.5f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
    // The penalty divides positive logits and multiplies negative ones: token 1 falls behind token 0.
    let token = Sampler::default()
        .sample(Row::Whole(&logits), &params)
        .unwrap();
    assert_eq!(token.id, 0);
    assert!((token.logprob.unwrap() - 0.25f32.ln()).abs() < 1e-6);
    let ids: Vec<u32> = token.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 0, 2]);
    assert!((token.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn row_that_is_not_a_distribution_is_refused_and_extremes_are_not() {
    let token_counts = TokenCounts::new(&Sampling::default(), &[]);
    let sampling = Sampling {
        temperature: 1e-30,
        top_p: 1e-30,
        min_p: 1e-30,
        ..Sampling::default()
    };
    let params = SampleParams {
        processor: LogitsProcessor {
            sampling: &sampling,
            token_counts: &token_counts,
            allowed: None,
        },
        seed: 3,
        position: 9,
        top_logprobs: Some(20),
    };
    for wrong in [
        [f32::NAN, 0.0],
        [0.0, f32::INFINITY],
        [f32::NEG_INFINITY; 2],
    ] {
        assert_eq!(
            Sampler::default().sample(Row::Whole(&wrong), &params),
            Err(SampleError::NotADistribution)
        );
    }
    let token = Sampler::default()
        .sample(Row::Whole(&[-3e38, 3e38]), &params)
        .unwrap();
    assert_eq!((token.id, token.top.len()), (1, 2));
}
