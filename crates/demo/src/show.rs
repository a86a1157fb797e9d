//! What the script tells: in short one line for each step, in full one for each thing that happened, with the time since the start and the
//! state of the load.

use std::io::Write as _;

use base::time::SystemClock;
use base::{Clock as _, Timestamp};
use tokio::time::Instant;

use crate::load::Meter;

/// The timeline.
pub(crate) struct Show {
    since: Instant,
    /// The same moment on the wall clock, which the server's times are read by.
    began: Timestamp,
    verbose: bool,
}

impl Show {
    pub(crate) fn new(verbose: bool) -> Self {
        Self { since: Instant::now(), began: SystemClock.now(), verbose }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// The beginning of a step, in full.
    pub(crate) fn head(&self, text: &str) {
        if self.verbose {
            print(&format!("\n── {text}"));
        }
    }

    /// What a step has shown, in short and in full.
    pub(crate) fn done(&self, text: &str) {
        print(&format!("{:>8.3} s  {text}", self.seconds()));
    }

    /// A line about something that happened, in full.
    pub(crate) fn line(&self, text: &str) {
        if self.verbose {
            self.done(text);
        }
    }

    /// The same with the figures of the load.
    pub(crate) fn load(&self, meter: &Meter, text: &str) {
        self.with_figures(meter, self.seconds(), text);
    }

    /// A line about something that happened at a moment, with the figures of the load as they are now.
    pub(crate) fn load_at(&self, meter: &Meter, at: Timestamp, text: &str) {
        self.with_figures(meter, at.since(self.began).as_secs_f64(), text);
    }

    fn with_figures(&self, meter: &Meter, seconds: f64, text: &str) {
        if self.verbose {
            print(&format!("{seconds:>8.3} s  {text:<88} sent {:>6}  failed {}", meter.sent(), meter.failed()));
        }
    }
}

fn print(line: &str) {
    // When nobody reads any more there is nobody to tell.
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap_or_default();
}
