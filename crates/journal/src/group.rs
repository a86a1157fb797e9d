//! Group commit: one thread owns the log and gives every batch one sync.
//!
//! A batch closes when the queue is empty or a limit is reached, never by a timer: under light load a record is synced at once, under
//! heavy load a batch grows while the one before it is being synced.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{Durable, Error};

/// What a batch is written to.
pub trait Sink: Send + 'static {
    /// The index that the next record gets.
    fn next_index(&self) -> u64;
    /// Appends the records and syncs once: one proof for each, in order. After an error it is not called again.
    fn write(&mut self, records: &[Vec<u8>]) -> Result<Vec<Durable>, Error>;
    /// Called between batches, for work that no waiter should wait for.
    fn rest(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// What turns jobs into records, and answers whoever waits.
pub trait Stage: Send + 'static {
    /// What is submitted.
    type Job: Send + 'static;
    /// What is kept of a job until its record is durable.
    type Held;

    /// Turns a job into the record at `index`, or answers it here and now.
    fn admit(&mut self, job: Self::Job, index: u64) -> Admitted<Self::Held>;
    /// The batch is durable.
    fn synced(&mut self, batch: Vec<(Self::Held, Durable)>);
    /// The log failed with this batch in flight (it is empty when nothing was). Called once; nothing will be durable after it.
    fn poisoned(&mut self, batch: Vec<Self::Held>, error: &Error);
    /// A job that came after the log failed.
    fn refuse(&mut self, job: Self::Job);
}

/// What became of a job.
pub enum Admitted<H> {
    /// Append this record.
    Record(Vec<u8>, H),
    /// It was answered; there is nothing to append.
    Answered,
}

/// The sizes of a group commit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that may wait.
    pub queue: usize,
    /// Records in one batch.
    pub batch_records: usize,
    /// Bytes at which a batch is closed.
    pub batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue: 4096, batch_records: 1024, batch_bytes: 1 << 20 }
    }
}

/// A job that was not taken.
#[derive(Debug)]
pub enum Turned<J> {
    /// Too many are waiting.
    Full(J),
    /// The thread has ended.
    Stopped(J),
}

/// The way into a log that another thread writes. When the last clone is dropped, what was submitted is finished and the thread ends.
pub struct Writer<J: Send + 'static>(Arc<Handle<J>>);

struct Handle<J> {
    queue: Option<SyncSender<J>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<J: Send + 'static> Clone for Writer<J> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<J: Send + 'static> Writer<J> {
    /// Queues a job; never blocks.
    pub fn submit(&self, job: J) -> Result<(), Turned<J>> {
        let Some(queue) = &self.0.queue else { return Err(Turned::Stopped(job)) };
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) => Turned::Full(job),
            TrySendError::Disconnected(job) => Turned::Stopped(job),
        })
    }
}

impl<J> Drop for Handle<J> {
    fn drop(&mut self) {
        self.queue = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A stage that holds the last writer would wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic was reported by the thread itself, and its waiters saw their channels close.
            drop(thread.join());
        }
    }
}

/// Starts the thread that owns `sink` and `stage`.
pub fn spawn<K: Sink, S: Stage>(name: &str, sink: K, stage: S, limits: Limits) -> io::Result<Writer<S::Job>> {
    let (queue, jobs) = sync_channel(limits.queue);
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(sink, stage, &jobs, limits))?;
    Ok(Writer(Arc::new(Handle { queue: Some(queue), thread: Mutex::new(Some(thread)) })))
}

fn run<K: Sink, S: Stage>(mut sink: K, mut stage: S, jobs: &Receiver<S::Job>, limits: Limits) {
    while let Ok(job) = jobs.recv() {
        let (records, held) = gather(&sink, &mut stage, job, jobs, limits);
        let written = if records.is_empty() { Ok(Vec::new()) } else { sink.write(&records) };
        let failed = match written {
            Ok(proofs) => {
                stage.synced(held.into_iter().zip(proofs).collect());
                sink.rest().err().map(|error| (Vec::new(), error))
            }
            Err(error) => Some((held, error)),
        };
        if let Some((held, error)) = failed {
            stage.poisoned(held, &error);
            jobs.iter().for_each(|job| stage.refuse(job));
        }
    }
}

