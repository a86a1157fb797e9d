//! One call of the API: address, token and namespace from flags, environment and the token file; errors in Vault's words.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use base::{SecretBytes, SecretString};
use serde_json::Value;

use super::args::{Format, Remote};
use super::{Failure, env};

/// Where a server listens that was told nothing else.
const ADDRESS: &str = "http://127.0.0.1:8200";

/// What is added where the server refused a request that had no token.
const NO_TOKEN: &str = "\n\nNo token is configured: set VAULT_TOKEN or BAO_TOKEN, or run `keyward login`.";

/// A server, and who asks.
pub(super) struct Api {
    http: egress::Client,
    token: Option<SecretString>,
    namespace: Option<String>,
    /// Whether a token was looked for and none is configured.
    tokenless: bool,
    /// Whether answers are printed as JSON.
    pub(super) json: bool,
}

/// What can be sent as JSON.
pub(super) trait Body {
    fn json(&self) -> serde_json::Result<Vec<u8>>;
}

impl<T: serde::Serialize> Body for T {
    fn json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    body: SecretBytes,
    method: &'static str,
    url: String,
    tokenless: bool,
}

impl Api {
    /// From flags, then the environment, then the token file.
    pub(super) fn open(remote: &Remote) -> Result<Self, Failure> {
        let token = token(remote)?;
        Ok(Self { tokenless: token.is_none(), ..Self::with_token(remote, token)? })
    }

    /// The same with a token from elsewhere, or without one on purpose.
    pub(super) fn with_token(remote: &Remote, token: Option<SecretString>) -> Result<Self, Failure> {
        let address = egress::Address::parse(&address(remote)).map_err(|error| Failure::local(format!("Error: {error}")))?;
        let json = Self::wants_json(remote)?;
        let namespace = remote.namespace.clone().or_else(|| env("NAMESPACE"));
        Ok(Self { http: egress::Client::new(address, egress::Options::default()), token, namespace, tokenless: false, json })
    }

    /// Where the server is.
    pub(super) fn address(&self) -> String {
        self.http.address().to_string()
    }

    /// Whether answers are printed as JSON: from the flag, then the environment.
    pub(super) fn wants_json(remote: &Remote) -> Result<bool, Failure> {
        match (remote.format, env("FORMAT").as_deref()) {
            (Some(format), _) => Ok(format == Format::Json),
            (None, None | Some("table")) => Ok(false),
            (None, Some("json")) => Ok(true),
            (None, Some(_)) => {
                Err(Failure::local("Invalid output format: the environment asks for one that is neither `table` nor `json`"))
            }
        }
    }

    /// Calls and gives whatever the status is. `path` is plain, below `/v1/`.
    pub(super) async fn call(
        &self,
        method: &'static str,
        path: &str,
        query: &[(String, String)],
        body: Option<&dyn Body>,
    ) -> Result<Answer, Failure> {
        let target = client::target(path, query).map_err(|error| Failure::local(format!("Error: {error}")))?;
        let mut request = egress::Request::new(method, &target).header("X-Vault-Request", "true");
        if let Some(token) = &self.token {
            request = request.secret_header("X-Vault-Token", token);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(body) = body {
            let bytes = body.json().map_err(|error| Failure::local(format!("Error: {error}")))?;
            request = request.header("Content-Type", "application/json").body(SecretBytes::new(bytes));
        }
        let url = format!("{}{target}", self.http.address());
        let response = self.http.send(request).await.map_err(|error| unreachable(method, &url, &error))?;
        let status = response.status;
        let body = response.body.bytes().await.map_err(|error| unreachable(method, &url, &error))?;
        Ok(Answer { status, body, method, url, tokenless: self.tokenless })
    }

    /// Calls and fails unless the status is a success. `doing` begins the error: `reading secret/x`.
    pub(super) async fn expect(
        &self,
        doing: &str,
        method: &'static str,
        path: &str,
        query: &[(String, String)],
        body: Option<&dyn Body>,
    ) -> Result<Answer, Failure> {
        let answer = self.call(method, path, query, body).await?;
        if answer.ok() { Ok(answer) } else { Err(answer.refused(doing)) }
    }
}

fn unreachable(method: &str, url: &str, error: &dyn std::error::Error) -> Failure {
    Failure::server(format!("Error: {method} {url}: {}", client::explain(error)))
}

impl Answer {
    /// Whether it is a success.
    pub(super) fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as text.
    pub(super) fn text(&self) -> Result<&str, Failure> {
        std::str::from_utf8(self.body.expose()).map_err(|_| Failure::server(format!("Error: the answer to {} is not text", self.url)))
    }

