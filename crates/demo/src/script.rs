//! The script: seven steps in order, each with what must be seen. It ends with an error when anything was not as stated.

use std::path::PathBuf;
use std::time::Duration;

use base::rng::SeededRng;
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::fleet::Fleet;
use crate::keyward::{Keyward, Run, SLOTS};
use crate::leaks;
use crate::load::{Load, Tally};
use crate::pool::{self, Login};
use crate::proxy::Proxy;
use crate::show::Show;
use crate::stage::{DATABASE, Stage};
use crate::{control, explain, proof};

/// Requests per second.
const PER_SECOND: u64 = 220;
/// Clean rotations.
const CLEAN: u64 = 5;
/// How long one run may take, and how long one wait within it.
const RUN_MAX: Duration = Duration::from_secs(60);
/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(40);
/// How long the whole script may take.
const ALL_MAX: Duration = Duration::from_secs(420);

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

/// What happens on the stage.
struct Play {
    show: Show,
    stage: Stage,
    proxy: Proxy,
    keyward: Keyward,
    fleet: Fleet,
    load: Load,
    rng: SeededRng,
    summary: Summary,
    propagation: Vec<u64>,
    number: u64,
}

/// Runs the script and returns the summary, whatever happened.
pub(crate) async fn run(seed: u64) -> Summary {
    let show = Show::new();
    let since = Instant::now();
    let mut summary = Summary { seed, ..Summary::default() };
    let played = timeout(ALL_MAX, play(show, seed, &mut summary)).await;
    match played {
        Ok(Ok(())) => {}
        Ok(Err(text)) => summary.wrong.push(text),
        Err(_) => summary.wrong.push(format!("not done within {} s", ALL_MAX.as_secs())),
    }
    summary.seconds = rounded(since.elapsed().as_secs_f64());
    summary.ok = summary.wrong.is_empty();
    summary
}

/// For a reader at a terminal: rotations without end, until interrupted, with a dead password to try.
pub(crate) async fn watch(seed: u64) -> Result<(), String> {
    const PAUSE: Duration = Duration::from_secs(10);
    let mut play = Play::open(Show::new(), seed).await?;
    let program = play.stage.program.display().to_string();
    play.show.head(&format!(
        "Rotations under load, until Ctrl-C. `{program} demo --script` plays crashes, stops and poison as well, and judges"
    ));
    loop {
        let old = play.keyward.current().await?;
        let mut tale = play.rotate("the demonstration", true).await?;
        let run = play.follow(&mut tale, |_| false).await?;
        play.closed(&run, &old).await?;
        let (host, port) = (play.stage.cluster.host(), play.stage.cluster.port());
        let token = play.stage.directory.join("server").join("root-token");
        play.show.head(&format!(
            "Try the dead password:  PGPASSWORD={} psql -h {host} -p {port} -U {} {DATABASE}\n   \
             The one in force:       VAULT_ADDR={} VAULT_TOKEN=$(cat {}) {program} kv get secret/orders/db",
            old.password,
            old.username,
            play.keyward.address,
            token.display()
        ));
        sleep(PAUSE).await;
    }
}

async fn play(show: Show, seed: u64, out: &mut Summary) -> Result<(), String> {
    let mut play = Play::open(show, seed).await?;
    let done = play.steps().await;
    // Also after a failure: what was seen until then is worth telling.
    play.summary.wrong.append(&mut out.wrong);
    play.summary.seed = seed;
    *out = play.summary;
    done
}

impl Summary {
    /// The outcome in a sentence.
    pub(crate) fn sentence(&self) -> String {
        let Requests { sent, failed, .. } = self.requests;
        let proof = if self.proof.entries == 0 {
            "no proof was exported".to_owned()
        } else {
            format!("the exported proof is in {}: keyward-verify reads it", self.proof.dir.display())
        };
        if self.ok {
            format!("Everything was as stated: of {sent} requests under load {failed} failed; {proof}.")
        } else {
            format!("Not everything was as stated: {}; {proof}.", self.wrong.join("; "))
        }
    }
}

