//! The live screen: rotations under load beside the usual ones, and keys that do harm.
//!
//! Three things go on at once, on one thread: `direct` does what the keys say and rotates by itself, `measure` reads what is shown, `show` draws
//! it and takes the keys. They share a [`Board`]. Nothing on it is made up: requests are counted by the load, sessions by PostgreSQL, values
//! and levels by the server's API.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use base::time::SystemClock;
use base::{Clock as _, Timestamp};
use rustix::process::Signal;
use screen::{Holdings, Look, Mood, Run, Screen, Tale};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::keyward::{self, SLOTS};
use crate::load::{Load, Meter};
use crate::outcome::{Outcome, Proof, Side};
use crate::play::Play;
use crate::pool::{self, Login};
use crate::proof;
use crate::sql::Sql;

mod board;

use board::{Board, Watched};

/// From a run's end to the next one, and from the beginning to the first.
const PAUSE: Duration = Duration::from_secs(9);
const FIRST: Duration = Duration::from_secs(3);
/// How long the server stays dead.
const DEAD: Duration = Duration::from_millis(1_500);
/// After this long a stopped replica continues by itself: requests to it wait for a minute at most.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Between two looks at what is to do.
const TURN: Duration = Duration::from_millis(50);
/// Between two measurements.
const MEASURE: Duration = Duration::from_millis(300);
/// The span over which a rate is taken.
const RATE: Duration = Duration::from_secs(2);
/// Between two pictures.
const PICTURE: Duration = Duration::from_millis(200);
/// How long an open rotation may take when everything ends.
const END_MAX: Duration = Duration::from_secs(60);
/// Keys that wait for their turn.
const ACTS_MAX: usize = 16;

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Rotate,
    Kill,
    /// Stops this replica, or lets it continue.
    Stop(String),
    Poison,
    Hold,
    Try,
    End,
}

/// Shows the screen until somebody ends it, then says what was measured.
pub(crate) async fn run(seed: u64) -> Result<(), String> {
    let board = RefCell::new(Board::new(SystemClock.now()));
    let (tell, acts) = mpsc::channel(ACTS_MAX);
    let failed = |e: std::io::Error| format!("could not use the terminal: {e}");
    let mut screen = Screen::open(Look::of(std::env::var_os("NO_COLOR").as_deref())).map_err(failed)?;
    // On every way out, a signal and an error among them, the screen is dropped, and the terminal is as before.
    let ended = tokio::select! {
        ended = play(seed, acts, &board) => ended,
        left = show(&mut screen, tell, &board) => Err(left.map_or_else(failed, |()| "interrupted".to_owned())),
    };
    drop(screen);
    let (outcome, wrong) = ended?;
    for line in outcome.lines() {
        crate::say(&line);
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("not everything is as it should be: {}", wrong.join("; "))) }
}

async fn play(seed: u64, acts: mpsc::Receiver<Act>, board: &RefCell<Board>) -> Result<(Outcome, Vec<String>), String> {
    board.borrow_mut().note(Mood::Plain, "a PostgreSQL of its own, a Keyward server and twelve services are started");
    let play = Play::open(seed, &|text| board.borrow_mut().note(Mood::Plain, text)).await?;
    let measuring = Measure::of(&play).await?;
    board.borrow_mut().open(&play, Instant::now());
    let direct = Direct {
        play,
        board,
        dead: None,
        next: Instant::now() + FIRST,
        open: None,
        number: 0,
        rotated: 0,
        rolled_back: 0,
        killed: 0,
        reset: None,
    };
    tokio::select! {
        ended = direct.until_the_end(acts) => ended,
        never = measuring.again_and_again(board) => match never {},
    }
}

/// Draws, and turns keys into acts. Ends when somebody asks a second time for the end.
async fn show(screen: &mut Screen, tell: mpsc::Sender<Act>, board: &RefCell<Board>) -> std::io::Result<()> {
    let mut pictures = interval(PICTURE);
    pictures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = board.borrow().picture(Instant::now(), SystemClock.now());
        screen.draw(&state)?;
        let act = tokio::select! {
            input = screen.input() => board.borrow_mut().input(input),
            _ = pictures.tick() => None,
        };
        match act {
            Some(Act::End) if board.borrow().is_ending => return Ok(()),
            Some(act) => {
                board.borrow_mut().is_ending |= act == Act::End;
                if tell.try_send(act).is_err() {
                    board.borrow_mut().note(Mood::Waits, "too many keys at once: one is lost");
                }
            }
            None => {}
        }
    }
}

