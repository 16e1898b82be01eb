//! Running servers: `TestServer` (feature `server`) in this process and [`ServerProcess`] from the built binary. Both are a [`Client`].

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::http::Client;

#[cfg(feature = "server")]
pub use in_process::TestServer;

/// How long a line of the log may take.
const LOG_TIMEOUT: Duration = Duration::from_secs(60);

/// The binary while it serves. Dropping it kills the process without a shutdown (SIGKILL).
pub struct ServerProcess {
    client: Client,
    child: Child,
    startup: String,
    /// Lines of stderr, read by a thread.
    log: Option<Receiver<String>>,
}

impl ServerProcess {
    /// Runs `lory serve` or `lory demo` and waits until it has printed how to send a request: it listens and its base is loaded.
    ///
    /// # Panics
    /// If the process ends before.
    pub fn spawn(mut command: Command) -> ServerProcess {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let log = child.stderr.take().map(|stderr| {
            let (sender, lines) = channel();
            std::thread::spawn(move || {
                let lines = BufReader::new(stderr).lines().map_while(Result::ok);
                for line in lines {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
            lines
        });
        let mut startup = String::new();
        while !startup.contains("curl") && stdout.read_line(&mut startup).unwrap() > 0 {}
        ServerProcess {
            client: Client {
                address: address_in(&startup),
            },
            child,
            startup,
            log,
        }
    }

    /// What it has printed before it was ready.
    pub fn startup_output(&self) -> &str {
        &self.startup
    }

    /// The next line of the log that has all of `parts`. The command must have been given a pipe for its stderr.
    pub fn log_line(&mut self, parts: &[&str]) -> String {
        let log = self.log.as_ref().expect("a pipe for stderr");
        loop {
            let line = log.recv_timeout(LOG_TIMEOUT);
            let line = line.unwrap_or_else(|error| panic!("no line with {parts:?}: {error}"));
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }

    /// Sends a signal: `-TERM`, `-HUP`.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([name, &id]).status();
        assert!(status.unwrap().success());
    }

    /// Waits until the process has ended; its exit code.
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// The address in a server's startup output.
fn address_in(startup: &str) -> SocketAddr {
    let rest = startup.split("Serving http://").nth(1);
    let rest = rest.unwrap_or_else(|| panic!("the server does not serve: {startup:?}"));
    rest.lines().next().unwrap().parse().unwrap()
}

impl Deref for ServerProcess {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(feature = "server")]
mod in_process {
    use std::net::TcpListener;
    use std::ops::Deref;
    use std::thread::{self, JoinHandle};

    use ::server::{AppState, ServerSettings};
    use tokio::sync::oneshot;

    use crate::http::Client;

    /// A server in a thread of this process, on a free port. Dropping it stops it and waits.
    pub struct TestServer {
        client: Client,
        stop: Option<oneshot::Sender<()>>,
        thread: Option<JoinHandle<std::io::Result<()>>>,
    }

    impl TestServer {
        /// Serves with the default settings. The port accepts connections when this returns.
        pub fn start(service: impl Into<AppState>) -> TestServer {
            TestServer::start_with(service, ServerSettings::default())
        }

        /// Serves with `settings`.
        pub fn start_with(service: impl Into<AppState>, settings: ServerSettings) -> TestServer {
            let state = service.into();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            let thread = thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                    let stopped = async {
                        let _ = stopped.await;
                    };
                    ::server::serve(state, listener, settings, stopped).await
                })
            });
            TestServer {
                client: Client { address },
                stop: Some(stop),
                thread: Some(thread),
            }
        }

        /// Starts a graceful shutdown; [`TestServer::join`] waits for its end.
        pub fn stop(&mut self) {
            drop(self.stop.take());
        }

        /// Waits until the server has stopped.
        pub fn join(&mut self) {
            self.thread.take().unwrap().join().unwrap().unwrap();
        }
    }

    impl Deref for TestServer {
        type Target = Client;

        fn deref(&self) -> &Client {
            &self.client
        }
    }

    impl Drop for TestServer {
        fn drop(&mut self) {
            self.stop();
            if self.thread.is_some() {
                self.join();
            }
        }
    }
}
