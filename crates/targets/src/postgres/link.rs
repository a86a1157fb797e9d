//! One connection: made, bounded in time, ended.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::SecretString;
use engine::Fault;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, NoTls};

use super::guard::{Breach, Guarded};

/// The code of a [`Fault::Refused`] that is ours, not the target's: the other side broke a rule of the connection.
pub(crate) const PROTOCOL: &str = "protocol";
/// The code of a login that succeeded without proving a password.
pub(crate) const TRUST: &str = "trust";

/// The longest text of the target's that is repeated.
const TEXT_CHARS_MAX: usize = 300;
/// How long a polite end may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A host name or literal address, and a port.
    Tcp(String, u16),
    /// The socket file.
    Unix(PathBuf),
}

impl Address {
    /// Reads `host:port`, `[::1]:port` or `/directory:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "expected `host:port`, `[v6]:port` or `/socket/directory:port`";
        let (host, port) = text.rsplit_once(':').ok_or(SHAPE)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or(SHAPE)?;
        if host.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(format!("{host}/.s.PGSQL.{port}"))));
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() || bare.contains([' ', '/', '@', ',', '[', ']']) || (bare.contains(':') && bare.len() == host.len()) {
            return Err(SHAPE);
        }
        // Names other than this one cannot be judged before they are resolved; `Link::open` judges the address it really reached.
        if bare.parse::<IpAddr>().is_ok_and(|ip| !ip.to_canonical().is_loopback()) {
            return Err(
                "a password would cross the network in the open: only this machine (loopback or a socket) may be a target until TLS to targets can be configured",
            );
        }
        Ok(Self::Tcp(bare.to_owned(), port))
    }
}

/// How to log in.
pub(crate) struct Login<'a> {
    pub(crate) address: &'a Address,
    pub(crate) database: &'a str,
    pub(crate) user: &'a str,
    pub(crate) password: &'a SecretString,
    pub(crate) application: &'a str,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
}

/// Why a connection was not made.
#[derive(Debug)]
pub(crate) enum NoLink {
    /// The server's own refusal.
    Refused { code: String, text: String },
    /// Nobody there, or not in time, or not yet.
    Unreachable(String),
    /// The other side broke a rule.
    Breach(Breach),
}

impl From<NoLink> for Fault {
    fn from(no: NoLink) -> Self {
        match no {
            NoLink::Refused { code, text } => Self::Refused { code, text },
            NoLink::Unreachable(text) => Self::Unreachable(text),
            NoLink::Breach(breach) => Self::Refused { code: PROTOCOL.into(), text: format!("the server {breach}") },
        }
    }
}

/// An open connection. Dropped, it is cut; [`Link::close`] ends it politely.
pub(crate) struct Link {
    pub(crate) client: Option<Client>,
    driver: JoinHandle<()>,
    /// Whether the server made us prove the password.
    pub(crate) proven: bool,
}

impl Link {
    /// Connects and logs in, within the connect timeout.
    pub(crate) async fn open(login: &Login<'_>) -> Result<Self, NoLink> {
        let attempt = async {
            match login.address {
                Address::Tcp(host, port) => Self::log_in(connect(host, *port).await?, login).await,
                Address::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(|e| unreachable(&e))?;
                    Self::log_in(stream, login).await
                }
            }
        };
        timeout(login.connect_timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(NoLink::Unreachable(format!("no login within {} ms", login.connect_timeout.as_millis()))))
    }

    async fn log_in<S>(stream: S, login: &Login<'_>) -> Result<Self, NoLink>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (guarded, proven) = Guarded::new(stream);
        let mut config = tokio_postgres::Config::new();
        config
            .user(login.user)
            .password(login.password.expose())
            .dbname(login.database)
            .application_name(login.application)
            .options(format!("-c statement_timeout={}", login.statement_timeout.as_millis()))
            .ssl_mode(SslMode::Disable);
        let (client, connection) = config.connect_raw(guarded, NoTls).await.map_err(no_link)?;
        // How it ends is seen by whoever waits for an answer on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client: Some(client), driver, proven: proven.load(Ordering::Acquire) })
    }

    /// The driver's handle.
    pub(crate) fn client(&self) -> Result<&Client, Fault> {
        self.client.as_ref().ok_or_else(|| Fault::Unreachable("the connection is closed".into()))
    }

    /// Says goodbye, so that the server's side is gone soon; cut when that takes too long.
    pub(crate) async fn close(mut self) {
        drop(self.client.take());
        drop(timeout(GOODBYE, &mut self.driver).await);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to an address of this machine; any other gets nothing from us.
async fn connect(host: &str, port: u16) -> Result<TcpStream, NoLink> {
    let found: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(|e| unreachable(&e))?.collect();
    let mut last = NoLink::Unreachable("the name has no address".into());
    for address in found {
        if !address.ip().to_canonical().is_loopback() {
            let text = format!("`{host}` is `{}`, another machine: without TLS a password would cross the network", address.ip());
            last = NoLink::Refused { code: PROTOCOL.into(), text };
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Small messages, each waited for.
                stream.set_nodelay(true).map_err(|e| unreachable(&e))?;
                return Ok(stream);
            }
            Err(e) => last = unreachable(&e),
        }
    }
    Err(last)
}

