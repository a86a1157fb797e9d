//! Delivery to programs that know nothing of Keyward: into a file with a signal and a health probe ([`deliver`]), or into the
//! environment of a process that is replaced without refusing a connection ([`run`]).
//!
//! Both acknowledge a generation only when the program is proven to work with it, and put things back as they were when it
//! does not. No secret goes to an argument list, a log, an error or the environment of this process.

mod config;
pub mod deliver;
mod file;
mod health;
mod process;
mod render;
pub mod run;
pub mod shim;
mod tell;

pub use config::Config;
pub use file::Destination;
pub use health::Health;
pub use render::Format;
pub use tell::Tell;

/// Why the agent cannot start or go on. Never holds a secret value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("could not read the configuration `{path}`")]
    ReadConfig {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not HCL or JSON.
    #[error("the configuration cannot be read: {0}")]
    Hcl(#[from] hcl::Error),
    /// The configuration says something that cannot be done.
    #[error("configuration: {0}")]
    Config(String),
    /// A socket cannot be opened.
    #[error("could not listen on `{at}`")]
    Listen {
        /// Where.
        at: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A destination is not safe to write to.
    #[error("`{path}` {why}")]
    Unsafe {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file operation failed.
    #[error("could not {doing} `{path}`")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process could not be started.
    #[error("could not start `{program}`")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The client library failed.
    #[error(transparent)]
    Client(#[from] client::Error),
}

/// Waits until this process is asked to end: SIGTERM, SIGINT, or SIGHUP as from a terminal that goes, unless whoever started
/// it had that ignored (`nohup`).
///
/// # Errors
/// When signals cannot be listened for.
pub async fn asked_to_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hung_up => {}
    }
    Ok(())
}

/// Whether SIGHUP is in the set of ignored signals, of which the kernel shows the lowest bit for the first signal.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    ignored.and_then(|set| u64::from_str_radix(set, 16).ok()).is_some_and(|set| set & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_terminal_that_goes_is_a_wish_to_end() {
        if ignores_hangup() {
            return;
        }
        let mut asked = std::pin::pin!(asked_to_end());
        tokio::select! {
            biased;
            ended = &mut asked => panic!("{ended:?}"),
            () = std::future::ready(()) => {}
        }
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        asked.await.unwrap();
    }
}
