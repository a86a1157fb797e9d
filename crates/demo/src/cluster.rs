//! A throw-away PostgreSQL cluster: made, started, stopped, killed and removed by the process that owns it.
//!
//! The demonstration rotates passwords in it, and the tests of several crates run against it through `testkit`.
//! Authentication is SCRAM, settings are PostgreSQL's defaults (a test that looks for leaks in the log wants the
//! defaults), the files lie in one directory of mode 0700, and an unprivileged account runs the server when the owner
//! is root. Nothing here sleeps: readiness is read from `postmaster.pid` under inotify, the end of a process from its
//! pidfd.
//!
//! Everything blocks; call it from a blocking thread when an async runtime is near.
//! What a server does with the cluster (roles, tables, targets) is left to the callers.

mod account;
mod files;
mod process;
mod programs;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use account::Account;
use files::Home;
use process::{Running, Signal};
use programs::Programs;

/// How long a start, a stop or `initdb` may take without any sign of life.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many ports are tried when others take them between our look and PostgreSQL's bind.
const PORT_ATTEMPTS_MAX: usize = 20;

/// A PostgreSQL cluster that lives as long as this value.
pub struct Cluster {
    programs: Programs,
    account: Option<Account>,
    home: Home,
    port: u16,
    password: String,
    running: Option<Running>,
}

/// How a cluster is made; the default is PostgreSQL's own.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Turns `fsync` off: quicker, and a crash of the machine may lose committed rows.
    pub danger_fsync_off: bool,
    /// More lines for `postgresql.conf`: name and value; the value is quoted here.
    pub settings: Vec<(String, String)>,
    /// Where the directory is made. Without it: the first of the temporary directories that the account reaches and
    /// that is short enough for a socket path.
    pub parent: Option<PathBuf>,
}

/// How a stop treats the sessions that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Waits until every client has left.
    Smart,
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

/// Where the superuser connects and as whom. `Debug` leaves the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct Superuser {
    /// Always the loopback address.
    pub host: String,
    /// The port of this cluster; it stays the same over restarts.
    pub port: u16,
    /// The role that `initdb` made.
    pub user: String,
    /// Its password, drawn at random for this cluster.
    pub password: String,
    /// A database that exists.
    pub database: String,
}

/// Why a cluster could not be made or moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL server is installed.
    #[error("found no PostgreSQL server programs in PATH or in `/usr/lib/postgresql/*/bin`; looked at {looked_at} directories")]
    NoServer {
        /// Directories that were looked at.
        looked_at: usize,
    },
    /// Root needs an account and a tool to run PostgreSQL as somebody else.
    #[error("PostgreSQL does not run as root, and {missing}")]
    NoAccount {
        /// What is not there.
        missing: String,
    },
    /// No directory fits.
    #[error("no directory that account `{account}` reaches is short enough for a socket; tried {tried}")]
    NoDirectory {
        /// The account that runs the server.
        account: String,
        /// The candidates.
        tried: String,
    },
    /// A file or directory could not be used.
    #[error("could not {action} `{}`", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A call to the system failed.
    #[error("could not {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("`{program}` ended with {status}: {said}")]
    Program {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        said: String,
    },
    /// The server ended before it was ready.
    #[error("the server ended with {status} before it was ready: {said}")]
    EndedEarly {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        said: String,
    },
    /// Something took longer than it may.
    #[error("gave up after {} s waiting for {event}", PATIENCE.as_secs())]
    Patience {
        /// What did not happen.
        event: &'static str,
    },
    /// The cluster does not run.
    #[error("the cluster is stopped")]
    Stopped,
    /// A setting cannot be written into a configuration file.
    #[error("setting `{name}` has a name or value that no configuration line can hold")]
    Setting {
        /// Its name.
        name: String,
    },
    /// The server refused the new rules and kept the old ones.
    #[error("the server did not accept the new `pg_hba.conf`: {said}")]
    Rules {
        /// What it logged.
        said: String,
    },
}

impl Cluster {
    /// Makes a cluster and starts it with the defaults.
    pub fn create() -> Result<Cluster, Error> {
        Cluster::create_with(&Options::default())
    }

    /// Makes a cluster and starts it. Also removes what clusters of processes that died without a word left behind.
    pub fn create_with(options: &Options) -> Result<Cluster, Error> {
        let account = account::unprivileged()?;
        let programs = programs::find(account.as_ref())?;
        let home = Home::create(options.parent.as_deref(), account.as_ref())?;
        let password = files::random_password()?;
        let mut cluster = Cluster { programs, account, home, port: 0, password, running: None };
        cluster.initdb()?;
        cluster.home.keep_rules_of_initdb()?;
        cluster.first_start(options)?;
        Ok(cluster)
    }