fn gather<K: Sink, S: Stage>(
    sink: &K,
    stage: &mut S,
    first: S::Job,
    jobs: &Receiver<S::Job>,
    limits: Limits,
) -> (Vec<Vec<u8>>, Vec<S::Held>) {
    let (mut records, mut held, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
    let mut next = Some(first);
    while let Some(job) = next {
        let index = sink.next_index().saturating_add(records.len() as u64);
        if let Admitted::Record(record, waiting) = stage.admit(job, index) {
            bytes = bytes.saturating_add(record.len());
            records.push(record);
            held.push(waiting);
        }
        next = if records.len() < limits.batch_records && bytes < limits.batch_bytes { jobs.try_recv().ok() } else { None };
    }
    (records, held)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::LogName;

    /// Writes when the test says so, and tells how many records came at once.
    struct Gate {
        next: u64,
        go: Receiver<io::Result<()>>,
        batches: Sender<usize>,
    }

    impl Sink for Gate {
        fn next_index(&self) -> u64 {
            self.next
        }

        fn write(&mut self, records: &[Vec<u8>]) -> Result<Vec<Durable>, Error> {
            self.batches.send(records.len()).unwrap();
            self.go.recv().unwrap().map_err(Error::io("sync", "gate"))?;
            let first = self.next;
            self.next += records.len() as u64;
            Ok((first..self.next).map(|index| Durable::new(LogName::new("gate").unwrap(), index)).collect())
        }
    }

    /// Jobs are (name, answer); a job named `no` is answered without a record.
    struct Answers {
        poisoned: Sender<(usize, String)>,
    }

    type Answer = Result<u64, &'static str>;
    type Job = (&'static str, Sender<Answer>);

    impl Stage for Answers {
        type Job = Job;
        type Held = (u64, Sender<Answer>);

        fn admit(&mut self, (name, answer): Job, index: u64) -> Admitted<Self::Held> {
            if name == "no" {
                answer.send(Err("no")).unwrap();
                return Admitted::Answered;
            }
            Admitted::Record(name.into(), (index, answer))
        }

        fn synced(&mut self, batch: Vec<(Self::Held, Durable)>) {
            for ((index, answer), durable) in batch {
                assert_eq!(index, durable.index(), "the index that was promised");
                answer.send(Ok(index)).unwrap();
            }
        }

        fn poisoned(&mut self, batch: Vec<Self::Held>, error: &Error) {
            self.poisoned.send((batch.len(), error.to_string())).unwrap();
            batch.iter().for_each(|held| held.1.send(Err("poisoned")).unwrap());
        }

        fn refuse(&mut self, (_, answer): Job) {
            answer.send(Err("refused")).unwrap();
        }
    }

    struct Rig {
        writer: Writer<Job>,
        go: Sender<io::Result<()>>,
        batches: Receiver<usize>,
        poisoned: Receiver<(usize, String)>,
    }

    fn rig(limits: Limits) -> Rig {
        let ((go, gate), (tell, batches), (poison, poisoned)) = (channel(), channel(), channel());
        let sink = Gate { next: 0, go: gate, batches: tell };
        let writer = spawn("test", sink, Answers { poisoned: poison }, limits).unwrap();
        Rig { writer, go, batches, poisoned }
    }

    impl Rig {
        fn submit(&self, name: &'static str) -> Receiver<Answer> {
            let (send, answer) = channel();
            self.writer.submit((name, send)).unwrap();
            answer
        }
    }

    #[test]
    fn what_arrives_during_a_sync_shares_the_next_one() {
        let rig = rig(Limits { batch_records: 3, ..Limits::default() });
        let first = rig.submit("a");
        assert_eq!(rig.batches.recv().unwrap(), 1);
        let later: Vec<_> = ["b", "no", "c", "d", "e"].map(|name| rig.submit(name)).into();
        assert!(first.try_recv().is_err(), "nobody is answered before the sync");
        rig.go.send(Ok(())).unwrap();
        assert_eq!(first.recv().unwrap(), Ok(0));
        assert_eq!(rig.batches.recv().unwrap(), 3, "the cap");
        rig.go.send(Ok(())).unwrap();
        assert_eq!(rig.batches.recv().unwrap(), 1);
        rig.go.send(Ok(())).unwrap();
        let answers: Vec<_> = later.iter().map(|answer| answer.recv().unwrap()).collect();
        assert_eq!(answers, [Ok(1), Err("no"), Ok(2), Ok(3), Ok(4)]);
    }

    #[test]
    fn a_full_queue_turns_away() {
        let rig = rig(Limits { queue: 2, ..Limits::default() });
        let first = rig.submit("a");
        assert_eq!(rig.batches.recv().unwrap(), 1);
        let waiting = [rig.submit("b"), rig.submit("c")];
        let (send, _answer) = channel();
        assert!(matches!(rig.writer.submit(("d", send)), Err(Turned::Full(("d", _)))));
        rig.go.send(Ok(())).unwrap();
        rig.go.send(Ok(())).unwrap();
        assert_eq!(first.recv().unwrap(), Ok(0));
        assert_eq!(waiting.map(|answer| answer.recv().unwrap()), [Ok(1), Ok(2)]);
    }

    #[test]
    fn a_failed_sync_answers_no_one_kindly_and_nothing_after_it() {
        let rig = rig(Limits::default());
        let first = rig.submit("a");
        assert_eq!(rig.batches.recv().unwrap(), 1);
        let waiting = rig.submit("b");
        rig.go.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert_eq!(first.recv().unwrap(), Err("poisoned"));
        assert_eq!(waiting.recv().unwrap(), Err("refused"));
        assert_eq!(rig.poisoned.recv().unwrap(), (1, "could not sync `gate`".to_owned()));
        assert_eq!(rig.submit("c").recv().unwrap(), Err("refused"));
        assert!(rig.batches.try_recv().is_err(), "the sink is not tried again");
    }

    #[test]
    fn dropping_the_writer_finishes_what_was_submitted() {
        let rig = rig(Limits::default());
        let answers = ["a", "b", "c"].map(|name| rig.submit(name));
        for _ in 0..3 {
            rig.go.send(Ok(())).unwrap();
        }
        drop(rig.writer);
        assert_eq!(answers.map(|answer| answer.try_recv().unwrap()), [Ok(0), Ok(1), Ok(2)]);
    }
}