impl Play {
    async fn open(show: Show, seed: u64) -> Result<Self, String> {
        show.head("The stage: a throw-away PostgreSQL, the Keyward server, six replicas of three services, a load that never retries");
        let mut stage = Stage::set(seed).await?;
        show.line(&format!("PostgreSQL {} listens on {}:{}", stage.cluster.version(), stage.cluster.host(), stage.cluster.port()));
        let target = format!("{}:{}", stage.cluster.host(), stage.cluster.port());
        let proxy = Proxy::start(target.parse().map_err(|e| format!("`{target}`: {e}"))?).await.map_err(|e| e.to_string())?;
        let keyward = Keyward::start(&mut stage).await?;
        show.line(&format!("Keyward listens on {}; its data is in {}", keyward.address, stage.directory.display()));
        let first = keyward.furnish(&stage, &proxy.address().to_string()).await?;
        let root = stage.sql(DATABASE).await?;
        root.run(&format!("{}; ALTER TABLE work OWNER TO {}", crate::sql::table("work"), crate::keyward::OWNER)).await?;
        let until = Instant::now() + RUN_MAX;
        loop {
            let run = keyward.run(&first).await?;
            if run.verdict.as_deref() == Some("first") {
                break;
            }
            if run.phase == "closed" || run.parked.is_some() || Instant::now() > until {
                return Err(format!("the first value was not set: {run:?}"));
            }
            sleep(LOOK).await;
        }
        show.line("the secret `secret/orders/db` has its first value");
        let fleet = Fleet::start(&mut stage, &keyward, seed).await?;
        show.line(&format!("{} replicas serve, each proven to use the value: {}", fleet.replicas.len(), fleet.names().join(", ")));
        let load = Load::start(&fleet.replicas, PER_SECOND, &format!("r{seed}"), seed).map_err(|e| explain(&e))?;
        let summary = Summary { postgres: stage.cluster.version().to_owned(), ..Summary::default() };
        Ok(Self { show, stage, proxy, keyward, fleet, load, rng: SeededRng::new(seed), summary, propagation: Vec::new(), number: 0 })
    }

    async fn steps(&mut self) -> Result<(), String> {
        self.clean().await?;
        self.killed().await?;
        self.stopped().await?;
        self.poisoned().await?;
        self.secrets().await?;
        let tally = self.quiet_down().await?;
        self.control().await?;
        self.accounts(&tally).await?;
        self.prove().await
    }

    /// Step 1.
    async fn clean(&mut self) -> Result<(), String> {
        self.show.head(&format!("1  {CLEAN} clean rotations under load"));
        for n in 0..CLEAN {
            let old = self.keyward.current().await?;
            let mut tale = self.rotate("the script: a clean rotation", n == 0).await?;
            let run = self.follow(&mut tale, |_| false).await?;
            self.closed(&run, &old).await?;
            if n == 0 {
                self.summary.first_rotation_seconds = rounded(self.show.seconds());
            }
        }
        Ok(())
    }

    /// Step 2.
    async fn killed(&mut self) -> Result<(), String> {
        self.show.head("2  The answer to a change is held back once the database has made it, and the server is killed with -9");
        let old = self.keyward.current().await?;
        // The first change of a run sets the new value, the second one kills the old.
        let held = self.proxy.arm("ALTER ROLE", self.rng.below(2));
        let mut tale = self.rotate("the script: the server will be killed", true).await?;
        tokio::select! {
            held = timeout(RUN_MAX, held) => {
                held.map_err(|_| "no change reached the database".to_owned())?.map_err(|e| e.to_string())?;
            }
            run = self.follow(&mut tale, |_| false) => return Err(format!("the run went past the answer that is held back: {:?}", run?)),
        }
        // What happened until now is told before the server is gone.
        self.look(&mut tale).await?;
        self.say("the database has changed the password; its answer is held back");
        self.keyward.kill().await?;
        self.say("the server is killed: nobody knows whether the change was made");
        let down = 300 + self.rng.below(700);
        sleep(Duration::from_millis(down)).await;
        self.say(&format!("the server is started again after {down} ms of darkness"));
        self.keyward.restart(&self.stage).await?;
        let run = self.follow(&mut tale, |_| false).await?;
        self.closed(&run, &old).await?;
        self.summary.rotations.resumed_after_kill += 1;
        Ok(())
    }

