//! `lory chat`: a conversation in the terminal.
//!
//! - `input`: lines from the terminal or from stdin; `commands`: what a line means
//! - `conversation`: the turns, and who answers; `save`: the conversation as a training row
//! - `answer`: streams an answer, which Ctrl-C stops
//! - `session`: carries out messages and commands
//!
//! Answers and lists go to stdout, everything else to stderr.

mod answer;
mod commands;
mod conversation;
mod input;
mod save;
mod session;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use base::home::Home;
use registry::{Persona, Personas};
use service::Service;
use service::catalog::Catalog;

use crate::cli::exit::{ExitStatus, UsageError};
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::personas::{AdapterArgs, PersonasArgs};
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::flags::sampling::SamplingFlags;
use crate::cli::flags::variables::variable;

use answer::Interrupts;
use input::InputSource;
use session::{AnswerFlags, Session};

/// Talk to a persona in the terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line that begins with a slash is a command: /help lists them. /tone partner changes the tone in the middle
of a conversation, and /save rows.jsonl makes a training row of it. If stdin is not a terminal, each of its
lines is a message or a command.

Examples:
  lory chat
  lory chat --persona customer
  lory chat --adapter my-adapter
  lory chat --persona customer*0.7+partner*0.3 --system \"You sell lamps.\"
  printf 'Where is order 12345?\\n/tone partner\\n/retry\\n' | lory chat --persona customer")]
pub(crate) struct Args {
    /// The persona that answers: a name (customer), a version (customer@3) or a blend (customer*0.7+partner*0.3)
    /// [default: the first --adapter, else the base without one]
    #[arg(long, value_name = "NAME")]
    persona: Option<String>,
    /// A system text in place of the persona's system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The value of a variable in the persona's system prompt; may be given several times
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// Maximum number of new tokens of an answer [default: the persona's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    personas_dir: PersonasArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    if let Some(spec) = &args.persona {
        registry::spec::parse(spec)
            .map_err(|error| UsageError(format!("--persona {spec}: {error}")))?;
    }
    let adapters = args.adapters.open()?;
    let first = adapters.first().map(|adapter| adapter.name.clone());
    let persona = args.persona.clone().or(first);
    let catalog = catalog(&args, adapters)?;
    let located = args.base.locate()?;
    let settings = located.settings(&args.precision, &args.device)?;
    let service = Service::open(&located.path, catalog, &settings)?;
    let result = converse(&service, args, persona);
    service.engine().shutdown();
    result
}

/// The personas. Without any, the base can be talked to.
fn catalog(args: &Args, adapters: Vec<Persona>) -> anyhow::Result<Catalog> {
    let no_folder = args.personas_dir.dir.is_none() && args.personas_dir.find().is_err();
    if !no_folder || args.persona.is_some() || !adapters.is_empty() {
        return args.registry.catalog_with(&args.personas_dir, adapters);
    }
    if args.registry.registry.is_none() && Home::find().is_err() {
        return Ok(Personas::default().into());
    }
    Ok(Catalog::open(Personas::default(), args.registry.open()?)?)
}

fn converse(service: &Service, args: Args, persona: Option<String>) -> anyhow::Result<ExitStatus> {
    let by_hand = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let flags = AnswerFlags {
        variables: args.variables.into_iter().collect::<BTreeMap<_, _>>(),
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.0,
    };
    // Ctrl-C ends a run that nobody types into.
    let (mut source, interrupts) = match by_hand {
        true => {
            let history = Home::find().ok().map(|home| home.chat_history());
            let personas = service.personas();
            let names = personas.names().into_iter().map(str::to_owned);
            let names = names.chain([service.base().name.clone()]).collect();
            (
                InputSource::terminal(history, names)?,
                Interrupts::listen()?,
            )
        }
        false => (InputSource::Stdin, Interrupts::default()),
    };
    let mut session = Session::start(service, flags, persona, args.system)?;
    session.run(&mut source, &interrupts)
}
