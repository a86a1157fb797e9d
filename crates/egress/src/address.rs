//! Where a server is.

use std::path::PathBuf;

use crate::Error;

/// The place of one HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `http://host:port`
    Tcp {
        /// A name or an address; IPv6 without brackets.
        host: String,
        /// The port, 80 when the text has none.
        port: u16,
    },
    /// `unix:///path`
    Unix(PathBuf),
}

impl Address {
    /// Reads an address text. A single slash at the end is allowed; any other path, a query or user information is not.
    ///
    /// # Errors
    /// [`Error::Tls`] for `https`, [`Error::Address`] for everything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = || Error::Address { address: text.rsplit_once('@').map_or(text, |(_, place)| place).to_owned() };
        if text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
            return Err(match refuse() {
                Error::Address { address } => Error::Tls { address },
                other => other,
            });
        }
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
                Ok(Self::Unix(path))
            } else {
                Err(refuse())
            };
        }
        let authority = text.strip_prefix("http://").ok_or_else(refuse)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let parsed: http::uri::Authority = authority.parse().map_err(|_| refuse())?;
        if authority.contains('@') {
            return Err(refuse());
        }
        let host = parsed.host();
        let port = match authority.strip_prefix(host).unwrap_or_default() {
            "" => 80,
            rest => rest.strip_prefix(':').and_then(|digits| digits.parse().ok()).ok_or_else(refuse)?,
        };
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() { Err(refuse()) } else { Ok(Self::Tcp { host: host.to_owned(), port }) }
    }

    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let tcp = |host: &str, port| Some(Address::Tcp { host: host.to_owned(), port });
        for (text, expected) in [
            ("http://127.0.0.1:8200", tcp("127.0.0.1", 8200)),
            ("http://127.0.0.1:8200/", tcp("127.0.0.1", 8200)),
            ("http://vault", tcp("vault", 80)),
            ("http://[::1]:8200", tcp("::1", 8200)),
            ("unix:///run/keyward.sock", Some(Address::Unix("/run/keyward.sock".into()))),
            ("unix://run/keyward.sock", None),
            ("http://user:word@host:1", None),
            ("http://host:1/v1", None),
            ("http://host:1?x", None),
            ("http://host:", None),
            ("http://host:70000", None),
            ("http://", None),
            ("host:8200", None),
            ("", None),
        ] {
            assert_eq!(Address::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn https_is_refused_by_name_and_nothing_before_the_at_sign_is_repeated() {
        assert!(matches!(Address::parse("https://host:1"), Err(Error::Tls { .. })));
        assert!(matches!(Address::parse("HTTPS://host:1"), Err(Error::Tls { .. })));
        for text in ["http://user:hunter2@host:1", "https://user:hunter2@host:1"] {
            assert!(!Address::parse(text).unwrap_err().to_string().contains("hunter2"));
        }
    }

    #[test]
    fn shown_as_written() {
        for text in ["http://127.0.0.1:8200", "http://[::1]:8200", "unix:///run/keyward.sock"] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
    }
}
