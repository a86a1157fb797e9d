//! Making a program reload its file: by a signal or a command.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use client::Credential;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Time for a reload command.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a pid file at most.
const PID_FILE_BYTES_MAX: u64 = 32;

/// How the program is made to reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Not at all: it looks at the file by itself.
    None,
    /// By a signal to the process whose id stands in a file.
    Signal {
        /// The file.
        pid_file: PathBuf,
        /// Which signal.
        signal: Signal,
    },
    /// By a command, without a shell.
    Command(Vec<String>),
}

/// What the program and the commands around it may know.
pub(crate) struct About<'a> {
    pub(crate) rotation: &'a str,
    /// The value that is taken into use, to keep it out of every text.
    pub(crate) value: &'a Credential,
    pub(crate) file: &'a Path,
}

impl About<'_> {
    pub(crate) fn generation(&self) -> u64 {
        self.value.generation()
    }

    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{generation}", &self.generation().to_string())
    }
}

/// Why a reload failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no such process yet.
    Absent(String),
    /// Something is wrong.
    Failed(String),
}

impl Reload {
    pub(crate) async fn run(&self, about: &About<'_>) -> Result<(), Failure> {
        match self {
            Self::None => Ok(()),
            Self::Signal { pid_file, signal } => send(pid_file, *signal),
            Self::Command(command) => run(command, about, COMMAND_TIMEOUT).await.map_err(Failure::Failed),
        }
    }
}

/// Reads a signal name: `HUP`, `USR1`, `USR2`, `TERM`, with or without `SIG`.
pub(crate) fn signal(name: &str) -> Option<Signal> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Some(Signal::HUP),
        "USR1" => Some(Signal::USR1),
        "USR2" => Some(Signal::USR2),
        "TERM" => Some(Signal::TERM),
        _ => None,
    }
}

fn send(pid_file: &Path, signal: Signal) -> Result<(), Failure> {
    let shown = pid_file.display();
    let (pid, owner) = read_pid(pid_file)?;
    let gone = || Failure::Absent(format!("no process has the id in `{shown}`"));
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => gone(),
        error => Failure::Failed(format!("could not reach the process in `{shown}`: {error}")),
    })?;
    // The handle is of whoever has the number now; the file must still mean the same process.
    if read_pid(pid_file)? != (pid, owner) {
        return Err(Failure::Absent(format!("`{shown}` is changing")));
    }
    // Who can write the file chooses the process. Nobody may choose one that they could not signal themselves.
    let trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if !trusted && user_of(pid) != Some(owner) {
        return Err(Failure::Failed(format!("`{shown}` belongs to another user than the process in it")));
    }
    pidfd_send_signal(handle, signal).map_err(|error| match error {
        rustix::io::Errno::SRCH => gone(),
        error => Failure::Failed(format!("could not signal the process in `{shown}`: {error}")),
    })
}

/// The process id in a file, and the user who owns the file.
fn read_pid(path: &Path) -> Result<(Pid, u32), Failure> {
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let shown = path.display();
    let failed = |error: std::io::Error| Failure::Failed(format!("could not read `{shown}`: {error}"));
    let mut text = String::new();
    // Without waiting: a pipe in its place must not hold the agent.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::File::options().read(true).custom_flags(nonblocking).open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Absent(format!("there is no `{shown}` yet")),
        _ => failed(error),
    })?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(Failure::Failed(format!("`{shown}` is not a file")));
    }
    if found.mode() & 0o002 != 0 {
        return Err(Failure::Failed(format!("`{shown}` can be written by everybody")));
    }
    file.take(PID_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let number = text.trim().parse().ok().filter(|number: &i32| *number > 1);
    match number.and_then(Pid::from_raw) {
        Some(pid) => Ok((pid, found.uid())),
        None if text.trim().is_empty() => Err(Failure::Absent(format!("`{shown}` is empty"))),
        None => Err(Failure::Failed(format!("`{shown}` does not hold a process id"))),
    }
}