    /// Starts a cluster that was stopped or killed, on the same port; returns once it accepts connections.
    /// A running one stays as it is.
    pub fn start(&mut self) -> Result<(), Error> {
        if self.is_running() {
            return Ok(());
        }
        self.running = None;
        self.running = Some(Running::start(&self.programs, self.account.as_ref(), &self.home)?);
        Ok(())
    }

    /// Stops the cluster and returns when its last process has ended. A stopped one stays as it is.
    pub fn stop(&mut self, mode: Mode) -> Result<(), Error> {
        let signal = match mode {
            Mode::Smart => Signal::TERM,
            Mode::Fast => Signal::INT,
            Mode::Immediate => Signal::QUIT,
        };
        match self.running.as_mut() {
            Some(running) => running.stop(signal)?,
            None => return Ok(()),
        }
        self.running = None;
        Ok(())
    }

    /// Kills every process of the cluster at once, as a power cut would; files stay as they are.
    pub fn kill(&mut self) -> Result<(), Error> {
        match self.running.as_mut() {
            Some(running) => running.kill()?,
            None => return Ok(()),
        }
        self.running = None;
        Ok(())
    }

    /// Replaces the rules of `pg_hba.conf` with these lines; on return every new connection is judged by them.
    /// Rules that the server refuses are taken back.
    pub fn hba(&mut self, lines: &[&str]) -> Result<(), Error> {
        let mut text = lines.join("\n");
        text.push('\n');
        self.replace_rules(&text)
    }

    /// Puts the rules of `initdb` back: SCRAM for everybody, on the socket and on the loopback address.
    pub fn hba_default(&mut self) -> Result<(), Error> {
        let text = self.home.rules_of_initdb()?;
        self.replace_rules(&text)
    }

    /// Whether the server process lives; it may have ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(Running::is_alive)
    }

    /// The address: always loopback.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port: the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the superuser connects.
    pub fn superuser(&self) -> Superuser {
        Superuser {
            host: self.host().to_owned(),
            port: self.port,
            user: "postgres".to_owned(),
            password: self.password.clone(),
            database: "postgres".to_owned(),
        }
    }

    /// The version as the server gives it, for example `15.18`.
    pub fn version(&self) -> &str {
        self.programs.version()
    }

    /// One of PostgreSQL's programs, for example `psql`, where it is installed.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        self.programs.path(name)
    }

    /// The directory that holds everything: data, socket, log.
    pub fn directory(&self) -> &Path {
        self.home.directory()
    }

    /// The directory of the Unix socket.
    pub fn socket_directory(&self) -> PathBuf {
        self.home.sockets()
    }

    /// All that the server has logged so far, over restarts.
    pub fn log(&self) -> Result<String, Error> {
        self.home.read_log(0)
    }

    /// The process id of the server, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.running.as_ref().map(Running::id)
    }

    fn initdb(&self) -> Result<(), Error> {
        let password_file = self.home.write_password(&self.password, self.account.as_ref())?;
        let mut command = process::command(&self.programs.initdb(), self.account.as_ref());
        command
            .current_dir(self.home.directory())
            .args(["--auth=scram-sha-256", "--username=postgres"])
            .args(["--encoding=UTF8", "--locale=C"])
            .args(["--no-sync", "--no-instructions"])
            .arg("--pgdata")
            .arg(self.home.data())
            .arg("--pwfile")
            .arg(&password_file);
        let done = process::run("initdb", command);
        files::remove(&password_file)?;
        done
    }

    fn first_start(&mut self, options: &Options) -> Result<(), Error> {
        let mut attempts = files::ports();
        for _ in 1..PORT_ATTEMPTS_MAX {
            self.port = attempts.next_free()?;
            self.home.configure(self.port, options)?;
            match self.start() {
                Err(Error::EndedEarly { said, .. }) if said.contains("could not bind") => {}
                other => return other,
            }
        }
        self.port = attempts.next_free()?;
        self.home.configure(self.port, options)?;
        self.start()
    }

    fn replace_rules(&mut self, text: &str) -> Result<(), Error> {
        let running = self.running.as_ref().ok_or(Error::Stopped)?;
        let account = self.account.as_ref();
        let old = self.home.read_rules()?;
        let before = self.home.log_length()?;
        self.home.write_rules(text, account)?;
        running.signal(Signal::HUP)?;
        // The postmaster handles a signal before it accepts a connection that came later. An answer on a new
        // connection therefore proves that the rules were read, and that a complaint about them is in the log.
        process::knock(self.host(), self.port)?;
        let said = self.home.read_log(before)?;
        if said.contains("was not reloaded") {
            self.home.write_rules(&old, account)?;
            return Err(Error::Rules { said });
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(running) = self.running.as_mut()
            && running.stop(Signal::QUIT).is_err()
        {
            running.kill().ok();
        }
        self.running = None;
        self.home.remove();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("directory", &self.home.directory()).field("port", &self.port).finish_non_exhaustive()
    }
}

impl fmt::Debug for Superuser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Superuser")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}
