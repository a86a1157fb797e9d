//! What the live screen shows: gathered here, and made into a picture. The picture is pure.

use std::collections::{BTreeMap, VecDeque};

use base::Timestamp;
use screen::{Column, Evidence, Holdings, Input, Key, Mood, Note, Panel, Requests, Row, Run, State};
use tokio::time::Instant;

use super::{Act, Figures, brief, clock};
use crate::keyward::SLOTS;
use crate::play::Play;

/// Lines of what happened that are kept.
const NOTES_MAX: usize = 200;
/// What the names of replicas of the usual rotation begin with.
const USUAL: &str = "usual-";

/// What was measured in one go.
#[derive(Default)]
pub(super) struct Watched {
    pub(super) keyward: Figures,
    pub(super) usual: Figures,
    /// By application and role; nothing when PostgreSQL did not answer.
    pub(super) sessions: Option<BTreeMap<(String, String), u64>>,
    /// Nothing when the server did not answer.
    pub(super) holdings: Option<Holdings>,
}

/// Everything that is known.
pub(super) struct Board {
    began: Timestamp,
    since: Option<Instant>,
    names: Vec<String>,
    usual_names: Vec<String>,
    keyward: Figures,
    usual: Figures,
    sessions: BTreeMap<(String, String), u64>,
    holdings: Holdings,
    watched: Option<String>,
    run: Option<Run>,
    number: u64,
    rotations: u64,
    dead: u64,
    changes: u64,
    /// The change after which a failure was told, and how many there were before the newest change.
    told_change: u64,
    failed_before: u64,
    server_is_down: bool,
    /// When a rotation begins by itself.
    next: Option<Instant>,
    /// Those that are stopped, and until when.
    stopped: BTreeMap<String, Instant>,
    pub(super) is_held: bool,
    pub(super) is_ending: bool,
    selected: usize,
    notes: VecDeque<Note>,
}

impl Board {
    pub(super) fn new(began: Timestamp) -> Self {
        Self {
            began,
            since: None,
            names: Vec::new(),
            usual_names: Vec::new(),
            keyward: Figures::default(),
            usual: Figures::default(),
            sessions: BTreeMap::new(),
            holdings: Holdings::default(),
            watched: None,
            run: None,
            number: 0,
            rotations: 0,
            dead: 0,
            changes: 0,
            told_change: 0,
            failed_before: 0,
            server_is_down: false,
            next: None,
            stopped: BTreeMap::new(),
            is_held: false,
            is_ending: false,
            selected: 0,
            notes: VecDeque::new(),
        }
    }

    /// Everything stands.
    pub(super) fn open(&mut self, play: &Play, now: Instant) {
        self.since = Some(now);
        self.names = play.fleet.names();
        self.usual_names = play.usual.replicas.iter().map(|replica| replica.name.clone()).collect();
    }

    pub(super) fn note(&mut self, mood: Mood, text: impl Into<String>) {
        let at = base::Clock::now(&base::time::SystemClock);
        self.note_at(at, mood, text.into());
    }

    fn note_at(&mut self, at: Timestamp, mood: Mood, text: String) {
        if self.notes.len() >= NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(Note { at: clock(self.began, at), text: screen::one_line(&text), mood });
    }

    /// The run has found out something.
    pub(super) fn found(&mut self, evidence: &Evidence) {
        let Note { text, mood, .. } = Note::of(0, evidence);
        self.note_at(evidence.at.unwrap_or(self.began), mood, format!("#{} {}: {text}", self.number, evidence.phase));
    }

    /// A rotation began.
    pub(super) fn begin(&mut self, number: u64, run: &str) {
        (self.number, self.watched, self.next) = (number, Some(run.to_owned()), None);
        self.note(Mood::Plain, format!("#{number}: a rotation begins"));
    }

    /// A rotation was judged.
    pub(super) fn closed(&mut self, rotations: u64, dead: u64) {
        (self.rotations, self.dead) = (rotations, dead);
    }

    /// The next rotation will begin at this moment.
    pub(super) fn next(&mut self, at: Instant) {
        self.next = Some(at);
    }

    /// The usual rotation has changed its password.
    pub(super) fn changed(&mut self, changes: u64) {
        (self.changes, self.failed_before) = (changes, self.usual.failed);
        self.note(Mood::Plain, format!("usual rotation: password {changes} is set in place and written to the files"));
    }

