//! `lory serve`: serves a base and its personas over HTTP, and trains in the background.
//!
//! - `memory`: returns memory to the system after bursts
//! - `start`: starts the server and the job queue, and stops them
//! - `welcome`: what is printed when the server is ready

mod memory;
pub(crate) mod start;
mod welcome;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;

use base::home::Home;
use base::plan::PlanRequest;
use service::compute_arbiter::ComputeArbiter;
use service::runner::StepPriority;
use service::{ModelAlias, Service, Settings};

use crate::cli::exit::ExitStatus;
use crate::cli::flags::base::{BaseArgs, DeviceArgs, PrecisionArgs};
use crate::cli::flags::engine::EngineArgs;
use crate::cli::flags::personas::{AdapterArgs, PersonasArgs};
use crate::cli::flags::registry::RegistryArgs;
use crate::cli::flags::server::ServerArgs;
use crate::cli::flags::units::{duration_in, memory_size};
use crate::cli::logs::LogFormat;
use crate::cli::output::print;
use start::{Loaded, listen, serve, with_home_folders};

/// Serve the base and its personas over HTTP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes and times have units: 256MiB, 1.5GB; 100ms, 5s.

Examples:
  lory serve
  lory serve --base my.gguf --personas tones --port 9000 --kv-memory 2GiB
  lory serve --adapter pirate
  lory serve --model-alias gpt-4o-mini=customer
  lory serve --host 0.0.0.0 --keys keys.toml --tls-cert cert.pem --tls-key key.pem")]
pub(crate) struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How often the registry is read for personas that other processes published
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = poll_interval)]
    registry_poll: Duration,
    /// Another name that requests may give for a persona, a blend or the base, such as gpt-4o-mini=customer; may be given several times
    #[arg(long, value_name = "NAME=PERSONA")]
    model_alias: Vec<ModelAlias>,
    /// The folder from which clients may load adapters (POST /v1/load_lora_adapter) [default: clients may not load adapters]
    #[arg(long, value_name = "DIR")]
    adapter_root: Option<PathBuf>,
    /// Format of the log on stderr: a line of text or a JSON object for each event; RUST_LOG selects the events
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// A file that sets any of these flags by name, such as port = 9000 [default: lory.toml in the working folder, if it exists].
    /// A flag on the command line overrides the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print every setting and where it comes from, and exit
    #[arg(long)]
    pub print_config: bool,
    // Last, because their headings would apply to the flags after them.
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Training jobs that run in the background.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training jobs")]
struct TrainingArgs {
    /// The folder of uploaded files and training jobs [default: jobs in LORY_HOME]
    #[arg(long, value_name = "DIR")]
    jobs_dir: Option<PathBuf>,
    /// Memory for training: the running job, or the step that a plan measures. Jobs that need more are refused [default: half of
    /// the memory that the plan leaves]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    train_memory: Option<ByteSize>,
    /// Target p95 inter-token latency of streams while a job trains; training pauses between parts of its layers to meet it. A
    /// stream that is slower without a job is not made faster
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = latency_budget)]
    train_latency_budget: Duration,
}

impl TrainingArgs {
    /// The folder of jobs; none if no flag names it and there is no home folder.
    fn jobs_dir(&self) -> Option<PathBuf> {
        let home = || Home::find().ok().map(|home| home.jobs());
        self.jobs_dir.clone().or_else(home)
    }
}

/// Parses `--train-latency-budget`.
fn latency_budget(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(1)..=Duration::from_secs(60);
    duration_in(text, range, "must be a time from 1ms to 60s, such as 100ms")
}

/// Parses `--registry-poll`.
fn poll_interval(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(10)..=Duration::from_secs(3600);
    duration_in(text, range, "must be a time from 10ms to 1h, such as 2s")
}

/// Prints the settings of `--print-config`.
pub(crate) fn print_config(settings: Option<String>) -> anyhow::Result<ExitStatus> {
    print(&settings.unwrap_or_default())?;
    Ok(ExitStatus::Success)
}

pub(crate) fn run(args: Args, config: Option<&Path>) -> anyhow::Result<ExitStatus> {
    if let Some(config) = config {
        eprintln!("settings from {}", config.display());
    }
    let catalog = args
        .registry
        .catalog_with(&args.personas, args.adapters.open()?)?;
    if let Some(root) = &args.adapter_root {
        let real = root.canonicalize();
        let real = real.with_context(|| format!("--adapter-root {}", root.display()))?;
        anyhow::ensure!(
            real.is_dir(),
            "--adapter-root {} is not a folder",
            root.display()
        );
    }
    // Bind first, so that a port in use is reported before the base is loaded.
    let (host, port) = (args.server.host, args.server.port);
    let server = args.server.settings()?;
    let listener = listen(SocketAddr::new(host, port)).map_err(|error| {
        let reason = bind_error(&error, port);
        anyhow::anyhow!("cannot listen on {host}:{port}: {reason}")
    })?;
    let jobs = args.training.jobs_dir();
    let budget = args.training.train_latency_budget;
    let train_memory = args.training.train_memory.map(|size| size.as_u64());
    serve(
        listener,
        server,
        Some(args.registry_poll),
        jobs,
        move || {
            let located = args.base.locate()?;
            let planned = located.plan(
                &args.precision,
                args.device.requested(None),
                PlanRequest {
                    // A flag for training asks for a device that trains.
                    trains: args.training.jobs_dir.is_some() || train_memory.is_some(),
                    ..args.engine.demand(train_memory)
                },
            )?;
            eprintln!("{}", planned.line);
            let settings = Settings {
                load: planned.load,
                device: planned.device,
                adapter_root: args.adapter_root,
                model_aliases: args.model_alias,
                priority: StepPriority::Foreground(Arc::new(ComputeArbiter::within(budget))),
                ..with_home_folders(args.engine.settings(&located))
            };
            let service = Service::open(&located.path, catalog, &settings)?;
            Ok(Loaded {
                service,
                known_base: located.name,
                train_memory: planned.train_memory,
            })
        },
    )?;
    Ok(ExitStatus::Success)
}

/// Why a port cannot be bound, and what to do.
fn bind_error(error: &std::io::Error, port: u16) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "the port is taken; stop the program that uses it, or choose another port with --port {}",
            port.wrapping_add(1)
        ),
        ErrorKind::PermissionDenied => {
            "this user may not use the port; choose one from 1024 with --port".to_owned()
        }
        _ => error.to_string(),
    }
}
