//! The service that most tests share: a tiny base and the personas `warm` and `formal`.

use std::sync::{Arc, OnceLock};

use registry::Personas;
use service::{Service, ServiceStartError, Settings};
use testkit::home::TestHome;
use testkit::server::TestServer;
use testkit::tiny::{adapter, tiny_config};

/// A folder with the base and the personas `warm` and `formal`. The base's file has a capital letter, its name has none.
pub fn home() -> TestHome {
    home_with_context(tiny_config().context_length)
}

/// [`home`] with a base of another context length.
pub fn home_with_context(tokens: usize) -> TestHome {
    let home = TestHome::new("Tiny.gguf", tokens);
    let warm = "system_prompt = \"You are warm.\"";
    home.persona("warm", warm, Some(&adapter(11)));
    let formal =
        "version = 2\nscale = 0.5\nsystem_prompt = \"You are formal.\"\nmax_new_tokens = 20";
    home.persona("formal", formal, Some(&adapter(12)));
    home
}

/// Opens a service over the base and the personas of `home`.
pub fn open(home: &TestHome, settings: &Settings) -> Result<Service, ServiceStartError> {
    let personas = Personas::open(&home.personas()).unwrap();
    Service::open(&home.base(), personas, settings)
}

/// A service over [`home`].
pub fn service(settings: &Settings) -> Arc<Service> {
    Arc::new(open(&home(), settings).unwrap())
}

/// A server that tests share if they change none of its state.
pub fn shared_server() -> &'static TestServer {
    static SHARED: OnceLock<TestServer> = OnceLock::new();
    SHARED.get_or_init(|| TestServer::start(service(&Settings::default())))
}
