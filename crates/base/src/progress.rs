//! Progress of long work, on stderr: a bar on a terminal, plain lines in a file.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line of progress.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    hidden: bool,
    /// The sum of all [`Progress::add`], for readers on other threads.
    counter: Option<Arc<AtomicU64>>,
}

impl Progress {
    /// Progress on stderr.
    #[must_use]
    pub fn stderr() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            is_terminal,
            hidden: false,
            counter: None,
        }
    }

    /// Progress that is not shown.
    #[must_use]
    pub fn hidden() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            is_terminal: false,
            hidden: true,
            counter: None,
        }
    }

    /// Hidden progress that adds to `counter`.
    #[must_use]
    pub fn counted(counter: Arc<AtomicU64>) -> Self {
        let mut progress = Progress::hidden();
        progress.counter = Some(counter);
        progress
    }

    /// Writes a line above the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Starts a spinner, for work of unknown length.
    pub fn spin(&mut self, what: &str) {
        self.start(
            ProgressBar::new_spinner(),
            "{spinner} {msg} {elapsed}",
            what,
        );
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    /// Starts a bar of `total` bytes.
    pub fn bytes(&mut self, what: &str, total: u64) {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        self.start(ProgressBar::new(total), template, what);
    }

    /// Starts a bar of `total` items.
    pub fn count(&mut self, what: &str, total: u64) {
        self.start(
            ProgressBar::new(total),
            "{msg} {wide_bar} {pos}/{len} {eta}",
            what,
        );
    }

    /// Starts a bar with its own template; [`Progress::message`] sets `{msg}`.
    pub fn custom(&mut self, template: &str, total: u64) {
        self.start(ProgressBar::new(total), template, "");
    }

    /// Adds to the position.
    pub fn add(&self, amount: u64) {
        if let Some(counter) = &self.counter {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
        self.bar.inc(amount);
    }

    /// Sets the position.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Sets the message of the bar.
    pub fn message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Whether a bar is shown; otherwise only plain lines are.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn start(&mut self, bar: ProgressBar, template: &str, what: &str) {
        self.clear();
        let target = if self.is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        bar.set_draw_target(target);
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━━╌"));
        bar.set_message(what.to_owned());
        self.bar = bar;
        if !self.is_terminal && !self.hidden && !what.is_empty() {
            eprintln!("{what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
