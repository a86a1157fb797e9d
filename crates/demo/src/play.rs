//! Everything that plays: PostgreSQL, the server, the replicas with Keyward and those with the usual rotation, and the load on both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::rng::SeededRng;
use screen::Run;
use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;
use crate::gate::Gate;
use crate::keyward::{Keyward, SLOTS};
use crate::load::{Load, Tally};
use crate::pool::{self, Login};
use crate::proxy::Proxy;
use crate::stage::{DATABASE, Stage};
use crate::usual::Usual;
use crate::{explain, proof};

/// Requests per second to each side.
pub(crate) const PER_SECOND: u64 = 120;
/// How long one run may take, and how long one wait within it.
pub(crate) const RUN_MAX: Duration = Duration::from_secs(120);
/// How often a run is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(40);

/// What happens on the stage.
pub(crate) struct Play {
    pub(crate) stage: Stage,
    /// Between the server and PostgreSQL.
    pub(crate) proxy: Proxy,
    /// Between the consumers and the server.
    pub(crate) gate: Gate,
    pub(crate) keyward: Keyward,
    pub(crate) fleet: Fleet,
    pub(crate) load: Load,
    pub(crate) usual: Usual,
    pub(crate) rng: SeededRng,
}

impl Play {
    /// Sets everything up and starts the load on both sides. `said` is told of each part that stands.
    pub(crate) async fn open(seed: u64, said: &dyn Fn(String)) -> Result<Self, String> {
        let mut stage = Stage::set(seed).await?;
        said(format!("PostgreSQL {} listens on {}:{}", stage.cluster.version(), stage.cluster.host(), stage.cluster.port()));
        let target = format!("{}:{}", stage.cluster.host(), stage.cluster.port());
        let proxy = Proxy::start(target.parse().map_err(|e| format!("`{target}`: {e}"))?).await.map_err(|e| e.to_string())?;
        let keyward = Keyward::start(&mut stage).await?;
        let gate = Gate::start(keyward.place()).await.map_err(|e| e.to_string())?;
        said(format!("Keyward listens on {}; its data is in {}", keyward.address, stage.directory.display()));
        let first = keyward.furnish(&stage, &proxy.address().to_string()).await?;
        let root = stage.sql(DATABASE).await?;
        root.run(&format!("{}; ALTER TABLE work OWNER TO {}", crate::sql::table("work"), crate::keyward::OWNER)).await?;
        let until = Instant::now() + RUN_MAX;
        loop {
            let run = keyward.run(&first).await?;
            if run.verdict.as_deref() == Some("first") {
                break;
            }
            if run.is_closed() || run.parked.is_some() || Instant::now() > until {
                return Err(format!("the first value was not set: {run:?}"));
            }
            sleep(LOOK).await;
        }
        said("the secret `secret/orders/db` has its first value".to_owned());
        let fleet = Fleet::start(&mut stage, &keyward, &format!("http://{}", gate.address()), seed).await?;
        let number = fleet.replicas.len();
        said(format!("{number} replicas serve, each proven to use the value: {}", fleet.names().join(", ")));
        let mut usual = Usual::start(&mut stage, seed).await?;
        let timer = crate::usual::REREAD.as_secs();
        said(format!("{number} replicas serve with the usual rotation: one user, its password read again every {timer} s"));
        said(format!("{PER_SECOND} requests per second begin on each side; each inserts a row and is never sent again"));
        let load = Load::start(&fleet.replicas, PER_SECOND, &format!("r{seed}"), seed).map_err(|e| explain(&e))?;
        usual.begin(PER_SECOND)?;
        Ok(Self { stage, proxy, gate, keyward, fleet, load, usual, rng: SeededRng::new(seed) })
    }

    /// What must hold after a run on the new value: proof of death, seen by ourselves as well, and everybody on it. Returns what PostgreSQL
    /// said to the old password.
    pub(crate) async fn closed(&self, run: &Run, old: &Login) -> Result<String, String> {
        if run.verdict.as_deref() != Some("rotated") || !run.death_proven {
            return Err(format!("the run ended as {:?}, death proven: {}", run.verdict, run.death_proven));
        }
        let refused = self.refused(old).await?;
        self.converged().await?;
        Ok(refused)
    }

    /// Tries a login that must be refused as a wrong password.
    pub(crate) async fn refused(&self, dead: &Login) -> Result<String, String> {
        match pool::probe(&self.fleet.place(&self.stage), dead).await {
            Err(text) if text.contains("28P01") => Ok(text),
            other => Err(format!("the dead credential is not refused as a wrong password: {other:?}")),
        }
    }

