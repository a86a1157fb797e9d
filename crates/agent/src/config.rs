//! The configuration of the agent, in HCL or JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hcl::{Body, Value};

use crate::deliver::Delivery;
use crate::{Destination, Error, Format, Health, Reload};

/// Bytes of a configuration file at most.
const BYTES_MAX: u64 = 1 << 20;

/// What the agent does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the server is.
    pub address: String,
    /// The name of this instance.
    pub instance: String,
    /// How to log in.
    pub login: Login,
    /// The files to keep.
    pub deliveries: Vec<Delivery>,
}

/// The AppRole to log in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The mount below `auth/`.
    pub mount: String,
    /// A file with the role id.
    pub role_id_file: PathBuf,
    /// A file with the secret id.
    pub secret_id_file: PathBuf,
}

impl Login {
    /// As the client wants it.
    #[must_use]
    pub fn for_client(&self) -> client::Login {
        client::Login::AppRoleFiles {
            mount: self.mount.clone(),
            role_id: self.role_id_file.clone(),
            secret_id: self.secret_id_file.clone(),
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Error::ReadConfig`], and as [`Config::parse`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        use std::io::Read;
        let failed = |source| Error::ReadConfig { path: path.to_owned(), source };
        let mut text = String::new();
        std::fs::File::open(path).map_err(failed)?.take(BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    /// Reads the file again, for an agent that runs with this configuration.
    ///
    /// # Errors
    /// As [`Config::read`], and [`Error::Config`] when it changes what a running agent cannot: who it is, and whom it asks.
    pub fn read_again(&self, path: &Path) -> Result<Vec<Delivery>, Error> {
        let new = Self::read(path)?;
        let changed =
            [("address", new.address != self.address), ("instance", new.instance != self.instance), ("approle", new.login != self.login)];
        match changed.iter().find(|(_, changed)| *changed) {
            Some((key, _)) => {
                Err(Error::Config(format!("`{key}` is another: restart the agent for that; SIGHUP takes `file` blocks only")))
            }
            None => Ok(new.deliveries),
        }
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::Hcl`] when it is neither HCL nor JSON, [`Error::Config`] naming the place of what is missing, unknown or wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let body = hcl::parse(text)?;
        let top = Section { at: String::new(), body: &body };
        top.only(&["address", "instance", "approle", "file"])?;
        let approle = top.section("approle")?.ok_or_else(|| top.missing("approle"))?;
        approle.only(&["mount", "role_id_file", "secret_id_file"])?;
        let mut config = Self {
            address: top.text("address")?.ok_or_else(|| top.missing("address"))?,
            instance: top.text("instance")?.ok_or_else(|| top.missing("instance"))?,
            login: Login {
                mount: approle.text("mount")?.unwrap_or_else(|| "approle".to_owned()),
                role_id_file: approle.path("role_id_file")?,
                secret_id_file: approle.path("secret_id_file")?,
            },
            deliveries: Vec::new(),
        };
        for block in body.blocks("file")? {
            let delivery = delivery(block.label, &Section { at: format!("file \"{}\"", block.label), body: block.body })?;
            let twice = |other: &Delivery| other.rotation == delivery.rotation || other.destination.path == delivery.destination.path;
            if config.deliveries.iter().any(twice) {
                return Err(Error::Config(format!("file \"{}\": the rotation or the path is used by another `file`", block.label)));
            }
            config.deliveries.push(delivery);
        }
        if config.deliveries.is_empty() { Err(top.missing("file")) } else { Ok(config) }
    }
}

fn delivery(rotation: &str, file: &Section<'_>) -> Result<Delivery, Error> {
    file.only(&["path", "perms", "uid", "gid", "format", "allow_disk", "keep", "signal", "command", "health"])?;
    let mode = match file.text("perms")? {
        None => 0o400,
        Some(text) => u32::from_str_radix(&text, 8).map_err(|_| file.wrong("perms", "expected octal digits such as `0400`"))?,
    };
    let reload = match (file.section("signal")?, file.list("command")?) {
        (None, None) => Reload::None,
        (None, Some(command)) => Reload::Command(command),
        (Some(signal), None) => {
            signal.only(&["pid_file", "name"])?;
            let name = signal.text("name")?.unwrap_or_else(|| "HUP".to_owned());
            let known = crate::reload::signal(&name).ok_or_else(|| signal.wrong("name", "expected `HUP`, `USR1`, `USR2` or `TERM`"))?;
            Reload::Signal { pid_file: signal.path("pid_file")?, signal: known }
        }
        (Some(_), Some(_)) => return Err(file.wrong("command", "there is a `signal` already")),
    };
    Ok(Delivery {
        rotation: rotation.to_owned(),
        destination: Destination {
            path: file.path("path")?,
            mode,
            uid: file.id("uid")?,
            gid: file.id("gid")?,
            allow_disk: file.flag("allow_disk")?,
        },
        format: match file.text("format")? {
            None => Format::default(),
            Some(text) => text.parse().map_err(|why: String| file.wrong("format", &why))?,
        },
        reload,
        health: file.section("health")?.map(|section| health(&section)).transpose()?,
        keep: file.flag("keep")?,
    })
}

