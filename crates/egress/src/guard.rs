//! Which addresses may be dialled on somebody else's word.
//!
//! A name from a caller is resolved once, every address it stands for is checked, and the connection goes to a checked
//! address, so a name that changes between check and connection gains nothing. What the operator wrote into the
//! configuration is allow-listed by name and port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::Error;

/// A host and a port, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What may be dialled: public addresses, and the targets that the operator named.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    allowed: Vec<Target>,
}

impl Guard {
    /// Only public addresses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also this target, wherever it is.
    #[must_use]
    pub fn allow(mut self, host: &str, port: u16) -> Self {
        self.allowed.push(Target { host: host.to_ascii_lowercase(), port });
        self
    }

    /// Whether `address`, found for `host`, may be dialled.
    #[must_use]
    pub fn permits(&self, host: &str, address: SocketAddr) -> bool {
        let host = host.to_ascii_lowercase();
        self.allowed.iter().any(|target| target.host == host && target.port == address.port()) || is_public(address.ip())
    }
}

/// Opens a TCP connection to `host` after checking what it stands for.
///
/// # Errors
/// [`Error::Denied`] when no address of the host is permitted, [`Error::Connect`] when none answers, [`Error::Timeout`].
pub async fn dial(host: &str, port: u16, guard: &Guard, within: Duration) -> Result<TcpStream, Error> {
    let connect = async {
        let failed = |source| Error::Connect { address: format!("{host}:{port}"), source };
        let found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
        let mut last = Error::Denied { host: host.to_owned() };
        for address in found.filter(|address| guard.permits(host, *address)) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(stream);
                }
                Err(source) => last = failed(source),
            }
        }
        Err(last)
    };
    tokio::time::timeout(within, connect).await.unwrap_or(Err(Error::Timeout { what: crate::client::CONNECTION, after: within }))
}

/// Whether an address belongs to the public internet: not this machine, not a private or shared network, not link-local
/// (where clouds keep their metadata services), nothing reserved, and no IPv6 form that carries such an IPv4 address.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))   // shared address space, RFC 6598
        || (a == 192 && b == 0 && c == 0)         // protocol assignments, RFC 6890
        || (a == 192 && b == 88 && c == 99)       // 6to4 relays
        || (a == 198 && (18..20).contains(&b))) // benchmarks, RFC 2544
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.segments();
    // Only global unicast (2000::/3), without documentation, Teredo and ORCHID (2001::/23), and 6to4 (2002::/16), which carries IPv4.
    (0x2000..0x4000).contains(&a)
        && !(a == 0x2001 && b < 0x200)
        && !(a == 0x2001 && b == 0xdb8)
        && a != 0x2002
        && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deny_list_row_by_row() {
        for (text, public) in [
            ("1.1.1.1", true),
            ("9.255.255.255", true),
            ("10.0.0.1", false),
            ("100.63.255.255", true),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("127.255.0.9", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("198.18.0.1", false),
            ("198.20.0.1", true),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("2606:4700::1111", true),
            ("::", false),
            ("::1", false),
            ("::ffff:1.1.1.1", false),
            ("::ffff:127.0.0.1", false),
            ("::127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2001:4860::8888", true),
            ("2002:7f00:1::", false),
            ("fc00::1", false),
            ("fd12::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), public, "{text}");
        }
    }

    #[tokio::test]
    async fn a_configured_target_is_reached_and_its_neighbour_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let within = Duration::from_secs(30);

        assert!(matches!(dial("127.0.0.1", port, &Guard::new(), within).await, Err(Error::Denied { .. })));
        assert!(matches!(dial("localhost", port, &Guard::new(), within).await, Err(Error::Denied { .. })));
        let guard = Guard::new().allow("127.0.0.1", port);
        assert!(dial("127.0.0.1", port, &guard, within).await.is_ok());
        // the same address under another name, or another port, was not configured
        assert!(matches!(dial("localhost", port, &guard, within).await, Err(Error::Denied { .. })));
        assert!(matches!(dial("127.0.0.1", port ^ 1, &guard, within).await, Err(Error::Denied { .. })));
    }
}
