//! What the kernel tells of processes and their sockets, by `/proc` and `diag`. Reads only.
//!
//! A program is its first process, everything below it, and everything in its process group. Which of them holds a socket is
//! seen by the number of the socket's inode, which stands in the tables of the network and in the descriptors of a process.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// State of a TCP socket that listens (`TCP_LISTEN` in the kernel).
const TCP_LISTEN: u8 = 0x0a;
/// Flag of a unix socket that listens (`__SO_ACCEPTCON`).
const UNIX_ACCEPTS: u32 = 1 << 16;
/// State of a unix socket that is connected (`SS_CONNECTED`).
const UNIX_CONNECTED: u8 = 3;
/// Type of a unix socket of streams (`SOCK_STREAM`).
const UNIX_STREAM: u16 = 1;

/// A process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    parent: i32,
    group: i32,
    state: char,
    /// When it began: with its number this is one process and no later one.
    began: u64,
}

impl Stat {
    /// Ended, and not waited for yet.
    fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Whether all of its threads are stopped by a signal, or have ended: it runs no code.
    pub(crate) fn is_still(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero())).into_iter().flatten().flatten();
        let mut stats = threads.filter_map(|thread| parse_stat(&std::fs::read_to_string(thread.path().join("stat")).ok()?));
        stats.all(|thread| matches!(thread.state, 'T' | 't' | 'Z' | 'X'))
    }

    /// Signals this process and no later one of its number.
    pub(crate) fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        let handle = pidfd_open(self.pid, PidfdFlags::empty())?;
        match stat(self.pid) {
            Some(now) if now.began == self.began => pidfd_send_signal(handle, signal),
            _ => Err(rustix::io::Errno::SRCH),
        }
    }
}

/// One process, if it is there.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok().and_then(|text| parse_stat(&text))
}

/// All processes that can be seen.
fn all() -> Vec<Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    pids.filter_map(stat).collect()
}

/// What is alive of a program, its first process first.
pub(crate) fn program(first: Pid) -> Vec<Stat> {
    let all = all();
    let mut found: Vec<Stat> = all.iter().filter(|one| one.pid == first).copied().collect();
    found.extend(all.iter().filter(|one| one.pid != first && one.group == first.as_raw_pid()));
    let mut seen = 0;
    while let Some(parent) = found.get(seen).map(|one| one.pid.as_raw_pid()) {
        let below: Vec<Stat> = all.iter().filter(|one| one.parent == parent && !found.contains(one)).copied().collect();
        found.extend(below);
        seen += 1;
    }
    found.retain(|one| !one.is_zombie());
    found
}

/// What is alive of a process group beside the process that leads it.
pub(crate) fn followers(leader: Pid) -> Vec<Stat> {
    let mut found = all();
    found.retain(|one| one.group == leader.as_raw_pid() && one.pid != leader && !one.is_zombie());
    found
}

/// Ended children of this process, which nobody has waited for.
pub(crate) fn zombies_of(parent: Pid) -> Vec<Pid> {
    all().into_iter().filter(|one| one.is_zombie() && one.parent == parent.as_raw_pid()).map(|one| one.pid).collect()
}

/// Who of a program is to get a signal: the topmost processes that handle it. A shell or a package manager in front of the
/// program does not, and by default would end alone.
pub(crate) fn handlers(first: Pid, signal: Signal) -> Vec<Stat> {
    if handles(first, signal) {
        return stat(first).into_iter().collect();
    }
    let program = program(first);
    let mut asked: Vec<Stat> = program.iter().filter(|one| one.pid == first).copied().collect();
    let (mut found, mut seen) = (Vec::new(), 0);
    while let Some(one) = asked.get(seen).copied() {
        seen += 1;
        if handles(one.pid, signal) {
            found.push(one);
        } else {
            asked.extend(program.iter().filter(|other| other.parent == one.pid.as_raw_pid()));
        }
    }
    found
}

/// Whether a process has a handler for a signal.
pub(crate) fn handles(pid: Pid, signal: Signal) -> bool {
    signals_of(pid, "SigCgt:").is_some_and(|set| is_in(set, signal))
}

/// Whether this process was started with a signal ignored, as `nohup` does.
pub(crate) fn ignores(signal: Signal) -> bool {
    signals_of(rustix::process::getpid(), "SigIgn:").is_some_and(|set| is_in(set, signal))
}

fn is_in(set: u64, signal: Signal) -> bool {
    set >> (signal.as_raw() - 1) & 1 == 1
}

