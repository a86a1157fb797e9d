//! The script: seven steps in order, each with what must be seen. It ends with an error when anything was not as stated.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use screen::{Run, Tale};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::keyward::propagation;
use crate::leaks;
use crate::load::{Load, Meter, Tally};
use crate::outcome::{Outcome, Proof, Side};
use crate::play::{LOOK, PER_SECOND, Play, RUN_MAX};
use crate::pool::{self, Login};
use crate::show::Show;
use crate::usual::Shown;
use crate::{explain, proof};

/// Clean rotations.
const CLEAN: u64 = 5;
/// How often the usual rotation changes its password at least.
const USUAL_MIN: u64 = 2;
/// How long the whole script may take.
const ALL_MAX: Duration = Duration::from_secs(600);

/// The summary.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) ok: bool,
    pub(crate) postgres: String,
    pub(crate) seconds: f64,
    pub(crate) requests: Requests,
    pub(crate) rows: usize,
    pub(crate) rotations: Rotations,
    pub(crate) deaths_proven: u64,
    /// The usual rotation, which ran beside it.
    pub(crate) control: ControlFigures,
    pub(crate) propagation_ms: Propagation,
    pub(crate) proof: ProofFigures,
    /// Logs, argument lists, environments and files in which no secret was found.
    pub(crate) secrets_searched_in: usize,
    /// What was not as stated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) wrong: Vec<String>,
    pub(crate) seed: u64,
    /// Seconds from the start to the first closed rotation with proof of death.
    pub(crate) first_rotation_seconds: f64,
    #[serde(skip)]
    checker: PathBuf,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Requests {
    pub(crate) sent: u64,
    pub(crate) answered: usize,
    pub(crate) failed: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Rotations {
    /// On the new value, the old one proven dead: the clean ones, the resumed one and the held one.
    pub(crate) closed: u64,
    pub(crate) resumed_after_kill: u64,
    pub(crate) held_then_closed: u64,
    pub(crate) rolled_back: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ControlFigures {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) rotations: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Propagation {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ProofFigures {
    pub(crate) dir: PathBuf,
    pub(crate) entries: u64,
    pub(crate) verified: bool,
    pub(crate) tampered_index: Option<u64>,
}

/// Runs the script and returns the summary, whatever happened.
pub(crate) async fn run(seed: u64, verbose: bool) -> Summary {
    let show = Show::new(verbose);
    let since = Instant::now();
    let mut summary = Summary { seed, ..Summary::default() };
    let played = timeout(ALL_MAX, script(show, seed, &mut summary)).await;
    match played {
        Ok(Ok(())) => {}
        Ok(Err(text)) => summary.wrong.push(text),
        Err(_) => summary.wrong.push(format!("not done within {} s", ALL_MAX.as_secs())),
    }
    summary.seconds = rounded(since.elapsed().as_secs_f64());
    summary.ok = summary.wrong.is_empty();
    summary
}

async fn script(show: Show, seed: u64, out: &mut Summary) -> Result<(), String> {
    show.head(
        "The stage: a throw-away PostgreSQL, the Keyward server, six replicas of three services on each side, a load that never retries",
    );
    let play = Play::open(seed, &|text| show.line(&text)).await?;
    let (postgres, number) = (play.stage.cluster.version().to_owned(), play.fleet.replicas.len());
    show.done(&format!(
        "stage    PostgreSQL {postgres}; {number} replicas serve with Keyward, {number} with the usual rotation; {PER_SECOND} requests/s to each side"
    ));
    let (load, usual) = (play.load.meter(), play.usual.load.meter());
    let checker = proof::checker(&play.stage.program);
    let summary = Summary { postgres, seed, checker, ..Summary::default() };
    let mut script = Script { show, play, load, usual, summary, propagation: Vec::new(), number: 0 };
    let done = script.steps().await;
    // Also after a failure: what was seen until then is worth telling.
    *out = script.summary;
    done
}

impl Summary {
    /// The four lines.
    pub(crate) fn outcome(&self) -> Outcome {
        let proof = Proof {
            directory: self.proof.dir.clone(),
            entries: self.proof.entries,
            verified: self.proof.verified,
            checker: self.checker.clone(),
        };
        Outcome {
            usual: Side { sent: self.control.sent, failed: self.control.failed, rotations: self.control.rotations },
            keyward: Side { sent: self.requests.sent, failed: self.requests.failed, rotations: self.rotations.closed },
            rolled_back: self.rotations.rolled_back,
            is_open: false,
            dead: self.deaths_proven,
            proof: (self.proof.entries > 0).then_some(proof),
        }
    }

    /// What was not as stated, in a sentence.
    pub(crate) fn complaint(&self) -> Option<String> {
        (!self.ok).then(|| format!("Not everything was as stated: {}", self.wrong.join("; ")))
    }
}

/// The play, and what is said of it.
struct Script {
    show: Show,
    play: Play,
    load: Meter,
    usual: Meter,
    summary: Summary,
    propagation: Vec<u64>,
    number: u64,
}

impl Script {
    async fn steps(&mut self) -> Result<(), String> {
        self.clean().await?;
        self.killed().await?;
        self.stopped().await?;
        self.poisoned().await?;
        self.secrets().await?;
        let (tally, shown) = self.quiet_down().await?;
        self.control(&shown)?;
        self.accounts(&tally).await?;
        self.prove().await
    }

    /// Step 1.
    async fn clean(&mut self) -> Result<(), String> {
        self.show.head(&format!("1  {CLEAN} clean rotations under load"));
        for n in 0..CLEAN {
            let old = self.play.keyward.current().await?;
            let mut told = self.rotate("the script: a clean rotation", n == 0).await?;
            let run = self.follow(&mut told, |_| false).await?;
            self.closed(&run, &old).await?;
            if n == 0 {
                self.summary.first_rotation_seconds = rounded(self.show.seconds());
            }
        }
        self.step(1, &format!("{CLEAN} clean rotations; each old password was tried: dead"));
        Ok(())
    }

    /// Step 2.
    async fn killed(&mut self) -> Result<(), String> {
        self.show.head("2  The answer to a change is held back once the database has made it, and the server is killed with -9");
        let old = self.play.keyward.current().await?;
        // The first change of a run sets the new value, the second one kills the old.
        let held = self.play.proxy.arm("ALTER ROLE", self.play.rng.below(2));
        let mut told = self.rotate("the script: the server will be killed", true).await?;
        tokio::select! {
            held = timeout(RUN_MAX, held) => {
                held.map_err(|_| "no change reached the database".to_owned())?.map_err(|e| e.to_string())?;
            }
            run = self.follow(&mut told, |_| false) => return Err(format!("the run went past the answer that is held back: {:?}", run?)),
        }
        // What happened until now is told before the server is gone.
        self.look(&mut told).await?;
        self.say("the database has changed the password; its answer is held back");
        self.play.keyward.kill().await?;
        self.say("the server is killed: nobody knows whether the change was made");
        let down = 300 + self.play.rng.below(700);
        sleep(Duration::from_millis(down)).await;
        self.say(&format!("the server is started again after {down} ms of darkness"));
        self.play.keyward.restart(&self.play.stage).await?;
        let run = self.follow(&mut told, |_| false).await?;
        self.closed(&run, &old).await?;
        self.summary.rotations.resumed_after_kill += 1;
        self.step(2, "server killed with -9 while an answer of PostgreSQL was on its way: found out, closed");
        Ok(())
    }

    /// Step 3.
    async fn stopped(&mut self) -> Result<(), String> {
        let victim = self.play.fleet.pick(&self.play.rng)?;
        self.show.head(&format!("3  {victim} is stopped: the run must hold and name it, and the old credential must keep working"));
        let old = self.play.keyward.current().await?;
        self.play.fleet.signal(&victim, Signal::STOP)?;
        let mut told = self.rotate("the script: one replica is stopped", false).await?;
        let run = self.follow(&mut told, |run| run.held && run.missing().contains(&victim.as_str())).await?;
        if run.is_closed() {
            return Err(format!("the run closed without {victim}"));
        }
        self.say(&format!("held in {}: waits for {}", run.phase, run.missing().join(", ")));
        let place = self.play.fleet.place(&self.play.stage);
        pool::probe(&place, &old).await.map_err(|e| format!("the old credential does not work while the run holds: {e}"))?;
        self.say("the old credential still works");
        self.play.fleet.signal(&victim, Signal::CONT)?;
        self.say(&format!("{victim} continues"));
        let phase = run.phase;
        let run = self.follow(&mut told, |_| false).await?;
        self.closed(&run, &old).await?;
        self.summary.rotations.held_then_closed += 1;
        self.step(3, &format!("{victim} stopped: held in {phase}, the old password kept working; continued, closed"));
        Ok(())
    }

    /// Step 4.
    async fn poisoned(&mut self) -> Result<(), String> {
        self.show.head("4  The new role is read-only: logins work, inserts do not. The first replica must refuse it before it serves");
        let old = self.play.keyward.current().await?;
        let idle = Play::idle(&old)?;
        self.play.poison(idle, true).await?;
        let mut told = self.rotate("the script: the new value is poisoned", true).await?;
        let run = self.follow(&mut told, |_| false).await?;
        self.play.poison(idle, false).await?;
        if run.verdict.as_deref() != Some("rolled_back") || !run.death_proven {
            return Err(format!("the poisoned run ended as {:?}, death proven: {}", run.verdict, run.death_proven));
        }
        let refused = run.evidence.iter().find_map(|e| e.found.get("refused")?.get("instance")?.as_str());
        let Some(refused) = refused else { return Err("nobody refused the poisoned value".to_owned()) };
        if self.play.keyward.current().await? != old {
            return Err("the value in force is not the old one after the rollback".to_owned());
        }
        self.summary.rotations.rolled_back += 1;
        self.summary.deaths_proven += 1;
        self.play.converged().await?;
        self.step(4, &format!("new role made read-only: {refused} refused it, rolled back by itself, new password dead"));
        Ok(())
    }

    /// While everything still runs: no secret is where it does not belong.
    async fn secrets(&mut self) -> Result<(), String> {
        let canaries = self.play.keyward.canaries().await?;
        let postgres = self.play.stage.cluster.log().map_err(|e| explain(&e))?;
        let directory = self.play.stage.directory.clone();
        let number = canaries.len();
        let searching = move || leaks::search(&canaries, &directory, &[("PostgreSQL's log", postgres)]);
        self.summary.secrets_searched_in = tokio::task::spawn_blocking(searching).await.map_err(|e| e.to_string())??;
        self.show.done(&format!(
            "         {number} secrets are in none of {} logs, argument lists, environments of others and files that others can read",
            self.summary.secrets_searched_in
        ));
        Ok(())
    }

    /// Ends the load and the services of both sides.
    async fn quiet_down(&mut self) -> Result<(Tally, Shown), String> {
        // It must have had the time to fail.
        while self.play.usual.changes < USUAL_MIN || (self.usual.failed() == 0 && !self.play.usual.is_at_rest()) {
            if self.play.usual.is_at_rest() {
                self.change().await?;
            }
            sleep(LOOK).await;
        }
        let load = std::mem::replace(&mut self.play.load, Load::none());
        let (tally, shown) = tokio::join!(load.stop(), self.play.usual.stop());
        self.show.line(&format!(
            "the load has ended: {} sent, {} answered, {} failed; latency {:.1} ms at the median, {:.1} ms at 99 % (with those that waited for the stopped replica)",
            tally.sent,
            tally.answered.len(),
            tally.failed,
            millis(tally.latency(50)),
            millis(tally.latency(99))
        ));
        self.play.fleet.stop().await?;
        Ok((tally, shown?))
    }

    /// Step 5.
    fn control(&mut self, shown: &Shown) -> Result<(), String> {
        self.show.head("5  The control: the usual rotation, which ran all the while with the same services, pools and load");
        let Side { sent, failed, rotations } = Side::usual(shown);
        self.summary.control = ControlFigures { sent, failed, rotations };
        shown.judge()?;
        let first = shown.tally.failures.first().map_or_else(String::new, |f| format!("; the first: {}", f.reason));
        self.show.done(&format!("step 5   the usual rotation beside it failed {failed} of {sent} requests, as it must{first}"));
        Ok(())
    }

    /// Step 6.
    async fn accounts(&mut self, tally: &Tally) -> Result<(), String> {
        self.show.head("6  Accounts");
        let (rows, wrong) = self.play.accounts(tally).await?;
        self.summary.rows = rows;
        self.summary.requests = Requests { sent: tally.sent, answered: tally.answered.len(), failed: tally.failed };
        self.propagation.sort_unstable();
        self.summary.propagation_ms = Propagation { p50: share(&self.propagation, 50), p99: share(&self.propagation, 99) };
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        self.show.done(&format!("step 6   {rows} rows for {} answered requests, each once; {} failed", tally.answered.len(), tally.failed));
        Ok(())
    }

    /// Step 7.
    async fn prove(&mut self) -> Result<(), String> {
        self.show.head("7  Proof: the audit log is exported and checked by a program that trusts nobody");
        let (dir, intact) = self.play.export().await?;
        self.summary.proof.dir.clone_from(&dir);
        self.summary.proof.entries = intact.entries;
        self.summary.proof.verified = intact.exit == 0;
        self.show.line(&format!("{} entries, intact: {}", intact.entries, intact.exit == 0));
        if intact.exit != 0 {
            return Err(format!("the export does not pass: {intact:?}"));
        }
        let copy = self.play.stage.directory.join("tampered");
        proof::copy(&dir, &copy).map_err(|e| format!("could not copy the export: {e}"))?;
        let flipped = proof::damage(&copy, &self.play.rng)?;
        let tampered = proof::verify(&self.summary.checker, &copy).await?;
        self.summary.proof.tampered_index = tampered.index;
        self.show.line(&format!(
            "one byte of entry {flipped} flipped: {} ({})",
            tampered.message.as_deref().unwrap_or("no message"),
            tampered.index.map_or_else(|| "no index".to_owned(), |index| format!("entry {index}"))
        ));
        if tampered.exit != 1 || tampered.index != Some(flipped) || tampered.tree.as_deref() != Some("change") {
            return Err(format!("the damage to entry {flipped} was not named: {tampered:?}"));
        }
        self.play.keyward.stop().await?;
        self.show.done(&format!(
            "step 7   {} audit entries verified; with one byte of entry {flipped} flipped, that entry is named",
            intact.entries
        ));
        Ok(())
    }

    /// Opens a run, to be told in full or in short; the usual rotation changes its password at the same time.
    async fn rotate(&mut self, reason: &str, in_full: bool) -> Result<Told, String> {
        if self.play.usual.is_at_rest() {
            self.change().await?;
        }
        self.number += 1;
        Ok(Told { run: self.play.keyward.rotate(reason).await?, in_full, tale: Tale::default() })
    }

    async fn change(&mut self) -> Result<(), String> {
        self.play.usual.change().await?;
        self.show
            .load(&self.usual, &format!("usual rotation: password {} changed in place and written to the files", self.play.usual.changes));
        Ok(())
    }

    fn say(&self, text: &str) {
        self.show.load(&self.load, &format!("#{}  {text}", self.number));
    }

    /// A step is done: what it has shown, and the figures of both sides.
    fn step(&self, number: u8, text: &str) {
        let (load, usual) = (&self.load, &self.usual);
        let figures = format!("failed {} of {}; usual {} of {}", load.failed(), load.sent(), usual.failed(), usual.sent());
        self.show.done(&format!("step {number}   {text} [{figures}]"));
    }

    /// Looks at a run once and tells what it has found out since the last look, each thing with the time at which it happened.
    async fn look(&self, told: &mut Told) -> Result<Run, String> {
        let run = self.play.keyward.run(&told.run).await?;
        for (ms, evidence) in told.tale.news(&run) {
            if told.in_full || evidence.is_milestone() || evidence.found == "entered" {
                let text = format!("#{}  {ms:>5} ms  {:<9} {}", self.number, evidence.phase.to_uppercase(), evidence.sentence());
                self.show.load_at(&self.load, evidence.at.unwrap_or_default(), &text);
            }
        }
        Ok(run)
    }

    /// Follows a run until it closes or `enough` says so.
    async fn follow(&self, told: &mut Told, enough: impl Fn(&Run) -> bool) -> Result<Run, String> {
        let until = Instant::now() + RUN_MAX;
        loop {
            let run = match self.look(told).await {
                Ok(run) => run,
                Err(error) if Instant::now() > until => return Err(format!("run `{}` cannot be seen: {error}", told.run)),
                Err(_) => {
                    sleep(LOOK).await;
                    continue;
                }
            };
            if run.is_closed() || enough(&run) {
                return Ok(run);
            }
            if let Some(reason) = &run.parked {
                return Err(format!("run `{}` waits for an operator: {reason}", told.run));
            }
            if Instant::now() > until {
                return Err(format!("run `{}` is still in {} and waits for {}", told.run, run.phase, run.waits()));
            }
            sleep(LOOK).await;
        }
    }

    /// What must hold after a run on the new value.
    async fn closed(&mut self, run: &Run, old: &Login) -> Result<(), String> {
        self.play.closed(run, old).await?;
        self.summary.rotations.closed += 1;
        self.summary.deaths_proven += 1;
        self.propagation.extend(propagation(run));
        self.say("closed: the old password is dead; the demonstration tried it, too");
        Ok(())
    }
}

/// A run that is being told.
struct Told {
    run: String,
    /// Everything, or only what is worth a line in the short form.
    in_full: bool,
    tale: Tale,
}

/// Milliseconds below which this share of microseconds lies.
fn share(sorted: &[u64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    millis(Duration::from_micros(sorted.get(at).copied().unwrap_or(0)))
}

fn millis(span: Duration) -> f64 {
    rounded(span.as_secs_f64() * 1_000.0)
}

fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_sentence() {
        assert_eq!(Summary { ok: true, ..Summary::default() }.complaint(), None);
        let bad = Summary { wrong: vec!["2 requests failed".into(), "nobody refused".into()], ..Summary::default() };
        assert_eq!(bad.complaint().unwrap(), "Not everything was as stated: 2 requests failed; nobody refused");
        assert_eq!(bad.outcome().proof, None);
    }
}