fn health(section: &Section<'_>) -> Result<Health, Error> {
    section.only(&["http", "expect", "command", "timeout", "interval", "deadline"])?;
    let health = match (section.text("http")?, section.list("command")?) {
        (Some(url), None) => Health::http(&url, section.text("expect")?).map_err(|why| section.wrong("http", &why))?,
        (None, Some(command)) => Health::command(command),
        _ => return Err(section.wrong("http", "expected either `http` or `command`")),
    };
    let (timeout, interval, deadline) = (health.timeout, health.interval, health.deadline);
    Ok(health.times(
        section.duration("timeout")?.unwrap_or(timeout),
        section.duration("interval")?.unwrap_or(interval),
        section.duration("deadline")?.unwrap_or(deadline),
    ))
}

/// A part of the configuration and what it is called in messages.
struct Section<'a> {
    at: String,
    body: &'a Body,
}

impl<'a> Section<'a> {
    fn name(&self, key: &str) -> String {
        if self.at.is_empty() { format!("`{key}`") } else { format!("{}: `{key}`", self.at) }
    }

    fn missing(&self, key: &str) -> Error {
        Error::Config(format!("{} is missing", self.name(key)))
    }

    fn wrong(&self, key: &str, why: &str) -> Error {
        Error::Config(format!("{}: {why}", self.name(key)))
    }

