//! The demonstration: a throw-away PostgreSQL, services, load, injuries, and the script that judges them.

pub mod cluster;

mod child;
mod fleet;
mod gate;
mod http;
mod inherit;
mod keyward;
mod leaks;
mod live;
mod load;
mod outcome;
mod play;
mod pool;
mod proof;
mod proxy;
mod script;
mod service;
mod show;
mod sql;
mod stage;
mod usual;

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

/// What `keyward demo` was asked for.
#[derive(Clone, Debug)]
pub enum Args {
    /// The demonstration itself.
    Play {
        /// Plays the script and judges it; without it and at a terminal, rotations go on until somebody ends them.
        script: bool,
        /// The script tells every step of every run.
        verbose: bool,
        /// Where the summary goes, as JSON.
        json: Option<PathBuf>,
        /// Varies the arrivals of the load and the choice of victims.
        seed: u64,
    },
    /// Hidden: runs one service by its configuration file.
    Service {
        /// The file.
        config: PathBuf,
    },
    /// Hidden: becomes another program that ends with its parent.
    Child {
        /// The process that must be the parent.
        parent: i32,
        /// Program and arguments.
        command: Vec<OsString>,
    },
}

/// Runs what was asked for. Blocks, and makes its own runtime: call it on the main thread, outside of any other.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let done = match args {
        Args::Child { parent, command } => Err(child::become_program(parent, &command)),
        Args::Service { config } => read(&config).and_then(|config| block_on(service::run(config))),
        Args::Play { script, verbose, json, seed } => {
            let script = script || verbose || json.is_some() || !screen::is_interactive();
            block_on_many(play(script, verbose, json, seed))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // There is nowhere else to complain when this fails.
            writeln!(std::io::stderr(), "keyward demo: {text}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

async fn play(script: bool, verbose: bool, json: Option<PathBuf>, seed: u64) -> Result<(), String> {
    let listen_for = |kind| signal(kind).map_err(|e| format!("could not listen for signals: {e}"));
    let (mut stop, mut hang_up) = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::hangup())?);
    let playing = async {
        if !script {
            return live::run(seed).await;
        }
        let summary = script::run(seed, verbose).await;
        let text = serde_json::to_string(&summary).map_err(|e| e.to_string())?;
        if let Some(path) = json {
            fs::write(&path, format!("{text}\n")).map_err(|e| format!("could not write `{}`: {e}", path.display()))?;
        }
        say(&summary.complaint().map(|text| format!("\n{text}")).unwrap_or_default());
        summary.outcome().lines().iter().for_each(|line| say(line));
        say(&text);
        if summary.ok { Ok(()) } else { Err(summary.wrong.join("\n")) }
    };
    tokio::select! {
        done = playing => done,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        _ = stop.recv() => Err("asked to end".to_owned()),
        _ = hang_up.recv() => Err("the terminal is gone".to_owned()),
    }
}

fn say(text: &str) {
    // When nobody reads any more there is nobody to tell.
    writeln!(std::io::stdout(), "{text}").unwrap_or_default();
}

fn read(path: &Path) -> Result<service::Config, String> {
    let text = fs::read(path).map_err(|e| format!("could not read `{}`: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("could not read `{}`: {e}", path.display()))
}

/// Children must be made on the main thread, where the play goes on; load, proxy and gate have threads of their own, so that one that has
/// much to do does not keep the others.
fn block_on_many<T>(task: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    runtime.map_err(|e| format!("could not start the runtime: {e}"))?.block_on(task)
}

/// Threads of load, proxy and gate.
const WORKERS: usize = 3;

/// A service has one thread.
fn block_on<T>(task: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("could not start the runtime: {e}"))?.block_on(task)
}

/// An error with its causes: `what: why: why`.
fn explain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
