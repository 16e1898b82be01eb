//! `lory serve`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use engine::EngineConfig;

use super::base::{BaseArgs, Located};
use super::personas::PersonasArgs;
use super::registry::RegistryArgs;
use super::{Verdict, print};
use crate::http::{self, Slot};
use crate::service::{Service, Settings};

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
  lory serve --base my.gguf --personas tones --port 9000 --kv-memory 2GiB")]
pub(super) struct Args {
    #[command(flatten)]
    base: BaseArgs,
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
    /// The address to listen on; 0.0.0.0 for every one of the machine's
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What the engine may take.
#[derive(Debug, Clone, clap::Args)]
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

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
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
    let listener = listen(SocketAddr::new(args.host, args.port)).map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {}:{}: {}",
            args.host,
            args.port,
            described(&error, args.port)
        )
    })?;
    serve(listener, Some(args.registry_poll), move || {
        let located = args.base.locate()?;
        let settings = Settings {
            adapter_root: args.adapter_root,
            ..args.engine.settings(&located)
        };
        Ok(Service::open(&located.path, catalog, &settings)?)
    })?;
    Ok(Verdict::Good)
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
/// The registry is followed, looked at every so often, if there is one.
pub(super) fn serve(
    listener: TcpListener,
    follow: Option<Duration>,
    load: impl FnOnce() -> anyhow::Result<Service> + Send + 'static,
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
        let slot = Slot::loading();
        let mut server = tokio::spawn(http::serve(slot.clone(), listener, http::shutdown_signal()));
        let service = tokio::select! {
            // Told to stop before there was anything to serve.
            ended = &mut server => return Ok(ended??),
            loaded = tokio::task::spawn_blocking(load) => Arc::new(loaded??),
        };
        if let Some(every) = follow {
            service.follow(every);
            service.compare_shadows();
        }
        slot.fill(Arc::clone(&service));
        print(&welcome(&service, address))?;
        let ended = server.await;
        service.engine().shutdown();
        Ok(ended??)
    });
    // What still loads is not worth waiting for.
    runtime.shutdown_background();
    served
}

fn welcome(service: &Service, address: SocketAddr) -> String {
    let personas = service.personas();
    let names = personas.names();
    let who = names.first().copied().unwrap_or("base");
    let personas = match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    };
    // What listens everywhere is reached here.
    let reached = if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    };
    format!(
        "Serving http://{address}\n  base      {}\n  personas  {personas}\nTry:\n  curl -s http://{reached}/generate -H \
         'content-type: application/json' -d '{{\"prompt\": \"Where is my order #12345?\", \"user_type\": \"{who}\"}}'\n",
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