/// Who acts.
struct Direct<'b> {
    play: Play,
    board: &'b RefCell<Board>,
    /// The password that died last.
    dead: Option<Login>,
    /// When the next rotation begins by itself.
    next: Instant,
    /// The run that is open, and the value in force when it began.
    open: Option<(String, Login)>,
    number: u64,
    rotated: u64,
    rolled_back: u64,
    /// Passwords that were proven dead.
    killed: u64,
    /// A role that is to be writable again after the run.
    reset: Option<&'static str>,
}

impl Direct<'_> {
    async fn until_the_end(mut self, mut acts: mpsc::Receiver<Act>) -> Result<(Outcome, Vec<String>), String> {
        self.board.borrow_mut().next(self.next);
        loop {
            match acts.try_recv() {
                Ok(Act::End) => return self.end().await,
                Ok(act) => self.act(act).await?,
                Err(_) => {}
            }
            self.look().await?;
            if self.open.is_none() && self.reset.is_none() && Instant::now() >= self.next {
                self.rotate("the demonstration").await?;
            }
            sleep(TURN).await;
        }
    }

    async fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Rotate if self.open.is_some() => self.say(Mood::Waits, "a rotation is open already"),
            Act::Rotate => self.rotate("the demonstration: by hand").await?,
            Act::Kill => self.kill().await?,
            Act::Stop(name) => self.stop(&name)?,
            Act::Poison if self.open.is_some() => self.say(Mood::Waits, "a rotation is open: poison the role of the next one, after it"),
            Act::Poison => self.poison().await?,
            Act::Hold => self.hold(),
            Act::Try => self.try_dead().await?,
            Act::End => {}
        }
        Ok(())
    }

    fn say(&self, mood: Mood, text: impl Into<String>) {
        self.board.borrow_mut().note(mood, text);
    }

    /// Rotates on both sides.
    async fn rotate(&mut self, reason: &str) -> Result<(), String> {
        let old = self.play.keyward.current().await?;
        if self.play.usual.is_at_rest() {
            self.play.usual.change().await?;
            self.board.borrow_mut().changed(self.play.usual.changes);
        }
        let run = self.play.keyward.rotate(reason).await?;
        self.number += 1;
        self.board.borrow_mut().begin(self.number, &run);
        self.open = Some((run, old));
        Ok(())
    }

    /// Judges a run that has closed, and lets those continue whose time is up.
    async fn look(&mut self) -> Result<(), String> {
        let due: Vec<String> = self.board.borrow().overdue(Instant::now());
        for name in due {
            self.stop(&name)?;
        }
        let Some((id, _)) = &self.open else { return Ok(()) };
        let closed = self.board.borrow().run().filter(|run| run.run == *id && run.is_closed()).cloned();
        let (Some(run), Some((_, old))) = (closed, self.open.clone()) else { return Ok(()) };
        if let Some(role) = self.reset.take() {
            self.play.poison(role, false).await?;
        }
        match run.verdict.as_deref() {
            Some("rotated") => {
                // What the server says is tried: the demonstration logs in with the old password itself.
                let said = self.play.closed(&run, &old).await?;
                self.rotated += 1;
                self.killed += 1;
                self.say(Mood::Good, format!("{}'s old password was tried: {}", old.username, brief(&said)));
                self.dead = Some(old);
            }
            Some("rolled_back") if run.death_proven => {
                if self.play.keyward.current().await? != old {
                    return Err("the value in force is not the old one after the rollback".to_owned());
                }
                self.rolled_back += 1;
                self.killed += 1;
                self.say(Mood::Good, "rolled back by itself: everybody is on the old password, the new one is proven dead");
            }
            other => {
                let (how, why) = (other.unwrap_or("nothing"), screen::cause(&run.cause));
                self.say(Mood::Bad, format!("rotation {} ended as {how}, the old password stays: {why}", self.number));
            }
        }
        self.board.borrow_mut().closed(self.rotated, self.killed);
        self.open = None;
        self.next = Instant::now() + PAUSE;
        self.board.borrow_mut().next(self.next);
        Ok(())
    }

    async fn kill(&mut self) -> Result<(), String> {
        self.play.keyward.kill().await?;
        self.board.borrow_mut().server_is(false);
        self.say(Mood::Bad, "you: the Keyward server is killed (-9); the services go on with what they hold");
        sleep(DEAD).await;
        let since = Instant::now();
        self.play.keyward.restart(&self.play.stage).await?;
        self.board.borrow_mut().server_is(true);
        self.say(
            Mood::Plain,
            format!("the server is back, {} ms after its start: it reads its log and goes on", since.elapsed().as_millis()),
        );
        Ok(())
    }

    fn stop(&self, name: &str) -> Result<(), String> {
        let continues = self.board.borrow().is_stopped(name);
        self.play.fleet.signal(name, if continues { Signal::CONT } else { Signal::STOP })?;
        self.board.borrow_mut().stopped(name, (!continues).then(|| Instant::now() + STOP_MAX));
        let (mood, what) = if continues { (Mood::Plain, "continues") } else { (Mood::Bad, "is stopped (SIGSTOP)") };
        self.say(mood, format!("{name} {what}"));
        Ok(())
    }

    async fn poison(&mut self) -> Result<(), String> {
        let role = Play::idle(&self.play.keyward.current().await?)?;
        self.play.poison(role, true).await?;
        self.reset = Some(role);
        self.say(Mood::Bad, format!("you: {role}, next in turn, is made read-only: logins will work, inserts will not"));
        self.rotate("the demonstration: the new value is poisoned").await
    }

    fn hold(&self) {
        let shut = !self.play.gate.is_shut();
        self.play.gate.shut(shut);
        self.board.borrow_mut().is_held = shut;
        let (mood, text) = if shut {
            (Mood::Bad, "you: delivery is held: nothing passes between the server and the services")
        } else {
            (Mood::Plain, "delivery goes on")
        };
        self.say(mood, text);
    }

    /// Tries the password that died last, and the one in force beside it.
    async fn try_dead(&self) -> Result<(), String> {
        let Some(dead) = &self.dead else {
            self.say(Mood::Waits, "no password is dead yet");
            return Ok(());
        };
        match self.play.refused(dead).await {
            Ok(said) => self.say(Mood::Good, format!("{} with the dead password: {}", dead.username, brief(&said))),
            Err(said) => self.say(Mood::Bad, said),
        }
        let in_force = self.play.keyward.current().await?;
        match pool::probe(&self.play.fleet.place(&self.play.stage), &in_force).await {
            Ok(()) => self.say(Mood::Good, format!("{} with the password in force: works", in_force.username)),
            Err(said) => self.say(Mood::Bad, format!("{} with the password in force: {said}", in_force.username)),
        }
        Ok(())
    }

    /// Lets everything go on that was held up, waits for the open rotation, and counts.
    async fn end(mut self) -> Result<(Outcome, Vec<String>), String> {
        self.say(Mood::Plain, "the end: waits for what is under way; once more ends at once, without the last figures");
        if self.play.gate.is_shut() {
            self.hold();
        }
        let stopped = self.board.borrow().all_stopped();
        for name in stopped {
            self.stop(&name)?;
        }
        let until = Instant::now() + END_MAX;
        while self.open.is_some() && Instant::now() < until {
            self.look().await?;
            sleep(TURN).await;
        }
        self.say(Mood::Plain, "the load ends: every answer is waited for");
        let load = std::mem::replace(&mut self.play.load, Load::none());
        let (tally, shown) = tokio::join!(load.stop(), self.play.usual.stop());
        let shown = shown?;
        let (_, mut wrong) = self.play.accounts(&tally).await?;
        self.play.fleet.stop().await?;
        self.say(Mood::Plain, "the audit log is exported and checked");
        let (directory, verdict) = self.play.export().await?;
        let verified = verdict.exit == 0;
        if !verified {
            wrong.push(format!("the exported audit log does not pass: {}", verdict.message.unwrap_or_default()));
        }
        let checker = proof::checker(&self.play.stage.program);
        self.play.keyward.stop().await?;
        let outcome = Outcome {
            usual: Side::usual(&shown),
            keyward: Side::of(&tally, self.rotated),
            rolled_back: self.rolled_back,
            is_open: self.open.is_some(),
            dead: self.killed,
            proof: Some(Proof { directory, entries: verdict.entries, verified, checker }),
        };
        Ok((outcome, wrong))
    }
}

