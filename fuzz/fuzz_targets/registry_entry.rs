//! Entries of the publish log, one a line: each is applied or refused.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use registry::{LogEntry, RegistryState};

fuzz_target!(|data: &[u8]| {
    let mut state = RegistryState::default();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let Ok(entry) = serde_json::from_slice::<LogEntry>(line) else {
            continue;
        };
        let checked = state.check(&entry.change).is_ok();
        let name = entry.change.name().to_owned();
        let applied = state.apply(Arc::new(entry)).is_ok();
        assert!(checked || !applied);
        let _ = state.record(&name);
        let _ = (state.next_version(&name), state.previous_version(&name));
    }
    let _ = (state.personas().count(), state.adapters().len());
});