    pub(crate) async fn converged(&self) -> Result<(), String> {
        let holders = self.keyward.converged().await?;
        let missing: Vec<String> = self.fleet.names().into_iter().filter(|name| !holders.contains(name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not on the value in force: {}", missing.join(", "))) }
    }

    /// The slot that is not in force.
    pub(crate) fn idle(in_force: &Login) -> Result<&'static str, String> {
        SLOTS.into_iter().find(|slot| *slot != in_force.username).ok_or_else(|| "both slots are in use".to_owned())
    }

    /// Makes the idle role read-only, or ends that: logins work, inserts do not.
    pub(crate) async fn poison(&self, role: &str, poisoned: bool) -> Result<(), String> {
        let what = if poisoned { "SET default_transaction_read_only = on" } else { "RESET default_transaction_read_only" };
        self.stage.sql("postgres").await?.run(&format!("ALTER ROLE {role} {what}")).await
    }

    /// The rows in the table of work, which must be exactly those of the answered requests. Says what is not so.
    pub(crate) async fn accounts(&self, tally: &Tally) -> Result<(usize, Vec<String>), String> {
        let (ids, rows) = self.stage.sql(DATABASE).await?.ids("work").await?;
        Ok((rows, compare(&ids, rows, tally)))
    }

    /// Exports the audit log into a directory that is not there yet, and has it checked.
    pub(crate) async fn export(&self) -> Result<(PathBuf, proof::Verdict), String> {
        let dir = fresh();
        let env = [("VAULT_ADDR", self.keyward.address.clone().into()), ("VAULT_TOKEN", self.keyward.token.expose().clone().into())];
        let mut export = self.stage.start("export", &["audit".into(), "export".into(), dir.clone().into()], &env)?;
        match export.wait(RUN_MAX).await {
            Some(status) if status.success() => {}
            Some(status) => return Err(format!("`keyward audit export` ended with {status}:\n{}", export.said())),
            None => return Err("`keyward audit export` takes too long".to_owned()),
        }
        let verdict = proof::verify(&proof::checker(&self.stage.program), &dir).await?;
        Ok((dir, verdict))
    }
}

/// Every request that was answered has one row, and there are no others.
fn compare(ids: &BTreeSet<String>, rows: usize, tally: &Tally) -> Vec<String> {
    let mut wrong = Vec::new();
    if tally.failed != 0 {
        wrong.push(format!("{} requests failed", tally.failed));
        for failure in tally.failures.iter().take(5) {
            let after = failure.after.as_millis();
            wrong.push(format!("{} to {} after {after} ms: {}", failure.id, failure.replica, failure.reason));
        }
    }
    if rows != ids.len() {
        wrong.push(format!("{} rows repeat an id", rows - ids.len()));
    }
    if *ids != tally.answered {
        let (extra, missing) = (ids.difference(&tally.answered).count(), tally.answered.difference(ids).count());
        wrong.push(format!("{extra} rows of requests that were not answered, {missing} answered requests without a row"));
    }
    wrong
}

/// A directory that is not there yet.
fn fresh() -> PathBuf {
    let name = |n: u32| std::env::temp_dir().join(format!("keyward-proof-{}-{n}", std::process::id()));
    (1..).map(name).find(|path: &PathBuf| !Path::exists(path)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Failure;

    #[test]
    fn accounts_find_what_is_missing_too_much_or_twice() {
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let tally =
            |failed: u64| Tally { sent: 2 + failed, answered: set(&["a", "b"]), failed, failures: Vec::new(), latencies: Vec::new() };
        let found = |ids: &[&str], rows| compare(&set(ids), rows, &tally(0));
        assert_eq!(found(&["a", "b"], 2), Vec::<String>::new());
        assert_eq!(found(&["a", "b"], 3), ["1 rows repeat an id"]);
        assert_eq!(found(&["a"], 1), ["0 rows of requests that were not answered, 1 answered requests without a row"]);
        assert_eq!(found(&["a", "b", "c"], 3), ["1 rows of requests that were not answered, 0 answered requests without a row"]);
        let failure = Failure { id: "x".into(), replica: "r".into(), after: Duration::from_millis(7), reason: "500: no".into() };
        let failing = Tally { failures: vec![failure], ..tally(1) };
        assert_eq!(compare(&set(&["a", "b"]), 2, &failing), ["1 requests failed", "x to r after 7 ms: 500: no"]);
    }
}
