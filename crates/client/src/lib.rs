//! The typed client of Keyward, and of every server that speaks the Vault HTTP API.
//!
//! [`Client`] reads, writes, lists and logs in. [`CredentialProvider`] keeps one managed credential fresh inside a process:
//! a new pool connection asks it for the newest value that this process has proven to work. [`Consumer`] is what is below
//! it, and below the agent: the push stream, the rules of acceptance, the acknowledgements with proof of possession.
//!
//! Nothing here reads the environment, and no error holds a token or a secret value.
//!
//! ```no_run
//! use client::{Client, CredentialProvider, Login, ProviderOptions};
//!
//! # async fn try_it(_: Option<&str>, _: Option<&str>) -> Result<(), String> { Ok(()) }
//! # async fn service() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:8200", None)?;
//! let (role_id, secret_id) = ("/etc/keyward/role-id".into(), "/etc/keyward/secret-id".into());
//! client.login_later(Login::AppRoleFiles { mount: "approle".into(), role_id, secret_id }).await;
//! let _keeper = client.keep_token();
//! // Each new value is tried first: `try_it` is yours, and does over a fresh connection what the service does.
//! let provider = CredentialProvider::start(client, ProviderOptions::new("billing-db", "billing-1"), |login| async move {
//!     try_it(login.field("username"), login.field("password")).await
//! });
//! provider.ready().await;
//! let login = provider.credential().ok_or("no value yet")?; // for each new connection: the newest that was proven to work
//! provider.close().await; // at the end, when no connection is left
//! # Ok(())
//! # }
//! ```

pub mod ack;
mod api;
mod backoff;
mod consume;
mod credential;
mod desk;
pub mod frame;
mod login;
mod provider;
mod watch;

pub use api::{Auth, Client, KvSecret, Reply, target};
pub use consume::{Apply, Consumer, Reason};
pub use credential::Credential;
pub use login::{Keeper, Login};
pub use provider::{CredentialProvider, ProviderOptions};
pub use watch::{Event, Refusal, Subscription, Watch, WatchOptions};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server could not be asked, or its answer did not come.
    #[error("could not ask `{address}`")]
    Transport {
        /// The server.
        address: String,
        /// Why.
        #[source]
        source: egress::Error,
    },
    /// The server answered with anything but success.
    #[error("{method} `{url}` was answered with status {status}{}", join(.errors))]
    Refused {
        /// The status.
        status: u16,
        /// The texts of the server.
        errors: Vec<String>,
        /// The method.
        method: String,
        /// The whole URL.
        url: String,
    },
    /// The answer is not what the API promises.
    #[error("the answer to {method} `{url}` has no {what}")]
    Answer {
        /// What was looked for.
        what: &'static str,
        /// The method.
        method: String,
        /// The whole URL.
        url: String,
    },
    /// A path that no server accepts; nothing was sent.
    #[error("{0}")]
    Path(#[from] base::path::PathError),
    /// A body that cannot be written as JSON.
    #[error("the body cannot be written as JSON")]
    Body,
    /// There is nothing to log in with again.
    #[error("there is no way to log in again")]
    NoLogin,
    /// The last login was a short time ago and its token was refused too.
    #[error("a fresh token was refused too; the next login is in {left:?}")]
    LoginTooSoon {
        /// How long it is until then.
        left: std::time::Duration,
    },
    /// A file of the login cannot be read.
    #[error("could not read `{path}`")]
    LoginFile {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

fn join(errors: &[String]) -> String {
    if errors.is_empty() { String::new() } else { format!(": {}", errors.join("; ")) }
}

/// An error with its causes, for a log line or a reason: `what: why: why`.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
