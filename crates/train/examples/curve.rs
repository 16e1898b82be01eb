//! Writes what `bench/peers/make_curve_fixture.py` trains with PEFT: `base.gguf`, the adapter that the run starts from and
//! `run.json` with rows and settings.
//!
//! ```sh
//! cargo run -p train --example curve -- DIR
//! ```

#[path = "../tests/curve/small_run.rs"]
mod small_run;

use std::path::Path;

use formats::peft::{Adapter, AdapterConfig, Dtype};

fn main() {
    let dir = std::env::args().nth(1).expect("a folder to write to");
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("base.gguf"), small_run::base()).unwrap();
    let task = small_run::task(&small_run::model(), None);
    let settings = &task.settings;
    let start = Adapter {
        config: AdapterConfig::new(
            settings.rank,
            f64::from(settings.alpha),
            &settings.modules().unwrap(),
        ),
        pairs: task.init.values().unwrap().pairs,
        dtype: Dtype::F32,
        metadata: Default::default(),
        base_tensors: Vec::new(),
    };
    start
        .write(&dir.join("start"), Dtype::F32, "The start of a run.\n")
        .unwrap();
    let rows: Vec<_> = task
        .train
        .iter()
        .map(|row| serde_json::json!({"tokens": row.tokens, "trained": row.loss_mask}))
        .collect();
    let run = serde_json::json!({"settings": settings, "rows": rows});
    std::fs::write(dir.join("run.json"), run.to_string()).unwrap();
}
