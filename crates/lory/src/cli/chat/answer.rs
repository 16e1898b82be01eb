//! Streams an answer, until it ends or Ctrl-C stops it.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use engine::Flow;
use service::{End, GenerateRequest, RequestError, Service, TextEvent};

/// An event of an answer, or the user's.
enum StreamEvent {
    Text(TextEvent),
    Interrupted,
}

/// What a signal does.
#[derive(Default)]
enum OnSignal {
    /// Nothing: the program prints something.
    #[default]
    Ignore,
    /// Ends the process. At a prompt the editor reads Ctrl-C as a key, so a signal comes from another program.
    Exit,
    /// Stops an answer.
    Stop(Sender<StreamEvent>),
}

/// Ctrl-C while an answer streams, and the signals that end a process.
#[derive(Clone, Default)]
pub(super) struct Interrupts(Arc<Mutex<OnSignal>>);

impl Interrupts {
    /// Handles signals from now on.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn listen() -> anyhow::Result<Interrupts> {
        let interrupts = Interrupts::default();
        let state = interrupts.clone();
        ctrlc::set_handler(move || state.signal()).context("cannot listen for Ctrl-C")?;
        Ok(interrupts)
    }

    /// Runs `wait`, which waits for the user; a signal meanwhile ends the process.
    pub fn at_prompt<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.set(OnSignal::Exit);
        let waited = wait();
        self.set(OnSignal::Ignore);
        waited
    }

    fn set(&self, on_signal: OnSignal) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = on_signal;
    }

    fn signal(&self) {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            OnSignal::Ignore => {}
            OnSignal::Exit => std::process::exit(1),
            // An answer that has just ended does not receive it.
            OnSignal::Stop(answer) => drop(answer.send(StreamEvent::Interrupted)),
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Streamed {
    /// The text.
    pub text: String,
    /// How it ended; none if Ctrl-C stopped it.
    pub end: Option<End>,
}

/// Sends the request and calls `show` with each piece of the answer's text.
///
/// # Errors
/// The request is refused, or `show` fails.
pub(super) fn stream(
    service: &Service,
    request: &GenerateRequest,
    interrupts: &Interrupts,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Result<Streamed, RequestError>> {
    let (sender, events) = channel();
    let text_sender = sender.clone();
    let sink = Box::new(
        move |event| match text_sender.send(StreamEvent::Text(event)) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        },
    );
    interrupts.set(OnSignal::Stop(sender));
    let queued = service.submit(request, sink);
    let mut text = String::new();
    let mut end = None;
    // Dropping its tickets cancels the request.
    let _tickets = match queued {
        Ok(queued) => queued.tickets,
        Err(error) => {
            interrupts.set(OnSignal::Ignore);
            return Ok(Err(error));
        }
    };
    for event in events {
        match event {
            StreamEvent::Text(TextEvent::Delta(delta)) => {
                show(&delta.text)?;
                text += &delta.text;
            }
            // The requests have no tools.
            StreamEvent::Text(TextEvent::ToolCall(_)) => {}
            StreamEvent::Text(TextEvent::End(ended)) => {
                end = Some(ended);
                break;
            }
            StreamEvent::Interrupted => break,
        }
    }
    interrupts.set(OnSignal::Ignore);
    match end.as_ref().map(End::check) {
        Some(Err(error)) => Ok(Err(error)),
        _ => Ok(Ok(Streamed { text, end })),
    }
}
