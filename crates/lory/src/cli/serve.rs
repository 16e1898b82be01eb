//! `lory serve`.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use engine::EngineConfig;

use super::base::{BaseArgs, Located, PrecisionArgs};
use super::logs::LogFormat;
use super::personas::PersonasArgs;
use super::registry::RegistryArgs;
use super::server::ServerArgs;
use super::{Verdict, print};
use base::home::Home;
use base::plan::Demand;
use jobs::{EvaluationResults, JobError, JobSettings, Jobs};
use server::{self, AppState, ServerSettings};
use service::compute_arbiter::ComputeArbiter;
use service::runner::StepPriority;
use service::{Service, Settings};

/// How many personas are named at the start.
const SHOWN: usize = 12;
/// The most threads on which requests are read and wait for their adapters; the default `--max-batch` and `--max-queue` need
/// 288. They are started when they are needed.
const REQUEST_THREADS: usize = 1024;

/// How often the registry is looked at where nobody says.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// Serve the base and its personas over HTTP
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes take units: 256MiB, 1.5GB. So do times: 100ms, 5s.

Examples:
  lory serve
  lory serve --base my.gguf --personas tones --port 9000 --kv-memory 2GiB
  lory serve --host 0.0.0.0 --keys keys.toml --tls-cert cert.pem --tls-key key.pem")]
pub(super) struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// How often the registry is looked at for what other processes published
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = poll)]
    registry_poll: Duration,
    /// The folder under which clients may name adapters to load (POST /v1/load_lora_adapter); without it they may not
    #[arg(long, value_name = "DIR")]
    adapter_root: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// What the log on stderr looks like: a line of text or a JSON object for each event; RUST_LOG chooses the events
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// A file with any of these flags, by their names: port = 9000 [default: lory.toml, if there is one in the working folder].
    /// What stands on the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what is in force, and where each setting comes from, and end
    #[arg(long)]
    pub print_config: bool,
}

/// What the engine may take.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// Memory for resident adapters
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    adapter_memory: ByteSize,
    /// Memory for the keys and values of running requests
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    kv_memory: ByteSize,
    /// The most requests that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_batch: u32,
    /// How many requests may wait beyond those; one more is refused
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// After this wait a request goes before all others, whatever their tone and priority
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    max_wait: Duration,
    /// How long a step may take while answers are under way; prompts are read in pieces that keep it
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    step_latency: Duration,
    /// The most tokens guessed ahead from what was said before, where that pays; answers are the same. 0 turns it off
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(0..=64))]
    draft_tokens: u8,
    /// Compute every prompt whole, instead of keeping what earlier requests in the same tone began with
    #[arg(long)]
    no_prefix_cache: bool,
}

/// Training jobs beside the answers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training jobs")]
pub(super) struct TrainingArgs {
    /// Where uploaded files and training jobs are kept [default: jobs in LORY_HOME]
    #[arg(long, value_name = "DIR")]
    jobs_dir: Option<PathBuf>,
    /// From token to token a stream may take so long while a job trains, for 19 of 20 tokens, as far as it does without a job;
    /// training waits for it between two layers
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = budget)]
    train_latency_budget: Duration,
}

impl TrainingArgs {
    /// Where jobs are kept, if there is a place for them.
    pub fn jobs_dir(&self) -> Option<PathBuf> {
        let home = || Home::find().ok().map(|home| home.jobs());
        self.jobs_dir.clone().or_else(home)
    }
}

/// How long a stream may wait for training.
fn budget(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(1)..=Duration::from_secs(60);
    match humantime::parse_duration(text) {
        Ok(budget) if range.contains(&budget) => Ok(budget),
        _ => Err("must be a time from 1ms to 60s, such as 100ms".to_owned()),
    }
}

/// A size with its unit; zero is none.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        _ => Err("must be a size above zero, such as 256MiB or 1.5GB".to_owned()),
    }
}

/// How long between two looks at the registry.
fn poll(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(10)..=Duration::from_secs(3600);
    match humantime::parse_duration(text) {
        Ok(every) if range.contains(&every) => Ok(every),
        _ => Err("must be a time from 10ms to 1h, such as 2s".to_owned()),
    }
}

