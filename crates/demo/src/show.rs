//! What the demonstration tells: one line for each thing that happened, with the time since the start and the state of the load.

use std::io::Write as _;

use base::time::SystemClock;
use base::{Clock as _, Timestamp};
use tokio::time::Instant;

use crate::load::Load;

/// The timeline.
pub(crate) struct Show {
    since: Instant,
    /// The same moment on the wall clock, which the server's times are read by.
    began: Timestamp,
}

impl Show {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), began: SystemClock.now() }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// A line without figures of the load: a heading.
    pub(crate) fn head(&self, text: &str) {
        self.print(&format!("\n── {text}"));
    }

    /// A line about something that happened.
    pub(crate) fn line(&self, text: &str) {
        self.print(&format!("{:>8.3} s  {text}", self.seconds()));
    }

    /// A line with the figures of the load.
    pub(crate) fn load(&self, load: &Load, text: &str) {
        self.with_figures(load, self.seconds(), text);
    }

    /// A line about something that happened at a moment in microseconds since 1970, with the figures of the load as they are now.
    pub(crate) fn load_at(&self, load: &Load, at: u64, text: &str) {
        self.with_figures(load, Timestamp(at).since(self.began).as_secs_f64(), text);
    }

    fn with_figures(&self, load: &Load, seconds: f64, text: &str) {
        let counts = format!("sent {:>6}  failed {}", load.sent(), load.failed());
        self.print(&format!("{seconds:>8.3} s  {text:<88} {counts}"));
    }

    fn print(&self, line: &str) {
        // When nobody reads any more there is nobody to tell.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap_or_default();
    }
}
