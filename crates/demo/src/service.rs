//! The services of the demonstration: programs as a team would write them, which insert one row for each request.
//!
//! They differ only in how they get their database password: from the client library's provider, from a file that the agent renders, from
//! the environment, or, in the usual rotation, from a file that is read again by a timer. Before a service serves with a credential it inserts and
//! rolls back over a fresh connection.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, CredentialProvider, ProviderOptions};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::http::{Handler, Request, Response, serve};
use crate::pool::{Login, Place, Pool, Source, probe};
use crate::stage::private_bytes;

/// How often a service looks whether its parent lives.
const PARENT: Duration = Duration::from_millis(500);
/// How often a service looks whether its first value is there.
const FIRST: Duration = Duration::from_millis(20);

/// What a service is told, in a file; the secrets are elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The name of the replica.
    pub(crate) name: String,
    /// `host:port` to listen on; nothing when the socket is inherited.
    pub(crate) listen: Option<String>,
    pub(crate) place: Place,
    pub(crate) supply: Supply,
    pub(crate) seed: u64,
}

/// Where the credential comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Supply {
    /// The client library's provider, logged in by AppRole.
    Provider { server: String, rotation: String, role_id: PathBuf, secret_id: PathBuf },
    /// A file that somebody else keeps current, and tells the process of whose id stands in the other file by SIGHUP.
    File { path: PathBuf, pid_file: PathBuf },
    /// The environment; a new value means a new process.
    Environment { username: String, password: String },
    /// A file that is read again every so often, for the first time after `phase_ms`: the timers of a fleet do not tick together.
    Timer { path: PathBuf, period_ms: u64, phase_ms: u64 },
}

/// The credential in use, and the way to a newer one.
#[derive(Clone)]
enum Holder {
    Provider(Arc<CredentialProvider>),
    Own(Arc<Mutex<Option<Login>>>),
}

impl Holder {
    fn login(&self) -> Option<Login> {
        match self {
            Self::Provider(provider) => login(provider.credential()?.as_ref()),
            Self::Own(own) => own.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn login(credential: &client::Credential) -> Option<Login> {
    Some(Login { username: credential.field("username")?.to_owned(), password: credential.field("password")?.to_owned() })
}

/// Runs a service until it is told to stop.
pub(crate) async fn run(config: Config) -> Result<(), String> {
    let parent = rustix::process::getppid();
    let listen_for = |kind| signal(kind).map_err(|e| format!("could not listen for signals: {e}"));
    let (mut stop, hups) = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::hangup())?);
    let holder = tokio::select! {
        holder = start(&config) => holder?,
        _ = stop.recv() => return Ok(()),
        () = orphaned(parent) => return Err("the parent is gone".to_owned()),
    };
    let source: Source = {
        let holder = holder.clone();
        Arc::new(move || holder.login())
    };
    let pool = Pool::new(config.place.clone(), source, config.seed);
    let tending = tokio::spawn(pool.clone().tend());
    let listener = listen(&config).await?;
    let (drain, drained) = watch::channel(false);
    let serving = tokio::spawn(serve(listener, handler(&config, &holder, &pool), drained));
    ready(&config.name)?;
    let renewing = renew(&config, &holder, hups);
    tokio::select! {
        _ = stop.recv() => {}
        () = orphaned(parent) => return Err("the parent is gone".to_owned()),
        result = renewing => return result,
    }
    pool.run_dry();
    drain.send_replace(true);
    serving.await.map_err(|e| format!("the server broke: {e}"))?;
    tending.abort();
    drop(pool);
    if let Holder::Provider(provider) = holder
        && let Some(provider) = Arc::into_inner(provider)
    {
        provider.close().await;
    }
    Ok(())
}

/// The first credential, proven to work.
async fn start(config: &Config) -> Result<Holder, String> {
    match &config.supply {
        Supply::Provider { server, rotation, role_id, secret_id } => {
            let client = Client::new(server, None).map_err(|e| client::explain(&e))?;
            let mount = "approle".to_owned();
            client.login_later(client::Login::AppRoleFiles { mount, role_id: role_id.clone(), secret_id: secret_id.clone() }).await;
            let place = config.place.clone();
            let provider = CredentialProvider::start(client, ProviderOptions::new(rotation, &config.name), move |candidate| {
                let place = place.clone();
                async move {
                    let login = login(&candidate).ok_or("the value has no `username` and `password`".to_owned())?;
                    probe(&place, &login).await
                }
            });
            provider.ready().await;
            Ok(Holder::Provider(Arc::new(provider)))
        }
        Supply::File { path, pid_file } => {
            // Whoever is told of us may signal us from now on.
            private_bytes(pid_file, std::process::id().to_string().as_bytes())
                .map_err(|e| format!("could not write `{}`: {e}", pid_file.display()))?;
            while !path.exists() {
                sleep(FIRST).await;
            }
            held(config, read(path)?).await
        }
        Supply::Timer { path, .. } => held(config, read(path)?).await,
        Supply::Environment { username, password } => {
            let var = |name: &str| std::env::var(name).map_err(|_| format!("the environment has no `{name}`"));
            held(config, Login { username: var(username)?, password: var(password)? }).await
        }
    }
}

async fn held(config: &Config, login: Login) -> Result<Holder, String> {
    probe(&config.place, &login).await?;
    Ok(Holder::Own(Arc::new(Mutex::new(Some(login)))))
}

/// Takes newer credentials into use. Ends only when something is broken for good.
async fn renew(config: &Config, holder: &Holder, mut hups: Signal) -> Result<(), String> {
    match (&config.supply, holder) {
        (Supply::File { .. }, Holder::Own(_)) => {
            while hups.recv().await.is_some() {
                // A value that does not work is not used, and the health probe says why.
                if let Err(reason) = healthy(config, holder).await {
                    say(&config.name, &format!("kept the old value: {reason}"));
                }
            }
            Ok(())
        }
        (Supply::Timer { path, period_ms, phase_ms }, Holder::Own(own)) => {
            let begin = Instant::now() + Duration::from_millis(*phase_ms);
            let mut ticks = interval_at(begin, Duration::from_millis(*period_ms));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match read(path) {
                    Ok(login) => *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(login),
                    Err(reason) => say(&config.name, &reason),
                }
            }
        }
        _ => std::future::pending().await,
    }
}

