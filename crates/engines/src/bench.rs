//! An engine on a store in memory, asked as the kernel asks: find the route, ask for existence, run the handler, commit.

use std::sync::Arc;
use std::time::Duration;

use base::rng::SeededRng;
use base::time::ManualClock;
use base::{CanonPath, Clock, Kind, MountId, NamespaceId, Refusal, Rng, Timestamp};
use engine::{
    Answer, AnyEngine, Body, Call, Caller, Cx, DutyKey, Engine, Grant, Host, Identities, Key, Mount, Need, NewDuty, Op, Outcome, Permit,
    Prefix, Publish, Removed, Routed, Scope, Tx, duty, route,
};
use serde_json::value::RawValue;
use store::{CommitError, IndexPlace, MemoryLog, NoObserver, RootKey, Store};

pub(crate) struct Bench {
    runtime: tokio::runtime::Runtime,
    clock: Arc<ManualClock>,
    store: Store,
    mount: Mount,
    engine: Box<dyn AnyEngine>,
    host: House,
}

/// The time so many seconds after the bench was made, as the wire shows it.
pub(crate) fn at(seconds: u64) -> String {
    ManualClock::new().now().after(Duration::from_secs(seconds)).rfc3339()
}

impl Bench {
    pub(crate) fn kv() -> Self {
        Self::new(crate::Kv, "secret/")
    }

    pub(crate) fn approle() -> Self {
        Self::new(crate::AppRole, "auth/approle/")
    }

    fn new<E: Engine>(engine: E, path: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Arc::new(ManualClock::new());
        let rng = Arc::new(SeededRng::new(1));
        let log = MemoryLog::new(&*rng).unwrap();
        let store = Store::open(Box::new(log), IndexPlace::Memory, clock.clone(), rng, Arc::new(NoObserver)).unwrap();
        let root = RootKey::new(&[7; 32]).unwrap();
        runtime.block_on(store.initialise(&root, Box::new(|_| b"{}".to_vec()))).unwrap();
        let mount = Mount {
            id: MountId(5),
            namespace: NamespaceId::ROOT,
            path: CanonPath::from_plain(path).unwrap(),
            kind: E::KIND.to_owned(),
            accessor: format!("{}_00000005", E::KIND),
            options: [("version".to_owned(), "2".to_owned())].into(),
        };
        Self { runtime, clock, store, mount, engine: Box::new(engine), host: House(SeededRng::new(2)) }
    }

    pub(crate) fn read(&self, target: &str) -> Told {
        self.ask(Op::Read, target, "")
    }

    pub(crate) fn list(&self, target: &str) -> Told {
        self.ask(Op::List, target, "")
    }

    pub(crate) fn write(&self, target: &str, body: &str) -> Told {
        self.ask(Op::Write, target, body)
    }

    pub(crate) fn patch(&self, target: &str, body: &str) -> Told {
        self.ask(Op::Patch, target, body)
    }

    pub(crate) fn delete(&self, target: &str) -> Told {
        self.ask(Op::Delete, target, "")
    }

    #[track_caller]
    pub(crate) fn reads(&self, target: &str, data: &str) {
        assert_eq!(self.read(target).data(), data);
    }

    pub(crate) fn claim(&self, path: &str, policy: Option<&str>) -> Result<(), Refusal> {
        let path = CanonPath::from_plain(path).unwrap();
        self.within(|publisher, tx| publisher.claim(tx, &self.mount, &path, policy))
    }

    pub(crate) fn claimant(&self) -> Option<String> {
        self.within(|publisher, tx| publisher.claimant(tx, &self.mount)).unwrap()
    }

    pub(crate) fn publish(&self, path: &str, policy: &str, value: &str) -> Result<u64, Refusal> {
        let path = CanonPath::from_plain(path).unwrap();
        let value = RawValue::from_string(value.to_owned()).unwrap();
        self.within(|publisher, tx| publisher.publish(tx, &self.mount, &path, policy, &value))
    }

    fn within<T>(&self, act: impl FnOnce(&dyn Publish, &mut Tx) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut tx = self.store.begin().unwrap();
        let done = act(self.engine.publishing().unwrap(), &mut tx)?;
        assert!(self.commit(tx));
        Ok(done)
    }

    /// Revokes the identity of this name, as the kernel does, and says what was removed.
    pub(crate) fn revoke(&self, name: &str) -> Removed {
        let identities: &dyn Identities = self.engine.identifying().unwrap();
        let mut tx = self.store.begin().unwrap();
        let principal = identities.principal(&self.mount, name).unwrap();
        self.host.revoke_identity(&mut tx, &principal).unwrap();
        let removed = identities.disarm(&mut tx, &self.host, &self.mount, name).unwrap();
        assert!(self.commit(tx));
        removed
    }

