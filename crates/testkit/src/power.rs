//! A disk that loses power, and the campaign that pulls the plug of a store at every step.
//!
//! [`RecordingDisk`] notes every operation in order. [`Medium`] replays a prefix of them and gives the images that a real medium may
//! hold when the power goes at that point: what was synced is there, what was not is there, missing, or torn, sector by sector and in
//! any order. [`campaign`] opens a store on each image and compares it with what had been acknowledged by then.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::Seq;
use base::rng::SeededRng;
use base::time::ManualClock;
use journal::{Disk, File, LogName, MemoryDisk, NoSyncDisk};
use store::{Applied, FileLog, IndexPlace, Key, Observer, Options, Prefix, RootKey, Scope, Store};

/// What the medium writes at once: after a power loss a sector holds its old bytes or its new ones.
pub const SECTOR: usize = 512;

/// One operation on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new empty file.
    Create(String, FileId),
    /// Another name.
    Rename(String, String),
    /// A name less.
    Remove(String),
    /// All names are durable.
    SyncDir,
    /// Bytes at an offset.
    Write(FileId, u64, Vec<u8>),
    /// Another length.
    SetLen(FileId, u64),
    /// The file's bytes and length are durable.
    Sync(FileId),
}

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(usize);

/// A disk in memory that notes every change and sync.
#[derive(Clone, Default)]
pub struct RecordingDisk {
    live: MemoryDisk,
    tape: Arc<Mutex<Tape>>,
}

#[derive(Default)]
struct Tape {
    ops: Vec<Op>,
    names: BTreeMap<String, FileId>,
    files: usize,
}

