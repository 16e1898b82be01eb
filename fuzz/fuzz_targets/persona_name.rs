//! What a request names: a persona, a version, a blend.

#![no_main]

use formats::persona_name::is_persona_name;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if is_persona_name(text) {
        assert_eq!(registry::spec::parse(text).unwrap()[0].name, text);
    }
    if let Ok(parts) = registry::spec::parse(text) {
        assert!((1..=registry::spec::MAX_PARTS).contains(&parts.len()));
        for part in parts {
            assert!(!part.name.is_empty() && part.scale.is_none_or(f32::is_finite));
        }
    }
});
