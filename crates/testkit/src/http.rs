//! A blocking HTTP/1.1 client for tests: one connection for each request, no TLS. It shows headers and chunks as the server sent them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// A read that takes longer fails the test.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers of a request.
pub type Headers<'h> = &'h [(&'h str, &'h str)];

/// The header of a JSON body.
pub const JSON: Headers<'static> = &[("Content-Type", "application/json")];
/// The header of a body that [`form`] made.
pub const FORM: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=XX");

/// A client of the server at one address.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The server's address.
    pub address: SocketAddr,
}

impl Client {
    /// Sends a GET request.
    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"").read_all()
    }

    /// Sends a DELETE request.
    pub fn delete(&self, path: &str) -> Response {
        self.send("DELETE", path, &[], b"").read_all()
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    /// Posts bytes that are declared as JSON.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Response {
        self.send("POST", path, JSON, body).read_all()
    }

    /// Puts JSON.
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.send("PUT", path, JSON, body.to_string().as_bytes())
            .read_all()
    }

    /// Posts JSON with `"stream": true` and returns the data of every event.
    pub fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.post(path, &body);
        assert_eq!(response.status, 200, "{}", response.text);
        assert_eq!(response.header("content-type"), Some("text/event-stream"));
        events_of(&response.text)
    }

    /// Posts to `/generate`, which must succeed.
    pub fn generate(&self, body: Value) -> Value {
        let response = self.post("/generate", &body);
        assert_eq!(response.status, 200, "{}", response.text);
        response.json()
    }

    /// Sends a request and reads the response's head.
    pub fn send(&self, method: &str, path: &str, headers: Headers, body: &[u8]) -> ResponseStream {
        ResponseStream::of(self.write(method, path, headers, body))
    }

    /// Sends a request and reads nothing.
    pub fn write(&self, method: &str, path: &str, headers: Headers, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        head += "Connection: close\r\n";
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body early may close before it has read all of it.
        let _ = stream.write_all(body);
        stream
    }

    /// Sends bytes as they are and returns all that the server sends before it closes.
    pub fn send_raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A connection whose reads time out.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        stream
    }
}

/// A response whose head has been read. Dropping it closes the connection.
pub struct ResponseStream {
    status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
}

impl ResponseStream {
    fn of(stream: TcpStream) -> ResponseStream {
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
        ResponseStream {
            status,
            headers,
            reader,
        }
    }

    /// Waits for the first bytes of the body of a successful response.
    pub fn wait_for_body(&mut self) {
        assert_eq!(self.status, 200);
        assert!(!self.reader.fill_buf().unwrap().is_empty());
    }

    /// Reads the rest.
    pub fn read_all(mut self) -> Response {
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
        Response {
            status: self.status,
            headers: self.headers,
            text: String::from_utf8(body).unwrap(),
        }
    }
}

/// A complete response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub text: String,
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The status, code, parameter and message of an error. Checks that it has the one shape of all errors.
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

/// The data of every server-sent event in the text of a stream.
pub fn events_of(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter_map(|event| event.trim().strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}

/// A multipart body with these fields (name, file name, content); its header is [`FORM`].
pub fn form(fields: &[(&str, Option<&str>, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (name, filename, text) in fields {
        let filename = filename.map_or(String::new(), |name| format!("; filename=\"{name}\""));
        body += &format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{text}\r\n"
        );
    }
    (body + "--XX--\r\n").into_bytes()
}
