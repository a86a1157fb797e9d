//! Events before the keys exist: a bounded, chained queue in memory, written first when the seal opens.

use crate::Record;
use crate::record::access_leaf;
use base::Timestamp;
use crypto::hash::Sha256;

/// Most events that wait; further ones are counted.
pub(crate) const EVENTS_MAX: usize = 1024;

/// The queue.
#[derive(Default)]
pub(crate) struct Prelog {
    events: Vec<(Record, Timestamp)>,
    dropped: u64,
    chain: [u8; 32],
}

impl Prelog {
    pub(crate) fn push(&mut self, record: Record, time: Timestamp) {
        if self.events.len() < EVENTS_MAX {
            self.chain = link(&self.chain, &record, time);
            self.events.push((record, time));
        } else {
            self.dropped += 1;
        }
    }

    /// Empties the queue: the events, how many were lost to the bound, and the end of the chain. `None` in place of the
    /// chain when the events are not those that were queued.
    pub(crate) fn drain(&mut self) -> (Vec<(Record, Timestamp)>, u64, Option<[u8; 32]>) {
        let taken = std::mem::take(self);
        let again = taken.events.iter().fold([0; 32], |chain, (record, time)| link(&chain, record, *time));
        (taken.events, taken.dropped, (again == taken.chain).then_some(again))
    }
}

fn link(chain: &[u8; 32], record: &Record, time: Timestamp) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(chain);
    hash.update(&access_leaf(record, 0, "", 0, time));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hasher, Kind};

    fn filled(events: usize) -> Prelog {
        let mut prelog = Prelog::default();
        for n in 0..events {
            let mut record = Record::new(Kind::Request, Hasher::default());
            record.count("n", n as u64);
            prelog.push(record, Timestamp(n as u64));
        }
        prelog
    }

    #[test]
    fn the_bound_holds_and_what_is_lost_is_counted() {
        let (events, dropped, chain) = filled(EVENTS_MAX + 7).drain();
        assert_eq!((events.len(), dropped, chain.is_some()), (EVENTS_MAX, 7, true));
        let mut empty = filled(3);
        empty.drain();
        let (events, dropped, chain) = empty.drain();
        assert_eq!((events.len(), dropped, chain), (0, 0, Some([0; 32])));
    }

    #[test]
    fn a_changed_event_breaks_the_chain() {
        for tamper in [0, 1, 2] {
            let mut prelog = filled(3);
            match tamper {
                0 => prelog.events.swap(0, 1),
                1 => drop(prelog.events.remove(1)),
                _ => {
                    prelog.events[2].0.count("n", 99);
                }
            }
            assert_eq!(prelog.drain().2, None, "{tamper}");
        }
    }
}
