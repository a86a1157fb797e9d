//! `agent` and `run`: delivery to programs that know nothing of Keyward, and the small step between a supervisor and its program.

use std::path::Path;
use std::time::Duration;

use agent::run::{Options, supervise};
use agent::{Config, deliver, signals};
use client::{Client, Login};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};

use super::api::{address, token};
use super::args::{Agent, ExecShim, Notify, Run};
use super::{Failure, Outcome, output, server};

/// The hidden command that becomes the program of `run`.
pub(super) const SHIM: &str = "exec-shim";

/// Between two attempts to log in, with `-wait`.
const LOGIN_PAUSE: Duration = Duration::from_secs(5);

/// Keeps files until it is asked to end.
pub(super) async fn agent(args: Agent) -> Outcome {
    umask(Mode::from_raw_mode(0o077));
    forbid_dumps();
    server::logs(args.log_level.as_deref(), args.log_format)?;
    let orders = signals::of_agent().map_err(|error| Failure::local(format!("Error listening for signals: {error}")))?;
    let config = Config::read(&args.config).map_err(|error| told(&error))?;
    let client = Client::new(&config.address, None).map_err(|error| told(&error))?;
    first_login(&client, config.login.for_client(), args.wait).await?;
    let _keeper = client.keep_token();
    let options = deliver::Options { wait: args.wait, ..deliver::Options::default() };
    let (instance, deliveries) = (config.instance.clone(), config.deliveries.clone());
    let delivered = deliver::deliver(client, &instance, deliveries, options, orders, || config.read_again(&args.config)).await;
    delivered.map(|()| 0).map_err(|error| refused(&error, "`file`"))
}

/// Runs a program until it ends or this process is asked to end.
pub(super) async fn run(args: Run) -> Outcome {
    // Nothing that the program inherits is changed: its files and limits are its own business.
    forbid_dumps();
    server::logs(args.log_level.as_deref(), args.log_format)?;
    let asks = signals::of_supervisor().map_err(|error| Failure::local(format!("Error listening for signals: {error}")))?;
    let client = client(&args).await?;
    let _keeper = client.keep_token();
    let program = std::env::current_exe().map_err(|error| Failure::local(format!("Error finding this program: {error}")))?;
    let shim = vec![program.into(), SHIM.into(), "--".into()];
    let mut options = Options::new(&args.rotation, &args.instance, args.command, shim);
    options.listen = args.listen;
    options.socket_as_stdin = args.socket_as_stdin;
    options.variables = args.env;
    options.ready = args.ready;
    options.ready_deadline = args.ready_deadline.unwrap_or(options.ready_deadline);
    options.drain_deadline = args.drain_deadline.unwrap_or(options.drain_deadline);
    options.swap = args.swap;
    options.restart = args.restart;
    options.on_death = args.on_supervisor_death;
    options.wait = args.wait;
    supervise(client, options, asks).await.map_err(|error| refused(&error, &format!("`-rotation={}`", args.rotation)))
}

/// Becomes another program, or guards what others have become.
pub(super) fn shim(args: &ExecShim) -> u8 {
    agent::shim::run(&args.command)
}

/// Says something to whoever started this program.
pub(super) fn notify(args: &Notify) -> Outcome {
    let to = std::env::var_os("NOTIFY_SOCKET");
    agent::notify::say(to.as_deref(), &args.lines).map(|()| 0).map_err(|why| Failure::local(format!("Error: {why}")))
}

/// An error with the flag or block that it is about, when the server has refused what that names.
fn refused(error: &agent::Error, about: &str) -> Failure {
    match error {
        agent::Error::Refused { .. } => Failure::server(format!("Error: {about}: {error} (-wait asks again until it is granted)")),
        error => told(error),
    }
}

/// A client by AppRole files, or with a token like any other command.
async fn client(args: &Run) -> Result<Client, Failure> {
    let address = address(&args.remote);
    let Some((role_id, secret_id)) = ids(args)? else {
        let token = token(&args.remote)?.ok_or_else(|| Failure::local("Error: give -role-id-file and -secret-id-file, or a token"))?;
        return Client::new(&address, Some(token)).map_err(|error| told(&error));
    };
    let client = Client::new(&address, None).map_err(|error| told(&error))?;
    let mount = args.auth_path.trim_matches('/').to_owned();
    first_login(&client, Login::AppRoleFiles { mount, role_id: role_id.to_owned(), secret_id: secret_id.to_owned() }, args.wait).await?;
    Ok(client)
}

/// Logs in once before anything is started: what waiting does not mend (a file that is not there, ids that are refused) ends the command
/// unless it is told to wait; a server that does not answer yet does not.
async fn first_login(client: &Client, login: Login, wait: bool) -> Result<(), Failure> {
    client.login_later(login).await;
    loop {
        let error = match client.login_again(None).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let lasting = matches!(error, client::Error::LoginFile { .. }) || error.status().is_some_and(|status| (400..429).contains(&status));
        if !lasting {
            tracing::warn!(error = client::explain(&error), "could not log in yet; trying again");
            return Ok(());
        }
        if !wait {
            return Err(told(&error));
        }
        tracing::warn!(error = client::explain(&error), retry_ms = LOGIN_PAUSE.as_millis(), "could not log in");
        tokio::time::sleep(LOGIN_PAUSE).await;
    }
}

fn ids(args: &Run) -> Result<Option<(&Path, &Path)>, Failure> {
    match (&args.role_id_file, &args.secret_id_file) {
        (Some(role), Some(secret)) => Ok(Some((role, secret))),
        (None, None) => Ok(None),
        _ => Err(Failure::local("Error: -role-id-file and -secret-id-file belong together")),
    }
}

/// This process holds a token and the values that it hands on.
fn forbid_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        output::note(&format!("could not forbid core files: {error}"));
    }
}

fn told(error: &dyn std::error::Error) -> Failure {
    Failure::local(format!("Error: {}", client::explain(error)))
}
