//! `server`: a data directory that looks after itself, or `-dev` in memory.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{SecretBytes, SecretString};
use kernel::{Kernel, Place};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use super::args::{LogFormat, Server};
use super::{Failure, Outcome, env, output};
use crate::wiring;

/// Stands in the data directory while it is being initialised: a start that finds it was interrupted before anything was stored.
const UNFINISHED: &str = "initialising";
const KEY_FILE: &str = "keyward.key";
const ROOT_TOKEN: &str = "root-token";

pub(super) fn run(args: Server) -> Outcome {
    if args.config.is_some() {
        return Err(Failure::local("Error: configuration files are not supported yet; use flags (see `server -h`)"));
    }
    // Before any thread: files of this process are for its user alone, and its memory goes to no core file.
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    harden();
    let logs = logs(args.log_level.as_deref(), args.log_format)?;
    allow_connections();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::local(format!("Error starting: {error}")))?.block_on(serve(args, &logs))
}

fn harden() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let refused = [setrlimit(Resource::Core, none), set_dumpable_behavior(DumpableBehavior::NotDumpable)];
    for error in refused.into_iter().filter_map(Result::err) {
        output::note(&format!("could not forbid core files: {error}"));
    }
}

/// Files that are open beside the connections, generously.
const FILES_BESIDE: u64 = 128;

/// Raises the soft limit of open files to the hard one: each connection is one, and the usual soft limit is 1,024.
fn allow_connections() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let needed = u64::try_from(base::Limits::default().connections_max).unwrap_or(u64::MAX).saturating_add(FILES_BESIDE);
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "fewer files may be open than connections are allowed: raise the hard limit (`LimitNOFILE=` of a systemd unit)"
        );
    }
}

/// Changes what is logged.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The log lines of this process, once they are set up.
pub(super) struct Logs {
    /// The file that says what is logged.
    file: Option<PathBuf>,
    set: SetFilter,
}

/// Sets up the log lines of this process, on standard error. `level` is a level, a filter, or `@FILE` with one of these.
pub(super) fn logs(level: Option<&str>, format: LogFormat) -> Result<Logs, Failure> {
    let level = level.map(str::to_owned).or_else(|| std::env::var("KEYWARD_LOG").ok()).unwrap_or_else(|| "info".to_owned());
    let file = level.strip_prefix('@').map(PathBuf::from);
    let filter = match &file {
        Some(file) => filter_of(file),
        None => EnvFilter::try_new(&level).map_err(|error| format!("`-log-level` cannot be read: {error}")),
    };
    let filter = filter.map_err(|error| Failure::local(format!("Error: {error}")))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let (set, begun): (SetFilter, _) = match format {
        LogFormat::Standard => {
            let logs = logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter_reloading();
            let handle = logs.reload_handle();
            (Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())), logs.try_init())
        }
        LogFormat::Json => {
            let logs = logs.json().flatten_event(true).with_filter_reloading();
            let handle = logs.reload_handle();
            (Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())), logs.try_init())
        }
    };
    begun.map_err(|error| Failure::local(format!("Error: logs could not be set up: {error}")))?;
    Ok(Logs { file, set })
}

impl Logs {
    /// Reads the file again, and says what came of it.
    fn reload(&self) {
        let Some(file) = &self.file else {
            tracing::info!(
                "SIGHUP: nothing is read again: flags and environment are those of the start; with `-log-level=@FILE` the file would be"
            );
            return;
        };
        match filter_of(file).and_then(|filter| {
            let shown = filter.to_string();
            (self.set)(filter).map(|()| shown)
        }) {
            Ok(filter) => tracing::info!(file = %file.display(), %filter, "SIGHUP: the log level was read again"),
            Err(reason) => tracing::error!(%reason, "SIGHUP: the log level stays as it is"),
        }
    }
}

/// The filter in a file.
fn filter_of(file: &Path) -> Result<EnvFilter, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("`{}` could not be read: {error}", file.display()))?;
    EnvFilter::try_new(text.trim()).map_err(|error| format!("`{}` holds no log level: {error}", file.display()))
}