    /// A request of the usual rotation has failed; told once for each change.
    pub(super) fn usual_failed(&mut self, replica: &str, reason: &str) {
        if self.told_change < self.changes && self.usual.failed > self.failed_before {
            self.told_change = self.changes;
            let (name, why) = (replica.trim_start_matches(USUAL), brief(reason));
            self.note(Mood::Bad, format!("usual rotation: {name} fails: {why}"));
        }
    }

    pub(super) fn server_is(&mut self, up: bool) {
        self.server_is_down = !up;
    }

    pub(super) fn stopped(&mut self, name: &str, until: Option<Instant>) {
        match until {
            Some(until) => self.stopped.insert(name.to_owned(), until),
            None => self.stopped.remove(name),
        };
    }

    pub(super) fn put_run(&mut self, run: Run) {
        self.run = Some(run);
    }

    pub(super) fn put(&mut self, seen: Watched) {
        (self.keyward, self.usual) = (seen.keyward, seen.usual);
        self.sessions = seen.sessions.unwrap_or_else(|| std::mem::take(&mut self.sessions));
        self.holdings = seen.holdings.unwrap_or_else(|| std::mem::take(&mut self.holdings));
    }

    /// What a key means; moving the mark means nothing to others.
    pub(super) fn input(&mut self, input: Input) -> Option<Act> {
        let last = self.names.len().saturating_sub(1);
        let act = match input {
            Input::Up => {
                self.selected = self.selected.saturating_sub(1);
                return None;
            }
            Input::Down => {
                self.selected = (self.selected + 1).min(last);
                return None;
            }
            Input::Resize => return None,
            Input::Interrupt => Act::End,
            Input::Key(letter) => match letter.to_ascii_lowercase() {
                'r' => Act::Rotate,
                'k' => Act::Kill,
                's' => Act::Stop(self.names.get(self.selected)?.clone()),
                'p' => Act::Poison,
                'h' => Act::Hold,
                'd' => Act::Try,
                'q' => Act::End,
                _ => return None,
            },
        };
        // Before everything stands there is nothing to act on, but the way out.
        (act == Act::End || (self.since.is_some() && !self.is_ending)).then_some(act)
    }

    pub(super) fn watched(&self) -> Option<String> {
        self.watched.clone()
    }

    pub(super) fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    pub(super) fn is_stopped(&self, name: &str) -> bool {
        self.stopped.contains_key(name)
    }

    pub(super) fn all_stopped(&self) -> Vec<String> {
        self.stopped.keys().cloned().collect()
    }

    pub(super) fn overdue(&self, now: Instant) -> Vec<String> {
        self.stopped.iter().filter(|(_, until)| now >= **until).map(|(name, _)| name.clone()).collect()
    }

    /// The picture at a moment.
    pub(super) fn picture(&self, now: Instant, wall: Timestamp) -> State {
        let facts = match self.since {
            _ if self.is_ending => "the end: everything under way is waited for",
            None => "is being set up",
            Some(_) if self.server_is_down => "the Keyward server is DEAD; it comes back by itself",
            Some(_) if self.is_held => "delivery is HELD: no value and no acknowledgement passes",
            Some(_) => "same services, load and PostgreSQL, two ways to rotate",
        };
        let times = |number: u64| if number == 1 { "1 rotation".to_owned() } else { format!("{number} rotations") };
        let requests = |figures: &Figures| self.since.map(|_| Requests { sent: figures.sent, failed: figures.failed });
        let (old, new) = self.roles();
        let main = Panel {
            title: "Keyward: two users, in turn".to_owned(),
            footer: format!(
                "{}, {} {} proven dead",
                times(self.rotations),
                self.dead,
                if self.dead == 1 { "password" } else { "passwords" }
            ),
            requests: requests(&self.keyward),
            columns: vec![Column::Holds, Column::Level, Column::Old, Column::New, Column::Rate, Column::Failed, Column::About],
            rows: self.names.iter().enumerate().map(|(at, name)| self.row(at, name, [old, new], now)).collect(),
        };
        let beside = Panel {
            title: "Usual: changed in place".to_owned(),
            footer: times(self.changes),
            requests: requests(&self.usual),
            columns: vec![Column::Rate, Column::Failed],
            rows: self.usual_names.iter().enumerate().map(|(at, name)| self.usual_row(at, name)).collect(),
        };
        State {
            title: "Keyward demo".to_owned(),
            facts: facts.to_owned(),
            shown_for: wall.since(self.began),
            now: wall,
            main,
            beside: Some(beside),
            run_title: self.run.as_ref().map_or_else(|| "rotation".to_owned(), |run| format!("rotation {}: {}", self.number, run.run)),
            run: self.run.clone(),
            hint: self.hint(now),
            notes: self.notes.iter().cloned().collect(),
            keys: self.keys(),
            selected: self.since.map(|_| self.selected),
        }
    }

