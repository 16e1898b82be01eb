//! The server as a client meets it, over a tiny random base with two tones.

mod bad_input;
mod chat_completions;
mod company;
mod departure;
mod generate;
mod life;
mod scene;