    /// Step 3.
    async fn stopped(&mut self) -> Result<(), String> {
        let victim = self.fleet.pick(&self.rng)?;
        self.show.head(&format!("3  {victim} is stopped: the run must hold and name it, and the old credential must keep working"));
        let old = self.keyward.current().await?;
        self.fleet.signal(&victim, Signal::STOP)?;
        let mut tale = self.rotate("the script: one replica is stopped", false).await?;
        let run = self.follow(&mut tale, |run| run.held && run.waits_for.iter().any(|l| l.who == victim)).await?;
        if run.phase == "closed" {
            return Err(format!("the run closed without {victim}"));
        }
        self.say(&format!("held in {}: waits for {}", run.phase, waits(&run)));
        let place = self.fleet.place(&self.stage);
        pool::probe(&place, &old).await.map_err(|e| format!("the old credential does not work while the run holds: {e}"))?;
        self.say("the old credential still works");
        self.fleet.signal(&victim, Signal::CONT)?;
        self.say(&format!("{victim} continues"));
        let run = self.follow(&mut tale, |_| false).await?;
        self.closed(&run, &old).await?;
        self.summary.rotations.held_then_closed += 1;
        Ok(())
    }

    /// Step 4.
    async fn poisoned(&mut self) -> Result<(), String> {
        self.show.head("4  The new role is read-only: logins work, inserts do not. The first replica must refuse it before it serves");
        let old = self.keyward.current().await?;
        let idle = SLOTS.iter().find(|slot| **slot != old.username).ok_or("both slots are in use")?;
        let root = self.stage.sql("postgres").await?;
        root.run(&format!("ALTER ROLE {idle} SET default_transaction_read_only = on")).await?;
        let mut tale = self.rotate("the script: the new value is poisoned", true).await?;
        let run = self.follow(&mut tale, |_| false).await?;
        root.run(&format!("ALTER ROLE {idle} RESET default_transaction_read_only")).await?;
        if run.verdict.as_deref() != Some("rolled_back") || !run.death_proven {
            return Err(format!("the poisoned run ended as {:?}, death proven: {}", run.verdict, run.death_proven));
        }
        if !run.evidence.iter().any(|e| e.found.get("refused").is_some()) {
            return Err("nobody refused the poisoned value".to_owned());
        }
        if self.keyward.current().await? != old {
            return Err("the value in force is not the old one after the rollback".to_owned());
        }
        self.summary.rotations.rolled_back += 1;
        self.summary.deaths_proven += 1;
        self.converged().await
    }

    /// While everything still runs: no secret is where it does not belong.
    async fn secrets(&mut self) -> Result<(), String> {
        let canaries = self.keyward.canaries().await?;
        let postgres = self.stage.cluster.log().map_err(|e| explain(&e))?;
        let directory = self.stage.directory.clone();
        let number = canaries.len();
        let searching = move || leaks::search(&canaries, &directory, &[("PostgreSQL's log", postgres)]);
        self.summary.secrets_searched_in = tokio::task::spawn_blocking(searching).await.map_err(|e| e.to_string())??;
        self.show.line(&format!(
            "{number} secrets are in none of {} logs, argument lists, environments of others and files that others can read",
            self.summary.secrets_searched_in
        ));
        Ok(())
    }

