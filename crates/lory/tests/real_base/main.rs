//! The real base, pulled if it is not in the cache: parity with independent implementations, and the cost of int8 activations.
//!
//! `parity.safetensors` comes from `bench/peers/make_parity_fixture.py` (transformers, float32, on the dequantized file).

mod batch_invariance;
mod file;
mod graphics_card;
mod parity;
mod tokens;

use std::path::PathBuf;
use std::sync::LazyLock;

use base::Base;
use base::home::Home;
use base::hub::{HubSettings, KNOWN_BASES, pull};
use base::progress::Progress;
use kernels::{Device, DeviceChoice};

/// The file in the cache.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = Home::find().unwrap();
    let settings = HubSettings::from_env();
    let pulled = pull(&KNOWN_BASES[0], &home, &settings, &mut Progress::stderr());
    pulled.unwrap_or_else(|error| panic!("{error}")).path
});

/// The base, loaded once for all tests.
static BASE: LazyLock<Base> = LazyLock::new(|| {
    Base::open(
        &FILE,
        Some(KNOWN_BASES[0].id),
        Device::open(DeviceChoice::default()).unwrap(),
    )
    .unwrap()
});