impl EngineArgs {
    /// What the engine will take beside the base.
    fn demand(&self) -> Demand {
        let rows = EngineConfig::default().step_tokens;
        let max_batch = self.max_batch as usize;
        Demand {
            kv_memory: self.kv_memory.as_u64(),
            adapter_memory: self.adapter_memory.as_u64(),
            rows: rows.max(max_batch),
            logit_rows: max_batch,
            ..Demand::default()
        }
    }

    pub fn settings(&self, base: &Located) -> Settings {
        let max_batch = self.max_batch as usize;
        let defaults = EngineConfig::default();
        Settings {
            base_name: base.name.clone(),
            base_sha256: base.sha256.map(str::to_owned),
            kv_memory: self.kv_memory.as_u64(),
            engine: EngineConfig {
                max_batch,
                max_queue: self.max_queue,
                step_tokens: defaults.step_tokens.max(max_batch),
                adapter_memory: self.adapter_memory.as_u64(),
                max_wait: self.max_wait,
                step_latency: self.step_latency,
                draft_tokens: self.draft_tokens.into(),
                prefix_cache: !self.no_prefix_cache,
                ..defaults
            },
            ..Settings::default()
        }
    }
}

pub(super) fn run(args: Args, config: Option<&Path>) -> anyhow::Result<Verdict> {
    if let Some(config) = config {
        eprintln!("settings from {}", config.display());
    }
    let catalog = args.registry.catalog(&args.personas)?;
    if let Some(root) = &args.adapter_root {
        let real = root.canonicalize();
        let real = real.with_context(|| format!("--adapter-root {}", root.display()))?;
        anyhow::ensure!(
            real.is_dir(),
            "--adapter-root {}: is no folder",
            root.display()
        );
    }
    // A port that is taken should not cost the time to load a model.
    let (host, port) = (args.server.host, args.server.port);
    let server = args.server.settings()?;
    let listener = listen(SocketAddr::new(host, port)).map_err(|error| {
        let said = described(&error, port);
        anyhow::anyhow!("cannot listen on {host}:{port}: {said}")
    })?;
    let jobs = args.training.jobs_dir();
    let budget = args.training.train_latency_budget;
    serve(
        listener,
        server,
        Some(args.registry_poll),
        jobs,
        move || {
            let located = args.base.locate()?;
            let planned = located.planned(&args.precision, args.engine.demand())?;
            eprintln!("{}", planned.line);
            let settings = Settings {
                load: planned.load,
                adapter_root: args.adapter_root,
                priority: StepPriority::Foreground(Arc::new(ComputeArbiter::within(budget))),
                ..at_home(args.engine.settings(&located))
            };
            let service = Service::open(&located.path, catalog, &settings)?;
            Ok((service, located.name))
        },
    )?;
    Ok(Verdict::Good)
}

/// With the folders in which a server keeps what clients send and say, where there is a home for them.
pub(super) fn at_home(settings: Settings) -> Settings {
    let home = Home::find().ok();
    Settings {
        uploads: home.as_ref().map(Home::uploads),
        votes: home.as_ref().map(Home::judgements),
        ..settings
    }
}

/// Takes a port.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
}

