//! `lory demo`: answers one question in every tone, side by side.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use registry::{Persona, Personas};

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::personas::PersonasArgs;
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::generate;
use crate::cli::output::print;
use crate::cli::output::shell::{base_flag, quoted};
use crate::cli::output::side_by_side::{side_by_side, terminal_width};
use crate::cli::serve::start::{Loaded, REGISTRY_POLL, listen, serve, with_home_folders};
use base::home::Home;
use base::plan::PlanRequest;
use server::ServerSettings;
use service::{GenerateRequest, Service, Settings};

const QUESTION: &str = "What is the status of my order #12345?";
/// How many ports are tried after one that is taken.
const MORE_PORTS: u16 = 20;

/// Answer one question in every tone, side by side, then serve
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lory demo --once")]
pub(crate) struct Args {
    /// The port to serve on; if it is taken, the next free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Exit after the answers instead of serving
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let catalog = args.registry.catalog(&args.personas)?;
    let located = args.base.locate()?;
    let start = Instant::now();
    let titles = titles(&catalog.personas());
    let planned = located.plan(
        &args.precision,
        args.device.requested(None),
        PlanRequest::default(),
    )?;
    let settings = with_home_folders(Settings {
        load: planned.load,
        device: planned.device,
        base_name: located.name.clone(),
        base_sha256: located.sha256.map(str::to_owned),
        ..Settings::default()
    });
    let service = Service::open(&located.path, catalog, &settings)?;
    let loaded = start.elapsed();

    let personas = service.personas();
    let names = std::iter::once(None).chain(personas.names().into_iter().map(Some));
    let requests: Vec<GenerateRequest> = names
        .map(|persona| GenerateRequest::new(persona, QUESTION))
        .collect();
    let answers = generate::generate_all(&service, &requests)?;
    let took = start.elapsed();
    let base = format!("{} (no persona)", service.base().name);
    let mut texts: Vec<(String, String)> = Vec::with_capacity(answers.len());
    let mut tokens = 0;
    for ((request, title), answer) in requests
        .iter()
        .zip(std::iter::once(base).chain(titles))
        .zip(answers)
    {
        match (answer, &request.persona) {
            (Ok(answer), _) => {
                tokens += answer.end.completion_tokens;
                texts.push((title, answer.text));
            }
            (Err(error), Some(persona)) => eprintln!("persona {persona} did not answer: {error}"),
            (Err(error), None) => return Err(error.into()),
        }
    }
    print(&format!(
        "\n  {QUESTION}\n\n{}\n{} answers, {tokens} tokens, one batch: {:.1} s (loading: {:.1} s)\n",
        side_by_side(&texts, terminal_width()),
        texts.len(),
        (took - loaded).as_secs_f64(),
        loaded.as_secs_f64(),
    ))?;
    print(&next_steps(&args, &personas))?;
    if !args.once {
        let settings = ServerSettings::default();
        let jobs = Home::find().ok().map(|home| home.jobs());
        let listener = free_port(args.port)?;
        serve(listener, settings, Some(REGISTRY_POLL), jobs, move || {
            Ok(Loaded {
                service,
                known_base: located.name,
                train_memory: planned.train_memory,
            })
        })?;
    } else {
        service.engine().shutdown();
    }
    Ok(ExitStatus::Success)
}

/// What to do next, as commands to copy.
fn next_steps(args: &Args, personas: &Personas) -> String {
    let mut flags = base_flag(&args.base.base);
    if let Some(dir) = &args.personas.dir {
        flags += &format!(" --personas {}", quoted(&dir.display().to_string()));
    }
    let trained = personas.names().into_iter().find(|name| {
        personas
            .get(name)
            .is_some_and(|persona| persona.adapter.is_some())
    });
    let persona = trained.map_or(String::new(), |name| format!(" --persona {name}"));
    let mut steps = vec![(format!("lory chat{flags}{persona}"), "talk to it")];
    if args.once {
        steps.push((format!("lory serve{flags}"), "serve every tone over HTTP"));
    }
    let base = base_flag(&args.base.base);
    steps.push((
        format!("lory train{base} --data mine.jsonl --out personas/mine"),
        "train a tone of your own",
    ));
    let width = steps.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
    let lines = steps
        .iter()
        .map(|(step, what)| format!("  {step:<width$}  {what}\n"));
    let title = if args.once {
        "Next:"
    } else {
        "Next, in another terminal:"
    };
    format!("\n{title}\n{}\n", lines.collect::<String>())
}

/// The title of each persona's answer.
fn titles(personas: &Personas) -> Vec<String> {
    let title = |persona: &Persona| match (&persona.adapter, persona.description.is_empty()) {
        (None, _) => format!("{}: not trained yet", persona.name),
        (Some(_), true) => persona.name.clone(),
        (Some(_), false) => format!("{}: {}", persona.name, persona.description),
    };
    personas
        .names()
        .into_iter()
        .filter_map(|name| personas.get(name))
        .map(title)
        .collect()
}

/// The port, or the next one that is free.
fn free_port(first: u16) -> anyhow::Result<TcpListener> {
    for port in first..=first.saturating_add(MORE_PORTS) {
        match listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(listener) => {
                if port != first {
                    eprintln!("port {first} is taken; serving on {port}");
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => {
                anyhow::bail!(
                    "cannot listen on port {port}: {error}; choose another one with --port"
                )
            }
        }
    }
    anyhow::bail!(
        "ports {first} to {} are taken; choose a free one with --port",
        first.saturating_add(MORE_PORTS)
    )
}
