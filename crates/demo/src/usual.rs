//! The usual rotation, beside Keyward's: one user, changed in place; consumers read the new password when their timer says so.
//!
//! It is the control of the demonstration. Services, pools, load and PostgreSQL are those of the main part; only the way of a new password to
//! the services differs. If no request failed here, the demonstration could not see a failure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::child::Child;
use crate::load::{Load, Replica, Tally};
use crate::service::Supply;
use crate::sql::Sql;
use crate::stage::{DATABASE, Stage, private};
use crate::{explain, fleet};

const ROLE: &str = "usual_user";
const TABLE: &str = "usual_work";
/// How often consumers read their password again.
pub(crate) const REREAD: Duration = Duration::from_secs(4);
/// How long a change is left alone, so that every timer has ticked before the next one.
const REST: Duration = Duration::from_millis(5_000);

/// Six replicas and their load.
pub(crate) struct Usual {
    root: Sql,
    children: Vec<Child>,
    files: Vec<PathBuf>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) load: Load,
    seed: u64,
    /// Passwords that came after the first one.
    pub(crate) changes: u64,
    changed: Option<Instant>,
}

/// What it has shown.
pub(crate) struct Shown {
    pub(crate) tally: Tally,
    /// How often the password was changed.
    pub(crate) changes: u64,
    /// Rows that answered requests left, and others.
    pub(crate) rows: usize,
}

impl Usual {
    /// Starts the replicas; their load is not running yet.
    pub(crate) async fn start(stage: &mut Stage, seed: u64) -> Result<Self, String> {
        let root = stage.sql(DATABASE).await?;
        root.run(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", password(seed, 0))).await?;
        root.run(&format!("{}; GRANT INSERT ON {TABLE} TO {ROLE}", crate::sql::table(TABLE))).await?;
        let (children, files, replicas) = (Vec::new(), Vec::new(), Vec::new());
        let mut usual = Self { root, children, files, replicas, load: Load::none(), seed, changes: 0, changed: None };
        let cast = fleet::cast(seed);
        let (number, period_ms) = (u64::try_from(cast.len()).unwrap_or(1), millis(REREAD));
        for (n, role) in (0..).zip(cast) {
            let name = format!("usual-{}", role.short);
            let path = stage.directory.join(format!("{name}.credential.json"));
            let port = stage.port()?;
            write(&path, &password(seed, 0))?;
            let supply = Supply::Timer { path: path.clone(), period_ms, phase_ms: period_ms * n / number };
            let config = stage.service(&name, TABLE, Some(port), supply, seed.wrapping_add(n))?;
            usual.children.push(stage.start(&name, &["demo".into(), "service".into(), config.into()], &[])?);
            usual.files.push(path);
            usual.replicas.push(Replica { name, address: format!("127.0.0.1:{port}") });
        }
        fleet::serving(&usual.replicas, usual.children.iter_mut()).await?;
        Ok(usual)
    }

    /// Starts the load.
    pub(crate) fn begin(&mut self, per_second: u64) -> Result<(), String> {
        self.load = Load::start(&self.replicas, per_second, &format!("u{}", self.seed), self.seed).map_err(|e| explain(&e))?;
        Ok(())
    }

    /// Whether every timer has ticked since the last change.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.changed.is_none_or(|changed| changed.elapsed() > REST)
    }

    /// Changes the password in place and writes it where the services will read it.
    pub(crate) async fn change(&mut self) -> Result<(), String> {
        let new = password(self.seed, self.changes + 1);
        self.root.run(&format!("ALTER ROLE {ROLE} PASSWORD '{new}'")).await?;
        for file in &self.files {
            write(file, &new)?;
        }
        self.changes += 1;
        self.changed = Some(Instant::now());
        Ok(())
    }

    /// Ends load and services.
    pub(crate) async fn stop(&mut self) -> Result<Shown, String> {
        let tally = std::mem::replace(&mut self.load, Load::none()).stop().await;
        for child in &mut self.children {
            child.signal(Signal::TERM);
        }
        for child in &mut self.children {
            child.wait(Duration::from_secs(10)).await;
        }
        let (_, rows) = self.root.ids(TABLE).await?;
        Ok(Shown { tally, changes: self.changes, rows })
    }
}

impl Shown {
    /// What must hold, or the demonstration has shown nothing.
    pub(crate) fn judge(&self) -> Result<(), String> {
        if self.tally.failed == 0 {
            return Err("no request failed with the usual rotation: this demonstration cannot see a failure".to_owned());
        }
        if self.rows != self.tally.answered.len() {
            return Err(format!("usual rotation: {} rows for {} answered requests", self.rows, self.tally.answered.len()));
        }
        Ok(())
    }
}

fn password(seed: u64, n: u64) -> String {
    format!("usual-{seed}-{n}")
}

fn write(path: &Path, password: &str) -> Result<(), String> {
    private(path, &serde_json::json!({ "username": ROLE, "password": password }))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
