//! Getting a token and keeping it alive.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::SecretString;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::{Auth, Client, Error, explain};

/// Bytes of a role id or secret id file at most.
const FILE_BYTES_MAX: u64 = 4 << 10;
/// Waits between attempts to renew or to log in again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Waits between logins that helped nothing. A login did help when its token served for the longest of them, or for half of
/// its own life.
const LOGIN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A longer life than this is not told apart from it: sums of times must have an end.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// What to log in with.
#[derive(Clone)]
pub enum Login {
    /// AppRole with ids at hand.
    AppRole {
        /// The mount below `auth/`, `approle` by default.
        mount: String,
        /// The role id.
        role_id: SecretString,
        /// The secret id.
        secret_id: SecretString,
    },
    /// AppRole with ids in files, read again at each login so that they can be replaced.
    AppRoleFiles {
        /// The mount below `auth/`, `approle` by default.
        mount: String,
        /// A file with the role id.
        role_id: PathBuf,
        /// A file with the secret id.
        secret_id: PathBuf,
    },
}

/// A token and what is known about its life.
pub(crate) struct Token {
    pub(crate) secret: SecretString,
    /// From when its life counts, and how long it is; `None` when unknown.
    life: Option<(Instant, Duration)>,
    renewable: bool,
}

impl Token {
    pub(crate) fn given(secret: SecretString) -> Self {
        Self { secret, life: None, renewable: true }
    }

    fn granted(auth: &Auth, asked: Instant) -> Self {
        Self { secret: auth.client_token.clone(), life: Some((asked, life(auth.lease_duration))), renewable: auth.renewable }
    }
}

fn life(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(LIFE_MAX)
}

/// What to log in with, and when that may be done again.
pub(crate) struct Again {
    login: Option<Login>,
    /// The last login after a refusal, and how long to wait until the next.
    last: Option<(Instant, Duration)>,
    backoff: Backoff,
}

impl Again {
    pub(crate) fn new() -> Self {
        Self { login: None, last: None, backoff: Backoff::new(LOGIN_AGAIN.0, LOGIN_AGAIN.1) }
    }
}

impl Client {
    /// Logs in, uses the token from now on, and remembers how to log in again.
    ///
    /// # Errors
    /// [`Error`]; the token in use stays.
    pub async fn login(&self, login: Login) -> Result<Auth, Error> {
        let mut again = self.shared.again.lock().await;
        let auth = self.log_in(&login).await?;
        again.login = Some(login);
        Ok(auth)
    }

