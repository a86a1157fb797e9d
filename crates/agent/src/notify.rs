//! The words of `sd_notify`: what a program says on `NOTIFY_SOCKET`, and saying it for one that cannot send datagrams.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

/// What a program has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// `READY=1`
    pub(crate) ready: bool,
    /// `RELOADING=1`
    pub(crate) reloading: bool,
    /// `STOPPING=1`
    pub(crate) stopping: bool,
    /// `STATUS=…`
    pub(crate) status: Option<String>,
}

impl Notice {
    /// Reads a datagram. Nothing when it says nothing that counts here; the rest of what systemd knows is skipped.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let mut notice = Self::default();
        for line in datagram.split(|byte| *byte == b'\n') {
            match line {
                b"READY=1" => notice.ready = true,
                b"RELOADING=1" => notice.reloading = true,
                b"STOPPING=1" => notice.stopping = true,
                line => {
                    let status = line.strip_prefix(b"STATUS=").map(|text| String::from_utf8_lossy(text).into_owned());
                    notice.status = status.or(notice.status);
                }
            }
        }
        (notice != Self::default()).then_some(notice)
    }
}

/// Says something to whoever started this process: lines such as `READY=1` or `STATUS=warming up`.
///
/// # Errors
/// What is wrong, for people.
pub fn say(to: Option<&OsStr>, lines: &[OsString]) -> Result<(), String> {
    let to = to.filter(|to| !to.is_empty()).ok_or(
        "NOTIFY_SOCKET is not set: this is to be called by a program that `keyward run` or a service manager has started, with its environment",
    )?;
    if lines.is_empty() {
        return Err("nothing to say; expected READY=1, STATUS=text, RELOADING=1 or STOPPING=1".to_owned());
    }
    let well_formed = |line: &&OsString| {
        let bytes = line.as_bytes();
        let name = bytes.split(|byte| *byte == b'=').next().unwrap_or_default();
        let named = !name.is_empty()
            && name.len() < bytes.len()
            && name.iter().all(|byte| byte.is_ascii_uppercase() || b"_0123456789".contains(byte));
        named && !bytes.contains(&b'\n')
    };
    if let Some(line) = lines.iter().find(|line| !well_formed(line)) {
        return Err(format!(
            "`{}` is no notification; expected NAME=value such as READY=1 or STATUS=text, each as an argument of its own",
            line.display()
        ));
    }
    let failed = |error: rustix::io::Errno| format!("could not notify `{}`: {error}", to.display());
    // A name that begins with `@` is abstract.
    let address = match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(to),
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    let text = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    sendto(&socket, &text, SendFlags::NOSIGNAL, &address.map_err(failed)?).map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_count_are_read_and_others_skipped() {
        let ready = Notice { ready: true, ..Notice::default() };
        for (text, expected) in [
            (&b"READY=1"[..], Some(ready.clone())),
            (b"STATUS=warming up\nREADY=1\n", Some(Notice { status: Some("warming up".into()), ..ready })),
            (b"RELOADING=1\nMONOTONIC_USEC=7", Some(Notice { reloading: true, ..Notice::default() })),
            (b"STOPPING=1", Some(Notice { stopping: true, ..Notice::default() })),
            (b"READY=0", None),
            (b"READY=11", None),
            (b"BARRIER=1", None),
            (b"", None),
        ] {
            assert_eq!(Notice::parse(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_said_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("s");
        let heard = std::os::unix::net::UnixDatagram::bind(&at).unwrap();
        say(Some(at.as_os_str()), &["STATUS=up = running".into(), "READY=1".into()]).unwrap();
        let mut bytes = [0; 100];
        let length = heard.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"STATUS=up = running\nREADY=1\n");
        for (to, lines, found) in [
            (None, vec!["READY=1"], "NOTIFY_SOCKET is not set"),
            (Some("/nowhere/s"), vec!["READY=1"], "could not notify `/nowhere/s`"),
            (Some("/nowhere/s"), vec![], "nothing to say"),
            (Some("/nowhere/s"), vec!["ready"], "`ready` is no notification"),
            (Some("/nowhere/s"), vec!["READY=1\nX=1"], "is no notification"),
        ] {
            let lines: Vec<OsString> = lines.into_iter().map(OsString::from).collect();
            let error = say(to.map(OsStr::new), &lines).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
    }
}