impl RecordingDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as the next process finds it when one died and the power stayed: all files are there, synced or not. What is recorded
    /// continues on the same medium.
    #[must_use]
    pub fn resume(medium: &Medium) -> Self {
        let mut names = medium.names.clone();
        medium.names_pending.iter().for_each(|op| apply_name(&mut names, op));
        let live = MemoryDisk::from_files(medium.image(Loss::Nothing, &SeededRng::new(0)));
        let files = medium.files.keys().last().map_or(0, |id| id.0 + 1);
        Self { live, tape: Arc::new(Mutex::new(Tape { ops: Vec::new(), names, files })) }
    }

    /// How many operations there were so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.tape().ops.len()
    }

    /// All operations so far.
    #[must_use]
    pub fn operations(&self) -> Vec<Op> {
        self.tape().ops.clone()
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for RecordingDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.live.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut tape = self.tape();
        let live = self.live.create(name)?;
        let id = FileId(tape.files);
        tape.files += 1;
        tape.names.insert(name.to_owned(), id);
        tape.ops.push(Op::Create(name.to_owned(), id));
        Ok(Arc::new(RecordingFile { live, id, tape: Arc::clone(&self.tape) }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let live = self.live.open(name)?;
        let id = *self.tape().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(RecordingFile { live, id, tape: Arc::clone(&self.tape) }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut tape = self.tape();
        self.live.rename(from, to)?;
        let id = tape.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        tape.names.insert(to.to_owned(), id);
        tape.ops.push(Op::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut tape = self.tape();
        self.live.remove(name)?;
        tape.names.remove(name);
        tape.ops.push(Op::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.tape().ops.push(Op::SyncDir);
        Ok(())
    }
}

struct RecordingFile {
    live: Arc<dyn File>,
    id: FileId,
    tape: Arc<Mutex<Tape>>,
}

impl RecordingFile {
    /// Does and notes in one go, so that the tape has the order in which things happened.
    fn record(&self, op: Op, act: impl FnOnce(&dyn File) -> io::Result<()>) -> io::Result<()> {
        let mut tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        act(&*self.live)?;
        tape.ops.push(op);
        Ok(())
    }
}

impl File for RecordingFile {
    fn len(&self) -> io::Result<u64> {
        self.live.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.live.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.record(Op::Write(self.id, offset, bytes.to_vec()), |live| live.write_at(offset, bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Op::SetLen(self.id, len), |live| live.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Op::Sync(self.id), |live| live.sync())
    }
}

/// What becomes of everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is gone.
    All,
    /// It is there: the process died, the power did not.
    Nothing,
    /// Each sector and each length is as it was after any one of the unsynced operations, independently of the others; of the unsynced
    /// names some first ones are there.
    Torn,
}

/// A medium in the middle of a recording: what is durable, and what is on its way.
#[derive(Clone, Default)]
pub struct Medium {
    files: BTreeMap<FileId, Stored>,
    names: BTreeMap<String, FileId>,
    names_pending: Vec<Op>,
}

#[derive(Clone, Default)]
struct Stored {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Medium {
    /// An empty medium.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A medium that holds these files, all durable: what a power loss left.
    #[must_use]
    pub fn holding(files: BTreeMap<String, Vec<u8>>) -> Self {
        let names: BTreeMap<_, _> = files.keys().cloned().zip((0..).map(FileId)).collect();
        let stored = names.values().copied().zip(files.into_values().map(|durable| Stored { durable, pending: Vec::new() }));
        Self { files: stored.collect(), names, names_pending: Vec::new() }
    }

    /// Takes one more operation.
    pub fn apply(&mut self, op: &Op) {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        match op {
            Op::Create(_, id) => {
                self.files.entry(*id).or_default();
                self.names_pending.push(op.clone());
            }
            Op::Rename(..) | Op::Remove(_) => self.names_pending.push(op.clone()),
            Op::SyncDir => {
                for op in std::mem::take(&mut self.names_pending) {
                    apply_name(&mut self.names, &op);
                }
            }
            Op::Write(id, offset, bytes) => self.pend(*id, Change::Write(size(*offset), bytes.clone())),
            Op::SetLen(id, len) => self.pend(*id, Change::SetLen(size(*len))),
            Op::Sync(id) => {
                if let Some(file) = self.files.get_mut(id) {
                    file.durable = file.image(&mut |last| last);
                    file.pending.clear();
                }
            }
        }
    }

    /// One image that may be found after the power went.
    pub fn image(&self, loss: Loss, rng: &SeededRng) -> BTreeMap<String, Vec<u8>> {
        let mut choose = |last: usize| match loss {
            Loss::All => 0,
            Loss::Nothing => last,
            // The extremes are likely, so that whole writes are lost or kept while others are torn.
            Loss::Torn => match rng.below(3) {
                0 => 0,
                1 => last,
                _ => usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0),
            },
        };
        let mut names = self.names.clone();
        let kept = choose(self.names_pending.len());
        self.names_pending.iter().take(kept).for_each(|op| apply_name(&mut names, op));
        let mut content = |id| self.files.get(&id).map(|file| file.image(&mut choose)).unwrap_or_default();
        names.into_iter().map(|(name, id)| (name, content(id))).collect()
    }

    fn pend(&mut self, id: FileId, change: Change) {
        self.files.entry(id).or_default().pending.push(change);
    }
}

impl Stored {
    /// The bytes when `choose(n)` says for each sector, and for the length, after how many of the `n` pending changes it was written.
    fn image(&self, choose: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
        let count = self.pending.len();
        let mut bytes = self.durable.clone();
        let mut lengths = vec![bytes.len()];
        let mut chosen = BTreeMap::new();
        let mut lands = |sector: usize, change: usize| *chosen.entry(sector).or_insert_with(|| choose(count)) > change;
        for (number, change) in self.pending.iter().enumerate() {
            let len = lengths.last().copied().unwrap_or_default();
            match change {
                Change::Write(offset, new) => {
                    let end = offset.saturating_add(new.len());
                    bytes.resize(bytes.len().max(end), 0);
                    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
                        let from = (sector * SECTOR).max(*offset);
                        let to = ((sector + 1) * SECTOR).min(end);
                        if lands(sector, number)
                            && let (Some(into), Some(new)) = (bytes.get_mut(from..to), new.get(from - offset..to - offset))
                        {
                            into.copy_from_slice(new);
                        }
                    }
                    lengths.push(len.max(end));
                }
                Change::SetLen(new) => {
                    // What is cut off reads as zeros when the file grows again.
                    for sector in new / SECTOR..bytes.len().div_ceil(SECTOR) {
                        let from = (sector * SECTOR).max(*new);
                        let to = ((sector + 1) * SECTOR).min(bytes.len());
                        if lands(sector, number)
                            && let Some(cut) = bytes.get_mut(from..to)
                        {
                            cut.fill(0);
                        }
                    }
                    lengths.push(*new);
                }
            }
        }
        let len = lengths.get(choose(count)).copied().unwrap_or_default();
        bytes.resize(len, 0);
        bytes
    }
}

fn apply_name(names: &mut BTreeMap<String, FileId>, op: &Op) {
    match op {
        Op::Create(name, id) => drop(names.insert(name.clone(), *id)),
        Op::Remove(name) => drop(names.remove(name)),
        Op::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        Op::SyncDir | Op::Write(..) | Op::SetLen(..) | Op::Sync(_) => {}
    }
}

/// Whether the disk under test syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It does.
    None,
    /// Its syncs do nothing: the campaign must find losses, otherwise it is blind.
    NoSync,
}

/// What a campaign saw. Everything below `acknowledged` counts images and must be 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Images opened.
    pub images: u64,
    /// Operations recorded; every prefix of them was cut at least once.
    pub operations: u64,
    /// Commits of the workload, all acknowledged.
    pub acknowledged: u64,
    /// An acknowledged commit was missing.
    pub lost: u64,
    /// The state was not the fold of whole commits.
    pub half: u64,
    /// The index was not the fold of the log, or a value did not open.
    pub index: u64,
    /// The store refused to open, or to go on.
    pub refused: u64,
    /// The first failure, in words.
    pub first: Option<String>,
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn ok(&self) -> bool {
        [self.lost, self.half, self.index, self.refused] == [0; 4]
    }

    fn count(&mut self, failure: Failure) {
        let count = match failure {
            Failure::Lost => &mut self.lost,
            Failure::Half => &mut self.half,
            Failure::Index => &mut self.index,
            Failure::Refused => &mut self.refused,
        };
        *count = count.saturating_add(1);
    }
}

/// Runs a workload on a recorded disk, then opens a store on at least `images` images of it: in each round one for every prefix.
///
/// # Errors
/// When the workload itself fails, which no power loss explains.
pub fn campaign(seed: u64, images: u64, control: Control) -> Result<Report, String> {
    let run = work(seed, control)?;
    let rng = SeededRng::new(seed ^ 0x0070_6f77_6572);
    let mut report = Report { operations: run.ops.len() as u64, acknowledged: run.history.len() as u64, ..Report::default() };
    for round in 0_u64.. {
        if report.images >= images {
            break;
        }
        let mut medium = Medium::new();
        for position in 0..=run.ops.len() {
            if let Some(op) = position.checked_sub(1).and_then(|last| run.ops.get(last)) {
                medium.apply(op);
            }
            let loss = match round {
                1 => Loss::All,
                2 => Loss::Nothing,
                _ => Loss::Torn,
            };
            let mut image = medium.image(loss, &rng);
            // The index is disposable, so now and then it is thrown away. Without syncs redb's own promises do not hold.
            if rng.below(8) == 0 || control == Control::NoSync {
                image.remove(INDEX);
            }
            let least = run.acknowledged(position);
            let mut seen = |result: Result<(), (Failure, String)>, when: &str| {
                report.images += 1;
                if let Err((failure, what)) = result {
                    report.count(failure);
                    report.first.get_or_insert(format!("{loss:?} after operation {position}{when}: {what}"));
                }
            };
            // Now and then it goes while the store recovers: from a power loss, or from the death of its process.
            match rng.below(8) {
                0 | 1 => seen(examine_recovery(Medium::holding(image.clone()), &run, least, &rng), " and again during recovery"),
                2 | 3 => seen(examine_recovery(medium.clone(), &run, least, &rng), " during recovery of a dead process"),
                _ => {}
            }
            seen(examine(image, &run.history, least), "");
        }
    }
    Ok(report)
}

/// What each commit set (a tag) or removed; commit 1 is the first.
type History = Vec<Arc<BTreeMap<String, Option<String>>>>;

/// A workload that has ended.
struct Run {
    ops: Vec<Op>,
    history: History,
    /// For each commit, how many operations there were when it was about to be acknowledged.
    acknowledged_at: Vec<(Seq, usize)>,
}

impl Run {
    fn acknowledged(&self, position: usize) -> Seq {
        self.acknowledged_at.iter().filter(|mark| mark.1 <= position).map(|mark| mark.0).max().unwrap_or_default()
    }
}

fn up_to(history: &History, head: Seq) -> impl Iterator<Item = &Arc<BTreeMap<String, Option<String>>>> {
    history.iter().take(usize::try_from(head.0).unwrap_or(usize::MAX))
}

fn fold(history: &History, head: Seq) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for (id, value) in up_to(history, head).flat_map(|changes| changes.iter()) {
        match value {
            Some(value) => drop(state.insert(id.clone(), value.clone())),
            None => drop(state.remove(id)),
        }
    }
    state
}