/// What a signal asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    End,
    Reload,
    /// Nothing that it knows. Unheard, the signal would end the process at once.
    Nothing(&'static str),
}

/// The signals that would end a process that does not listen to them.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::local(format!("Error listening for signals: {error}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            quit: on(SignalKind::quit())?,
            user_1: on(SignalKind::user_defined1())?,
            user_2: on(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.quit.recv() => Asked::Nothing("SIGQUIT"),
            _ = self.user_1.recv() => Asked::Nothing("SIGUSR1"),
            _ = self.user_2.recv() => Asked::Nothing("SIGUSR2"),
        }
    }

    /// Returns when the server is asked to end. Everything else is answered here.
    async fn end(&mut self, logs: &Logs) {
        loop {
            match self.next().await {
                Asked::End => return,
                Asked::Reload => logs.reload(),
                Asked::Nothing(name) => {
                    tracing::warn!("{name}: nothing is done; SIGTERM or SIGINT end the server, SIGHUP reads the log level again")
                }
            }
        }
    }
}

async fn serve(args: Server, logs: &Logs) -> Outcome {
    // First of all: a signal that comes while the data is being read ends nothing by accident.
    let mut signals = Signals::listen()?;
    let address = match (args.dev, args.dev_listen_address, env("DEV_LISTEN_ADDRESS")) {
        (false, ..) => args.listen_address,
        (true, Some(address), _) => address,
        (true, None, Some(text)) => {
            text.parse().map_err(|_| Failure::local("Error: the dev listen address of the environment is not HOST:PORT"))?
        }
        (true, None, None) => args.listen_address,
    };
    let listener = bind(address).await?;
    let address = listener.local_addr().map_err(|error| Failure::local(format!("Error: the listener has no address: {error}")))?;

    let kernel = if args.dev { dev(&args, address).await? } else { durable(&args, address).await? };
    tracing::info!(%address, version = crate::BUILD, "serving");
    let (stop, stopped) = watch::channel(false);
    let mut serving = tokio::spawn(wiring::serve(Arc::clone(&kernel), listener, stopped));
    tokio::select! {
        () = kernel.failed() => {
            return Err(Failure::local("Error: a log could not be written, so nothing can be answered; mend the cause (the log above names it) and start again"));
        }
        ended = &mut serving => return Err(Failure::local(format!("Error: the server ended by itself: {ended:?}"))),
        () = signals.end(logs) => {}
    }
    tracing::info!("stopping: streams are told, answers under way may leave; a second signal ends at once");
    stop.send_replace(true);
    tokio::select! {
        ended = serving => ended.map_err(|error| Failure::local(format!("Error while stopping: {error}")))?,
        () = signals.end(logs) => return Err(Failure::local("stopped at once")),
    }
    tracing::info!("stopped");
    Ok(0)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    if !address.ip().is_loopback() {
        return Err(Failure::local(format!(
            "Error: `{address}` can be reached from other machines, and TLS is not built yet: secrets would cross the network in clear.\n\
             Listen on a loopback address (127.0.0.1 or [::1])."
        )));
    }
    TcpListener::bind(address).await.map_err(|error| Failure::local(format!("Error: could not listen on `{address}`: {error}")))
}

/// In memory, and gone at the end.
async fn dev(args: &Server, address: SocketAddr) -> Result<Arc<Kernel>, Failure> {
    let token = args.dev_root_token_id.clone().or_else(|| env("DEV_ROOT_TOKEN_ID")).map(SecretString::new);
    let kernel = wiring::open(Place::Memory).map_err(|error| failed("opening", &error))?;
    let made = kernel.initialise(token).await.map_err(|error| failed("initialising", &error))?;
    wiring::mount_secret(&kernel, &made.root_token).await.map_err(|error| failed("initialising", &error))?;
    output::line(&format!(
        "WARNING! dev mode is enabled! Everything is in memory and gone at the end; the seal is\n\
         open and there is one root token. Never use it for secrets that matter.\n\n\
         In another shell:\n\n    \
         export VAULT_ADDR='http://{address}'\n    \
         export VAULT_TOKEN='{token}'\n\n\
         Root Token: {token}\n",
        token = made.root_token.expose(),
    ))?;
    Ok(kernel)
}