    /// A misspelled setting must not be a silent default.
    fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.body.items.iter().find(|item| !known.contains(&item.key.as_str())) {
            Some(item) => Err(Error::Config(format!("{} is not a setting ({})", self.name(&item.key), item.position))),
            None => Ok(()),
        }
    }

    fn section(&self, key: &str) -> Result<Option<Section<'a>>, Error> {
        match self.body.attribute(key) {
            None => Ok(None),
            Some(Value::Object(body)) => Ok(Some(Section { at: format!("{}{key}", self.prefix()), body })),
            Some(_) => Err(self.wrong(key, "expected a block")),
        }
    }

    fn prefix(&self) -> String {
        if self.at.is_empty() { String::new() } else { format!("{} ", self.at) }
    }

    fn text(&self, key: &str) -> Result<Option<String>, Error> {
        match self.body.attribute(key) {
            None => Ok(None),
            Some(Value::Text(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(key, "expected text")),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, Error> {
        self.text(key)?.map(PathBuf::from).ok_or_else(|| self.missing(key))
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.body.attribute(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "expected `true` or `false`")),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(value) = self.body.attribute(key) else { return Ok(None) };
        let number = if let Value::Integer(number) = value { u32::try_from(*number).ok() } else { None };
        number.map(Some).ok_or_else(|| self.wrong(key, "expected a number"))
    }

    fn duration(&self, key: &str) -> Result<Option<Duration>, Error> {
        let text = match self.body.attribute(key) {
            None => return Ok(None),
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Integer(number)) => number.to_string(),
            Some(_) => return Err(self.wrong(key, "expected a duration")),
        };
        match base::ttl::parse(&text) {
            Ok(span) if !span.is_zero() => Ok(Some(span)),
            Ok(_) => Err(self.wrong(key, "expected more than nothing")),
            Err(error) => Err(self.wrong(key, &error.to_string())),
        }
    }

    fn list(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(value) = self.body.attribute(key) else { return Ok(None) };
        let Value::List(values) = value else { return Err(self.wrong(key, "expected a list: a program and its arguments")) };
        let texts: Option<Vec<String>> =
            values.iter().map(|value| if let Value::Text(text) = value { Some(text.clone()) } else { None }).collect();
        texts.filter(|texts| !texts.is_empty()).map(Some).ok_or_else(|| self.wrong(key, "expected a list of texts"))
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;

    use super::*;

    const FULL: &str = r#"
        address  = "http://127.0.0.1:8200"
        instance = "orders-1"
        approle {
          role_id_file   = "/etc/keyward/role-id"
          secret_id_file = "/etc/keyward/secret-id"
        }
        file "orders-db" {
          path   = "/run/orders/db.json"
          perms  = "0440"
          gid    = 1000
          signal { pid_file = "/run/orders.pid" name = "USR1" }
          health {
            http     = "http://127.0.0.1:8080/healthz?generation={generation}"
            interval = "50ms"
            deadline = 10
          }
        }
        file "cache" {
          path       = "/var/lib/cache/auth.env"
          format     = "env"
          allow_disk = true
          keep       = true
          command    = ["systemctl", "reload", "cache"]
        }
    "#;

    #[test]
    fn everything_that_can_be_said() {
        let config = Config::parse(FULL).unwrap();
        assert_eq!((config.address.as_str(), config.instance.as_str()), ("http://127.0.0.1:8200", "orders-1"));
        assert_eq!(config.login.mount, "approle");
        let [orders, cache] = config.deliveries.as_slice() else { panic!() };
        assert_eq!(orders.rotation, "orders-db");
        let expected = Destination { mode: 0o440, gid: Some(1_000), ..Destination::new("/run/orders/db.json") };
        assert_eq!(orders.destination, expected);
        assert_eq!(orders.reload, Reload::Signal { pid_file: "/run/orders.pid".into(), signal: Signal::USR1 });
        let health = orders.health.as_ref().unwrap();
        assert_eq!(
            (health.timeout, health.interval, health.deadline),
            (Duration::from_secs(5), Duration::from_millis(50), Duration::from_secs(10))
        );
        assert_eq!((cache.format, cache.keep, cache.destination.allow_disk, cache.destination.mode), (Format::Env, true, true, 0o400));
        assert_eq!(cache.reload, Reload::Command(vec!["systemctl".into(), "reload".into(), "cache".into()]));
        assert!(cache.health.is_none());
    }

    #[test]
    fn the_sample_of_the_document_is_a_configuration() {
        let text = include_str!("../../../docs/agent.md");
        let (_, rest) = text.split_once("```hcl\n").unwrap();
        let (sample, _) = rest.split_once("```").unwrap();
        let config = Config::parse(sample).unwrap();
        assert_eq!(config.deliveries.len(), 2);
        let defaults = Health::command(vec!["x".into()]);
        let health = config.deliveries[0].health.as_ref().unwrap();
        let times = |health: &Health| (health.timeout, health.interval, health.deadline);
        assert_eq!(times(health), times(&defaults), "the document states the defaults");
    }

    #[test]
    fn the_json_form_says_the_same() {
        let json = r#"{"address":"http://h:1","instance":"i","approle":{"role_id_file":"/r","secret_id_file":"/s"},
            "file":{"p":{"path":"/run/x","health":{"command":["true"]}}}}"#;
        let config = Config::parse(json).unwrap();
        assert_eq!(config.deliveries[0].destination, Destination::new("/run/x"));
        assert!(config.deliveries[0].health.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, named) in [
            ("address  =", "adress  =", "`adress` is not a setting"),
            ("instance = \"orders-1\"", "", "`instance` is missing"),
            ("role_id_file   = \"/etc/keyward/role-id\"", "", "approle: `role_id_file` is missing"),
            ("path   = \"/run/orders/db.json\"", "", "file \"orders-db\": `path` is missing"),
            ("perms  = \"0440\"", "perms = \"rw\"", "`perms`"),
            ("\"env\"", "\"yaml\"", "`format`"),
            ("\"USR1\"", "\"KILL\"", "`name`"),
            ("http     =", "htp =", "`htp` is not a setting"),
            ("deadline = 10", "deadline = \"soon\"", "`deadline`"),
            ("deadline = 10", "deadline = 0", "`deadline`"),
            ("file \"cache\"", "file \"orders-db\"", "used by another"),
            ("/var/lib/cache/auth.env", "/run/orders/db.json", "used by another"),
            ("[\"systemctl\", \"reload\", \"cache\"]", "\"systemctl reload cache\"", "`command`"),
            ("http://127.0.0.1:8080/healthz", "https://127.0.0.1:8080/healthz", "`http`"),
        ] {
            assert!(FULL.contains(from), "{from}");
            let error = Config::parse(&FULL.replace(from, to)).err().unwrap_or_else(|| panic!("{to}")).to_string();
            assert!(error.contains(named), "{named} in {error}");
        }
        assert!(Config::parse("address = ").is_err());
    }
}
