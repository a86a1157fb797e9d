//! The control: how rotation is usually done. One user, changed in place; consumers read the new password when their timer says so.
//!
//! Services, pools and load are those of the main part; only the way of a new password to them differs. If no request failed here, the
//! demonstration could not see a failure.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::child::Child;
use crate::load::{Load, Replica, Tally};
use crate::service::Supply;
use crate::show::Show;
use crate::stage::{DATABASE, Stage, private};
use crate::{explain, fleet};

const ROLE: &str = "control_user";
const TABLE: &str = "control_work";
/// How often consumers read their password again.
const REREAD: Duration = Duration::from_secs(4);
const ROTATIONS: u64 = 2;

/// What the control showed.
pub(crate) struct Control {
    pub(crate) tally: Tally,
    /// Rows that answered requests left, and rows in all.
    pub(crate) rows: usize,
}

/// Runs the control.
pub(crate) async fn run(stage: &mut Stage, show: &Show, per_second: u64, seed: u64) -> Result<Control, String> {
    let root = stage.sql(DATABASE).await?;
    let password = |n: u64| format!("control-{seed}-{n}");
    root.run(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", password(0))).await?;
    root.run(&format!("{}; GRANT INSERT ON {TABLE} TO {ROLE}", crate::sql::table(TABLE))).await?;
    let mut replicas = Vec::new();
    let mut children: Vec<Child> = Vec::new();
    let mut files: Vec<PathBuf> = Vec::new();
    for (n, (name, _)) in fleet::cast(seed).into_iter().enumerate() {
        let name = format!("control-{name}");
        let path = stage.directory.join(format!("{name}.credential.json"));
        let port = stage.port()?;
        write(&path, &password(0))?;
        let period_ms = u64::try_from(REREAD.as_millis()).unwrap_or(u64::MAX);
        let supply = Supply::Timer { path: path.clone(), period_ms };
        let config = stage.service(&name, TABLE, Some(port), supply, seed.wrapping_add(u64::try_from(n).unwrap_or(0)))?;
        children.push(stage.start(&name, &["demo".into(), "service".into(), config.into()], &[])?);
        files.push(path);
        replicas.push(Replica { name, address: format!("127.0.0.1:{port}") });
        // Timers of a fleet do not tick together.
        sleep(REREAD / 6).await;
    }
    fleet::serving(&replicas, children.iter_mut()).await?;
    let load = Load::start(&replicas, per_second, &format!("c{seed}"), seed).map_err(|e| explain(&e))?;
    show.load(&load, &format!("{} services with the usual rotation: one user, a timer of {} s", replicas.len(), REREAD.as_secs()));
    sleep(Duration::from_secs(1)).await;
    for n in 1..=ROTATIONS {
        root.run(&format!("ALTER ROLE {ROLE} PASSWORD '{}'", password(n))).await?;
        for file in &files {
            write(file, &password(n))?;
        }
        show.load(&load, &format!("password {n} changed in place and written to the files"));
        sleep(REREAD + Duration::from_millis(500)).await;
        show.load(&load, "every timer has ticked");
    }
    let tally = load.stop().await;
    for child in &mut children {
        child.signal(Signal::TERM);
    }
    for child in &mut children {
        child.wait(Duration::from_secs(10)).await;
    }
    let (_, rows) = root.ids(TABLE).await?;
    Ok(Control { tally, rows })
}

fn write(path: &std::path::Path, password: &str) -> Result<(), String> {
    private(path, &serde_json::json!({ "username": ROLE, "password": password }))
}
