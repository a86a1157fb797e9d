//! What the demonstration tells: one line for each thing that happened, with the time since the start and the state of the load.

use std::io::Write as _;

use tokio::time::Instant;

use crate::load::Load;

/// The timeline.
pub(crate) struct Show {
    since: Instant,
}

impl Show {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now() }
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
        let counts = format!("sent {:>6}  failed {}", load.sent(), load.failed());
        self.print(&format!("{:>8.3} s  {text:<88} {counts}", self.seconds()));
    }

    fn print(&self, line: &str) {
        // When nobody reads any more there is nobody to tell.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap_or_default();
    }
}
