//! Publishing, rollback, removal, aliases, canaries and shadows: what a request gets after each.

use registry::{PersonaRef, PersonaSettings, Personas, Publication, Registry, RegistryError};

use crate::fixtures::{TestDir, publish, settings};

fn personas(registry: &Registry) -> Personas {
    let state = registry.refresh().unwrap();
    registry.personas(&state, &Personas::default()).0
}

/// The version that a request for `text` gets.
fn version(registry: &Registry, text: &str) -> Result<u32, String> {
    let personas = personas(registry);
    let blend = personas.resolve(text).map_err(|error| error.to_string())?;
    Ok(blend[0].persona.version)
}

fn target(name: &str, version: Option<u32>) -> PersonaRef {
    PersonaRef {
        name: name.to_owned(),
        version,
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, RegistryError>, part: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn new_registry_is_empty_and_its_folder_is_not_created() {
    let dir = TestDir::new();
    let registry = dir.registry();
    assert_eq!(registry.refresh().unwrap().head, 0);
    assert!(registry.verify().unwrap().is_empty());
    assert!(!dir.path("registry").exists());
}

#[test]
fn another_process_sees_what_was_published() {
    let dir = TestDir::new();
    let content = dir.content(1);
    let full = PersonaSettings {
        description: "Warm".to_owned(),
        system_prompt: Some("You are {{how}}.".to_owned()),
        variables: registry::Variables::from([("how".to_owned(), registry::Variable::required())]),
        sampling: sampling::SamplingParams {
            temperature: Some(0.7),
            top_k: Some(40),
            seed: Some(u64::MAX),
            ..sampling::SamplingParams::default()
        },
        max_new_tokens: Some(120),
        stop: vec!["\n\n".to_owned()],
        scale: 0.1,
    };
    let publication = Publication {
        name: "warm",
        content: Some(&content),
        settings: Some(full.clone()),
        current: true,
        only_new: true,
    };
    let published = dir.registry().publish(&publication).unwrap();
    assert_eq!((published.version, published.sequence), (1, 1));
    refused(
        dir.registry().publish(&publication),
        "warm is published already",
    );

    let other = dir.registry();
    let all = personas(&other);
    let persona = all.get("warm").unwrap();
    assert_eq!(PersonaSettings::of(persona), full);
    let adapter = persona.adapter.as_ref().unwrap();
    assert_eq!(adapter.sha256_hex(), content.sha256);
    assert_eq!(adapter.read().unwrap(), content.adapter);
    // The blob is a PEFT folder.
    assert!(adapter.path.join("adapter_config.json").exists());
    assert_eq!(
        formats::peft::content_hash(&adapter.path).unwrap(),
        content.sha256
    );
}

#[test]
fn version_numbers_rise_and_are_never_used_twice() {
    let dir = TestDir::new();
    let registry = dir.registry();
    for seed in 1..=3 {
        publish(&registry, "tone", &dir.content(seed)).unwrap();
    }
    assert_eq!(version(&registry, "tone"), Ok(3));
    assert_eq!(version(&registry, "tone@1"), Ok(1));
    assert_eq!(registry.rollback("tone", None).unwrap(), 2);
    assert_eq!(version(&registry, "tone"), Ok(2));
    // A second rollback returns to the version before.
    assert_eq!(registry.rollback("tone", None).unwrap(), 3);
    assert_eq!(registry.rollback("tone", Some(1)).unwrap(), 1);
    refused(registry.rollback("tone", Some(1)), "is version 1 already");
    refused(registry.rollback("tone", Some(9)), "there are 1, 2, 3");
    refused(
        registry.rollback("tune", None),
        "no persona tune is published",
    );

    refused(registry.remove("tone", Some(1)), "is the current version");
    registry.remove("tone", Some(3)).unwrap();
    let error = version(&registry, "tone@3").unwrap_err();
    assert_eq!(error, "persona `tone` has no version 3; there are 1, 2");
    registry.remove("tone", None).unwrap();
    assert_eq!(
        version(&registry, "tone").unwrap_err(),
        "unknown persona `tone`; there are none"
    );
    assert_eq!(
        publish(&registry, "tone", &dir.content(1)).unwrap().version,
        4
    );
    refused(
        registry.rollback("tone", None),
        "had no other version before",
    );
    let ops: Vec<&str> = registry
        .state()
        .entries
        .iter()
        .map(|e| e.change.op())
        .collect();
    assert_eq!(ops[3..6], ["rollback", "rollback", "rollback"]);
}

#[test]
fn publication_keeps_the_settings_and_need_not_become_current() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let (first, second) = (dir.content(1), dir.content(2));
    publish(&registry, "tone", &first).unwrap();
    let waiting = Publication {
        name: "tone",
        content: Some(&second),
        settings: None,
        current: false,
        only_new: false,
    };
    registry.publish(&waiting).unwrap();
    assert_eq!(version(&registry, "tone"), Ok(1));
    let all = personas(&registry);
    let kept = all.resolve("tone@2").unwrap()[0]
        .persona
        .system_prompt
        .clone();
    assert_eq!(kept.as_deref(), Some("You are tone."));
    let new = Publication {
        name: "new",
        ..waiting
    };
    refused(registry.publish(&new), "its first one must be current");
}

#[test]
fn alias_means_a_persona_or_a_version() {
    let dir = TestDir::new();
    let registry = dir.registry();
    publish(&registry, "tone", &dir.content(1)).unwrap();
    registry.alias("stable", &target("tone", Some(1))).unwrap();
    registry.alias("newest", &target("tone", None)).unwrap();
    publish(&registry, "tone", &dir.content(2)).unwrap();
    assert_eq!(version(&registry, "stable"), Ok(1));
    assert_eq!(version(&registry, "newest*0.5"), Ok(2));
    let error = version(&registry, "stable@2").unwrap_err();
    assert!(
        error.contains("`stable` is an alias of `tone` and has no versions"),
        "{error}"
    );
    registry.alias("stable", &target("tone", Some(2))).unwrap();
    assert_eq!(version(&registry, "stable"), Ok(2));

    refused(
        registry.alias("tone", &target("tone", None)),
        "tone is a persona",
    );
    refused(
        registry.alias("x", &target("tone", Some(7))),
        "has no version 7",
    );
    refused(
        registry.alias("x", &target("stable", None)),
        "it is an alias of tone@2",
    );
    refused(
        registry.alias("No", &target("tone", None)),
        "is not a valid persona name",
    );
    refused(
        publish(&registry, "stable", &dir.content(1)),
        "stable is an alias of tone@2",
    );
    refused(registry.remove("tone", None), "the alias newest means tone");
    registry.remove_alias("newest").unwrap();
    registry.remove_alias("stable").unwrap();
    refused(
        registry.remove_alias("stable"),
        "alias stable does not exist",
    );
    registry.remove("tone", None).unwrap();
}

#[test]
fn publication_out_of_range_is_refused_and_uploads_nothing() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let content = dir.content(1);
    let with = |name, settings| Publication {
        name,
        content: Some(&content),
        settings: Some(settings),
        current: true,
        only_new: false,
    };
    refused(
        registry.publish(&with("No", settings("s"))),
        "is not a valid persona name",
    );
    let too_hot = PersonaSettings {
        sampling: sampling::SamplingParams {
            temperature: Some(3.0),
            ..sampling::SamplingParams::default()
        },
        ..PersonaSettings::default()
    };
    refused(
        registry.publish(&with("a", too_hot)),
        "temperature must be from 0 to 2, not 3",
    );
    refused(
        registry.publish(&with("a", settings(&"x".repeat(70_000)))),
        "longer than 65536",
    );
    assert!(!dir.path("registry").exists());
    let empty = dir.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = registry::AdapterContent::read(&empty)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

/// How many of 2,000 requests for `tone` get version 2, and how many have it as a shadow.
fn count_version_2(registry: &Registry) -> (usize, usize) {
    let all = personas(registry);
    let mut counts = (0, 0);
    for draw in 0..2000 {
        let blend = all.resolve_for("tone", draw).unwrap();
        counts.0 += usize::from(blend[0].persona.version == 2);
        counts.1 += usize::from(blend[0].shadow.is_some_and(|shadow| shadow.version == 2));
        // A request for a version always gets it.
        let pinned = all.resolve_for("tone@1", draw).unwrap();
        assert_eq!(
            (pinned[0].persona.version, pinned[0].shadow.is_none()),
            (1, true)
        );
    }
    counts
}

#[test]
fn canary_gets_its_percentage_and_keeps_its_requests_as_it_grows() {
    let dir = TestDir::new();
    let registry = dir.registry();
    publish(&registry, "tone", &dir.content(1)).unwrap();
    let second = dir.content(2);
    let waiting = Publication {
        name: "tone",
        content: Some(&second),
        settings: None,
        current: false,
        only_new: false,
    };
    registry.publish(&waiting).unwrap();
    assert_eq!(count_version_2(&registry), (0, 0));

    registry.canary("tone", Some((2, 10.0))).unwrap();
    let (canary, shadow) = count_version_2(&registry);
    assert!((140..260).contains(&canary), "{canary}");
    assert_eq!(shadow, 0);
    let takes = |draw| {
        personas(&registry).resolve_for("tone", draw).unwrap()[0]
            .persona
            .version
    };
    let few: Vec<u64> = (0..200).filter(|draw| takes(*draw) == 2).collect();
    assert!(!few.is_empty());
    registry.canary("tone", Some((2, 50.0))).unwrap();
    // The requests of the canary stay its requests when it grows.
    assert!(few.iter().all(|draw| takes(*draw) == 2));
    registry.canary("tone", Some((2, 100.0))).unwrap();
    assert_eq!(count_version_2(&registry).0, 2000);
    refused(registry.remove("tone", Some(2)), "is the canary of tone");

    registry.canary("tone", None).unwrap();
    refused(registry.canary("tone", None), "tone has no canary");
    registry.shadow("tone", Some((2, 25.0))).unwrap();
    let (canary, shadow) = count_version_2(&registry);
    assert_eq!(canary, 0);
    assert!((400..600).contains(&shadow), "{shadow}");

    refused(
        registry.canary("tone", Some((1, 10.0))),
        "is version 1 already",
    );
    refused(registry.canary("tone", Some((5, 10.0))), "has no version 5");
    for percent in [0.0, -1.0, 100.1, f64::NAN] {
        refused(
            registry.canary("tone", Some((2, percent))),
            "above 0, to 100",
        );
    }
    // The shadow ends when its version becomes current.
    registry.rollback("tone", Some(2)).unwrap();
    assert_eq!(count_version_2(&registry), (2000, 0));
}

#[test]
fn published_name_hides_the_same_name_in_a_folder() {
    let dir = TestDir::new();
    let folder = dir.path("personas");
    for name in ["tone", "other", "word"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("persona.toml"), "version = 7").unwrap();
    }
    let folder = Personas::open(&folder).unwrap();
    let registry = dir.registry();
    publish(&registry, "tone", &dir.content(1)).unwrap();
    registry.alias("word", &target("tone", None)).unwrap();
    let state = registry.refresh().unwrap();
    let (all, hidden) = registry.personas(&state, &folder);
    assert_eq!(hidden, ["tone", "word"]);
    assert_eq!(all.names(), ["other", "tone"]);
    assert_eq!(all.get("tone").unwrap().version, 1);
    assert!(all.resolve("tone@7").is_err());
    assert_eq!(all.resolve("other").unwrap()[0].persona.version, 7);
    assert_eq!(all.resolve("word").unwrap()[0].persona.name, "tone");
}
