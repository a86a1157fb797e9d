//! A target in memory: passwords, sessions, and a list of things that go wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use base::{Refusal, SecretString};
use engine::{Body, BoxFuture, Fault, Field, FieldKind, Login, RotationTarget, Session, TargetConfig, TargetKind};
use tokio::sync::Notify;

/// What goes wrong with the next act of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No connection.
    Unreachable,
    /// Not done, answer lost.
    RequestLost,
    /// Done, answer lost.
    AnswerLost,
    /// Said to be done, not done.
    Pretended,
    /// Done, and then nothing is heard for ever.
    Hangs,
}

#[derive(Default)]
pub struct State {
    pub passwords: BTreeMap<String, Option<String>>,
    /// Sessions: slot and the name that the client gave.
    pub sessions: Vec<(String, String)>,
    /// Every password that was ever set, with its slot.
    pub history: Vec<(String, String)>,
    pub troubles: BTreeMap<&'static str, VecDeque<Trouble>>,
    pub down: bool,
    /// Which system answers. Every target is opened with what the check found.
    pub identity: String,
    /// Acts of a kind wait here while there is one.
    pub gates: BTreeMap<&'static str, Arc<Notify>>,
}

/// The one outside system of a test.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<State>>);

/// A target as it was opened.
struct Opened {
    world: World,
    identity: Option<String>,
}

impl World {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The next acts of this kind go wrong in these ways, in order.
    pub fn trouble(&self, act: &'static str, troubles: &[Trouble]) {
        self.lock().troubles.entry(act).or_default().extend(troubles);
    }

    pub fn accepts(&self, slot: &str, password: &str) -> bool {
        self.lock().passwords.get(slot).is_some_and(|known| known.as_deref() == Some(password))
    }

    pub fn connect(&self, slot: &str, name: &str) {
        self.lock().sessions.push((slot.to_owned(), name.to_owned()));
    }

    pub fn disconnect(&self, name: &str) {
        self.lock().sessions.retain(|(_, who)| who != name);
    }

    async fn act<T>(&self, act: &'static str, does: impl FnOnce(&mut State) -> T + Send) -> Result<T, Fault>
    where
        T: Default,
    {
        let gate = self.lock().gates.get(act).cloned();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let trouble = {
            let mut state = self.lock();
            if state.down { Some(Trouble::Unreachable) } else { state.troubles.get_mut(act).and_then(VecDeque::pop_front) }
        };
        match trouble {
            None => Ok(does(&mut self.lock())),
            Some(Trouble::Unreachable) => Err(Fault::Unreachable("down".into())),
            Some(Trouble::RequestLost) => Err(Fault::Unknown("lost".into())),
            Some(Trouble::AnswerLost) => {
                does(&mut self.lock());
                Err(Fault::Unknown("lost".into()))
            }
            Some(Trouble::Pretended) => Ok(T::default()),
            Some(Trouble::Hangs) => {
                does(&mut self.lock());
                std::future::pending().await
            }
        }
    }
}

impl TargetKind for World {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn fields(&self) -> &'static [Field] {
        const FIELDS: &[Field] =
            &[Field::public("address", FieldKind::Text, "anything"), Field::new("admin_password", FieldKind::Text, "anything")];
        FIELDS
    }

    fn read(&self, body: &Body) -> Result<TargetConfig, Refusal> {
        let mut config = TargetConfig::default();
        config.public.insert("address".into(), body.need_text("address")?);
        config.secrets.insert("admin_password".into(), body.need_text("admin_password")?);
        Ok(config)
    }

    fn open(&self, config: &TargetConfig) -> Result<Arc<dyn RotationTarget>, Refusal> {
        Ok(Arc::new(Opened { world: self.clone(), identity: config.identity.clone() }))
    }
}

impl Opened {
    async fn act<T: Default>(&self, act: &'static str, does: impl FnOnce(&mut State) -> T + Send) -> Result<T, Fault> {
        let answers = self.world.lock().identity.clone();
        if self.identity.as_ref().is_some_and(|known| *known != answers) {
            return Err(Fault::Refused { code: "another".into(), text: "another system answers".into() });
        }
        self.world.act(act, does).await
    }
}

impl RotationTarget for Opened {
    fn check(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(self.act("check", |state| state.identity.clone()))
    }

    fn adopt<'a>(&'a self, _: &'a str, slots: &'a [String; 2]) -> BoxFuture<'a, Result<[bool; 2], Fault>> {
        Box::pin(self.act("adopt", move |state| slots.each_ref().map(|slot| state.passwords.entry(slot.clone()).or_default().is_none())))
    }

    fn set<'a>(&'a self, _: &'a str, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.act("set", move |state| {
            state.history.push((slot.to_owned(), password.expose().clone()));
            state.passwords.insert(slot.to_owned(), Some(password.expose().clone()));
        }))
    }

    fn probe<'a>(&'a self, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<Login, Fault>> {
        Box::pin(async move {
            let accepted = |state: &mut State| state.passwords.get(slot).is_some_and(|known| known.as_ref() == Some(password.expose()));
            let login = self.act("probe", accepted).await?;
            Ok(if login { Login::Accepted } else { Login::WrongPassword { code: "28P01".into() } })
        })
    }

    fn sessions<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<Vec<Session>, Fault>> {
        Box::pin(self.act("sessions", move |state| {
            let of = state.sessions.iter().filter(|(at, _)| at == slot);
            of.map(|(_, name)| Session { id: String::new(), client: "10.0.0.9".into(), application: name.clone() }).collect()
        }))
    }

    fn kill<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<u64, Fault>> {
        Box::pin(self.act("kill", move |state| {
            state.passwords.insert(slot.to_owned(), None);
            let before = state.sessions.len();
            state.sessions.retain(|(at, _)| at != slot);
            u64::try_from(before - state.sessions.len()).unwrap_or(0)
        }))
    }
}
