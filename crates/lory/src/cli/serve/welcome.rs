//! What `lory serve` prints when it is ready.

use std::net::{Ipv4Addr, SocketAddr};

use server::ServerSettings;
use service::Service;

/// How many personas are listed by name.
const MAX_NAMES: usize = 12;

/// How clients reach the server.
pub(crate) struct Endpoint {
    address: SocketAddr,
    scheme: &'static str,
    /// The number of API keys, if requests need one.
    keys: Option<usize>,
}

impl Endpoint {
    pub fn new(address: SocketAddr, settings: &ServerSettings) -> Endpoint {
        Endpoint {
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

/// The address, the base, the personas, and a first request to try.
pub(crate) fn welcome(service: &Service, endpoint: &Endpoint) -> String {
    let Endpoint {
        address,
        scheme,
        keys,
    } = endpoint;
    let personas = service.personas();
    let names = personas.names();
    let first = names.first().copied().unwrap_or("base");
    let personas = match names.len() {
        0 => "none".to_owned(),
        n if n > MAX_NAMES => format!(
            "{} and {} more",
            names[..MAX_NAMES].join(", "),
            n - MAX_NAMES
        ),
        _ => names.join(", "),
    };
    let access = match keys {
        Some(1) => "1 key".to_owned(),
        Some(n) => format!("{n} keys"),
        None if address.ip().is_loopback() => {
            "no keys: every program on this machine may send requests, other machines cannot (--keys)".to_owned()
        }
        None => "no keys: everyone who can connect may send requests (--keys)".to_owned(),
    };
    // A server that listens on every address is reached from here on the loopback address.
    let local = if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        *address
    };
    let bearer = match keys {
        Some(_) => " -H \"Authorization: Bearer $LORY_KEY\"",
        None => "",
    };
    format!(
        "Serving {scheme}://{address}\n  base      {}\n  personas  {personas}\n  access    {access}\n  studio    {scheme}://{local}/ \
         in a browser: compare the tones, train your own\nTry:\n  curl -s {scheme}://{local}/generate{bearer} \
         -H 'content-type: application/json' -d '{{\"prompt\": \"Where is my order #12345?\", \"user_type\": \"{first}\"}}'\n",
        service.base().name
    )
}
