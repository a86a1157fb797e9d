//! The stage: a directory, a PostgreSQL, free ports, and the binary that everything is made of.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::child::{Child, Start};
use crate::cluster::{Cluster, Options};
use crate::pool::Place;
use crate::service::{Config, Supply};
use crate::sql::Sql;

/// The database of the services.
pub(crate) const DATABASE: &str = "shop";
/// The longest life of a pool's connection, in milliseconds.
pub(crate) const LIFE_MS: u64 = 2_000;
/// Below the range from which Linux hands out ports for outgoing connections.
const PORTS: std::ops::Range<u16> = 14_000..20_000;

/// The name of our directory before the process id.
const DIRECTORY: &str = "keyward-demo-";

/// Everything that stands before the play begins. Dropped, it is gone.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) program: PathBuf,
    /// Holds files of the server, the agents and the services, and what they say.
    pub(crate) directory: PathBuf,
    ports: Box<dyn Iterator<Item = u16> + Send>,
}

impl Stage {
    /// Sets the stage.
    pub(crate) async fn set(seed: u64) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| format!("could not find this program: {e}"))?;
        let made = tokio::task::spawn_blocking(|| {
            let settings = vec![("max_connections".to_owned(), "300".to_owned())];
            Cluster::create_with(&Options { settings, ..Options::default() })
        });
        let cluster = made.await.map_err(|e| e.to_string())?.map_err(|e| crate::explain(&e))?;
        sweep();
        let directory = std::env::temp_dir().join(format!("{DIRECTORY}{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|e| format!("could not make `{}`: {e}", directory.display()))?;
        let width = PORTS.end - PORTS.start;
        let spread = u16::try_from((u64::from(std::process::id()) * 37 + seed) % u64::from(width)).unwrap_or(0);
        let ports = Box::new((0..width).map(move |n| PORTS.start + (spread + n) % width));
        let stage = Self { cluster, program, directory, ports };
        stage.sql("postgres").await?.run(&format!("CREATE DATABASE {DATABASE}")).await?;
        Ok(stage)
    }

    /// A session of the superuser.
    pub(crate) async fn sql(&self, database: &str) -> Result<Sql, String> {
        Sql::connect(&self.cluster.superuser(), database).await
    }

    /// A port that nobody listens on.
    pub(crate) fn port(&mut self) -> Result<u16, String> {
        self.ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).ok_or_else(|| "no port is free".to_owned())
    }

    /// Starts a program of ours.
    pub(crate) fn start(&self, name: &str, args: &[OsString], env: &[(&str, OsString)]) -> Result<Child, String> {
        // What it makes for a while lies where we clean up.
        let env = [env, &[("TMPDIR", self.directory.clone().into())]].concat();
        Child::start(&Start { name, program: &self.program, args, env: &env, logs: &self.directory })
            .map_err(|e| format!("could not start `{name}`: {e}"))
    }

    /// Writes the configuration of a service and returns the path.
    pub(crate) fn service(&self, name: &str, table: &str, listen: Option<u16>, supply: Supply, seed: u64) -> Result<PathBuf, String> {
        let place = Place {
            host: self.cluster.host().to_owned(),
            port: self.cluster.port(),
            database: DATABASE.to_owned(),
            table: table.to_owned(),
            application: name.to_owned(),
            life_ms: LIFE_MS,
        };
        let listen = listen.map(|port| format!("127.0.0.1:{port}"));
        let path = self.directory.join(format!("{name}.service.json"));
        private(&path, &Config { name: name.to_owned(), listen, place, supply, seed })?;
        Ok(path)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What cannot be removed lies in a directory for temporary things.
        fs::remove_dir_all(&self.directory).unwrap_or_default();
    }
}

/// Removes what demonstrations left that were killed.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY)?.parse::<u32>().ok()) else { continue };
        let ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw());
        if ours && !Path::new(&format!("/proc/{pid}")).exists() {
            // It may be gone already; another one may sweep as well.
            fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }
}

/// Writes a file that only its owner reads, in one step.
pub(crate) fn private(path: &Path, value: &impl Serialize) -> Result<(), String> {
    let said = |e: std::io::Error| format!("could not write `{}`: {e}", path.display());
    let text = serde_json::to_vec(value).map_err(|e| e.to_string())?;
    private_bytes(path, &text).map_err(said)
}

/// Writes a file that only its owner reads, in one step.
pub(crate) fn private_bytes(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    std::io::Write::write_all(&mut file, bytes)?;
    fs::rename(&beside, path)
}