    /// The secrets of the mount with their rotations, as text.
    pub(crate) fn secrets(&self, limit: usize) -> String {
        let found = self.within(|publisher, tx| publisher.secrets(tx, &self.mount, limit)).unwrap();
        let shown = found.iter().map(|(path, rotation)| match rotation {
            Some(rotation) => format!("{path}={rotation}"),
            None => path.to_string(),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn pass_seconds(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn head(&self) -> base::Seq {
        self.store.head()
    }

    /// How many records a table of the mount has.
    pub(crate) fn count(&self, table: &'static str) -> usize {
        let mut tx = self.store.begin().unwrap();
        tx.scan(&Prefix::new(self.mount.scope(), table, &[]), None, 10_000).unwrap().len()
    }

    /// All keys and values of the mount, as text.
    pub(crate) fn everything(&self) -> String {
        let mut tx = self.store.begin().unwrap();
        let tables = ["config", "secret", "value", "claim", "role", "role-id", "secret-id", "accessor"];
        let rows = tables.into_iter().flat_map(|table| tx.scan(&Prefix::new(self.mount.scope(), table, &[]), None, 10_000).unwrap());
        rows.map(|row| format!("{:?} {}\n", row.key, String::from_utf8_lossy(row.value.expose()))).collect()
    }

    /// How many duties are owed.
    pub(crate) fn duties(&self) -> usize {
        let mut tx = self.store.begin().unwrap();
        tx.scan(&duty::all(), None, 10_000).unwrap().len()
    }

    /// Settles the duties that are due, and says how many.
    pub(crate) fn run_duties(&self) -> usize {
        let mut tx = self.store.begin().unwrap();
        let rows = tx.scan(&duty::all(), None, 10_000).unwrap();
        let due: Vec<engine::Duty> = rows
            .iter()
            .map(|row| serde_json::from_slice(row.value.expose()).unwrap())
            .filter(|d: &engine::Duty| d.due <= tx.now())
            .collect();
        let call = self.call(Op::Write, "", "").0;
        for duty in &due {
            let outcome: Outcome = self.runtime.block_on(self.engine.perform(&mut Cx::new(&mut tx, &call, &self.host), duty).unwrap());
            // As the kernel does: a settlement may owe the same name anew.
            duty::remove(&mut tx, &duty.id).unwrap();
            assert!(matches!(self.engine.settle(&mut Cx::new(&mut tx, &call, &self.host), duty, &outcome), Ok(Answer::Nothing)));
        }
        assert!(self.commit(tx));
        due.len()
    }

    fn ask(&self, op: Op, target: &str, body: &str) -> Told {
        let (mut tx, told) = self.begin(op, target, body);
        if told.result.is_err() {
            tx.refuse();
        }
        if !tx.is_read_only() {
            assert!(self.commit(tx), "a lone transaction conflicts");
        }
        told
    }

    /// Runs a request up to its commit.
    pub(crate) fn begin(&self, op: Op, target: &str, body: &str) -> (Tx, Told) {
        let mut tx = self.store.begin().unwrap();
        let (call, index) = self.call(op, target, body);
        let mut cx = Cx::new(&mut tx, &call, &self.host);
        let result = match index {
            Err(refusal) => Err(refusal),
            Ok(index) => match self.engine.exists(index, &mut cx) {
                Some(Err(refusal)) => Err(refusal),
                _ => self.engine.handle(index, &mut cx, Permit::public_route()),
            },
        };
        let warnings = std::mem::take(&mut cx.warnings);
        let told = Told { what: format!("{op:?} {target} {body}"), result, warnings };
        (tx, told)
    }

    fn call(&self, op: Op, target: &str, body: &str) -> (Call, Result<usize, Refusal>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = if path.is_empty() { None } else { Some(CanonPath::parse(path).unwrap()) };
        let mut members = Body::from_json(body.as_bytes()).unwrap();
        for (name, value) in query.split('&').filter_map(|member| member.split_once('=')) {
            members.add_query(name, &[value.to_owned()]);
        }
        let (index, captures) = match route::find(&self.engine.metas(), op, path.as_ref()) {
            Routed::To(index, captures) => (Ok(index), captures),
            Routed::Unsupported => (Err(Refusal::unsupported()), engine::Captures::default()),
            Routed::Unknown => (Err(Refusal::missing_because("unsupported path")), engine::Captures::default()),
        };
        let call = Call { id: "0".to_owned(), op, mount: self.mount.clone(), path, captures, body: members, caller: None, remote: None };
        (call, index)
    }

    /// Whether it was committed; otherwise it conflicted.
    pub(crate) fn commit(&self, tx: Tx) -> bool {
        match self.runtime.block_on(self.store.commit(tx, Box::new(|_| b"{}".to_vec()))) {
            Ok(_) => true,
            Err(CommitError::Conflict) => false,
            Err(other) => panic!("{other}"),
        }
    }
}

/// What a request was told.
pub(crate) struct Told {
    what: String,
    result: Result<Answer, Refusal>,
    warnings: Vec<String>,
}

impl Told {
    /// 200, with this `data`.
    #[track_caller]
    pub(crate) fn data(self) -> String {
        match self.result {
            Ok(Answer::Data(data)) => data.get().to_owned(),
            Ok(_) => panic!("{}: another answer", self.what),
            Err(refusal) => panic!("{}: {refusal:?}", self.what),
        }
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.data()).unwrap()
    }

    #[track_caller]
    pub(crate) fn keys(self, names: &str) {
        let names: Vec<_> = names.split(' ').collect();
        assert_eq!(self.json(), serde_json::json!({ "keys": names }));
    }

    /// 204.
    #[track_caller]
    pub(crate) fn nothing(self) {
        assert_eq!(self.nothing_but(), [""; 0]);
    }

    /// No data, and these warnings.
    #[track_caller]
    pub(crate) fn nothing_but(self) -> Vec<String> {
        match self.result {
            Ok(Answer::Nothing) => self.warnings,
            Ok(_) => panic!("{}: another answer", self.what),
            Err(refusal) => panic!("{}: {refusal:?}", self.what),
        }
    }

    #[track_caller]
    pub(crate) fn login(self) -> Grant {
        match self.result {
            Ok(Answer::Login(grant)) => grant,
            Ok(_) => panic!("{}: another answer", self.what),
            Err(refusal) => panic!("{}: {refusal:?}", self.what),
        }
    }

    #[track_caller]
    pub(crate) fn refused(self, kind: Kind) -> Refusal {
        match self.result {
            Ok(_) => panic!("{}: not refused", self.what),
            Err(refusal) => {
                assert_eq!(refusal.kind, kind, "{}: {refusal:?}", self.what);
                refusal
            }
        }
    }

    /// 400, with a text that holds this.
    #[track_caller]
    pub(crate) fn invalid(self, text: &str) -> Refusal {
        let refusal = self.refused(Kind::Invalid);
        assert!(refusal.errors.iter().any(|e| e.contains(text)), "{refusal:?} does not say {text}");
        refusal
    }

    /// 404 without a word.
    #[track_caller]
    pub(crate) fn missing(self) {
        let refusal = self.refused(Kind::Missing);
        assert!(refusal.errors.is_empty() && refusal.data.is_none(), "{refusal:?}");
    }

    #[track_caller]
    pub(crate) fn missing_with(self, text: &str) {
        let refusal = self.refused(Kind::Missing);
        assert!(refusal.errors.iter().any(|e| e.contains(text)), "{refusal:?}");
    }

    /// 404 with data.
    #[track_caller]
    pub(crate) fn gone(self) -> serde_json::Value {
        let refusal = self.refused(Kind::Missing);
        serde_json::from_str(refusal.data.as_ref().unwrap().get()).unwrap()
    }
}

struct House(SeededRng);

impl Host for House {
    fn rng(&self) -> &dyn Rng {
        &self.0
    }

    fn owe(&self, tx: &mut Tx, owner: &Mount, new: NewDuty) -> Result<DutyKey, Refusal> {
        duty::owe(tx, owner.id, new, "boot")
    }

    fn claim(&self, _: &mut Tx, _: &CanonPath, _: Option<&str>) -> Result<(), Refusal> {
        Err(Refusal::unsupported())
    }

    fn claimant(&self, _: &mut Tx, _: &Mount) -> Result<Option<String>, Refusal> {
        Err(Refusal::unsupported())
    }

    fn publish(&self, _: &mut Tx, _: &CanonPath, _: &str, _: &RawValue) -> Result<u64, Refusal> {
        Err(Refusal::unsupported())
    }

    fn token_alive(&self, _: &mut Tx, _: &str) -> Result<bool, Refusal> {
        Ok(true)
    }

    fn permits(&self, _: &mut Tx, _: &Caller, _: Need, _: &CanonPath) -> Result<bool, Refusal> {
        Ok(true)
    }

    fn epoch(&self, tx: &mut Tx, principal: &str) -> Result<u64, Refusal> {
        Ok(tx.read(&epoch_key(principal))?.unwrap_or(0))
    }

    fn revoke_identity(&self, tx: &mut Tx, principal: &str) -> Result<Removed, Refusal> {
        let epoch = self.epoch(tx, principal)?;
        tx.write(&epoch_key(principal), &(epoch + 1))?;
        Ok(Removed::default())
    }
}

fn epoch_key(principal: &str) -> Key {
    Key::new(Scope::KERNEL, "revoked", &[principal])
}

/// The bench's clock starts where [`at`] counts from.
#[test]
fn the_clock_of_the_bench() {
    assert_eq!(at(0), "2026-01-01T00:00:00Z");
    assert_eq!(Timestamp::parse_rfc3339(&at(61)).unwrap().unix_seconds() - Timestamp::parse_rfc3339(&at(0)).unwrap().unix_seconds(), 61);
}
