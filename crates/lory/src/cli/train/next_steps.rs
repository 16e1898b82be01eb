//! What to do with an adapter once it is trained: the commands, to copy.

use jobs::training::Target;
use registry::Personas;

use crate::cli::output::shell::{base_flag, quoted};

/// The commands that hear, evaluate, serve and publish what was trained on the base `base`. `from_file`: the adapter is that of a data file, not of
/// a persona.
pub(crate) fn lines(targets: &[Target], from_file: bool, base: &str) -> Vec<String> {
    let on = base_flag(base);
    let mut lines = vec!["next:".to_owned()];
    for target in targets {
        let name = &target.name;
        if from_file {
            let out = quoted(&target.out.display().to_string());
            lines.push(format!("  lory chat{on} --adapter {out}"));
            lines.push(format!(
                "  lory generate{on} --adapter {out} \"a question\""
            ));
            let rows = match &target.eval {
                Some(rows) => quoted(&rows.display().to_string()),
                None => "HELD_OUT.jsonl".to_owned(),
            };
            lines.push(format!("  lory eval{on} --adapter {out} --rows {rows}"));
            lines.push(format!("  lory serve{on} --adapter {out}"));
            let named = Personas::of_adapter(&target.out).map(|persona| persona.name);
            let name = named.unwrap_or_else(|_| name.clone());
            lines.push(format!("  lory persona publish{on} {name} --adapter {out}"));
            if target.system_prompt.is_some() {
                lines.push(format!(
                    "the adapter does not have the system prompt; write it into {out}/persona.toml: system_prompt = \"...\""
                ));
            }
        } else {
            lines.push(format!("  lory chat{on} --persona {name}"));
            lines.push(format!(
                "  lory generate{on} --persona {name} \"a question\""
            ));
            lines.push(format!("  lory eval{on} --persona {name}"));
            lines.push(format!("  lory persona publish{on} {name}"));
        }
    }
    if !from_file {
        lines.push(format!("  lory serve{on}"));
    }
    lines
}