    /// Ends the load and the services.
    async fn quiet_down(&mut self) -> Result<Tally, String> {
        let load = Load::start(&[], 1, "", 0).map_err(|e| explain(&e))?;
        let tally = std::mem::replace(&mut self.load, load).stop().await;
        self.show.head("5  The control: the usual rotation, with the same services, pools and load");
        self.show.line(&format!(
            "the load has ended: {} sent, {} answered, {} failed; latency {:.1} ms at the median, {:.1} ms at 99 % (with those that waited for the stopped replica)",
            tally.sent,
            tally.answered.len(),
            tally.failed,
            millis(tally.latency(50)),
            millis(tally.latency(99))
        ));
        self.fleet.stop().await?;
        Ok(tally)
    }

    /// Step 5.
    async fn control(&mut self) -> Result<(), String> {
        let seed = self.rng.next_u64() % 1_000_000;
        let control = control::run(&mut self.stage, &self.show, PER_SECOND, seed).await?;
        self.summary.control = ControlFigures { sent: control.tally.sent, failed: control.tally.failed };
        let first = control.tally.failures.first().map_or_else(String::new, |f| format!(", for example: {}", f.reason));
        self.show.line(&format!("control: {} of {} requests failed{first}", control.tally.failed, control.tally.sent));
        if control.tally.failed == 0 {
            return Err("no request failed in the control: this demonstration cannot see a failure".to_owned());
        }
        if control.rows != control.tally.answered.len() {
            return Err(format!("control: {} rows for {} answered requests", control.rows, control.tally.answered.len()));
        }
        Ok(())
    }