    /// The role of the value that goes and of the one that stays.
    fn roles(&self) -> (&str, &str) {
        let run = self.run.as_ref();
        let old = run.and_then(|run| run.old.as_ref()).map_or(SLOTS[1], |old| old.slot.as_str());
        let new = run.and_then(|run| run.new.as_ref()).map_or(SLOTS[0], |new| new.slot.as_str());
        // After a rollback the new value is the one that is gone.
        if run.is_some_and(|run| run.verdict.as_deref() == Some("rolled_back")) { (new, old) } else { (old, new) }
    }

    fn row(&self, at: usize, name: &str, [old, new]: [&str; 2], now: Instant) -> Row {
        let sessions = |role: &str| Some(self.sessions.get(&(name.to_owned(), role.to_owned())).copied().unwrap_or(0));
        let figures = self.keyward.replicas.get(at);
        let known = Row::known(name, self.holdings.key_info.get(name), self.run.as_ref());
        let row = Row {
            old: sessions(old),
            new: sessions(new),
            rate: figures.map(|pace| pace.rate),
            failed: figures.map(|pace| pace.failed),
            mood: if figures.is_some_and(|pace| pace.failing) { Mood::Bad } else { known.mood },
            ..known
        };
        match self.stopped.get(name) {
            Some(until) => {
                let left = until.saturating_duration_since(now).as_secs();
                Row { level: "STOP".to_owned(), about: format!("stopped; continues in {left} s"), mood: Mood::Waits, ..row }
            }
            None => row,
        }
    }

    fn usual_row(&self, at: usize, name: &str) -> Row {
        let figures = self.usual.replicas.get(at);
        Row {
            name: name.trim_start_matches(USUAL).to_owned(),
            rate: figures.map(|pace| pace.rate),
            failed: figures.map(|pace| pace.failed),
            mood: if figures.is_some_and(|pace| pace.failing) { Mood::Bad } else { Mood::Plain },
            ..Row::default()
        }
    }

    fn hint(&self, now: Instant) -> Note {
        let text = self.next.filter(|_| !self.is_ending).map(|next| {
            let seconds = next.saturating_duration_since(now).as_secs();
            format!("the next rotation begins in {seconds} s, on both sides")
        });
        Note { text: text.unwrap_or_default(), ..Note::default() }
    }