/// Notes, before anybody is answered, how far the tape was.
struct Marks {
    disk: RecordingDisk,
    marks: Mutex<Vec<(Seq, usize)>>,
}

impl Observer for Marks {
    fn applied(&self, batch: &[Applied<'_>]) {
        let position = self.disk.position();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.extend(batch.iter().map(|commit| (commit.seq, position)));
    }
}

/// Commits in bursts, so that batches form; restarts in between; values of many sizes; several keys in each commit.
fn work(seed: u64, control: Control) -> Result<Run, String> {
    let rng = SeededRng::new(seed);
    let tape = RecordingDisk::new();
    let marks = Arc::new(Marks { disk: tape.clone(), marks: Mutex::default() });
    let disk: Arc<dyn Disk> = match control {
        Control::None => Arc::new(tape.clone()),
        Control::NoSync => Arc::new(NoSyncDisk::danger_without_sync(Arc::new(tape.clone()))),
    };
    let mut history = Vec::new();
    for start in 0..STARTS {
        let store = open(&disk, seed.wrapping_add(start), Arc::clone(&marks) as Arc<dyn Observer>).map_err(in_words)?;
        if start == 0 {
            let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(in_words)?;
            runtime.block_on(store.initialise(&root()?, leaf())).map_err(in_words)?;
            history.push(Arc::default());
        } else {
            store.unseal(&root()?).map_err(in_words)?;
        }
        for _ in 0..BURSTS {
            let mut tickets = Vec::new();
            for _ in 0..=rng.below(6) {
                let mut tx = store.begin().map_err(in_words)?;
                let mut changes = BTreeMap::new();
                let size = rng.below(if rng.below(8) == 0 { 6000 } else { 300 });
                for _ in 0..=rng.below(4) {
                    let id = format!("{}", rng.below(12));
                    if rng.below(5) == 0 {
                        tx.delete(&key(&id)).map_err(in_words)?;
                        changes.insert(id, None);
                    } else {
                        let tag = format!("{:016x}{}", rng.next_u64(), "x".repeat(usize::try_from(size).unwrap_or(0)));
                        tx.put(&key(&id), tag.as_bytes()).map_err(in_words)?;
                        changes.insert(id, Some(tag));
                    }
                }
                tickets.push((store.submit(tx, leaf()).map_err(in_words)?, changes));
            }
            for (ticket, changes) in tickets {
                let done = ticket.wait().map_err(in_words)?;
                history.push(Arc::new(changes));
                if done.seq != Seq(history.len() as u64) {
                    return Err(format!("commit `{}` was answered as number `{}`", done.seq, history.len()));
                }
            }
        }
    }
    let acknowledged_at = marks.marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if acknowledged_at.len() != history.len() {
        return Err("the observer did not see every commit".to_owned());
    }
    Ok(Run { ops: tape.operations(), history, acknowledged_at })
}

/// What a failure counts as.
#[derive(Clone, Copy)]
enum Failure {
    Lost,
    Half,
    Index,
    Refused,
}

impl Failure {
    fn with(self) -> impl Fn(&dyn Display) -> (Self, String) {
        move |what| (self, what.to_string())
    }
}

/// Recovers on a medium, loses the power at some step of that, and recovers again.
fn examine_recovery(mut medium: Medium, run: &Run, least: Seq, rng: &SeededRng) -> Result<(), (Failure, String)> {
    let refused = Failure::Refused.with();
    let tape = RecordingDisk::resume(&medium);
    let disk: Arc<dyn Disk> = Arc::new(tape.clone());
    let store = open(&disk, 3, Arc::new(store::NoObserver)).map_err(|error| refused(&error))?;
    // From here on, what was recovered may have been shown to somebody.
    let mut marks = vec![(store.head(), tape.position())];
    let mut history: History = up_to(&run.history, store.head()).cloned().collect();
    if store.initialised() {
        let root = root().map_err(|error| refused(&error))?;
        store.unseal(&root).map_err(|error| refused(&error))?;
        // Large enough for a segment to be filled and the next one to be taken into use.
        for tag in [rng.next_u64(), rng.next_u64()] {
            let tag = format!("{tag:016x}{}", "y".repeat(7000));
            let mut tx = store.begin().map_err(|error| refused(&error))?;
            tx.put(&key("recovered"), tag.as_bytes()).map_err(|error| refused(&error))?;
            let done = store.submit(tx, leaf()).and_then(store::Ticket::wait).map_err(|error| refused(&error))?;
            marks.push((done.seq, tape.position()));
            history.push(Arc::new(BTreeMap::from([("recovered".to_owned(), Some(tag))])));
        }
    }
    store.flush_index().map_err(|error| refused(&error))?;
    drop(store);
    let ops = tape.operations();
    let cut = usize::try_from(rng.below(ops.len() as u64 + 1)).unwrap_or(0);
    ops.iter().take(cut).for_each(|op| medium.apply(op));
    let least = marks.iter().filter(|mark| mark.1 <= cut).map(|mark| mark.0).max().unwrap_or(least);
    // Before the store was open nothing new was shown, but the old tail may still be there.
    let history = if cut < marks.first().map_or(0, |mark| mark.1) { &run.history } else { &history };
    examine(medium.image(Loss::Torn, rng), history, least)
}

fn examine(image: BTreeMap<String, Vec<u8>>, history: &History, acknowledged: Seq) -> Result<(), (Failure, String)> {
    let refused = Failure::Refused.with();
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_files(image));
    let store = open(&disk, 1, Arc::new(store::NoObserver)).map_err(|error| refused(&error))?;
    let head = store.head();
    if head < acknowledged {
        return Err((Failure::Lost, format!("commit `{acknowledged}` was acknowledged, the log ends at `{head}`")));
    }
    if head == Seq(0) {
        return Ok(());
    }
    let root = root().map_err(|error| refused(&error))?;
    store.unseal(&root).map_err(|error| refused(&error))?;
    compare(&store, history, head)?;
    check(&store)?;
    // The same once everything went through the index.
    store.flush_index().map_err(|error| refused(&error))?;
    check(&store)?;
    // And it goes on: what is committed now follows, also after another start.
    let mut tx = store.begin().map_err(|error| refused(&error))?;
    tx.put(&key("after"), b"after").map_err(|error| refused(&error))?;
    store.submit(tx, leaf()).and_then(store::Ticket::wait).map_err(|error| refused(&error))?;
    drop(store);
    let store = open(&disk, 2, Arc::new(store::NoObserver)).map_err(|error| refused(&error))?;
    if store.head() != head.next() {
        return Err((Failure::Lost, format!("after recovery at `{head}` and one commit the log ends at `{}`", store.head())));
    }
    Ok(())
}