/// The user that a process runs as. The owner of its folder in `/proc` would be root where it may not be dumped.
fn user_of(pid: Pid) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Runs a command to its end. What it prints is thrown away: it may have read the secret. One that is given up is killed with
/// everything that it started: a probe that hangs must leave no session of its own behind.
pub(crate) async fn run(command: &[String], about: &About<'_>, within: Duration) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut next = tokio::process::Command::new(program);
    next.args(arguments.iter().map(|argument| about.fill(argument)))
        .env_remove("KEYWARD_TOKEN")
        .env_remove("VAULT_TOKEN")
        .env_remove("BAO_TOKEN")
        .env("KEYWARD_ROTATION", about.rotation)
        .env("KEYWARD_GENERATION", about.generation().to_string())
        .env("KEYWARD_FILE", about.file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = next.spawn().map_err(|error| format!("could not start `{program}`: {error}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let ended = tokio::time::timeout(within, child.wait()).await;
    if ended.is_ok() {
        group.0 = None;
    }
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("`{program}` ended with {status}")),
        Ok(Err(error)) => Err(format!("could not wait for `{program}`: {error}")),
        Err(_) => Err(format!("`{program}` did not end within {within:?}")),
    }
}

/// The process group of a command that has not ended: its number is nobody else's as long as the command was not waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // A group that is empty by now needs no signal.
        self.0.map(|pid| rustix::process::kill_process_group(pid, Signal::KILL)).transpose().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About<'static> {
        static VALUE: std::sync::LazyLock<Credential> = std::sync::LazyLock::new(|| Credential::from_fields(7, &[]));
        About { rotation: "p", value: &VALUE, file: Path::new("/f") }
    }

    #[test]
    fn a_pid_file_is_read_with_suspicion() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        for (text, absent) in [
            ("", Some(true)),
            ("0\n", Some(false)),
            ("1\n", Some(false)),
            ("-5", Some(false)),
            ("x", Some(false)),
            ("4194304\n", Some(true)),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = send(&path, Signal::HUP).err();
            assert_eq!(error.as_ref().map(|error| matches!(error, Failure::Absent(_))), absent, "{text}: {error:?}");
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&path, std::process::id().to_string()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(send(&path, Signal::TERM), Err(Failure::Failed(_))), "anybody could name any process");
        assert!(matches!(send(&folder.path().join("none"), Signal::HUP), Err(Failure::Absent(_))));
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(matches!(send(&path, Signal::HUP), Err(Failure::Failed(_))), "a pipe is not waited for");
    }

    /// An agent that runs as root must not be lent to whoever owns a pid file.
    #[tokio::test]
    async fn the_owner_of_a_pid_file_names_only_a_process_of_their_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        const NOBODY: u32 = 65_534;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let sleeper = |user| {
            let mut command = tokio::process::Command::new("/bin/sh");
            command.args(["-c", "read x"]).stdin(Stdio::piped()).uid(user).kill_on_drop(true);
            command.spawn().unwrap()
        };
        for (user, reached) in [(NOBODY, true), (0, false)] {
            let mut child = sleeper(user);
            std::fs::write(&path, child.id().unwrap().to_string()).unwrap();
            std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
            let sent = send(&path, Signal::TERM);
            assert_eq!(sent.is_ok(), reached, "{user}: {sent:?}");
            if reached {
                child.wait().await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_signal_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let mut hup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined2()).unwrap();
        std::fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        Reload::Signal { pid_file: path, signal: Signal::USR2 }.run(&about()).await.unwrap();
        hup.recv().await.unwrap();
    }

    #[tokio::test]
    async fn a_command_knows_what_it_is_about_and_has_an_end() {
        let sh = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let within = Duration::from_secs(10);
        let script = r#"[ "$KEYWARD_ROTATION $KEYWARD_GENERATION $KEYWARD_FILE {generation}" = "p 7 /f 7" ]"#;
        assert_eq!(run(&sh(script), &about(), within).await, Ok(()));
        assert!(run(&sh("exit 3"), &about(), within).await.unwrap_err().contains("3"));
        assert!(run(&["/nowhere/x".to_owned()], &about(), within).await.is_err());
        let endless = run(&sh("while :; do :; done"), &about(), Duration::from_millis(100)).await;
        assert!(endless.unwrap_err().contains("did not end"));
    }

    #[tokio::test]
    async fn a_command_that_is_given_up_takes_with_it_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", path.display());
        let command = ["/bin/sh".to_owned(), "-c".to_owned(), script];
        let within = Duration::from_secs(60);
        for by_its_deadline in [true, false] {
            let about = about();
            let mut running = Box::pin(run(&command, &about, within));
            let number = || std::fs::read_to_string(&path).unwrap_or_default();
            tokio::select! {
                ended = &mut running => panic!("{ended:?}"),
                () = until("it did not start", || number().ends_with('\n')) => {}
            }
            if by_its_deadline {
                tokio::time::pause();
                tokio::time::advance(within).await;
                assert!(running.await.unwrap_err().contains("did not end"));
                tokio::time::resume();
            } else {
                // whoever waited for it does not any more
                drop(running);
            }
            let started = number();
            std::fs::remove_file(&path).unwrap();
            let state = || std::fs::read_to_string(format!("/proc/{}/stat", started.trim())).unwrap_or_default();
            until("it lives on", || state().is_empty() || state().contains(") Z ")).await;
        }
    }

    /// Waits for another process to bring something about.
    async fn until(otherwise: &str, mut done: impl FnMut() -> bool) {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        let waiting = async {
            while !done() {
                ticks.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(otherwise);
    }
}