    /// [`Client::login`] with AppRole at its usual mount.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn login_approle(&self, role_id: &str, secret_id: SecretString) -> Result<Auth, Error> {
        self.login(Login::AppRole { mount: "approle".to_owned(), role_id: SecretString::new(role_id.to_owned()), secret_id }).await
    }

    /// Remembers how to log in without doing it: [`Client::keep_token`] and the push stream do it when they need a token.
    pub async fn login_later(&self, login: Login) {
        self.shared.again.lock().await.login = Some(login);
    }

    /// Logs in again because `refused` (the token in use when it happened) was refused. Does nothing when somebody else
    /// already did.
    ///
    /// What refuses one fresh token after the other is no matter of tokens (an instance of somebody else, a rotation that is
    /// not there): each login is a token more on the server, so they become rare.
    ///
    /// # Errors
    /// [`Error::NoLogin`] when there is nothing to log in with, [`Error::LoginTooSoon`], else as [`Client::login`].
    pub async fn login_again(&self, refused: Option<&SecretString>) -> Result<(), Error> {
        let mut again = self.shared.again.lock().await;
        let now = self.token();
        let changed = match (&now, refused) {
            (Some(now), Some(refused)) => !crypto::ct::eq(now.expose().as_bytes(), refused.expose().as_bytes()),
            (now, refused) => now.is_some() != refused.is_some(),
        };
        if changed {
            return Ok(());
        }
        let login = again.login.clone().ok_or(Error::NoLogin)?;
        if let Some((at, pause)) = again.last {
            let (served, left) = (at.elapsed(), pause.saturating_sub(at.elapsed()));
            if served >= self.life().map_or(LOGIN_AGAIN.1, |life| LOGIN_AGAIN.1.min(life / 2)) {
                again.backoff.reset();
            } else if !left.is_zero() {
                return Err(Error::LoginTooSoon { left });
            }
        }
        self.log_in(&login).await?;
        again.last = Some((Instant::now(), again.backoff.next(|bound| self.below(bound))));
        Ok(())
    }

    /// Renews the token before it expires, and logs in again when it cannot be renewed, until the keeper is dropped.
    #[must_use]
    pub fn keep_token(&self) -> Keeper {
        let client = self.clone();
        Keeper(tokio::spawn(async move { client.keep().await }))
    }

    async fn log_in(&self, login: &Login) -> Result<Auth, Error> {
        #[derive(Serialize)]
        struct Ids<'a> {
            role_id: &'a str,
            secret_id: &'a str,
        }
        let (mount, role_id, secret_id) = match login {
            Login::AppRole { mount, role_id, secret_id } => (mount, role_id.clone(), secret_id.clone()),
            Login::AppRoleFiles { mount, role_id, secret_id } => (mount, id_from(role_id)?, id_from(secret_id)?),
        };
        let body = Ids { role_id: role_id.expose(), secret_id: secret_id.expose() };
        let asked = Instant::now();
        let auth = self.write(&format!("auth/{}/login", mount.trim_matches('/')), &body).await?.auth()?;
        self.shared.token.send_replace(Some(Arc::new(Token::granted(&auth, asked))));
        Ok(auth)
    }

    async fn keep(self) {
        let mut changes = self.shared.token.subscribe();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let token = changes.borrow_and_update().clone();
            let due = match &token {
                None => None,
                Some(token) => match token.life {
                    Some((since, life)) => Some(self.due(since, life)),
                    None => match self.look_up(token).await {
                        Ok(due) => Some(due),
                        Err(error) => {
                            self.pause(&mut backoff, &error, "could not look up the token").await;
                            continue;
                        }
                    },
                },
            };
            match due {
                Some(None) => {
                    if changes.changed().await.is_err() {
                        return;
                    }
                    backoff.reset();
                    continue;
                }
                Some(Some(at)) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    changed = changes.changed() => {
                        if changed.is_err() { return; }
                        backoff.reset();
                        continue;
                    }
                },
                None => {}
            }
            match self.refresh(token.as_deref()).await {
                Ok(()) => backoff.reset(),
                Err(Error::NoLogin) if token.is_none() => {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => self.pause(&mut backoff, &error, "could not refresh the token").await,
            }
        }
    }

    /// How long the token lives from its last renewal on, if that is known and has an end.
    fn life(&self) -> Option<Duration> {
        self.shared.token.borrow().as_ref().and_then(|token| token.life).map(|(_, life)| life).filter(|life| !life.is_zero())
    }

    async fn pause(&self, backoff: &mut Backoff, error: &Error, what: &str) {
        let wait = backoff.next(|bound| self.below(bound));
        tracing::warn!(error = explain(error), retry_ms = wait.as_millis(), "{what}");
        tokio::time::sleep(wait).await;
    }

    /// When to renew: after two thirds of the life, up to a tenth earlier so that a fleet does not renew in step. `None`: it
    /// lives for ever.
    fn due(&self, since: Instant, life: Duration) -> Option<Instant> {
        (!life.is_zero()).then(|| since + life * 2 / 3 - life.mul_f64(self.tenth()))
    }

    /// When to renew a token that was given without a word about its life; `None`: never, or the server does not tell. A
    /// server that is away does not decide that: it is asked again.
    async fn look_up(&self, token: &Token) -> Result<Option<Instant>, Error> {
        #[derive(Deserialize)]
        struct Life {
            ttl: u64,
        }
        let asked = Instant::now();
        match self.read("auth/token/lookup-self", &[]).await.and_then(|reply| reply.data::<Life>()) {
            Ok(found) => Ok(self.due(asked, life(found.ttl)).filter(|_| token.renewable)),
            Err(error @ (Error::Transport { .. } | Error::Refused { status: 429 | 500.., .. })) => Err(error),
            Err(error) => {
                tracing::warn!(error = explain(&error), "could not look up the token: it will be used as it is");
                Ok(None)
            }
        }
    }

    async fn refresh(&self, token: Option<&Token>) -> Result<(), Error> {
        if let Some(token) = token.filter(|token| token.renewable) {
            let asked = Instant::now();
            match self.write("auth/token/renew-self", &serde_json::json!({})).await.and_then(|reply| reply.auth()) {
                // A life that no longer grows ends at the server's maximum: log in again while the token still works.
                Ok(auth) if !shrank(token, &auth) => {
                    self.shared.token.send_replace(Some(Arc::new(Token::granted(&auth, asked))));
                    return Ok(());
                }
                Ok(_) | Err(Error::Refused { status: 400..500, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.login_again(token.map(|token| &token.secret)).await
    }

    fn tenth(&self) -> f64 {
        f64::from(u32::try_from(self.below(1_000)).unwrap_or(0)) / 10_000.0
    }
}

/// Whether a renewal gave less than half of the life that the token had.
fn shrank(token: &Token, auth: &Auth) -> bool {
    token.life.is_some_and(|(_, before)| life(auth.lease_duration) < before / 2)
}

/// Reads an id from a file, without the line end that editors add.
fn id_from(path: &Path) -> Result<SecretString, Error> {
    use std::io::Read;
    let failed = |source| Error::LoginFile { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::with_capacity(usize::try_from(FILE_BYTES_MAX).unwrap_or(0));
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let text = SecretString::new(text);
    Ok(SecretString::new(text.expose().trim().to_owned()))
}

/// Keeps a token alive while it exists.
pub struct Keeper(tokio::task::JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_of_any_length_has_a_time_to_renew() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let now = Instant::now();
        assert_eq!(client.due(now, life(0)), None);
        for seconds in [1, 3_600, u64::from(u32::MAX), u64::MAX] {
            let due = client.due(now, life(seconds)).unwrap() - now;
            assert!(due >= life(seconds) / 2 && due <= life(seconds) * 2 / 3, "{seconds}: {due:?}");
        }
    }
}
