//! `keyward agent`: secrets in files, for programs that read a file.
//!
//! A new generation is written, the program is made to reload, and only when its health probe says that it works with the new value is
//! the generation acknowledged as loaded. A program that does not become healthy in time gets its last good file back, is
//! reloads again, and the generation is refused with the reason that the program gave. A file that would not change is not
//! written, and nobody reloads it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::SecretBytes;
use client::{Apply, Client, Consumer, Credential, Reason, WatchOptions, ack};
use tokio::sync::mpsc;

use crate::file::Place;
use crate::health::Answer;
use crate::reload::{About, Failure};
use crate::signals::Order;
use crate::{Destination, Error, Format, Health, Reload};

/// Time for the word that one rotation is left.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(3);

/// One secret in one file.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The rotation.
    pub rotation: String,
    /// Where the file is.
    pub destination: Destination,
    /// What it looks like.
    pub format: Format,
    /// How the program is made to reload.
    pub reload: Reload,
    /// How the program is asked. Without it a generation is acknowledged as delivered, never as loaded.
    pub health: Option<Health>,
    /// Whether the file stays when the agent ends.
    pub keep: bool,
}

/// How an agent behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How to watch.
    pub watch: WatchOptions,
    /// Ask again and again what the server has refused for good at the start, instead of ending.
    pub wait: bool,
}

/// Delivers until it is ordered to end; then removes the files and says goodbye. With a file that is kept somebody goes on using
/// its value: then the instance stays known as a holder, and a rotation waits for it.
///
/// Ordered to reload, it takes what `read` gives: files that are unchanged are not touched, and when it gives an error, or one
/// of the new files cannot be, everything stays as it was.
///
/// # Errors
/// [`Error`] when a destination is not safe or cannot be reached, and when the server refuses to deliver at the start.
pub async fn deliver(
    client: Client,
    instance: &str,
    deliveries: Vec<Delivery>,
    options: Options,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut read: impl FnMut() -> Result<Vec<Delivery>, Error>,
) -> Result<(), Error> {
    let (mut kept, mut files) = (BTreeMap::new(), Vec::new());
    for delivery in deliveries {
        let place = Arc::new(delivery.destination.clone().open()?);
        files.push((delivery.rotation.clone(), File::open(delivery.clone(), Arc::clone(&place), None)?));
        kept.insert(delivery.rotation.clone(), Kept { delivery, place });
    }
    let consumer = Consumer::start(client.clone(), instance, files, options.watch);
    let mut agent = Agent { client, instance: instance.to_owned(), consumer, kept };
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Reload) => match read() {
                    Ok(new) => agent.reload(new).await,
                    Err(error) => tracing::error!(error = client::explain(&error), "the configuration is not taken; the one in use stays"),
                },
                Some(Order::End) | None => return agent.end().await,
            },
            refusal = agent.consumer.refused(), if !options.wait => {
                let rotations = agent.kept.keys().cloned().collect();
                let instance = agent.instance.clone();
                agent.end_unheard().await?;
                return Err(Error::Refused { rotations, instance, refusal });
            }
        }
    }
}

/// A file that is kept, as it is configured now.
struct Kept {
    delivery: Delivery,
    place: Arc<Place>,
}

struct Agent {
    client: Client,
    instance: String,
    consumer: Consumer,
    kept: BTreeMap<String, Kept>,
}