/// Who measures.
struct Measure {
    client: client::Client,
    sql: Sql,
    keyward: Rate,
    usual: Rate,
    tale: Tale,
    told: Option<String>,
}

impl Measure {
    async fn of(play: &Play) -> Result<Self, String> {
        Ok(Self {
            client: play.keyward.client.clone(),
            sql: play.stage.sql("postgres").await?,
            keyward: Rate::of(play.load.meter()),
            usual: Rate::of(play.usual.load.meter()),
            tale: Tale::default(),
            told: None,
        })
    }

    async fn again_and_again(mut self, board: &RefCell<Board>) -> Infallible {
        loop {
            let sessions = self.sql.sessions(&SLOTS).await;
            // A server that was killed answers nothing; what was seen last stays until it is back.
            let holdings = keyward::holdings(&self.client).await.ok();
            let id = board.borrow().watched();
            let run = match &id {
                Some(id) => keyward::run(&self.client, id).await.ok(),
                None => None,
            };
            self.put(&mut board.borrow_mut(), sessions, holdings, run);
            sleep(MEASURE).await;
        }
    }

    fn put(
        &mut self,
        board: &mut Board,
        sessions: Result<BTreeMap<(String, String), u64>, String>,
        holdings: Option<Holdings>,
        run: Option<Run>,
    ) {
        if let Some(run) = run {
            if self.told.as_ref() != Some(&run.run) {
                (self.tale, self.told) = (Tale::default(), Some(run.run.clone()));
            }
            for (_, evidence) in self.tale.news(&run) {
                if evidence.is_milestone() {
                    board.found(evidence);
                }
            }
            board.put_run(run);
        }
        let seen = Watched {
            keyward: self.keyward.read(Instant::now()),
            usual: self.usual.read(Instant::now()),
            sessions: sessions.ok(),
            holdings,
        };
        board.put(seen);
        if let Some(failure) = self.usual.meter.last_failure() {
            board.usual_failed(&failure.replica, &failure.reason);
        }
    }
}

