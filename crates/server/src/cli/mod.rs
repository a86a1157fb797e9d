//! The command line: Vault's commands, flags, formats and exit codes, and the commands that are ours.
//!
//! Exit codes: 0; 1 for what is wrong here (usage, files); 2 for what the server refused and for a server that cannot be reached.
//! `status` says 1 of both, because 2 means sealed there.

mod agents;
mod api;
mod args;
mod audit;
mod input;
mod kv;
mod lifecycle;
mod mounts;
mod near;
mod output;
mod policy;
mod revoke;
mod secret;
mod server;
mod status;
mod token;
mod told;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use api::{Answer, Api};
use args::{Cli, Command, Shell};

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// Something is wrong on this side.
    fn local(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// The server refused, has nothing, or cannot be reached.
    fn server(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }
}

type Outcome = Result<u8, Failure>;

/// Runs the command line and gives the exit code. Call it on the main thread, outside of any runtime.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = args::rewrite(args);
    let name = args.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    let name = ["vault", "bao"].into_iter().find(|known| Some(*known) == name).unwrap_or("keyward");
    let parsed = Cli::command().name(name).bin_name(name).try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let outcome = match parsed {
        Ok(Cli { command: Command::Demo(args) }) => return demo::run(args.into()),
        Ok(cli) => run(cli.command),
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let shown = error.render().to_string();
            if help { output::out(&shown).map(|()| 0) } else { Err(Failure::local(shown.trim_end())) }
        }
    };
    ExitCode::from(outcome.unwrap_or_else(|failure| {
        output::note(&failure.text);
        failure.code
    }))
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Server(args) => server::run(args),
        Command::ExecShim(args) => Ok(agents::shim(&args)),
        Command::Notify(args) => agents::notify(&args),
        Command::Completion(args) => completion(args.shell),
        Command::Version => {
            output::line(&format!("Keyward v{} (speaks the API of Vault v{})", crate::BUILD, crate::wiring::VERSION)).map(|()| 0)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::local(format!("Error starting: {error}")))?;
            runtime.block_on(remote(command))
        }
    }
}

async fn remote(command: Command) -> Outcome {
    match command {
        Command::Status(args) => status::status(&args).await,
        Command::Login(args) => token::login(args).await,
        Command::Read(args) => secret::read(args).await,
        Command::Write(args) => secret::write(args).await,
        Command::List(args) => secret::list(args).await,
        Command::Delete(args) => secret::delete(args).await,
        Command::Kv(command) => kv::run(command).await,
        Command::Token(command) => token::run(command).await,
        Command::Policy(command) => policy::run(command).await,
        Command::Auth(command) => mounts::run(command, true).await,
        Command::Secrets(command) => mounts::run(command, false).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Revoke(command) => revoke::run(command).await,
        Command::Lifecycle(command) => lifecycle::run(command).await,
        Command::Agent(args) => agents::agent(args).await,
        Command::Run(args) => agents::run(*args).await,
        Command::Server(_) | Command::ExecShim(_) | Command::Notify(_) | Command::Demo(_) | Command::Completion(_) | Command::Version => {
            Err(Failure::local("this command needs no server"))
        }
    }
}

/// The script by which a shell completes our commands.
fn completion(shell: Shell) -> Outcome {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // What is hidden from people is started by programs of ours.
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).map(|command| {
        // All parts of the demonstration are hidden.
        match command.get_name() {
            "demo" => clap::Command::new("demo").args(command.get_arguments().cloned()),
            _ => command.clone(),
        }
    });
    let mut command = clap::Command::new("keyward").subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "keyward", &mut script);
    let script = String::from_utf8(script).map_err(|_| Failure::local("Error: the script is not text"))?;
    output::out(&script).map(|()| 0)
}

/// The value of a setting of the environment: OpenBao's name first, then Vault's. Empty is not set.
fn env(name: &str) -> Option<String> {
    ["BAO_", "VAULT_"].iter().find_map(|prefix| std::env::var(format!("{prefix}{name}")).ok().filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests;