impl Agent {
    /// Takes another configuration, or leaves everything as it is.
    async fn reload(&mut self, new: Vec<Delivery>) {
        let fresh: Vec<Delivery> =
            new.iter().filter(|new| self.kept.get(&new.rotation).is_none_or(|kept| kept.delivery != **new)).cloned().collect();
        let opened = fresh.into_iter().map(|delivery| {
            let place = Arc::new(delivery.destination.clone().open()?);
            // A file that moves leaves its old place when the new one is in use.
            let moved = self.kept.get(&delivery.rotation).filter(|kept| kept.delivery.destination.path != delivery.destination.path);
            let leaves = moved.filter(|kept| !kept.delivery.keep).map(|kept| Arc::clone(&kept.place));
            Ok((File::open(delivery.clone(), Arc::clone(&place), leaves)?, Kept { delivery, place }))
        });
        let opened = match opened.collect::<Result<Vec<_>, Error>>() {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(error = client::explain(&error), "the configuration is not taken; the one in use stays");
                return;
            }
        };
        let gone: Vec<String> = self.kept.keys().filter(|name| !new.iter().any(|new| new.rotation == **name)).cloned().collect();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for (file, kept) in opened {
            let rotation = kept.delivery.rotation.clone();
            if self.kept.contains_key(&rotation) {
                self.consumer.remove(&rotation).await;
                changed.push(rotation.clone());
            } else {
                added.push(rotation.clone());
            }
            self.consumer.add(&rotation, file);
            self.kept.insert(rotation, kept);
        }
        for rotation in &gone {
            self.drop_file(rotation).await;
        }
        tracing::info!(?added, ?changed, removed = ?gone, files = self.kept.len(), "took the configuration anew");
    }

    /// A file that the configuration has no more.
    async fn drop_file(&mut self, rotation: &str) {
        self.consumer.remove(rotation).await;
        let Some(Kept { delivery, place }) = self.kept.remove(rotation) else { return };
        if delivery.keep {
            // Somebody goes on using it: the server is not told that nobody does.
            return self.consumer.watch().reconnect();
        }
        if let Err(error) = place.remove() {
            tracing::warn!(rotation, error = client::explain(&error), "could not remove the file");
        }
        match tokio::time::timeout(GOODBYE_TIMEOUT, self.client.goodbye_to(&self.instance, rotation)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(rotation, error = client::explain(&error), "could not say goodbye"),
            Err(_) => tracing::warn!(rotation, "could not say goodbye in time"),
        }
    }

    async fn end(self) -> Result<(), Error> {
        if self.kept.values().any(|kept| kept.delivery.keep) {
            self.consumer.stop().await;
        } else {
            self.consumer.close().await;
        }
        remove_all(&self.kept)
    }

    /// Ends without a word to a server that does not know this instance.
    async fn end_unheard(self) -> Result<(), Error> {
        self.consumer.stop().await;
        remove_all(&self.kept)
    }
}

/// Removes what is not kept. Each is tried: one that cannot be removed must not keep the others where they are.
fn remove_all(kept: &BTreeMap<String, Kept>) -> Result<(), Error> {
    let leave = kept.values().filter(|kept| !kept.delivery.keep);
    leave.map(|kept| kept.place.remove()).fold(Ok(()), Result::and)
}

struct File {
    delivery: Delivery,
    place: Arc<Place>,
    /// What the file holds now.
    written: Option<Arc<SecretBytes>>,
    /// Whether the program has reloaded it.
    reloaded: bool,
    /// What the program was proven to work with, or found when the agent started.
    last_good: Option<Arc<SecretBytes>>,
    /// Whether the program was ever seen to work since the agent started.
    in_use: bool,
    /// Where the file was before the configuration changed; removed when this one is in use.
    leaves: Option<Arc<Place>>,
}

impl File {
    fn open(delivery: Delivery, place: Arc<Place>, leaves: Option<Arc<Place>>) -> Result<Self, Error> {
        let written = place.read()?.map(Arc::new);
        let reloaded = place.is_reloaded()?;
        let last_good = written.clone().filter(|_| reloaded);
        Ok(Self { delivery, place, written, reloaded, last_good, in_use: false, leaves })
    }
}