fn compare(store: &Store, history: &History, head: Seq) -> Result<(), (Failure, String)> {
    let half = Failure::Half.with();
    let mut tx = store.begin().map_err(|error| half(&error))?;
    let rows = tx.scan(&Prefix::new(Scope::KERNEL, TABLE, &[]), None, usize::MAX).map_err(|error| half(&error))?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let found: BTreeMap<_, _> = rows.into_iter().map(|row| (row.id, text(row.value.expose()))).collect();
    if found != fold(history, head) {
        return Err((Failure::Half, format!("the state at `{head}` is not the fold of `{head}` commits")));
    }
    Ok(())
}

fn check(store: &Store) -> Result<(), (Failure, String)> {
    let report = store.fsck().map_err(|error| (Failure::Index, error.to_string()))?;
    match report.problems.first() {
        None => Ok(()),
        Some(problem) => Err((Failure::Index, problem.clone())),
    }
}

fn open(disk: &Arc<dyn Disk>, seed: u64, observer: Arc<dyn Observer>) -> Result<Store, store::Error> {
    let options = journal::Options { segment_bytes: 1 << 14, ..journal::Options::new(LogName::new("changes")?, seed) };
    let log = FileLog::with(Arc::clone(disk), options)?;
    let index = IndexPlace::Disk(Arc::clone(disk), INDEX.to_owned());
    let clock = Arc::new(ManualClock::new());
    // Small, so that the index is brought up many times.
    let options = Options { index_after_entries: 12, ..Options::default() };
    Store::open_with(Box::new(log), index, clock, Arc::new(SeededRng::new(seed)), observer, options)
}