/// Requests in a second, over the last few.
struct Rate {
    meter: Meter,
    /// How many were answered and how many had failed, for each replica.
    readings: std::collections::VecDeque<(Instant, Vec<(u64, u64)>)>,
}

/// The figures of one side.
#[derive(Clone, Debug, Default)]
struct Figures {
    sent: u64,
    failed: u64,
    replicas: Vec<Pace>,
}

/// The figures of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    /// Requests answered in a second.
    rate: f64,
    /// Requests that have failed so far.
    failed: u64,
    /// Some of them just now.
    failing: bool,
}

impl Rate {
    fn of(meter: Meter) -> Self {
        Self { meter, readings: std::collections::VecDeque::new() }
    }

    fn read(&mut self, now: Instant) -> Figures {
        let all = self.meter.of_replicas();
        while self.readings.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE) && self.readings.len() > 1 {
            self.readings.pop_front();
        }
        let first = self.readings.front().cloned();
        self.readings.push_back((now, all.clone()));
        let pace = |at: usize, answered: u64, failed: u64| -> Pace {
            let Some((since, before)) = &first else { return Pace { failed, ..Pace::default() } };
            let (answered_before, failed_before) = before.get(at).copied().unwrap_or_default();
            let (seconds, more) = (now.duration_since(*since).as_secs_f64(), answered.saturating_sub(answered_before));
            let rate = if seconds > 0.0 { f64::from(u32::try_from(more).unwrap_or(u32::MAX)) / seconds } else { 0.0 };
            Pace { rate, failed, failing: failed > failed_before }
        };
        let replicas = all.iter().enumerate().map(|(at, (answered, failed))| pace(at, *answered, *failed)).collect();
        Figures { sent: self.meter.sent(), failed: self.meter.failed(), replicas }
    }
}

/// What PostgreSQL said, without who said it.
fn brief(said: &str) -> &str {
    let said = said.strip_prefix("500: ").unwrap_or(said);
    said.strip_prefix("PostgreSQL says ").unwrap_or(said)
}

/// `m:ss.t` since a moment.
fn clock(since: Timestamp, at: Timestamp) -> String {
    let tenths = at.since(since).as_millis() / 100;
    format!("{}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_from_the_beginning() {
        let at = |ms: u64| Timestamp(1_767_225_600_000_000 + ms * 1_000);
        for (ms, expect) in [(0, "0:00.0"), (1_290, "0:01.2"), (83_400, "1:23.4"), (3_600_000, "60:00.0")] {
            assert_eq!(clock(at(0), at(ms)), expect);
        }
        assert_eq!(clock(at(500), at(0)), "0:00.0");
    }
}