/// In a directory: made, initialised and unsealed by itself; after a restart it is simply there.
async fn durable(args: &Server, address: SocketAddr) -> Result<Arc<Kernel>, Failure> {
    let home = Home::open(&args.data, args.key_file.as_deref())?;
    let kernel = wiring::open(Place::Directory(home.dir.join("data"))).map_err(|error| failed("opening the data", &error))?;
    let (first, shown) = if kernel.initialised() {
        kernel.unseal(&home.key()?).await.map_err(|error| failed("unsealing", &error))?;
        ("Keyward is unsealed.", String::new())
    } else {
        home.begin()?;
        let made = kernel.initialise(None).await.map_err(|error| failed("initialising", &error))?;
        home.finish(&made.root_key, &made.root_token)?;
        let token = quoted(&home.dir.join(ROOT_TOKEN));
        let shown = format!(
            "\nIn another shell:\n\n    \
             export VAULT_ADDR='http://{address}'\n    \
             export VAULT_TOKEN=\"$(cat {token})\"\n    \
             keyward status\n    \
             keyward secrets enable -path=secret kv-v2\n\n\
             The key file opens the data: whoever has both can read everything, and without the key nobody\n\
             can. Keep a copy of it, apart from copies of the data. Splitting it among people (Shamir) and\n\
             keeping it in a KMS are not built yet. The root token may do everything: make tokens that may do\n\
             less, then revoke it (`keyward token revoke -self`) and remove its file.\n"
        );
        ("Keyward has been initialised and is unsealed.", shown)
    };
    output::line(&format!(
        "{first}\n\n    Address     http://{address}\n    Data        {}\n    Key file    {}\n{shown}",
        home.dir.display(),
        home.key_file.display(),
    ))?;
    Ok(kernel)
}

fn failed(doing: &str, error: &dyn std::error::Error) -> Failure {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    Failure::local(causes.fold(format!("Error {doing}: {error}"), |text, cause| format!("{text}: {cause}")))
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// The data directory and the key file.
#[derive(Debug)]
struct Home {
    dir: PathBuf,
    key_file: PathBuf,
}

impl Home {
    fn open(dir: &Path, key_file: Option<&Path>) -> Result<Self, Failure> {
        let said = |what: &str, error: io::Error| Failure::local(format!("Error: could not {what} `{}`: {error}", dir.display()));
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| said("make", error))?;
        }
        let dir = dir.canonicalize().map_err(|error| said("find", error))?;
        private(&dir, "700")?;
        // In full, so that it has a folder, which must be synced when it is made.
        let key_file = std::path::absolute(key_file.unwrap_or(&dir.join(KEY_FILE))).map_err(|error| said("find the key file of", error))?;
        let home = Self { key_file, dir };
        if home.dir.join(UNFINISHED).exists() {
            return Err(Failure::local(format!(
                "Error: the first start in `{}` was interrupted. Nothing was ever stored there: remove the directory and start again",
                home.dir.display()
            )));
        }
        Ok(home)
    }

    /// The key that opens the seal.
    fn key(&self) -> Result<SecretBytes, Failure> {
        let shown = self.key_file.display();
        let text = fs::read_to_string(&self.key_file).map(Zeroizing::new).map_err(|error| {
            Failure::local(format!("Error: the key file `{shown}` could not be read ({error}); without it the data stays sealed"))
        })?;
        private(&self.key_file, "600")?;
        let key = crypto::encode::from_hex(text.trim()).filter(|key| key.len() == 32).map(SecretBytes::new);
        key.ok_or_else(|| Failure::local(format!("Error: `{shown}` is not a key file")))
    }

    /// Says that the first start has begun. A key that is there already belongs to other data and is never replaced.
    fn begin(&self) -> Result<(), Failure> {
        for path in [self.key_file.clone(), self.dir.join(ROOT_TOKEN)] {
            if path.exists() {
                return Err(Failure::local(format!("Error: `{}` is there, but there is no data that it belongs to", path.display())));
            }
        }
        if let Some(folder) = self.key_file.parent().filter(|folder| !folder.is_dir()) {
            return Err(Failure::local(format!("Error: there is no folder `{}` for the key file: make it first", folder.display())));
        }
        self.keep(&self.dir.join(UNFINISHED), b"")
    }

    /// Keeps what the first start made.
    fn finish(&self, key: &SecretBytes, token: &SecretString) -> Result<(), Failure> {
        let hex = Zeroizing::new(crypto::encode::hex(key.expose()));
        self.keep(&self.key_file, format!("{}\n", *hex).as_bytes())?;
        self.keep(&self.dir.join(ROOT_TOKEN), format!("{}\n", token.expose()).as_bytes())?;
        let marker = self.dir.join(UNFINISHED);
        let removed = fs::remove_file(&marker).and_then(|()| fs::File::open(&self.dir)?.sync_all());
        removed.map_err(|error| Failure::local(format!("Error: could not remove `{}`: {error}", marker.display())))
    }

    /// Writes a new file for its owner alone and makes it durable.
    fn keep(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let written = fs::File::options().create_new(true).write(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::File::open(path.parent().unwrap_or(&self.dir))?.sync_all()
        });
        written.map_err(|error| Failure::local(format!("Error: could not write `{}`: {error}", path.display())))
    }
}

