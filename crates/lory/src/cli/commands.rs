//! The commands and their arguments.

use clap::{Parser, Subcommand};

use crate::cli::{
    bench, chat, completions, data, demo, doctor, eval, generate, key, persona, pull, serve, train,
};

/// Many tones of voice from one language model: serve them, train them.
#[derive(Debug, Parser)]
#[command(
    name = "lory",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "\
First steps:
  lory demo                                         hear every tone
  lory chat --persona customer                      talk to one
  lory train --data mine.jsonl --out personas/mine  train your own
  lory serve                                        serve them over HTTP
  lory pull Qwen/Qwen2.5-0.5B-Instruct              fetch a larger base"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Serve(Box<serve::Args>),
    Chat(chat::Args),
    Generate(generate::Args),
    Pull(pull::Args),
    Doctor(doctor::Args),
    Train(Box<train::Args>),
    Eval(eval::Args),
    Bench(bench::Args),
    #[command(subcommand)]
    Persona(persona::Command),
    #[command(subcommand)]
    Data(data::Command),
    #[command(subcommand)]
    Key(key::Command),
    Completions(completions::Args),
    Man(completions::ManArgs),
}
