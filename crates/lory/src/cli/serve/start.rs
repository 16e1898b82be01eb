//! Starts the server and the job queue, and stops both: the one place of the command line with async code.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use base::home::Home;
use jobs::{EvaluationResults, JobError, JobSettings, Jobs};
use server::{self, AppState, ServerSettings};
use service::{Service, Settings};

use super::memory::return_memory_regularly;
use super::welcome::{Endpoint, welcome};
use crate::cli::output::print;

/// The most threads of requests that wait for their adapters. At most as many wait as there are permits, `--max-batch` and `--max-queue`
/// together; a thread starts when it is needed.
const WAITING_THREADS: usize = 1 << 14;

/// How often the registry is read if no flag says otherwise.
pub(crate) const REGISTRY_POLL: Duration = Duration::from_secs(2);

/// Adds the folders for uploads and votes in `LORY_HOME`, if there is a home folder.
pub(crate) fn with_home_folders(settings: Settings) -> Settings {
    let home = Home::find().ok();
    Settings {
        uploads: home.as_ref().map(Home::uploads),
        votes: home.as_ref().map(Home::results),
        ..settings
    }
}

/// Binds the port.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// What [`serve`] loads.
pub(crate) struct Loaded {
    pub service: Service,
    /// The id of the base, if it is a known one.
    pub known_base: Option<String>,
    /// Bytes that training may take.
    pub train_memory: u64,
}

/// Serves the service that `load` opens until the process gets a signal to stop. `/health` already answers while it loads.
///
/// `registry_poll` is how often the registry is read for changes; if none, it is read once. `jobs` is the folder of training
/// jobs.
pub(crate) fn serve(
    listener: TcpListener,
    settings: ServerSettings,
    registry_poll: Option<Duration>,
    jobs: Option<PathBuf>,
    load: impl FnOnce() -> anyhow::Result<Loaded> + Send + 'static,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    return_memory_regularly();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(WAITING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let state = AppState::loading();
        let endpoint = Endpoint::new(address, &settings);
        let drain_timeout = settings.drain_timeout;
        let (stopping, mut stop) = tokio::sync::watch::channel(());
        let signal = async move {
            server::shutdown_signal().await;
            stopping.send_replace(());
        };
        let served = server::serve(state.clone(), listener, settings, signal);
        let mut server = tokio::spawn(served);
        let loaded = tokio::select! {
            // Stopped before the base was loaded.
            ended = &mut server => return Ok(ended??),
            loaded = tokio::task::spawn_blocking(load) => loaded??,
        };
        let service = Arc::new(loaded.service);
        if let Some(every) = registry_poll {
            service.follow(every);
            service.compare_shadows();
        }
        let results = Home::find().ok();
        let results = results.map(|home| EvaluationResults::new(&home.results()));
        if let Some(results) = &results {
            state.set_results(results.clone());
        }
        let settings = jobs.map(|dir| JobSettings {
            dir,
            known_base: loaded.known_base,
            results,
            train_memory: loaded.train_memory,
        });
        let queue = start_jobs(&service, settings);
        state.set_jobs(queue.clone());
        state.set_service(Arc::clone(&service));
        warn_of_template(&service);
        print(&welcome(&service, &endpoint))?;
        // The running job writes its checkpoint while requests end.
        let checkpoint = async {
            let _ = stop.changed().await;
            if let Ok(queue) = queue
                && !stop_jobs(queue, drain_timeout).await
            {
                tracing::warn!("the running job is cut off; it resumes from its last checkpoint");
            }
        };
        let (ended, ()) = tokio::join!(server, checkpoint);
        service.engine().shutdown();
        Ok(ended??)
    });
    // A base that is still loading is not waited for.
    runtime.shutdown_background();
    if served.is_ok() {
        tracing::info!("shut down");
    }
    served
}

/// Logs what the base's chat template does not render, before a request fails because of it.
fn warn_of_template(service: &Service) {
    let base = service.base();
    for problem in service.template_problems() {
        tracing::warn!(
            "the chat template of {} does not render {problem}",
            base.name
        );
    }
    if !base.template.has_system_role() {
        tracing::warn!(
            "the chat template of {} has no system role; --system-as-user puts the system text in front of the first user's message",
            base.name
        );
    }
}

/// Ends the queue of jobs; whether it ended within `limit`. It has its own thread, so that it waits for no other work.
async fn stop_jobs(queue: Arc<Jobs>, limit: Duration) -> bool {
    let (sender, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        queue.shutdown();
        let _ = sender.send(());
    });
    tokio::time::timeout(limit, stopped).await.is_ok()
}

/// Starts the queue of training jobs, or returns why it cannot. The server answers requests either way.
fn start_jobs(service: &Arc<Service>, settings: Option<JobSettings>) -> Result<Arc<Jobs>, String> {
    let settings = settings.ok_or_else(|| {
        "this user has no home folder to keep them in; name a folder with --jobs-dir".to_owned()
    })?;
    let started = Jobs::start(Arc::clone(service), &settings);
    started.map(Arc::new).map_err(|error| {
        let why = match error {
            JobError::NoJobs { why } => why,
            error => error.to_string(),
        };
        tracing::warn!("no training jobs: {why}");
        // Clients must not learn the path of the folder.
        "its folder of jobs cannot be used; the server's log has the reason".to_owned()
    })
}
