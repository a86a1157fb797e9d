//! The programs that other tests start: this very binary again, through the test that stands for the program.
//!
//! What the program does is decided by its password, which comes through the supervisor.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// Becomes this binary's test of the given name with lines of `KEYWARD_TEST_LINES` as its arguments.
fn become_test(name: &str) -> Vec<OsString> {
    let script = r#"exe=$1 name=$2; shift 2; KEYWARD_TEST_LINES=$(printf '%s\n' "$@") exec "$exe" "$name" --exact --ignored --nocapture"#;
    ["/bin/sh", "-c", script, "sh"].into_iter().map(OsString::from).chain([std::env::current_exe().unwrap().into(), name.into()]).collect()
}

/// The real shim, as `keyward exec-shim --` will be.
pub fn shim() -> Vec<OsString> {
    become_test("program::shim_main")
}

/// A service on the socket that it inherits as standard input.
pub fn service() -> Vec<OsString> {
    become_test("program::service_main")
}

/// Somebody may run all ignored tests; they are nothing by themselves.
fn started_by_a_test() -> bool {
    std::env::var_os("KEYWARD_TEST_LINES").is_some()
}

fn lines() -> Vec<String> {
    std::env::var("KEYWARD_TEST_LINES").unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "a program that other tests start"]
fn shim_main() {
    if !started_by_a_test() {
        return;
    }
    let command: Vec<_> = lines().into_iter().map(OsString::from).collect();
    std::process::exit(i32::from(agent::shim::run(&command)));
}

#[test]
#[ignore = "a program that other tests start"]
fn service_main() {
    if !started_by_a_test() {
        return;
    }
    let password = std::env::var("PASSWORD").unwrap_or_default();
    match password.split('-').next().unwrap() {
        "broken" => std::process::exit(3),
        // not ready, for ever
        "silent" => std::thread::park(),
        _ => {}
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let code = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let listener = listener();
        let busy = Arc::new(AtomicUsize::new(0));
        // Who is answered by this process knows that it has said everything.
        ready();
        let accepting = {
            let (listener, busy, password) = (listener.try_clone().unwrap(), Arc::clone(&busy), password.clone());
            std::thread::spawn(move || accept(&listener, &busy, &password))
        };
        if password.starts_with("done") {
            return 0;
        }
        terminate.recv().await;
        if password.starts_with("deaf") {
            std::future::pending::<()>().await;
        }
        // Drain: take no more, finish what was taken. The loop ends when it next looks.
        DRAINING.store(1, Ordering::SeqCst);
        accepting.join().unwrap();
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(2));
        while busy.load(Ordering::SeqCst) > 0 {
            ticks.tick().await;
        }
        if password.starts_with("seven") { 7 } else { 0 }
    });
    std::process::exit(code);
}

static DRAINING: AtomicUsize = AtomicUsize::new(0);

/// The inherited socket, or an own one where the control says so.
fn listener() -> TcpListener {
    match std::env::var("KEYWARD_TEST_BIND") {
        Ok(address) => TcpListener::bind(address).unwrap(),
        Err(_) => std::io::stdin().as_fd().try_clone_to_owned().unwrap().into(),
    }
}

fn ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(b"STATUS=warming up\n", &path).unwrap();
    socket.send_to(b"READY=1\nSTATUS=serving\n", &path).unwrap();
    socket.connect(&path).unwrap();
    barrier(&socket);
}

/// Waits until the supervisor has read everything, as `systemd-notify --ready` does: one end of a pipe goes along and must be closed there.
fn barrier(socket: &UnixDatagram) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sent = [theirs.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
    sendmsg(socket, &[std::io::IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::empty()).unwrap();
    drop(theirs);
    let mut waiting = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::HUP)];
    let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    if rustix::event::poll(&mut waiting, Some(&limit)).unwrap() == 0 {
        // As the real one does: it gives up, and a script that minds ends.
        std::process::exit(4);
    }
}

fn accept(listener: &TcpListener, busy: &Arc<AtomicUsize>, password: &str) {
    // Both processes poll one socket: who comes second must not wait inside accept.
    listener.set_nonblocking(true).unwrap();
    while DRAINING.load(Ordering::SeqCst) == 0 {
        let mut waiting = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        rustix::event::poll(&mut waiting, Some(&pause)).unwrap_or_default();
        let Ok((stream, _)) = listener.accept() else { continue };
        busy.fetch_add(1, Ordering::SeqCst);
        let (busy, password) = (Arc::clone(busy), password.to_owned());
        std::thread::spawn(move || {
            answer(&stream, &password);
            drop(stream);
            busy.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// One question, one answer.
fn answer(mut stream: &TcpStream, password: &str) {
    stream.set_nonblocking(false).unwrap();
    let mut question = String::new();
    if BufReader::new(stream).read_line(&mut question).is_err() {
        return;
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let said = match question.trim() {
        "crash" => std::process::exit(9),
        "quit" => std::process::exit(0),
        // Answered when the asker says so on the same connection.
        "hold" => {
            stream.write_all(b"holding\n").unwrap();
            let mut go = String::new();
            BufReader::new(stream).read_line(&mut go).unwrap();
            format!("{password} held")
        }
        "about" => {
            let same = |n: i32| std::fs::read_link(format!("/proc/self/fd/{n}")).unwrap();
            let own = variable("LISTEN_PID") == std::process::id().to_string();
            format!(
                "user={} pid-is-own={own} fds={} fd3-is-stdin={} withheld={} argv-clean={}",
                variable("USERNAME_FROM_KEYWARD"),
                variable("LISTEN_FDS"),
                same(0) == same(3),
                ["KEYWARD_TOKEN", "VAULT_TOKEN", "BAO_TOKEN"].iter().all(|name| std::env::var_os(name).is_none()),
                !std::fs::read_to_string("/proc/self/cmdline").unwrap().contains(password),
            )
        }
        _ => format!("{password} {}", std::process::id()),
    };
    stream.write_all(said.as_bytes()).unwrap_or_default();
}
