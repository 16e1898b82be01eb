//! A stranger's chat template: it ends within its budget of work.

#![no_main]

use formats::chat_template::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") {
        let messages = [
            Message::new("system", "Be brief."),
            Message::new("user", "é<b>\"\n'"),
        ];
        let _ = template.render(&messages, true);
    }
});