fn root() -> Result<RootKey, String> {
    RootKey::new(&[7; 32]).map_err(in_words)
}

fn leaf() -> store::LeafFn {
    Box::new(|stamp| stamp.seq.to_string().into_bytes())
}

fn key(id: &str) -> Key {
    Key::new(Scope::KERNEL, TABLE, &[id])
}

fn in_words(error: impl Display) -> String {
    error.to_string()
}

const TABLE: &str = "power";
const INDEX: &str = "index.redb";
/// How often the workload starts the store.
const STARTS: u64 = 4;
/// Bursts of commits between two starts.
const BURSTS: u64 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(act: impl FnOnce(&RecordingDisk)) -> Medium {
        let disk = RecordingDisk::new();
        act(&disk);
        let mut medium = Medium::new();
        disk.operations().iter().for_each(|op| medium.apply(op));
        medium
    }

    /// All images that many seeds give, each once.
    fn images(medium: &Medium, loss: Loss) -> Vec<BTreeMap<String, Vec<u8>>> {
        let mut images: Vec<_> = (0..300).map(|seed| medium.image(loss, &SeededRng::new(seed))).collect();
        images.sort();
        images.dedup();
        images
    }

    fn file(bytes: &[&[u8]]) -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([("f".to_owned(), bytes.concat())])
    }

    #[test]
    fn what_was_synced_is_there_and_what_was_not_may_be() {
        let medium = medium(|disk| {
            let file = disk.create("f").unwrap();
            file.write_at(0, &[1; SECTOR]).unwrap();
            file.sync().unwrap();
            disk.sync_dir().unwrap();
            file.write_at(0, &[2; 2 * SECTOR]).unwrap();
        });
        let (old, new, none) = (&[1; SECTOR][..], &[2; SECTOR][..], &[0; SECTOR][..]);
        assert_eq!(images(&medium, Loss::All), [file(&[old])]);
        assert_eq!(images(&medium, Loss::Nothing), [file(&[new, new])]);
        // Each sector for itself, and the length for itself: a grown file may hold zeros, or have lost its growth.
        let torn = [file(&[old]), file(&[old, none]), file(&[old, new]), file(&[new]), file(&[new, none]), file(&[new, new])];
        assert_eq!(images(&medium, Loss::Torn), torn);
    }

    #[test]
    fn a_sector_may_be_of_any_moment_since_the_sync() {
        let medium = medium(|disk| {
            let file = disk.create("f").unwrap();
            file.write_at(0, &[1; SECTOR]).unwrap();
            file.sync().unwrap();
            disk.sync_dir().unwrap();
            for value in [2, 3] {
                file.write_at(0, &[value; SECTOR]).unwrap();
            }
        });
        let all: Vec<_> = [1, 2, 3].map(|value| file(&[&[value; SECTOR]])).into();
        assert_eq!(images(&medium, Loss::Torn), all);
    }

    #[test]
    fn names_come_with_the_sync_of_the_directory() {
        let medium = medium(|disk| {
            let file = disk.create("old").unwrap();
            file.write_at(0, b"x").unwrap();
            file.sync().unwrap();
            disk.rename("old", "new").unwrap();
        });
        let named = |name: &str| BTreeMap::from([(name.to_owned(), b"x".to_vec())]);
        assert_eq!(images(&medium, Loss::Torn), [BTreeMap::new(), named("new"), named("old")]);
        assert_eq!(images(&medium, Loss::All), [BTreeMap::new()]);
        assert_eq!(images(&medium, Loss::Nothing), [named("new")]);
    }

    #[test]
    fn what_is_cut_off_grows_back_as_zeros() {
        let medium = medium(|disk| {
            let file = disk.create("f").unwrap();
            file.write_at(0, &[1; 8]).unwrap();
            file.set_len(4).unwrap();
            file.set_len(6).unwrap();
            disk.sync_dir().unwrap();
            file.sync().unwrap();
        });
        assert_eq!(images(&medium, Loss::All), [file(&[&[1, 1, 1, 1, 0, 0]])]);
    }

    #[test]
    fn what_a_dead_process_did_not_sync_is_still_not_synced() {
        let mut medium = medium(|disk| drop(disk.create("f").unwrap().write_at(0, b"x")));
        let next = RecordingDisk::resume(&medium);
        assert_eq!(next.open("f").unwrap().len().unwrap(), 1, "the next process sees it");
        next.create("g").unwrap();
        next.operations().iter().for_each(|op| medium.apply(op));
        assert_eq!(images(&medium, Loss::All), [BTreeMap::new()], "a power loss does not keep it");
        next.open("f").unwrap().sync().unwrap();
        next.sync_dir().unwrap();
        next.operations().iter().skip(1).for_each(|op| medium.apply(op));
        let both = BTreeMap::from([("f".to_owned(), b"x".to_vec()), ("g".to_owned(), Vec::new())]);
        assert_eq!(images(&medium, Loss::All), [both]);
    }

    #[test]
    fn a_store_survives_a_power_loss_at_every_step() {
        let report = campaign(1, 1000, Control::None).unwrap();
        assert!(report.ok(), "{report:?}");
        assert!(report.images >= 1000 && report.acknowledged > 100, "{report:?}");
    }

    #[test]
    fn the_control_loses_data() {
        let report = campaign(1, 300, Control::NoSync).unwrap();
        // Usually about 140. How commits fall into batches is a matter of the machine, and with it what each image lost.
        assert!(!report.ok() && report.lost > 30, "without syncs the same campaign must find losses: {report:?}");
    }

    #[test]
    fn a_seed_is_a_run() {
        let runs = [1, 1, 2].map(|seed| work(seed, Control::None).unwrap().history);
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }
}