    /// Step 6.
    async fn accounts(&mut self, tally: &Tally) -> Result<(), String> {
        self.show.head("6  Accounts");
        let (ids, rows) = self.stage.sql(DATABASE).await?.ids("work").await?;
        self.summary.rows = rows;
        self.summary.requests = Requests { sent: tally.sent, answered: tally.answered.len(), failed: tally.failed };
        self.propagation.sort_unstable();
        self.summary.propagation_ms = Propagation { p50: share(&self.propagation, 50), p99: share(&self.propagation, 99) };
        self.show.line(&format!("{rows} rows, {} requests answered, {} failed", tally.answered.len(), tally.failed));
        let mut wrong = Vec::new();
        if tally.failed != 0 {
            wrong.push(format!("{} requests failed", tally.failed));
            for failure in tally.failures.iter().take(5) {
                wrong.push(format!("{} to {} after {:.0} ms: {}", failure.id, failure.replica, millis(failure.after), failure.reason));
            }
        }
        if rows != ids.len() {
            wrong.push(format!("{} rows repeat an id", rows - ids.len()));
        }
        if ids != tally.answered {
            let (extra, missing) = (ids.difference(&tally.answered).count(), tally.answered.difference(&ids).count());
            wrong.push(format!("{extra} rows of requests that were not answered, {missing} answered requests without a row"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Step 7.
    async fn prove(&mut self) -> Result<(), String> {
        self.show.head("7  Proof: the audit log is exported and checked by a program that trusts nobody");
        let dir = fresh();
        self.summary.proof.dir.clone_from(&dir);
        self.export(&dir).await?;
        let checker = proof::checker(&self.stage.program);
        let intact = proof::verify(&checker, &dir).await?;
        self.summary.proof.entries = intact.entries;
        self.summary.proof.verified = intact.exit == 0;
        self.show.line(&format!("{} entries, intact: {}", intact.entries, intact.exit == 0));
        if intact.exit != 0 {
            return Err(format!("the export does not pass: {intact:?}"));
        }
        let copy = self.stage.directory.join("tampered");
        proof::copy(&dir, &copy).map_err(|e| format!("could not copy the export: {e}"))?;
        let flipped = proof::damage(&copy, &self.rng)?;
        let tampered = proof::verify(&checker, &copy).await?;
        self.summary.proof.tampered_index = tampered.index;
        self.show.line(&format!(
            "one byte of entry {flipped} flipped: {} ({})",
            tampered.message.as_deref().unwrap_or("no message"),
            tampered.index.map_or_else(|| "no index".to_owned(), |index| format!("entry {index}"))
        ));
        if tampered.exit != 1 || tampered.index != Some(flipped) || tampered.tree.as_deref() != Some("change") {
            return Err(format!("the damage to entry {flipped} was not named: {tampered:?}"));
        }
        self.keyward.stop().await
    }

    async fn export(&self, dir: &std::path::Path) -> Result<(), String> {
        let env = [("VAULT_ADDR", self.keyward.address.clone().into()), ("VAULT_TOKEN", self.keyward.token.expose().clone().into())];
        let mut export = self.stage.start("export", &["audit".into(), "export".into(), dir.into()], &env)?;
        match export.wait(RUN_MAX).await {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("`keyward audit export` ended with {status}:\n{}", export.said())),
            None => Err("`keyward audit export` takes too long".to_owned()),
        }
    }

    /// Opens a run, to be told in full or in short.
    async fn rotate(&mut self, reason: &str, in_full: bool) -> Result<Tale, String> {
        self.number += 1;
        Ok(Tale { run: self.keyward.rotate(reason).await?, in_full, told: 0, opened: None })
    }

    fn say(&self, text: &str) {
        self.show.load(&self.load, &format!("#{}  {text}", self.number));
    }

    /// Looks at a run once and tells what it has found out since the last look, each thing with the time at which it happened.
    async fn look(&self, tale: &mut Tale) -> Result<Run, String> {
        let run = self.keyward.run(&tale.run).await?;
        for (at, text) in tale.news(&run) {
            self.show.load_at(&self.load, at, &format!("#{}  {text}", self.number));
        }
        Ok(run)
    }

    /// Follows a run until it closes or `enough` says so.
    async fn follow(&self, tale: &mut Tale, enough: impl Fn(&Run) -> bool) -> Result<Run, String> {
        let until = Instant::now() + RUN_MAX;
        loop {
            let run = match self.look(tale).await {
                Ok(run) => run,
                Err(error) if Instant::now() > until => return Err(format!("run `{}` cannot be seen: {error}", tale.run)),
                Err(_) => {
                    sleep(LOOK).await;
                    continue;
                }
            };
            if run.phase == "closed" || enough(&run) {
                return Ok(run);
            }
            if let Some(reason) = &run.parked {
                return Err(format!("run `{}` waits for an operator: {reason}", tale.run));
            }
            if Instant::now() > until {
                return Err(format!("run `{}` is still in {} and waits for {}", tale.run, run.phase, waits(&run)));
            }
            sleep(LOOK).await;
        }
    }

    /// What must hold after a run on the new value: proof of death, seen by ourselves as well, and everybody on it.
    async fn closed(&mut self, run: &Run, old: &Login) -> Result<(), String> {
        if run.verdict.as_deref() != Some("rotated") || !run.death_proven {
            return Err(format!("the run ended as {:?}, death proven: {}", run.verdict, run.death_proven));
        }
        match pool::probe(&self.fleet.place(&self.stage), old).await {
            Err(text) if text.contains("28P01") => {}
            other => return Err(format!("the old credential is not refused as a wrong password: {other:?}")),
        }
        self.summary.rotations.closed += 1;
        self.summary.deaths_proven += 1;
        self.propagation.extend(run.propagation());
        self.say("closed: the old password is dead; the demonstration tried it, too");
        self.converged().await
    }

    async fn converged(&self) -> Result<(), String> {
        let holders = self.keyward.converged().await?;
        let missing: Vec<String> = self.fleet.names().into_iter().filter(|name| !holders.contains(name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not on the value in force: {}", missing.join(", "))) }
    }
}

/// A run that is being told.
struct Tale {
    run: String,
    /// Everything, or only what is worth a line in the short form.
    in_full: bool,
    /// How much of the evidence was told or passed over.
    told: usize,
    /// When the run found out the first thing, in microseconds since 1970.
    opened: Option<u64>,
}

impl Tale {
    /// What was not told yet, each with the time at which it happened, in microseconds since 1970.
    fn news(&mut self, run: &Run) -> Vec<(u64, String)> {
        let mut news = Vec::new();
        for evidence in run.evidence.iter().skip(self.told) {
            let ms = evidence.at.saturating_sub(*self.opened.get_or_insert(evidence.at)) / 1_000;
            if let Some(text) = evidence.sentence().filter(|_| self.in_full || tells(evidence)) {
                news.push((evidence.at, format!("{ms:>5} ms  {:<9} {text}", evidence.phase.to_uppercase())));
            }
        }
        self.told = self.told.max(run.evidence.len());
        news
    }
}

/// Worth a line also in the short form.
fn tells(evidence: &crate::keyward::Evidence) -> bool {
    evidence.found == "entered"
        || ["published", "refused", "dead", "trouble", "turned_back"].iter().any(|k| evidence.found.get(k).is_some())
}

fn waits(run: &Run) -> String {
    if run.waits_for.is_empty() { "nobody".to_owned() } else { run.waits_for.iter().map(|l| l.who.as_str()).collect::<Vec<_>>().join(", ") }
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

/// A directory that is not there yet.
fn fresh() -> PathBuf {
    let name = |n: u32| std::env::temp_dir().join(format!("keyward-proof-{}-{n}", std::process::id()));
    (1..).map(name).find(|path| !path.exists()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(evidence: &[(u64, &str)]) -> Run {
        let at = |us: u64| base::Timestamp(1_767_225_600_000_000 + us).rfc3339();
        let evidence: Vec<_> = evidence.iter().map(|(us, phase)| json!({ "at": at(*us), "phase": phase, "found": "entered" })).collect();
        serde_json::from_value(json!({ "phase": "stage", "evidence": evidence })).unwrap()
    }

    /// A run that was followed in two stretches was told twice, and what happened before the server was killed carried the time after it.
    #[test]
    fn each_thing_is_told_once_with_its_own_time() {
        let mut tale = Tale { run: "r".into(), in_full: true, told: 0, opened: None };
        let told = |news: Vec<(u64, String)>| news.into_iter().map(|(at, text)| (at - 1_767_225_600_000_000, text)).collect::<Vec<_>>();
        let first = told(tale.news(&run(&[(1_000, "plan"), (8_000, "set")])));
        assert_eq!(first.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1_000, 8_000]);
        assert!(first[1].1.starts_with("    7 ms  SET "), "{first:?}");
        assert_eq!(told(tale.news(&run(&[(1_000, "plan"), (8_000, "set")]))), []);
        let later = told(tale.news(&run(&[(1_000, "plan"), (8_000, "set"), (950_000, "stage")])));
        assert_eq!(later.len(), 1);
        assert!(later[0].1.starts_with("  949 ms  STAGE "), "{later:?}");
    }

    #[test]
    fn the_outcome_is_a_sentence() {
        let proof = ProofFigures { dir: "/tmp/p".into(), entries: 7, ..ProofFigures::default() };
        let requests = Requests { sent: 9, answered: 9, failed: 0 };
        let good = Summary { ok: true, requests, proof, ..Summary::default() };
        let text = "Everything was as stated: of 9 requests under load 0 failed; the exported proof is in /tmp/p: keyward-verify reads it.";
        assert_eq!(good.sentence(), text);
        let bad = Summary { wrong: vec!["2 requests failed".into()], ..Summary::default() };
        assert_eq!(bad.sentence(), "Not everything was as stated: 2 requests failed; no proof was exported.");
    }
}
