//! From the engine's thread to a response: the text of one answer as an async channel, and as server-sent events. A
//! response that is dropped (the client is gone) drops its ticket, and so cancels the request.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use engine::{Flow, Ticket};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error::ApiError;
use crate::service::{Answer, Ask, End, RequestError, Service, Speaker, TextEvent};

/// The text of one answer as it comes.
pub(super) struct Incoming {
    pub speaker: Speaker,
    events: UnboundedReceiver<TextEvent>,
    _ticket: Ticket,
}

impl Incoming {
    /// Queues the request. Tokenizing, reading adapters and waiting for them happen off the async threads; if the client leaves
    /// meanwhile, the wait ends.
    pub async fn submit(service: Arc<Service>, ask: Ask) -> Result<Incoming, ApiError> {
        // At most `max_new_tokens` events, so the channel is bounded by what the request may hold.
        let (sender, events) = unbounded_channel();
        let sink = Box::new(move |event| match sender.send(event) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        });
        let client = Client::default();
        let gone = Arc::clone(&client.gone);
        let submit = move || service.submit_unless(&ask, sink, &gone);
        let submitted = tokio::task::spawn_blocking(submit).await;
        let accepted =
            submitted.map_err(|_| ApiError::internal("the request could not be read"))??;
        Ok(Incoming {
            speaker: accepted.speaker,
            events,
            _ticket: accepted.ticket,
        })
    }

    /// Waits for more; [`RequestError::Stopped`] if the engine is gone.
    async fn next(&mut self) -> Result<TextEvent, RequestError> {
        self.events.recv().await.ok_or(RequestError::Stopped)
    }

    /// Waits for the whole answer.
    pub async fn whole(mut self) -> Result<Answer, ApiError> {
        let mut text = String::new();
        loop {
            match self.next().await? {
                TextEvent::Delta(delta) => text.push_str(&delta),
                TextEvent::End(end) => return Ok(Answer::new(text, self.speaker, end)?),
            }
        }
    }

    /// The answer as server-sent events, in the words of `wire`.
    pub fn stream(self, wire: impl Wire) -> Response {
        let first = wire.begin();
        let state = Streaming {
            incoming: Some(self),
            wire,
            ready: first.into(),
        };
        let events = stream::unfold(state, |mut state| async {
            let event = state.next().await?;
            Some((Ok::<_, Infallible>(event), state))
        });
        Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response()
    }
}

/// Whoever waits for a response; dropped, it says so.
#[derive(Default)]
struct Client {
    gone: Arc<AtomicBool>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// How an interface words its stream.
pub(super) trait Wire: Send + 'static {
    /// What comes before any text.
    fn begin(&self) -> Vec<String>;
    /// More text.
    fn delta(&self, text: &str) -> Value;
    /// What comes after all text.
    fn end(&self, speaker: &Speaker, end: &End) -> Vec<String>;
}

struct Streaming<W> {
    /// None after the end.
    incoming: Option<Incoming>,
    wire: W,
    /// Data of events to be sent first.
    ready: std::collections::VecDeque<String>,
}

impl<W: Wire> Streaming<W> {
    async fn next(&mut self) -> Option<Event> {
        if self.ready.is_empty() {
            let incoming = self.incoming.as_mut()?;
            let failed = |error: RequestError| vec![ApiError::from(error).json().to_string()];
            let (data, last) = match incoming.next().await {
                Ok(TextEvent::Delta(text)) => (vec![self.wire.delta(&text).to_string()], false),
                Ok(TextEvent::End(end)) => match end.check() {
                    Ok(()) => (self.wire.end(&incoming.speaker, &end), true),
                    Err(error) => (failed(error), true),
                },
                Err(error) => (failed(error), true),
            };
            if last {
                self.incoming = None;
            }
            self.ready.extend(data);
        }
        let data = self.ready.pop_front()?;
        Some(Event::default().data(data))
    }
}