/// Refuses what others may read.
fn private(path: &Path, wanted: &str) -> Result<(), Failure> {
    let shown = path.display();
    let about = fs::metadata(path).map_err(|error| Failure::local(format!("Error: could not look at `{shown}`: {error}")))?;
    if about.mode() & 0o077 != 0 {
        return Err(Failure::local(format!("Error: others can use `{shown}`; run: chmod {wanted} {}", quoted(path))));
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::local(format!("Error: `{shown}` belongs to another user")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refused(outcome: Result<impl std::fmt::Debug, Failure>) -> String {
        outcome.unwrap_err().text
    }

    #[test]
    fn a_first_start_leaves_private_files_and_no_marker() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let home = Home::open(&dir, None).unwrap();
        home.begin().unwrap();
        assert!(refused(Home::open(&dir, None)).contains("interrupted"));
        let key = SecretBytes::new(vec![7; 32]);
        home.finish(&key, &SecretString::new("hvs.x".into())).unwrap();
        let again = Home::open(&dir, None).unwrap();
        assert_eq!(again.key().unwrap().expose(), key.expose());
        for (path, mode) in [(dir.clone(), 0o700), (dir.join(KEY_FILE), 0o600), (dir.join(ROOT_TOKEN), 0o600)] {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{}", path.display());
        }
        assert!(refused(again.begin()).contains("no data that it belongs to"));
    }

    #[test]
    fn a_first_start_that_could_not_keep_its_key_does_not_begin() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, keys) = (temp.path().join("d"), temp.path().join("keys"));
        let home = Home::open(&dir, Some(&keys.join("key"))).unwrap();
        assert!(refused(home.begin()).contains("make it first"));
        fs::create_dir(&keys).unwrap();
        Home::open(&dir, Some(&keys.join("key"))).unwrap().begin().unwrap();
    }

    #[test]
    fn what_others_can_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("open");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refused(Home::open(&dir, None)).contains("chmod 700"));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let home = Home::open(&dir, None).unwrap();
        assert!(refused(home.key().map(drop)).contains("stays sealed"));
        fs::write(dir.join(KEY_FILE), "00".repeat(32)).unwrap();
        fs::set_permissions(dir.join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused(home.key().map(drop)).contains("chmod 600"));
        fs::set_permissions(dir.join(KEY_FILE), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(home.key().is_ok());
        for junk in ["", "zz", "00", &"0".repeat(66)] {
            fs::write(dir.join(KEY_FILE), junk).unwrap();
            assert!(refused(home.key().map(drop)).contains("not a key file"));
        }
    }

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            assert!(refused(bind(address.parse().unwrap()).await).contains("TLS"));
        }
        bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    }
}
