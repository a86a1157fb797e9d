//! The TCP sockets of this machine by a question to the kernel (`sock_diag(7)`). A table in `/proc` says the same, but takes up to a
//! second where some ten thousand connections have just ended; the kernel leaves those out when it is asked to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::proc::Tcp;

/// `SOCK_DIAG_BY_FAMILY`, the type of questions and answers.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x301;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const LISTEN: u8 = 10;
/// Every state but `TCP_TIME_WAIT` (6) and `TCP_CLOSE` (7).
const STATES: u32 = 0x0fff & !(1 << 6) & !(1 << 7);
/// Bytes of a header (`nlmsghdr`), and of a question behind it (`inet_diag_req_v2`).
const HEADER: usize = 16;
const QUESTION: usize = 56;
/// What one answer of the kernel fits into.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// All TCP sockets but those of connections that have ended.
///
/// # Errors
/// When the kernel may not be asked, or does not answer as the document says.
pub(crate) fn tcp() -> rustix::io::Result<Vec<Tcp>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        ask(family, &mut found)?;
    }
    Ok(found)
}

fn ask(family: u8, found: &mut Vec<Tcp>) -> rustix::io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    sendto(&socket, &question(family), SendFlags::NOSIGNAL, &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        // The kernel has answered by now: what is asked of it is done while it is asked.
        let (_, length) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
        let mut rest = answer.get(..length).ok_or(Errno::OVERFLOW)?;
        while let Some(header) = rest.get(..HEADER) {
            let (length, kind) = (word(header, 0).ok_or(Errno::BADMSG)?, half(header, 4).ok_or(Errno::BADMSG)?);
            let length = usize::try_from(length).map_err(|_| Errno::BADMSG)?;
            match kind {
                DONE => return Ok(()),
                ERROR => return Err(Errno::NOTSUP),
                BY_FAMILY => found.extend(rest.get(HEADER..length).and_then(parse)),
                _ => {}
            }
            // Each begins at a multiple of four.
            rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn question(family: u8) -> Vec<u8> {
    let length = u32::try_from(HEADER + QUESTION).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + QUESTION);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(HEADER + QUESTION, 0);
    bytes
}

/// An answer (`inet_diag_msg`): family and state, ports and addresses as they go over the wire, and the inode at its end.
fn parse(message: &[u8]) -> Option<Tcp> {
    let (family, state) = (*message.first()?, *message.get(1)?);
    let port = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?)).to_canonical()),
        _ => None,
    };
    Some(Tcp {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        listens: state == LISTEN,
        inode: u64::from(word(message, 68)?),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That both ways to ask see the same is tested beside the other one.
    #[test]
    fn the_kernel_is_asked_in_both_families() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
        let found = tcp().unwrap();
        for listener in &listeners {
            let at = listener.local_addr().unwrap();
            assert!(found.iter().any(|row| row.listens && row.local == at && row.inode != 0), "{at}");
        }
    }

    #[test]
    fn half_an_answer_is_none() {
        assert_eq!(parse(&[AF_INET; 71]), None);
        assert_eq!(parse(&[]), None);
    }
}
