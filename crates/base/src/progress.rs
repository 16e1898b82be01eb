//! What takes longer than a moment, on stderr: a bar where someone watches, plain lines where a file does.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line of progress.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    watched: bool,
    hidden: bool,
    /// What was added since it began, for readers on other threads.
    counter: Option<Arc<AtomicU64>>,
}

impl Progress {
    /// Progress on stderr.
    #[must_use]
    pub fn stderr() -> Self {
        let watched = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            watched,
            hidden: false,
            counter: None,
        }
    }

    /// Progress that nobody sees.
    #[must_use]
    pub fn hidden() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            watched: false,
            hidden: true,
            counter: None,
        }
    }

    /// Hidden progress; only `counter` shows it.
    #[must_use]
    pub fn counted(counter: Arc<AtomicU64>) -> Self {
        let mut progress = Progress::hidden();
        progress.counter = Some(counter);
        progress
    }

    /// Writes a line that stays.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Something that takes a while, nobody knows how long.
    pub fn spin(&mut self, what: &str) {
        self.start(
            ProgressBar::new_spinner(),
            "{spinner} {msg} {elapsed}",
            what,
        );
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    /// `total` bytes that pass.
    pub fn bytes(&mut self, what: &str, total: u64) {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        self.start(ProgressBar::new(total), template, what);
    }

    /// `total` things that are done one after the other.
    pub fn count(&mut self, what: &str, total: u64) {
        self.start(
            ProgressBar::new(total),
            "{msg} {wide_bar} {pos}/{len} {eta}",
            what,
        );
    }

    /// A bar in a form of its own; `{msg}` is set by [`Progress::message`].
    pub fn custom(&mut self, template: &str, total: u64) {
        self.start(ProgressBar::new(total), template, "");
    }

    /// `amount` more is done.
    pub fn add(&self, amount: u64) {
        if let Some(counter) = &self.counter {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
        self.bar.inc(amount);
    }

    /// So much is done.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Changes the words of the line.
    pub fn message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Whether someone watches a bar; else plain lines are all there is.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// Takes the line away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn start(&mut self, bar: ProgressBar, template: &str, what: &str) {
        self.clear();
        let target = if self.watched {
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
        if !self.watched && !self.hidden && !what.is_empty() {
            eprintln!("{what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
