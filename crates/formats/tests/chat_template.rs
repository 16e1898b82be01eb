//! Chat templates against Jinja2 as transformers sets it up. `fixtures/make_templates.py` made the file.

use std::collections::BTreeMap;

use formats::chat_template::{ChatTemplate, Message, SpecialTexts, TemplateError};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
    expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    source: String,
    text: String,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    refused: Option<String>,
}

fn fixture() -> Fixture {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn expressions_render_as_in_jinja2() {
    let messages = [
        Message::new("user", "  <a>|b|c\n"),
        Message::new("assistant", "It's é."),
    ];
    let tokens = SpecialTexts {
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        others: vec![
            ("unk_token", "<unk>".to_owned()),
            ("pad_token", "<pad>".to_owned()),
        ],
    };
    let expressions = fixture().expressions;
    assert!(expressions.len() > 30);
    let mut wrong = Vec::new();
    for Expression { source, text } in expressions {
        let whole = format!("{{% set m = messages[0].content %}}\n{source}");
        let rendered = ChatTemplate::with_tokens(&whole, tokens.clone())
            .and_then(|template| template.render(&messages, true));
        match rendered {
            Ok(rendered) if rendered == text => {}
            other => wrong.push(format!(
                "{source}\n   expected {text:?}\n   was      {other:?}"
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn conversations_render_as_in_jinja2() {
    let fixture = fixture();
    assert!(fixture.cases.iter().any(|case| case.refused.is_some()));
    for case in fixture.cases {
        let template =
            ChatTemplate::new(&fixture.templates[&case.template], "<s>", "</s>").unwrap();
        let rendered = template.render(&case.messages, case.add_generation_prompt);
        let name = format!("{}: {:?}", case.template, case.messages);
        match (rendered, case.text, case.refused) {
            (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{name}"),
            (Err(TemplateError::Refused(text)), None, Some(expected)) => {
                assert_eq!(text, expected, "{name}")
            }
            (other, expected, refused) => {
                panic!("{name}: {other:?}, expected {expected:?} or {refused:?}")
            }
        }
    }
}

/// The template of the demo base, as its metadata has it.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn check_smollm2(template: &ChatTemplate) {
    let question = Message::new("user", "What is the status of my order #12345?");
    assert_eq!(
        template
            .render(std::slice::from_ref(&question), true)
            .unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the status of my order #12345?<|im_end|>\n<|im_start|>assistant\n"
    );
    let conversation = [
        Message::new("system", "Be brief."),
        question,
        Message::new("assistant", " On its way.\n"),
    ];
    assert_eq!(
        template.render(&conversation, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the status of my order #12345?<|im_end|>\n\
         <|im_start|>assistant\n On its way.\n<|im_end|>\n"
    );
    assert_eq!(template.render(&[], false).unwrap(), "");
}

#[test]
fn demo_template_renders_as_in_transformers() {
    check_smollm2(&ChatTemplate::new(SMOLLM2, "<|im_start|>", "<|im_end|>").unwrap());
}

/// Templates of published models, in short: they refuse a system message, or leave it out.
const REFUSES_SYSTEM: &str = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
const DROPS_SYSTEM: &str = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn problems(source: &str) -> Vec<String> {
    let template = ChatTemplate::new(source, "", "").unwrap();
    template
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn what_a_template_does_not_render_is_found_without_a_request() {
    assert_eq!(problems(SMOLLM2), Vec::<String>::new());
    let refused = problems(REFUSES_SYSTEM);
    let starts: Vec<&str> = refused
        .iter()
        .map(|one| one.split(':').next().unwrap())
        .collect();
    assert_eq!(
        starts,
        [
            "a system message",
            "several turns after a system message",
            "tool calls",
            "two user's messages in a row",
            "an assistant's message at the start",
        ]
    );
    assert!(
        refused[0].ends_with("System role not supported"),
        "{refused:?}"
    );
    assert_eq!(
        problems(DROPS_SYSTEM)[0],
        "a system message: the text of role system is left out"
    );
    let broken = problems("{{ messages[0].content.nothing() }}");
    assert!(
        broken[0].contains("a user's message: ") && broken[0].contains("(line 1)"),
        "{broken:?}"
    );
    let cut = "{{ messages[0].content }}{% if messages | length > 1 %}: {{ messages[1:] | map(attribute='content') | join }}{% endif %}{% if add_generation_prompt %}!{% endif %}";
    assert_eq!(
        problems(cut),
        ["training rows: the answer does not follow the prompt as it is rendered for generation"]
    );
}

#[test]
fn system_text_goes_in_front_of_the_user_if_the_template_has_no_system_role() {
    let turns = [
        Message::new("system", "Be brief."),
        Message::new("assistant", "Hello!"),
        Message::new("user", "Hi"),
        Message::new("user", "there"),
    ];
    for source in [REFUSES_SYSTEM, DROPS_SYSTEM] {
        let mut template = ChatTemplate::new(source, "", "").unwrap();
        let hash = template.hash();
        assert!(!template.has_system_role());
        assert!(template.system_text_problem("Be brief.").is_some() == (source == REFUSES_SYSTEM));
        assert!(template.put_system_text_in_user_message());
        assert_ne!(template.hash(), hash);
        assert_eq!(
            template
                .render(&[turns[0].clone(), turns[2].clone()], true)
                .unwrap(),
            "<user>Be brief.\n\nHi<end><assistant>"
        );
        assert_eq!(
            template.render(&turns[..1], true).unwrap(),
            "<user>Be brief.<end><assistant>"
        );
        assert!(template.has_system_role());
    }
    let mut template = ChatTemplate::new(DROPS_SYSTEM, "", "").unwrap();
    template.put_system_text_in_user_message();
    assert_eq!(
        template.render(&turns, false).unwrap(),
        "<assistant>Hello!<end><user>Be brief.\n\nHi<end><user>there<end>"
    );
    let mut chatml = ChatTemplate::new(SMOLLM2, "", "").unwrap();
    let hash = chatml.hash();
    assert!(!chatml.put_system_text_in_user_message());
    assert_eq!(chatml.hash(), hash);
}

#[test]
fn hash_covers_source_and_tokens() {
    let hash = |source, bos, eos| ChatTemplate::new(source, bos, eos).unwrap().hash();
    assert_eq!(hash("a", "b", "c"), hash("a", "b", "c"));
    assert_ne!(hash("a", "b", "c"), hash("a", "bc", ""));
    assert_ne!(hash("a", "b", "c"), hash("x", "b", "c"));
    let with_unk = |source: &str, unk: &str| {
        let tokens = SpecialTexts {
            others: vec![("unk_token", unk.to_owned())],
            ..SpecialTexts::default()
        };
        ChatTemplate::with_tokens(source, tokens).unwrap().hash()
    };
    assert_eq!(with_unk("a", "<unk>"), hash("a", "", ""));
    let mentioned = "{{ unk_token }}";
    assert_ne!(with_unk(mentioned, "<unk>"), with_unk(mentioned, "[UNK]"));
}

#[test]
fn strftime_now_is_today() {
    let text = ChatTemplate::new("{{ strftime_now('%Y') }}", "", "")
        .unwrap()
        .render(&[], false)
        .unwrap();
    assert!(text.parse::<u32>().unwrap() >= 2024);
}

fn failure(source: &str) -> String {
    match ChatTemplate::new(source, "", "") {
        Ok(template) => template
            .render(&[Message::new("user", "x")], true)
            .unwrap_err()
            .to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn template_errors_name_the_line() {
    assert!(
        failure("line one\n{% if %}").contains("(line 2)"),
        "{}",
        failure("line one\n{% if %}")
    );
    assert!(failure("\n\n{{ messages.x.y.z }}").contains("(line 3)"));
    assert!(failure("{{ nothing_of_this_name() }}").contains("nothing_of_this_name"));
    assert!(failure(&"x".repeat(2 << 20)).contains("2097152 bytes; at most 65536"));
}

#[test]
fn expensive_templates_run_out_of_fuel() {
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ range(100000) | list | tojson(indent=16) | length * 1 }}{% for i in range(1000) %}{{ range(10000) | tojson }}{% endfor %}",
        "{{ (messages | string) * 99999999 }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ '-a'.zfill(1000000000) }}",
        "{{ '%999999999s' % 'a' }}",
        "{{ '\t'.expandtabs(1000000000) }}",
        "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ l.index(99998) }}{% endfor %}",
        "{% set s = 'a ' * 99999 %}{% for i in range(99999) %}{{ s.rsplit() | length }}{% endfor %}",
    ];
    for source in hostile {
        let started = std::time::Instant::now();
        let message = failure(source);
        assert!(message.contains("chat template"), "{source}: {message}");
        assert!(started.elapsed().as_secs() < 20, "{source}: too slow");
    }
}

/// A template of this part over and over, as long as a tag (or for tags, a template) may be, ended by `end`.
fn repeated(part: &str, end: &str) -> String {
    let (opening, limit) = if part.starts_with("{%") {
        ("", 64 << 10)
    } else {
        ("{{ ", 8 << 10)
    };
    let count = (limit - opening.len() - end.len()) / part.len();
    format!("{opening}{}{end}", part.repeat(count))
}

#[test]
fn long_expressions_are_refused_before_compiling() {
    let source = format!("{{{{ {}1 }}}}", "-".repeat(9000));
    assert_eq!(
        failure(&source),
        "the chat template has a tag of 9007 bytes; at most 8192 are read"
    );
}

#[test]
fn deep_nesting_never_exhausts_the_stack() {
    let endless = [
        "(",
        "[",
        "{",
        "not ",
        "-",
        "{% if 1 %}",
        "{% for a in b %}",
        "a.",
        "a[",
        "1 if 1 else ",
        "a|b(",
        "a+",
        "a%",
        "'a'%",
        "a%(",
    ];
    for part in endless {
        let message = failure(&repeated(part, ""));
        assert!(message.contains("chat template"), "{part}: {message}");
    }
    for part in [
        "-",
        "not ",
        "a.",
        "a+",
        "a|e|",
        "a~",
        "a%",
        "a%b(",
        "a and ",
        "a[0].",
        "1 if 1 else ",
    ] {
        if let Ok(template) = ChatTemplate::new(&repeated(part, "a }}"), "", "") {
            let _ = template.render(&[Message::new("user", "x")], true);
        }
    }
    let nested = [
        ("{% set ns.s = [ns.s] %}", "{{ ns.s }}"),
        (
            "{% set ns.s = [[[[[[[[[[[[[[[[[[[[ns.s]]]]]]]]]]]]]]]]]]]] %}",
            "{{ ns.s }}",
        ),
        ("{% set ns.s = {'a': ns.s} %}", "{{ ns.s | tojson }}"),
        (
            "{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] %}",
            "{{ ns.s == ns.t }}",
        ),
    ];
    for (step, end) in nested {
        for count in [1_000, 10_000, 100_000] {
            let source = format!(
                "{{% set ns = namespace(s=1, t=1) %}}{{% for i in range({count}) %}}{step}{{% endfor %}}{end}"
            );
            let template = ChatTemplate::new(&source, "", "").unwrap();
            let _ = template.render(&[Message::new("user", "x")], true);
        }
    }
}

#[test]
fn long_conversations_fit_the_budget() {
    let template = ChatTemplate::new(SMOLLM2, "", "").unwrap();
    let many: Vec<Message> = (0..5000)
        .map(|index| Message::new("user", format!("message {index}")))
        .collect();
    assert!(
        template
            .render(&many, true)
            .unwrap()
            .contains("message 4999<|im_end|>")
    );
    let long = [Message::new("user", "long ".repeat(400_000))];
    assert!(template.render(&long, true).unwrap().len() > 2_000_000);
}
