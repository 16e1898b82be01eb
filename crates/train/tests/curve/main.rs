//! Compares the loss curve of a run with PEFT's: the same base, rows, order, initial parameters and settings.
//!
//! `peft.json` was written by `bench/peers/make_curve_fixture.py`.

mod small_run;

use std::sync::atomic::AtomicBool;

use kernels::Compute;
use train::ModelLearner;
use train::metrics::{MetricsRecord, parse_metrics};
use train::progress::Observer;
use train::trainer::{Outcome, RunOptions, train};

struct Silent;
impl Observer for Silent {}

#[test]
fn loss_curve_of_fifty_steps_matches_peft() {
    let fixture: serde_json::Value = serde_json::from_str(include_str!("peft.json")).unwrap();
    let numbers = |key: &str| -> Vec<f64> {
        let list = fixture[key].as_array().unwrap();
        list.iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let model = small_run::model();
    let outcome = train(
        vec![small_run::task(&model, None)],
        &RunOptions::default(),
        &mut ModelLearner::new(model, Compute::F32),
        &mut Silent,
        &AtomicBool::new(false),
    )
    .unwrap();
    let Outcome::Finished(trained) = outcome else {
        panic!("the run was interrupted")
    };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for record in parse_metrics(&trained[0].metrics) {
        if let MetricsRecord::Step {
            loss, grad_norm, ..
        } = record
        {
            losses.push(loss);
            norms.push(grad_norm);
        }
    }
    for (name, ours, peft) in [
        ("loss", losses, numbers("losses")),
        ("gradient norm", norms, numbers("gradient_norms")),
    ] {
        assert_eq!((ours.len(), peft.len()), (50, 50));
        for (step, (ours, peft)) in ours.iter().zip(&peft).enumerate() {
            let off = (ours - peft).abs() / peft;
            assert!(
                off < 1e-3,
                "{name} of step {}: {ours}, PEFT's is {peft}",
                step + 1
            );
        }
    }
    // The loss must fall: a flat curve would match any other.
    let peft = numbers("losses");
    assert!(peft[49] < 0.7 * peft[0], "{} {}", peft[0], peft[49]);
}
