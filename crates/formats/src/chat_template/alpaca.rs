/// The user message of an instruction in the Alpaca format: the instruction, then an empty line and the input if there is one.
#[must_use]
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        instruction.to_owned()
    } else {
        format!("{instruction}\n\n{input}")
    }
}
