//! The text of a failure or an event, which clients read: it has no folder of this machine, because there is no other way to make one.

use std::path::Path;

use serde::{Deserialize, Serialize};
use service::Service;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientMessage(String);

impl ClientMessage {
    /// `text`, which may be made of errors of any kind, without the folders of the service and those of `more`. What it was is in the log.
    pub(crate) fn without_folders(text: &str, service: &Service, more: &[&Path]) -> ClientMessage {
        let shown = service.hide_folders(text, more);
        if shown != text {
            tracing::warn!("{text}");
        }
        ClientMessage(shown)
    }

    /// What was measured at a step of a run, and a note about it.
    pub(crate) fn of_step(
        step: u64,
        steps: u64,
        measured: &'static str,
        value: f64,
        note: &'static str,
    ) -> ClientMessage {
        ClientMessage(format!("Step {step}/{steps}: {measured}={value:.4}{note}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&'static str> for ClientMessage {
    fn from(text: &'static str) -> ClientMessage {
        ClientMessage(text.to_owned())
    }
}

impl From<ClientMessage> for String {
    fn from(message: ClientMessage) -> String {
        message.0
    }
}