    /// The body as bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.body.expose()
    }

    /// Whether there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.body.expose().is_empty()
    }

    /// The body as JSON; an empty one is `null`.
    pub(super) fn json(&self) -> Result<Value, Failure> {
        self.parse(self.text()?)
    }

    /// The same to be shown to people: a number that reading would change is a text, as it was written.
    pub(super) fn for_people(&self) -> Result<Value, Failure> {
        self.parse(&super::output::exact(self.text()?))
    }

    fn parse(&self, text: &str) -> Result<Value, Failure> {
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(text).map_err(|_| Failure::server(format!("Error: the answer to {} is not JSON", self.url)))
    }

    /// The error that this answer is. `doing` begins it: `reading secret/x`.
    pub(super) fn refused(&self, doing: &str) -> Failure {
        Failure::server(format!("Error {doing}: {}", self.complaint()))
    }

    /// The error that this answer is, where Vault does not say what was being done.
    pub(super) fn refused_plainly(&self) -> Failure {
        Failure::server(self.complaint())
    }

    fn complaint(&self) -> String {
        let errors = self.json().ok().and_then(|body| body.get("errors").and_then(Value::as_array).cloned()).unwrap_or_default();
        let mut text = format!("Error making API request.\n\nURL: {} {}\nCode: {}. Errors:\n", self.method, self.url, self.status);
        for error in errors.iter().filter_map(Value::as_str) {
            let _infallible = write!(text, "\n* {error}");
        }
        if self.tokenless && self.status == 403 {
            text.push_str(NO_TOKEN);
        }
        text
    }
}

fn token_file() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(|home| PathBuf::from(home).join(".vault-token"))
        .ok_or_else(|| Failure::local("Error: HOME is not set, so there is no token file"))
}

/// Where the server is: from the flag, else the environment.
pub(super) fn address(remote: &Remote) -> String {
    remote.address.clone().or_else(|| env("ADDR")).unwrap_or_else(|| ADDRESS.to_owned())
}

/// The token: from the flag, else the environment, else the token file.
pub(super) fn token(remote: &Remote) -> Result<Option<SecretString>, Failure> {
    match remote.token.clone().or_else(|| env("TOKEN")) {
        Some(token) => Ok(Some(SecretString::new(token))),
        None => stored_token(),
    }
}

fn stored_token() -> Result<Option<SecretString>, Failure> {
    let Ok(path) = token_file() else { return Ok(None) };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim()).filter(|token| !token.is_empty()).map(|token| SecretString::new(token.to_owned()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::local(format!("Error reading {}: {error}", path.display()))),
    }
}

/// Keeps a token where the next command looks for it: whole or not at all, and for nobody else's eyes.
pub(super) fn store_token(token: &SecretString) -> Result<(), Failure> {
    let path = token_file()?;
    let failed = |error: std::io::Error| Failure::local(format!("Error storing token in {}: {error}", path.display()));
    let beside = path.with_file_name(format!(".vault-token.{}", std::process::id()));
    let mut file = fs::File::options().create_new(true).write(true).mode(0o600).open(&beside).map_err(failed)?;
    let written = file.write_all(token.expose().as_bytes()).and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        // The error of the write says more than one of the clean-up could.
        fs::remove_file(&beside).unwrap_or_default();
    }
    written.map_err(failed)
}
