//! All commands: [`main`] parses the command line, and `run` calls the command's module.
//!
//! - a module for each command, named after it: its flags and its `run`
//! - `commands`: the list of commands; `config`: the command line's definition and `lory.toml`
//! - `flags`: flags that several commands have
//! - `output`: stdout, tables, texts side by side; `logs`: the log on stderr
//! - `exit`: exit codes and error messages

mod bench;
mod chat;
mod commands;
mod completions;
mod config;
mod data;
mod demo;
mod doctor;
mod eval;
mod exit;
mod flags;
mod generate;
mod key;
mod logs;
mod output;
mod persona;
mod pull;
mod serve;
mod train;

use std::process::ExitCode;

use commands::Command;
use config::Parsed;
use exit::ExitStatus;

/// Runs the program. The exit code is 0, 1 if something failed, or 2 if the command line is invalid.
#[must_use]
pub fn main() -> ExitCode {
    kernels::return_freed_memory();
    // Clap prints help and errors of the command line, and exits with 0 or 2.
    let parsed = match config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match &parsed.cli.command {
        Command::Serve(args) => logs::for_server(args.log_format),
        _ => logs::warnings_only(),
    }
    exit::code(run(parsed))
}

fn run(parsed: Parsed) -> anyhow::Result<ExitStatus> {
    match parsed.cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Serve(args) if args.print_config => serve::print_config(parsed.settings),
        Command::Serve(args) => serve::run(*args, parsed.file.as_deref()),
        Command::Chat(args) => chat::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Persona(command) => persona::run(command),
        Command::Data(command) => data::run(command),
        Command::Key(command) => key::run(command),
        Command::Completions(args) => completions::run(&args, config::command()),
        Command::Man(args) => completions::man(&args, config::command()),
    }
}