fn signals_of(pid: Pid, which: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    u64::from_str_radix(status.lines().find_map(|line| line.strip_prefix(which))?.trim(), 16).ok()
}

/// The inodes of the sockets that processes hold.
///
/// # Errors
/// When the descriptors of one that lives may not be looked at.
pub(crate) fn sockets_of(processes: &[Stat]) -> std::io::Result<BTreeSet<u64>> {
    let mut held = BTreeSet::new();
    for one in processes {
        let entries = match std::fs::read_dir(format!("/proc/{}/fd", one.pid.as_raw_nonzero())) {
            Ok(entries) => entries,
            // It has ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound || stat(one.pid).is_none_or(|now| now.is_zombie()) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            held.extend(target.to_str().and_then(socket_inode));
        }
    }
    Ok(held)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A TCP socket of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) listens: bool,
    /// 0 while nobody has accepted it.
    pub(crate) inode: u64,
}

/// A unix socket of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unix {
    pub(crate) path: PathBuf,
    pub(crate) listens: bool,
    pub(crate) connected: bool,
    /// 0 while nobody has accepted it.
    pub(crate) inode: u64,
}

/// All TCP sockets that are not forgotten: asked of the kernel, which answers at once however many connections have just ended;
/// where it may not be asked, read from a table.
pub(crate) fn tcp() -> Vec<Tcp> {
    crate::diag::tcp().unwrap_or_else(|_| tcp_of_tables())
}

fn tcp_of_tables() -> Vec<Tcp> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(parse_tcp).collect()
}

/// All unix sockets of streams that have a path.
pub(crate) fn unix() -> Vec<Unix> {
    std::fs::read_to_string("/proc/net/unix").unwrap_or_default().lines().skip(1).filter_map(parse_unix).collect()
}

/// Folders in memory that this process could use, the usual one first: what to say to who chose a folder on a disk.
pub(crate) fn folders_in_memory() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts.lines().filter_map(parse_mount).collect();
    found.retain(|folder| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok());
    found.sort_by_key(|folder| (!folder.starts_with("/run"), !folder.starts_with("/dev/shm"), folder.clone()));
    found.dedup();
    found
}

fn parse_mount(line: &str) -> Option<PathBuf> {
    let mut words = line.split(' ').skip(1);
    let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
    // What the kernel keeps elsewhere lies in memory too, and is no place for files of others.
    let usable = matches!(kind, "tmpfs" | "ramfs") && options.split(',').any(|option| option == "rw");
    let other = ["/proc", "/sys"].iter().any(|tree| Path::new(at).starts_with(tree)) || at.contains('\\');
    (usable && !other).then(|| PathBuf::from(at))
}

/// A line of `/proc/PID/stat`, where the name may hold anything.
fn parse_stat(line: &str) -> Option<Stat> {
    let (pid, rest) = line.split_once(" (")?;
    let fields: Vec<&str> = rest.rsplit_once(") ")?.1.split(' ').collect();
    Some(Stat {
        pid: Pid::from_raw(pid.parse().ok()?)?,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        began: fields.get(19)?.parse().ok()?,
    })
}

