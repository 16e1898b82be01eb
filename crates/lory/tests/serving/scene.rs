//! A server on a port of its own, and the smallest client that speaks to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use formats::gguf::GgmlType;
use formats::peft::{Adapter, Dtype};
use registry::Personas;
use serde_json::{Value, json};
use server::{self, AppState, ServerSettings};
use service::{Service, ServiceStartError, Settings};
use tempfile::TempDir;
use testkit::tiny::{tiny_adapter, tiny_config, tiny_gguf_as, tiny_gguf_of};
use tokio::sync::oneshot;

/// What the scene's base is called.
pub const BASE: &str = "tiny";

/// A folder with a tiny base and the personas `warm` and `formal`.
pub struct House(TempDir);

impl House {
    pub fn new() -> House {
        let house = House(tempfile::tempdir().unwrap());
        std::fs::write(house.base(), tiny_gguf_as(1, GgmlType::Q4_1)).unwrap();
        house.persona("warm", "system_prompt = \"You are warm.\"", &tone(11));
        house.persona(
            "formal",
            "version = 2\nscale = 0.5\nsystem_prompt = \"You are formal.\"\nmax_new_tokens = 20",
            &tone(12),
        );
        house
    }

    /// With a base of another context; the base is the same otherwise.
    pub fn with_context(self, tokens: usize) -> House {
        std::fs::write(self.base(), tiny_gguf_of(1, GgmlType::Q4_1, tokens)).unwrap();
        self
    }

    pub fn base(&self) -> PathBuf {
        self.0.path().join("Tiny.gguf")
    }

    /// Writes a persona; one that is there is replaced.
    pub fn persona(&self, name: &str, text: &str, adapter: &Adapter) {
        let folder = self.0.path().join("personas").join(name);
        let files = folder.join("adapter");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(folder.join("persona.toml"), text).unwrap();
        adapter.write(&files, Dtype::F32, "tiny").unwrap();
    }

    /// Where a persona's weights lie.
    pub fn weights(&self, name: &str) -> PathBuf {
        let personas = self.0.path().join("personas");
        personas
            .join(name)
            .join("adapter/adapter_model.safetensors")
    }

    pub fn open(&self, settings: &Settings) -> Result<Service, ServiceStartError> {
        let personas = Personas::open(&self.0.path().join("personas")).unwrap();
        Service::open(&self.base(), personas, settings)
    }
}

/// An adapter for the tiny base.
pub fn tone(seed: u64) -> Adapter {
    tiny_adapter(seed, &tiny_config(), 4, 1.0)
}

/// A service over a [`House`] as it is built.
pub fn service(settings: &Settings) -> Arc<Service> {
    Arc::new(House::new().open(settings).unwrap())
}

/// A running server; dropped, it stops.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Server {
    pub fn start(service: impl Into<AppState>) -> Server {
        Server::start_as(service, ServerSettings::default())
    }

    pub fn start_as(service: impl Into<AppState>, settings: ServerSettings) -> Server {
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
                server::serve(state, listener, settings, stopped).await
            })
        });
        Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The server that tests share when they leave it as it was.
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Server::start(service(&Settings::default())))
    }

    /// Asks the server to stop; `join` waits until it has.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap().unwrap();
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"").whole()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body)
            .whole()
    }

    /// Sends a request, and reads no further than the head of the answer.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Open {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body early may close before it has taken all of it.
        let _ = stream.write_all(body);
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
                None => break,
            }
        }
        Open {
            status,
            headers,
            reader,
        }
    }

    /// Streams an answer; the data of every event.
    pub fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        events_of(&reply.text)
    }

    /// `/generate`, which must succeed.
    pub fn generate(&self, body: Value) -> Value {
        let reply = self.post("/generate", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if self.thread.is_some() {
            self.join();
        }
    }
}

/// The data of every event in a stream's text.
pub fn events_of(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter_map(|event| event.trim().strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}

/// An answer whose head has been read.
pub struct Open {
    status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
}

impl Open {
    /// Waits for the first bytes of the body.
    pub fn first_bytes(&mut self) {
        assert_eq!(self.status, 200);
        assert!(!self.reader.fill_buf().unwrap().is_empty());
    }

    /// Reads the rest.
    pub fn whole(mut self) -> Reply {
        let mut body = Vec::new();
        let chunked = self
            .headers
            .iter()
            .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        if chunked {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line).unwrap();
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                self.reader.read_exact(&mut chunk).unwrap();
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            let _ = self.reader.read_to_end(&mut body);
        }
        Reply {
            status: self.status,
            headers: self.headers,
            text: String::from_utf8(body).unwrap(),
        }
    }
}

/// A whole answer.
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The status and the code, parameter and message of an error in the one shape that errors have.
    pub fn error(&self) -> (u16, String, Value, String) {
        let body = self.json();
        let error = body["error"].as_object().expect("an error");
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "code", "param"]);
        assert_eq!(body.as_object().unwrap().len(), 1);
        assert!(error["type"].is_string());
        let text = |key: &str| error[key].as_str().unwrap().to_owned();
        (
            self.status,
            text("code"),
            error["param"].clone(),
            text("message"),
        )
    }
}
