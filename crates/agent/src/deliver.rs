//! `keyward agent`: secrets in files, for programs that read a file.
//!
//! A new generation is written, the program is told, and only when its health probe says that it works with the new value is
//! the generation acknowledged as loaded. A program that does not become healthy in time gets its last good file back, is
//! told again, and the generation is refused with the reason that the program gave. A file that would not change is not
//! written, and who was told of it is not told again.

use std::future::Future;
use std::sync::Arc;

use base::SecretBytes;
use client::{Apply, Client, Consumer, Credential, Reason, WatchOptions, ack};

use crate::file::Place;
use crate::health::Answer;
use crate::tell::{About, NotTold};
use crate::{Destination, Error, Format, Health, Tell};

/// One secret in one file.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The rotation.
    pub rotation: String,
    /// Where the file is.
    pub destination: Destination,
    /// What it looks like.
    pub format: Format,
    /// How the program is told.
    pub tell: Tell,
    /// How the program is asked. Without it a generation is acknowledged as delivered, never as loaded.
    pub health: Option<Health>,
    /// Whether the file stays when the agent ends.
    pub keep: bool,
}

/// Delivers until `stop` resolves; then removes the files and says goodbye. With a file that is kept somebody goes on using
/// its value: then the instance stays known as a holder, and a rotation waits for it.
///
/// # Errors
/// [`Error`] when a destination is not safe or cannot be reached.
pub async fn deliver(
    client: Client,
    instance: &str,
    deliveries: Vec<Delivery>,
    watch: WatchOptions,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let kept = deliveries.iter().any(|delivery| delivery.keep);
    let mut files = Vec::new();
    let mut leave = Vec::new();
    for delivery in deliveries {
        let place = Arc::new(delivery.destination.clone().open()?);
        let written = place.read()?.map(Arc::new);
        let told = place.is_told()?;
        let last_good = written.clone().filter(|_| told);
        if !delivery.keep {
            leave.push(Arc::clone(&place));
        }
        files.push((delivery.rotation.clone(), File { delivery, place, written, told, last_good, in_use: false }));
    }
    let consumer = Consumer::start(client, instance, files, watch);
    stop.await;
    if kept {
        consumer.stop().await
    } else {
        consumer.close().await
    }
    // Each is tried: one that cannot be removed must not keep the others where they are.
    leave.iter().map(|place| place.remove()).fold(Ok(()), Result::and)
}

struct File {
    delivery: Delivery,
    place: Arc<Place>,
    /// What the file holds now.
    written: Option<Arc<SecretBytes>>,
    /// Whether the program was told of it.
    told: bool,
    /// What the program was proven to work with, or found when the agent started.
    last_good: Option<Arc<SecretBytes>>,
    /// Whether the program was ever seen to work since the agent started.
    in_use: bool,
}

impl Apply for File {
    async fn apply(&mut self, candidate: &Arc<Credential>) -> Result<(), Reason> {
        let content = Arc::new(crate::render::render(candidate, self.delivery.format).map_err(Reason::new)?);
        let there = self.place.is_there().map_err(|error| Reason::new(client::explain(&error)))?;
        let same = self.written.as_ref().is_some_and(|written| crypto::ct::eq(written.expose(), content.expose()));
        let changed = !there || !same;
        let worked = self.load(&content, changed, candidate.generation()).await;
        match worked {
            Ok(()) => {
                self.last_good = Some(content);
                self.in_use = true;
                Ok(())
            }
            Err(failure) => {
                // While the program has yet to start, the new file waits for it.
                let waits = failure.is_not_yet() && !self.in_use;
                let back = self.last_good.clone().filter(|_| changed && !waits);
                if let Some(good) = back {
                    self.restore(&good, candidate.generation()).await;
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
    /// Writes, tells, asks.
    async fn load(&mut self, content: &Arc<SecretBytes>, changed: bool, generation: u64) -> Result<(), Reason> {
        if changed {
            self.write(content).await.map_err(|error| Reason::new(client::explain(&error)))?;
        }
        if !self.told {
            match self.tell(generation).await {
                Ok(()) => {}
                Err(NotTold::Absent(why)) => return Err(Reason::not_yet(why)),
                Err(NotTold::Failed(why)) => return Err(Reason::new(why)),
            }
        }
        let Some(health) = &self.delivery.health else { return Ok(()) };
        match health.wait(&About { rotation: &self.delivery.rotation, generation, file: self.place.path() }).await {
            Answer::Healthy => Ok(()),
            Answer::Unhealthy(why) => Err(Reason::new(why)),
            Answer::Absent(why) => Err(Reason::not_yet(why)),
        }
    }

    /// Puts the last good file back and tells the program. What goes wrong is logged: the refusal is said in any case.
    async fn restore(&mut self, good: &Arc<SecretBytes>, generation: u64) {
        let rotation = self.delivery.rotation.clone();
        if let Err(error) = self.write(good).await {
            tracing::error!(rotation, error = client::explain(&error), "could not put the last good file back");
            return;
        }
        match self.tell(generation).await {
            Ok(()) => tracing::info!(rotation, "put the last good file back"),
            Err(NotTold::Absent(why) | NotTold::Failed(why)) => {
                tracing::error!(rotation, why, "put the last good file back, but could not tell the program");
            }
        }
    }

    async fn tell(&mut self, generation: u64) -> Result<(), NotTold> {
        let about = About { rotation: &self.delivery.rotation, generation, file: self.place.path() };
        self.delivery.tell.tell(&about).await?;
        self.told = true;
        if let Err(error) = self.place.note_told() {
            // The next agent tells once more, which is better than not at all.
            tracing::warn!(rotation = self.delivery.rotation, error = client::explain(&error), "could not note that the program was told");
        }
        Ok(())
    }

    async fn write(&mut self, content: &Arc<SecretBytes>) -> Result<(), Error> {
        let (place, bytes) = (Arc::clone(&self.place), Arc::clone(content));
        let lost = |_| Error::Config("the writing task broke".to_owned());
        // Unknown until it is known to be done: a failure in between must not count as "unchanged" later.
        (self.written, self.told) = (None, false);
        tokio::task::spawn_blocking(move || place.write(&bytes)).await.map_err(lost)??;
        self.written = Some(Arc::clone(content));
        Ok(())
    }
}
