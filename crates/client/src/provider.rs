//! One managed credential, always fresh, inside a process.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::consume::{Apply, Consumer, Reason};
use crate::{Client, Credential, WatchOptions};

/// What a provider keeps and how.
#[derive(Clone, Debug)]
pub struct ProviderOptions {
    /// The rotation.
    pub rotation: String,
    /// The name of this instance, stable over restarts, different for each replica.
    pub instance: String,
    /// Time for one probe.
    pub probe_deadline: Duration,
    /// How to watch.
    pub watch: WatchOptions,
}

impl ProviderOptions {
    /// With a probe deadline of ten seconds.
    #[must_use]
    pub fn new(rotation: &str, instance: &str) -> Self {
        let (rotation, instance) = (rotation.to_owned(), instance.to_owned());
        Self { rotation, instance, probe_deadline: Duration::from_secs(10), watch: WatchOptions::default() }
    }
}

/// Keeps the newest value that this process has proven to work.
///
/// A pool asks [`CredentialProvider::credential`] for each new connection; connections that are open live on to the pool's
/// own maximum age. Each new value is first given to the probe, which should do over a fresh connection what the service
/// does; only then is it handed out and acknowledged as loaded. A value that the probe refuses is never handed out.
pub struct CredentialProvider {
    credentials: watch::Receiver<Option<Arc<Credential>>>,
    consumer: Consumer,
}

impl CredentialProvider {
    /// Starts to watch. Must be called inside a runtime.
    ///
    /// `probe` is given each candidate; its error text becomes the reason of the refusal (values are taken out of it).
    #[must_use]
    pub fn start<P, F, E>(client: Client, options: ProviderOptions, probe: P) -> Self
    where
        P: Fn(Arc<Credential>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let (current, credentials) = watch::channel(None);
        let switch = Switch { current, probe, deadline: options.probe_deadline };
        let consumer = Consumer::start(client, &options.instance, vec![(options.rotation, switch)], options.watch);
        Self { credentials, consumer }
    }

    /// The newest proven value; `None` before the first. Never waits.
    #[must_use]
    pub fn credential(&self) -> Option<Arc<Credential>> {
        self.credentials.borrow().clone()
    }

    /// The newest proven value, waiting for the first if there is none yet.
    pub async fn ready(&self) -> Arc<Credential> {
        let mut credentials = self.credentials.clone();
        let found = match credentials.wait_for(Option::is_some).await {
            Ok(found) => found.clone(),
            Err(_) => None,
        };
        match found {
            Some(credential) => credential,
            // The consumer is gone only when its task died; there will be no value.
            None => std::future::pending().await,
        }
    }

    /// The newest proven value, and each one that follows.
    #[must_use]
    pub fn credentials(&self) -> watch::Receiver<Option<Arc<Credential>>> {
        self.credentials.clone()
    }

    /// The newest signed checkpoints that the server sent.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<String> {
        self.consumer.watch().checkpoints()
    }

    /// Says goodbye: the server stops waiting for this instance.
    pub async fn close(self) {
        self.consumer.close().await;
    }
}

struct Switch<P> {
    current: watch::Sender<Option<Arc<Credential>>>,
    probe: P,
    deadline: Duration,
}

impl<P, F, E> Apply for Switch<P>
where
    P: Fn(Arc<Credential>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    async fn apply(&mut self, candidate: &Arc<Credential>) -> Result<(), Reason> {
        let probe = (self.probe)(Arc::clone(candidate));
        // A task of its own: a probe that panics refuses the value, it does not end the watching.
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move { probe.await.map_err(|error| error.to_string()) });
        match tokio::time::timeout(self.deadline, task.join_next()).await {
            Ok(Some(Ok(Ok(())))) => {}
            Ok(Some(Ok(Err(reason)))) => return Err(Reason::new(reason)),
            Ok(_) => return Err(Reason::new("the probe panicked")),
            Err(_) => return Err(Reason::new(format!("the probe did not end within {:?}", self.deadline))),
        }
        self.current.send_replace(Some(Arc::clone(candidate)));
        Ok(())
    }
}