fn described(error: &std::io::Error, port: u16) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "the port is taken; stop what runs there, or name another one with --port {}",
            port.wrapping_add(1)
        ),
        ErrorKind::PermissionDenied => {
            "it is not allowed; take a port from 1024 with --port".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Serves what `load` opens until the process is told to stop, and says where. While it loads, `/health` answers already.
/// The registry is followed, looked at every so often, if there is one. `load` also says by which name Lory knows the base, if it
/// does; `jobs` is the folder of training jobs.
pub(super) fn serve(
    listener: TcpListener,
    settings: ServerSettings,
    follow: Option<Duration>,
    jobs: Option<PathBuf>,
    load: impl FnOnce() -> anyhow::Result<(Service, Option<String>)> + Send + 'static,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(REQUEST_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let state = AppState::loading();
        let reached = Reached::new(address, &settings);
        let served = server::serve(state.clone(), listener, settings, server::shutdown_signal());
        let mut server = tokio::spawn(served);
        let (service, known) = tokio::select! {
            // Told to stop before there was anything to serve.
            ended = &mut server => return Ok(ended??),
            loaded = tokio::task::spawn_blocking(load) => loaded??,
        };
        let service = Arc::new(service);
        if let Some(every) = follow {
            service.follow(every);
            service.compare_shadows();
        }
        let results = Home::find().ok();
        let results = results.map(|home| EvaluationResults::new(&home.judgements()));
        if let Some(results) = &results {
            state.set_results(results.clone());
        }
        let queue = queue(&service, jobs, known, results);
        state.set_jobs(queue.clone());
        state.set_service(Arc::clone(&service));
        print(&welcome(&service, &reached))?;
        let ended = server.await;
        if let Ok(queue) = queue {
            // It writes its checkpoint first.
            tokio::task::spawn_blocking(move || queue.shutdown()).await?;
        }
        service.engine().shutdown();
        Ok(ended??)
    });
    // What still loads is not worth waiting for.
    runtime.shutdown_background();
    served
}

/// The queue of training jobs in the folder `dir`, or why there is none; answers are given either way.
fn queue(
    service: &Arc<Service>,
    dir: Option<PathBuf>,
    known: Option<String>,
    results: Option<EvaluationResults>,
) -> Result<Arc<Jobs>, String> {
    let dir = dir.ok_or_else(|| {
        "this user has no home folder to keep them in; name a folder with --jobs-dir".to_owned()
    })?;
    let settings = JobSettings {
        dir,
        known,
        results,
    };
    let started = Jobs::start(Arc::clone(service), &settings);
    started.map(Arc::new).map_err(|error| {
        let why = match error {
            JobError::NoJobs { why } => why,
            error => error.to_string(),
        };
        tracing::warn!("no training jobs: {why}");
        why
    })
}

/// How a client reaches the server, as it is said at the start.
struct Reached {
    address: SocketAddr,
    scheme: &'static str,
    /// How many keys there are, if any are wanted.
    keys: Option<usize>,
}

impl Reached {
    fn new(address: SocketAddr, settings: &ServerSettings) -> Reached {
        Reached {
            address,
            scheme: if settings.tls.is_some() {
                "https"
            } else {
                "http"
            },
            keys: settings.keys.as_ref().map(|keys| keys.count()),
        }
    }
}

fn welcome(service: &Service, reached: &Reached) -> String {
    let Reached {
        address,
        scheme,
        keys,
    } = reached;
    let personas = service.personas();
    let names = personas.names();
    let who = names.first().copied().unwrap_or("base");
    let personas = match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    };
    let access = match keys {
        Some(1) => "1 key".to_owned(),
        Some(n) => format!("{n} keys"),
        None if address.ip().is_loopback() => {
            "no keys: every program on this machine may ask, nobody else can (--keys)".to_owned()
        }
        None => "no keys: everybody who can connect may ask (--keys)".to_owned(),
    };
    // What listens everywhere is reached here.
    let here = if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        *address
    };
    let bearer = match keys {
        Some(_) => " -H \"Authorization: Bearer $LORY_KEY\"",
        None => "",
    };
    format!(
        "Serving {scheme}://{address}\n  base      {}\n  personas  {personas}\n  access    {access}\n  studio    {scheme}://{here}/ \
         in a browser: hear the tones, train one of your own\nTry:\n  curl -s {scheme}://{here}/generate{bearer} \
         -H 'content-type: application/json' -d '{{\"prompt\": \"Where is my order #12345?\", \"user_type\": \"{who}\"}}'\n",
        service.base().name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(size("256MiB").unwrap().as_u64(), 256 << 20);
        assert_eq!(size("1.5 GB").unwrap().as_u64(), 1_500_000_000);
        assert_eq!(size("4096").unwrap().as_u64(), 4096);
        for text in ["", "0", "0MiB", "-1MiB", "many", "1XB"] {
            assert!(size(text).unwrap_err().contains("256MiB"), "{text}");
        }
    }
}