fn unreachable(error: &std::io::Error) -> NoLink {
    NoLink::Unreachable(format!("could not connect: {error}"))
}

/// Why a login failed. Nothing was asked for yet, so nothing was done.
fn no_link(error: tokio_postgres::Error) -> NoLink {
    if let Some(breach) = breach(&error) {
        return NoLink::Breach(breach);
    }
    match error.as_db_error() {
        Some(db) if transient(db.code().code()) => NoLink::Unreachable(coded(db)),
        Some(db) => NoLink::Refused { code: db.code().code().to_owned(), text: said(db) },
        // The driver's own texts about the login name no values.
        None if error.is_closed() || io(&error).is_some() => NoLink::Unreachable(format!("the login broke off: {error}")),
        None => NoLink::Refused { code: PROTOCOL.into(), text: format!("the login failed: {error}") },
    }
}

/// What a failed question means: nothing was to be changed, so nothing was.
pub(crate) fn asked(error: &tokio_postgres::Error) -> Fault {
    if let Some(breach) = breach(error) {
        return NoLink::Breach(breach).into();
    }
    match error.as_db_error() {
        Some(db) if fatal(db) || transient(db.code().code()) => Fault::Unreachable(coded(db)),
        Some(db) => Fault::Refused { code: db.code().code().to_owned(), text: said(db) },
        None if error.is_closed() || io(error).is_some() => Fault::Unreachable(format!("the connection broke: {error}")),
        None => Fault::Refused { code: PROTOCOL.into(), text: format!("the answer could not be read: {error}") },
    }
}

/// What a failed change means: done only if the server did not say that it undid it.
pub(crate) fn changed(error: &tokio_postgres::Error) -> Fault {
    match error.as_db_error() {
        // It was undone, and another time it may be done.
        Some(db) if !fatal(db) && transient(db.code().code()) => Fault::Unreachable(coded(db)),
        Some(db) if !fatal(db) => Fault::Refused { code: db.code().code().to_owned(), text: said(db) },
        Some(db) => Fault::Unknown(coded(db)),
        None => Fault::Unknown(format!("the connection broke during a change: {error}")),
    }
}

/// Bounds a question.
pub(crate) async fn ask<T>(limit: Duration, act: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    timeout(limit, act).await.unwrap_or_else(|_| Err(Fault::Unreachable(format!("no answer within {} ms", limit.as_millis()))))
}

/// Bounds a change.
pub(crate) async fn change<T>(limit: Duration, act: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    timeout(limit, act)
        .await
        .unwrap_or_else(|_| Err(Fault::Unknown(format!("no answer within {} ms after a change was sent", limit.as_millis()))))
}

/// A code that says how busy the server is or what it is doing, and nothing about what was asked: as good as absent.
fn transient(code: &str) -> bool {
    // Too many connections, out of memory or disk; cancelled by a timeout or an operator; starting, stopping, recovering; a deadlock or a
    // conflict with another transaction.
    code.starts_with("53") || code == "57014" || code.starts_with("57P") || code.starts_with("40")
}

/// The server ends the session with this error: whether it had already committed is not said.
fn fatal(db: &tokio_postgres::error::DbError) -> bool {
    !matches!(db.parsed_severity(), Some(Severity::Error)) || db.code().code().starts_with("57P")
}

/// The server's message: one line, bounded, without control characters.
fn said(db: &tokio_postgres::error::DbError) -> String {
    db.message().chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

/// The same with its code, where nothing else carries that.
fn coded(db: &tokio_postgres::error::DbError) -> String {
    format!("{} (`{}`)", said(db), db.code().code())
}

fn io(error: &tokio_postgres::Error) -> Option<&std::io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn breach(error: &tokio_postgres::Error) -> Option<Breach> {
    io(error)?.get_ref()?.downcast_ref::<Breach>().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<Address>) {
        assert_eq!(Address::parse(text).ok(), expect, "{text}");
    }

    #[test]
    fn addresses() {
        let tcp = |host: &str, port| Some(Address::Tcp(host.into(), port));
        check("127.0.0.1:5432", tcp("127.0.0.1", 5432));
        check("localhost:5432", tcp("localhost", 5432));
        check("db.internal:5432", tcp("db.internal", 5432));
        check("[::1]:5433", tcp("::1", 5433));
        check("/run/postgresql:5432", Some(Address::Unix("/run/postgresql/.s.PGSQL.5432".into())));
        for wrong in [
            "",
            "localhost",
            ":5432",
            "localhost:0",
            "localhost:70000",
            "::1:5432",
            "user@localhost:5432",
            "10.0.0.1:5432",
            "[::2]:5432",
            "a b:1",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_busy_server_is_no_verdict() {
        for code in ["53300", "53200", "57014", "57P01", "57P02", "57P03", "40001", "40P01"] {
            assert!(transient(code), "{code}");
        }
        for code in ["28P01", "28000", "42501", "42704", "3D000", "58000", "XX000"] {
            assert!(!transient(code), "{code}");
        }
    }

    #[tokio::test]
    async fn another_machine_gets_nothing() {
        let refused = connect("192.0.2.1", 5432).await.unwrap_err();
        assert!(matches!(refused, NoLink::Refused { text, .. } if text.contains("another machine")));
    }
}
