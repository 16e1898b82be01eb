//! The real base, pulled if it is not in the cache: parity with independent implementations, and what int8 costs.
//!
//! `parity.safetensors` comes from `bench/peers/make_parity_fixture.py` (transformers, float32, on the dequantized file).

mod company;
mod parity;
mod tokens;

use std::sync::LazyLock;

use kernels::Device;
use lory::home::Home;
use lory::progress::Progress;
use lory::pull::{HubSettings, known, pull};
use lory::service::Base;

/// The base, pulled and loaded once for all tests.
static BASE: LazyLock<Base> = LazyLock::new(|| {
    let base = known("smollm2-135m").unwrap();
    let home = Home::find().unwrap();
    let pulled = pull(
        base,
        &home,
        &HubSettings::from_env(),
        &mut Progress::stderr(),
    );
    let pulled = pulled.unwrap_or_else(|error| panic!("{error}"));
    Base::open(&pulled.path, Some(base.id), Device::cpu(None).unwrap()).unwrap()
});