/// A line of `/proc/net/tcp` or `/proc/net/tcp6`.
fn parse_tcp(line: &str) -> Option<Tcp> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Tcp {
        local: parse_address(fields.get(1)?)?,
        remote: parse_address(fields.get(2)?)?,
        listens: u8::from_str_radix(fields.get(3)?, 16).ok()? == TCP_LISTEN,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// `0100007F:1F90`: words of the address in the order of this machine, and the port. An IPv4 address that is written as IPv6
/// becomes what it is.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':').filter(|(address, _)| address.len() % 8 == 0)?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|word| address.get(word * 8..word * 8 + 8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [_, _, _, _] => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// A line of `/proc/net/unix`. Paths may hold spaces; abstract names are no paths.
fn parse_unix(line: &str) -> Option<Unix> {
    let (head, path) = line.split_once(" /")?;
    let fields: Vec<&str> = head.split_whitespace().collect();
    let kind = u16::from_str_radix(fields.get(4)?, 16).ok()?;
    let socket = Unix {
        path: PathBuf::from(format!("/{path}")),
        listens: u32::from_str_radix(fields.get(3)?, 16).ok()? & UNIX_ACCEPTS != 0,
        connected: u8::from_str_radix(fields.get(5)?, 16).ok()? == UNIX_CONNECTED,
        inode: fields.get(6)?.parse().ok()?,
    };
    (kind == UNIX_STREAM).then_some(socket)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        socket_inode(link.to_str().unwrap()).unwrap()
    }

    #[test]
    fn processes_are_read_whatever_their_name() {
        let line = "7 (a ) (b) S 3 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9000 1 2";
        let pid = |raw| Pid::from_raw(raw).unwrap();
        assert_eq!(parse_stat(line), Some(Stat { pid: pid(7), parent: 3, group: 5, state: 'S', began: 9_000 }));
        assert_eq!(parse_stat("7 (a"), None);
        let own = stat(rustix::process::getpid()).unwrap();
        assert!(!own.is_zombie() && program(own.pid).first() == Some(&own));
    }

    #[test]
    fn a_program_is_everything_below_it_and_in_its_group() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("/bin/sh");
        // the first follows as a child, the second as a member of the group whose parent has gone
        command.args(["-c", "sleep 600 & (sleep 600 & echo $!) & read x"]).process_group(0);
        let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        let first = Pid::from_child(&child);
        let found = program(first);
        let pids: Vec<i32> = found.iter().map(|one| one.pid.as_raw_pid()).collect();
        assert!(pids.first() == Some(&first.as_raw_pid()) && pids.contains(&line.trim().parse().unwrap()), "{pids:?} {line}");
        assert!(pids.len() >= 3, "{pids:?}");
        assert!(handlers(first, Signal::HUP).is_empty(), "nobody there handles it");
        rustix::process::kill_process_group(first, Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn sockets_are_found_by_who_holds_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let row = |mine: SocketAddr, theirs: Option<SocketAddr>| {
            let wanted = |row: &Tcp| row.local == mine && theirs.map_or(row.listens, |theirs| row.remote == theirs);
            let found = tcp().into_iter().find(wanted);
            assert_eq!(tcp_of_tables().into_iter().find(wanted), found, "both ways to ask see the same");
            found
        };
        assert_eq!(row(at, None).map(|row| row.inode), Some(inode(&listener)));
        let asking = std::net::TcpStream::connect(at).unwrap();
        let from = asking.local_addr().unwrap();
        assert_eq!(row(at, Some(from)).map(|row| row.inode), Some(0), "nobody has accepted it");
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(row(at, Some(from)).map(|row| row.inode), Some(inode(&accepted)));
        let held = sockets_of(&program(rustix::process::getpid())).unwrap();
        assert!(held.contains(&inode(&accepted)) && held.contains(&inode(&listener)));
    }

    #[test]
    fn an_address_is_read_in_both_families() {
        let own = |text: &str| parse_address(text).map(|address| address.to_string());
        assert_eq!(own(&format!("{:08X}:1F90", u32::from_ne_bytes([127, 0, 0, 1]))).as_deref(), Some("127.0.0.1:8080"));
        let words = |bytes: [u8; 16]| -> String {
            bytes.chunks(4).map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap()))).collect()
        };
        assert_eq!(own(&format!("{}:0050", words(Ipv6Addr::LOCALHOST.octets()))).as_deref(), Some("[::1]:80"));
        let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped();
        assert_eq!(own(&format!("{}:0050", words(mapped.octets()))).as_deref(), Some("10.0.0.1:80"));
        for wrong in ["", "7F:1", "0100007F", "0100007FFF:1"] {
            assert_eq!(own(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn unix_sockets_carry_the_path_of_whom_they_were_made_by() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let asking = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let own = || unix().into_iter().filter(|socket| socket.path == path).collect::<Vec<_>>();
        assert!(own().iter().any(|socket| socket.listens && socket.inode == inode(&listener)), "{:?}", own());
        assert!(own().iter().all(|socket| !socket.connected || socket.inode == 0), "{:?}", own());
        let (accepted, _) = listener.accept().unwrap();
        assert!(own().iter().any(|socket| socket.connected && !socket.listens && socket.inode == inode(&accepted)), "{:?}", own());
        drop(asking);
    }

    #[test]
    fn folders_in_memory_are_named() {
        assert_eq!(parse_mount("tmpfs /run tmpfs rw,nosuid,size=1k 0 0"), Some("/run".into()));
        for other in ["tmpfs /x tmpfs ro 0 0", "/dev/sda / ext4 rw 0 0", "tmpfs /proc/acpi tmpfs rw 0 0", "tmpfs"] {
            assert_eq!(parse_mount(other), None, "{other}");
        }
    }
}