/// Whether the service can work with the newest value that it was given; if so it works with it from now on.
async fn healthy(config: &Config, holder: &Holder) -> Result<(), String> {
    let (newest, own) = match (&config.supply, holder) {
        (Supply::File { path, .. }, Holder::Own(own)) => (read(path)?, Some(own)),
        _ => (holder.login().ok_or_else(|| "there is no credential yet".to_owned())?, None),
    };
    probe(&config.place, &newest).await?;
    if let Some(own) = own {
        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(newest);
    }
    Ok(())
}

fn handler(config: &Config, holder: &Holder, pool: &Pool) -> Handler {
    let (config, holder, pool) = (Arc::new(config.clone()), holder.clone(), pool.clone());
    Arc::new(move |request: Request| {
        let (config, holder, pool) = (Arc::clone(&config), holder.clone(), pool.clone());
        Box::pin(async move {
            let done = match (request.method.as_str(), request.path()) {
                ("POST", "/work") => match request.query("id") {
                    Some(id) if !id.is_empty() => pool.insert(id).await.map_err(|reason| (500, reason)),
                    _ => Err((400, "`id` is missing".to_owned())),
                },
                ("GET", "/healthz") => healthy(&config, &holder).await.map_err(|reason| (503, reason)),
                _ => Err((404, "there is `POST /work?id=` and `GET /healthz`".to_owned())),
            };
            match done {
                Ok(()) => Response { status: 200, body: "ok\n".to_owned() },
                Err((status, reason)) => Response { status, body: reason },
            }
        })
    })
}

async fn listen(config: &Config) -> Result<TcpListener, String> {
    match &config.listen {
        Some(address) => TcpListener::bind(address).await.map_err(|e| format!("could not listen on `{address}`: {e}")),
        None => crate::inherit::listener(),
    }
}

fn ready(name: &str) -> Result<(), String> {
    say(name, "serving");
    crate::inherit::ready()
}

/// A file with `username` and `password` as JSON.
fn read(path: &Path) -> Result<Login, String> {
    #[derive(Deserialize)]
    struct Fields {
        username: String,
        password: String,
    }
    let text = fs::read(path).map_err(|e| format!("could not read `{}`: {e}", path.display()))?;
    let fields: Fields =
        serde_json::from_slice(&text).map_err(|_| format!("`{}` is not JSON with `username` and `password`", path.display()))?;
    Ok(Login { username: fields.username, password: fields.password })
}

/// Ends when the parent is another one than at the start: ours has died, and nobody would end us.
async fn orphaned(parent: Option<rustix::process::Pid>) {
    while rustix::process::getppid() == parent {
        sleep(PARENT).await;
    }
}

/// One line for the log of this process.
fn say(name: &str, text: &str) {
    // There is nowhere else to complain when this fails.
    writeln!(std::io::stderr(), "{name}: {text}").unwrap_or_default();
}
