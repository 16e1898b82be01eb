//! The command line: all commands on one screen. Each has a file of its own; what they share is small and is here.

mod base;
mod bench;
mod columns;
mod completions;
mod config;
mod data;
mod demo;
mod doctor;
mod eval;
mod generate;
mod key;
mod logs;
mod persona;
mod personas;
mod pull;
mod registry;
mod rows;
mod sampling_flags;
mod serve;
mod server;
mod table;
mod train;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use config::Parsed;

/// Many tones of voice from one language model: serve them, train them.
#[derive(Debug, Parser)]
#[command(name = "lory", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Serve(Box<serve::Args>),
    Generate(generate::Args),
    Pull(pull::Args),
    Doctor(doctor::Args),
    Train(Box<train::Args>),
    Eval(eval::Args),
    Bench(bench::Args),
    #[command(subcommand)]
    Persona(persona::Command),
    #[command(subcommand)]
    Data(data::Data),
    #[command(subcommand)]
    Key(key::Command),
    Completions(completions::Completions),
    Man(completions::Man),
}

/// Runs the program; its exit code is 0, 1 where something failed, or 2 where the command line is not understood.
#[must_use]
pub fn main() -> ExitCode {
    kernels::return_freed_memory();
    // Clap prints help and complaints, and ends with 0 or 2.
    let parsed = match config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match &parsed.cli.command {
        Command::Serve(args) => logs::serving(args.log_format),
        _ => logs::quiet(),
    }
    match run(parsed) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", said(&error));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(parsed: Parsed) -> anyhow::Result<Verdict> {
    match parsed.cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Serve(args) if args.print_config => {
            print(&parsed.in_force.unwrap_or_default())?;
            Ok(Verdict::Good)
        }
        Command::Serve(args) => serve::run(*args, parsed.file.as_deref()),
        Command::Generate(args) => generate::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Persona(command) => persona::run(command),
        Command::Data(args) => data::run(args),
        Command::Key(command) => key::run(command),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    }
}

/// What a command that did its work found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The work was done and its result is a failure: findings, missed thresholds, an interruption.
    Bad,
}

/// A command line that clap takes and that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// An error in words: each cause behind what it caused, unless that has told it already.
fn said(error: &anyhow::Error) -> String {
    let mut words = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

/// Writes to stdout at once.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON object on a line.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Whether whoever read stdout is gone (`lory ... | head`), which is no failure.
fn reader_left(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        config::command().debug_assert();
    }

    #[test]
    fn no_cause_is_told_twice() {
        let io = || std::io::Error::other("no disk");
        let error = anyhow::Error::new(io())
            .context("cannot write a")
            .context("b");
        assert_eq!(said(&error), "b: cannot write a: no disk");
        let error = anyhow::Error::new(io()).context("a: no disk");
        assert_eq!(said(&error), "a: no disk");
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            for sub in command
                .get_subcommands()
                .filter(|sub| sub.get_name() != "help")
            {
                if sub.get_subcommands().next().is_some() {
                    check(sub);
                    continue;
                }
                let after = sub
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    after.contains("Example"),
                    "{} has no example",
                    sub.get_name()
                );
                assert!(
                    sub.get_about().is_some(),
                    "{} does not say what it does",
                    sub.get_name()
                );
            }
        }
        check(&config::command());
    }
}