impl Apply for File {
    async fn apply(&mut self, candidate: &Arc<Credential>) -> Result<(), Reason> {
        let content = Arc::new(crate::render::render(candidate, self.delivery.format).map_err(Reason::new)?);
        let there = self.place.is_there().map_err(|error| Reason::new(client::explain(&error)))?;
        let same = self.written.as_ref().is_some_and(|written| crypto::ct::eq(written.expose(), content.expose()));
        let changed = !there || !same;
        let worked = self.load(&content, changed, candidate).await;
        match worked {
            Ok(()) => {
                self.last_good = Some(content);
                self.in_use = true;
                if let Some(before) = self.leaves.take()
                    && let Err(error) = before.remove()
                {
                    tracing::warn!(
                        rotation = self.delivery.rotation,
                        error = client::explain(&error),
                        "could not remove the file at its old place"
                    );
                }
                Ok(())
            }
            Err(failure) => {
                // While the program has yet to start, the new file waits for it.
                let waits = failure.is_not_yet() && !self.in_use;
                let back = self.last_good.clone().filter(|_| changed && !waits);
                if let Some(good) = back {
                    self.restore(&good, candidate).await;
                }
                Err(failure)
            }
        }
    }

    fn proves(&self) -> ack::Level {
        if self.delivery.health.is_some() { ack::Level::L2 } else { ack::Level::L1 }
    }
}

impl File {
    /// Writes, has it reloaded, asks.
    async fn load(&mut self, content: &Arc<SecretBytes>, changed: bool, candidate: &Credential) -> Result<(), Reason> {
        if changed {
            self.write(content).await.map_err(|error| Reason::new(client::explain(&error)))?;
        }
        if !self.reloaded {
            match self.reload(candidate).await {
                Ok(()) => {}
                Err(Failure::Absent(why)) => return Err(Reason::not_yet(why)),
                Err(Failure::Failed(why)) => return Err(Reason::new(why)),
            }
        }
        let Some(health) = &self.delivery.health else { return Ok(()) };
        match health.wait(&About { rotation: &self.delivery.rotation, value: candidate, file: self.place.path() }).await {
            Answer::Healthy => Ok(()),
            Answer::Unhealthy(why) => Err(Reason::new(why)),
            Answer::Absent(why) => Err(Reason::not_yet(why)),
        }
    }

    /// Puts the last good file back and has it reloaded. What goes wrong is logged: the refusal is said in any case.
    async fn restore(&mut self, good: &Arc<SecretBytes>, candidate: &Credential) {
        let rotation = self.delivery.rotation.clone();
        if let Err(error) = self.write(good).await {
            tracing::error!(rotation, error = client::explain(&error), "could not put the last good file back");
            return;
        }
        match self.reload(candidate).await {
            Ok(()) => tracing::info!(rotation, "put the last good file back"),
            Err(Failure::Absent(why) | Failure::Failed(why)) => {
                tracing::error!(rotation, why, "put the last good file back, but the program could not be made to reload it");
            }
        }
    }

    async fn reload(&mut self, candidate: &Credential) -> Result<(), Failure> {
        let about = About { rotation: &self.delivery.rotation, value: candidate, file: self.place.path() };
        self.delivery.reload.run(&about).await?;
        self.reloaded = true;
        if let Err(error) = self.place.note_reloaded() {
            // The next agent has it reloaded once more, which is better than not at all.
            tracing::warn!(
                rotation = self.delivery.rotation,
                error = client::explain(&error),
                "could not note that the program has reloaded"
            );
        }
        Ok(())
    }

    async fn write(&mut self, content: &Arc<SecretBytes>) -> Result<(), Error> {
        let (place, bytes) = (Arc::clone(&self.place), Arc::clone(content));
        let lost = |_| Error::Config("the writing task broke".to_owned());
        // Unknown until it is known to be done: a failure in between must not count as "unchanged" later.
        (self.written, self.reloaded) = (None, false);
        tokio::task::spawn_blocking(move || place.write(&bytes)).await.map_err(lost)??;
        self.written = Some(Arc::clone(content));
        Ok(())
    }
}
