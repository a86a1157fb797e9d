//! What a run has found out since the last look.

use base::Timestamp;

use crate::run::{Evidence, Run};

/// A run that is being told: each thing once.
#[derive(Clone, Debug, Default)]
pub struct Tale {
    told: usize,
    opened: Option<Timestamp>,
}

impl Tale {
    /// What was not told yet, each with the milliseconds since the first thing was found out.
    pub fn news<'r>(&mut self, run: &'r Run) -> Vec<(u64, &'r Evidence)> {
        let mut news = Vec::new();
        for evidence in run.evidence.iter().skip(self.told) {
            let at = evidence.at.unwrap_or_default();
            let since = at.since(*self.opened.get_or_insert(at));
            news.push((u64::try_from(since.as_millis()).unwrap_or(u64::MAX), evidence));
        }
        self.told = self.told.max(run.evidence.len());
        news
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(evidence: &[(u64, &str)]) -> Run {
        let at = |us: u64| base::Timestamp(1_767_225_600_000_000 + us).rfc3339();
        let evidence: Vec<_> = evidence.iter().map(|(us, phase)| json!({ "at": at(*us), "phase": phase, "found": "entered" })).collect();
        Run::read(&json!({ "phase": "stage", "evidence": evidence })).unwrap()
    }

    /// A run that was followed in two stretches was told twice, and what happened before the server was killed carried the time after it.
    #[test]
    fn each_thing_is_told_once_with_its_own_time() {
        let mut tale = Tale::default();
        let mut told = |evidence: &[(u64, &str)]| {
            let run = run(evidence);
            tale.news(&run).into_iter().map(|(ms, found)| (ms, found.phase.clone())).collect::<Vec<_>>()
        };
        let expect = |rows: &[(u64, &str)]| rows.iter().map(|(ms, phase)| (*ms, (*phase).to_owned())).collect::<Vec<_>>();
        assert_eq!(told(&[(1_000, "plan"), (8_000, "set")]), expect(&[(0, "plan"), (7, "set")]));
        assert_eq!(told(&[(1_000, "plan"), (8_000, "set")]), expect(&[]));
        assert_eq!(told(&[(1_000, "plan"), (8_000, "set"), (950_000, "stage")]), expect(&[(949, "stage")]));
    }
}