    fn keys(&self) -> Vec<Key> {
        let chosen = self.names.get(self.selected).is_some_and(|name| self.is_stopped(name));
        let poisoned = self.run.as_ref().is_some_and(|run| !run.is_closed() && run.reason.contains("poisoned"));
        [
            ("r", "rotate now", false),
            ("k", "kill the server", self.server_is_down),
            ("s", if chosen { "continue the replica" } else { "stop the replica" }, chosen),
            ("p", "poison the role", poisoned),
            ("h", if self.is_held { "release delivery" } else { "hold delivery" }, self.is_held),
            ("d", "try the dead password", false),
            ("q", "end", self.is_ending),
        ]
        .map(|(key, does, on)| Key { key, does: does.to_owned(), on })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::Pace;
    use super::*;

    fn board() -> Board {
        let mut board = Board::new(Timestamp(1_767_225_600_000_000));
        board.since = Some(Instant::now());
        board.names = vec!["billing-lib-1".into(), "billing-lib-2".into()];
        board.usual_names = vec!["usual-billing-1".into(), "usual-billing-2".into()];
        board
    }

    #[test]
    fn keys_are_acts_once_everything_stands() {
        let mut board = board();
        for (key, act) in [
            ('r', Some(Act::Rotate)),
            ('K', Some(Act::Kill)),
            ('s', Some(Act::Stop("billing-lib-1".into()))),
            ('p', Some(Act::Poison)),
            ('h', Some(Act::Hold)),
            ('d', Some(Act::Try)),
            ('q', Some(Act::End)),
            ('x', None),
        ] {
            assert_eq!(board.input(Input::Key(key)), act, "{key}");
        }
        assert_eq!(board.input(Input::Down), None);
        assert_eq!(board.input(Input::Down), None, "the last one stays the last");
        assert_eq!(board.input(Input::Key('s')), Some(Act::Stop("billing-lib-2".into())));
        assert_eq!(board.input(Input::Interrupt), Some(Act::End));
        board.is_ending = true;
        assert_eq!([board.input(Input::Key('k')), board.input(Input::Key('q'))], [None, Some(Act::End)]);
        let mut early = Board::new(Timestamp::ZERO);
        assert_eq!(
            [early.input(Input::Key('k')), early.input(Input::Key('s')), early.input(Input::Key('q'))],
            [None, None, Some(Act::End)]
        );
    }

    #[test]
    fn the_picture_shows_what_was_measured() {
        let mut board = board();
        let now = Instant::now();
        let pace = |rate, failed| Pace { rate, failed, failing: false };
        let sessions = [("billing-lib-1", "orders_a", 3), ("billing-lib-1", "orders_b", 5), ("stranger", "orders_a", 1)];
        board.put(Watched {
            keyward: Figures { sent: 100, failed: 0, replicas: vec![pace(36.0, 0), pace(0.0, 0)] },
            usual: Figures { sent: 99, failed: 7, replicas: vec![Pace { failing: true, ..pace(30.0, 7) }, pace(31.0, 0)] },
            sessions: Some(sessions.map(|(app, role, n)| ((app.to_owned(), role.to_owned()), n)).into()),
            holdings: Some(serde_json::from_value(json!({ "key_info": { "billing-lib-1": { "generation": 5, "level": "L2" } } })).unwrap()),
        });
        let run = |phase: &str, verdict: Option<&str>| {
            let (old, new) = (json!({ "generation": 3, "slot": "orders_a" }), json!({ "generation": 5, "slot": "orders_b" }));
            Run::read(&json!({ "run": "r-1", "phase": phase, "verdict": verdict, "old": old, "new": new })).unwrap()
        };
        let numbers = |board: &Board| {
            let state = board.picture(now, Timestamp(1_767_225_601_000_000));
            state.main.rows.iter().map(|row| (row.holds, row.old, row.new, row.failed)).collect::<Vec<_>>()
        };
        board.put_run(run("drain", None));
        assert_eq!(numbers(&board), [(Some(5), Some(3), Some(5), Some(0)), (None, Some(0), Some(0), Some(0))]);
        board.put_run(run("closed", Some("rolled_back")));
        assert_eq!(numbers(&board)[0], (Some(5), Some(5), Some(3), Some(0)), "after a rollback the new role is the dead one");
        let state = board.picture(now, Timestamp(1_767_225_601_000_000));
        let beside = state.beside.unwrap();
        assert_eq!(
            (beside.requests, beside.rows[0].name.as_str(), beside.rows[0].failed),
            (Some(Requests { sent: 99, failed: 7 }), "billing-1", Some(7))
        );
        assert_eq!(beside.rows.iter().map(|row| row.mood).collect::<Vec<_>>(), [Mood::Bad, Mood::Plain], "who fails just now");
        // A server and a database that do not answer take nothing away.
        board.put(Watched::default());
        assert_eq!(numbers(&board)[0].0, Some(5));

        board.stopped("billing-lib-1", Some(now + Duration::from_secs(20)));
        let row = board.picture(now, Timestamp::ZERO).main.rows.remove(0);
        assert_eq!((row.level.as_str(), row.about.as_str(), row.mood), ("STOP", "stopped; continues in 20 s", Mood::Waits));
        assert_eq!(board.overdue(now + Duration::from_secs(21)), ["billing-lib-1"]);
    }

    #[test]
    fn a_failure_of_the_usual_rotation_is_told_once_for_each_change() {
        let mut board = board();
        board.usual_failed("usual-billing-1", "500: before any change");
        assert_eq!(board.notes.len(), 0);
        for change in 1..=2 {
            board.changed(change);
            board.usual_failed("usual-billing-1", "500: of the time before");
            board.usual.failed += 1;
            board.usual_failed("usual-billing-1", "500: no");
            board.usual_failed("usual-billing-2", "500: no");
        }
        let told: Vec<_> = board.notes.iter().filter(|note| note.mood == Mood::Bad).map(|note| note.text.as_str()).collect();
        assert_eq!(told, ["usual rotation: billing-1 fails: no"; 2]);
        for n in 0..500 {
            board.note(Mood::Plain, format!("{n}"));
        }
        assert_eq!(board.notes.len(), NOTES_MAX);
    }
}
