//! The services that are rotated: three ways to consume, two replicas of each.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use base::rng::SeededRng;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::child::Child;
use crate::keyward::{Keyward, ROTATION};
use crate::load::Replica;
use crate::pool::Place;
use crate::service::Supply;
use crate::stage::{DATABASE, LIFE_MS, Stage, private};

/// How long a service may take until it serves.
const START: Duration = Duration::from_secs(30);

/// How a service gets its credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The client library's provider.
    Provider,
    /// The agent's rendered file, signal and health probe.
    File,
    /// `keyward run`: the environment of a new process on a socket that the supervisor owns.
    Environment,
}

/// A replica that is to be.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    /// `billing-1`.
    pub(crate) short: String,
    /// `billing-lib-1`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// Every replica and its kind. Which service consumes in which way depends on the seed, so that each of them is the first in the
/// alphabet, and with it the canary, in some run.
pub(crate) fn cast(seed: u64) -> Vec<Role> {
    let kinds = [(Kind::Provider, "lib"), (Kind::File, "file"), (Kind::Environment, ENVIRONMENT)];
    let turn = usize::try_from(seed % 3).unwrap_or(0);
    let services = ["billing", "checkout", "shipping"].into_iter().zip(kinds.into_iter().cycle().skip(turn));
    let role =
        |service: &str, word: &str, n: u32, kind| Role { short: format!("{service}-{n}"), name: format!("{service}-{word}-{n}"), kind };
    services.flat_map(|(service, (kind, word))| (1..=2).map(move |n| role(service, word, n, kind))).collect()
}

/// What the names of replicas hold that get their password by the environment.
pub(crate) const ENVIRONMENT: &str = "env";

/// Six replicas, each with the processes that belong to it.
pub(crate) struct Fleet {
    pub(crate) replicas: Vec<Replica>,
    /// Services before their agents: the order in which they end.
    children: Vec<(String, Child)>,
}

impl Fleet {
    /// Starts all replicas, which find the server at `address`, and waits until each is proven to use the value in force.
    pub(crate) async fn start(stage: &mut Stage, keyward: &Keyward, address: &str, seed: u64) -> Result<Self, String> {
        let mut fleet = Self { replicas: Vec::new(), children: Vec::new() };
        let mut agents = Vec::new();
        for (n, Role { name, kind, .. }) in cast(seed).into_iter().enumerate() {
            let port = stage.port()?;
            let seed = seed.wrapping_mul(31).wrapping_add(u64::try_from(n).unwrap_or(0));
            let (role_id, secret_id) = keyward.identity(stage, &name).await?;
            fleet.replicas.push(Replica { name: name.clone(), address: format!("127.0.0.1:{port}") });
            let service = match kind {
                Kind::Provider => {
                    let supply = Supply::Provider { server: address.to_owned(), rotation: ROTATION.to_owned(), role_id, secret_id };
                    let config = stage.service(&name, "work", Some(port), supply, seed)?;
                    stage.start(&name, &["demo".into(), "service".into(), config.into()], &[])?
                }
                Kind::File => {
                    let (path, pid_file) = (stage.directory.join(format!("{name}.json")), stage.directory.join(format!("{name}.pid")));
                    let agent = stage.directory.join(format!("{name}.agent.json"));
                    private(&agent, &agent_config(&name, address, port, [&role_id, &secret_id, &path, &pid_file]))?;
                    agents.push((
                        name.clone(),
                        stage.start(&format!("{name}.agent"), &["agent".into(), "-config".into(), agent.into()], &[])?,
                    ));
                    let config = stage.service(&name, "work", Some(port), Supply::File { path, pid_file }, seed)?;
                    stage.start(&name, &["demo".into(), "service".into(), config.into()], &[])?
                }
                Kind::Environment => {
                    let supply = Supply::Environment { username: "DB_USERNAME".to_owned(), password: "DB_PASSWORD".to_owned() };
                    let config = stage.service(&name, "work", None, supply, seed)?;
                    stage.start(&name, &run_command(&name, address, port, [&role_id, &secret_id], stage, config), &[])?
                }
            };
            fleet.children.push((name, service));
        }
        fleet.children.append(&mut agents);
        serving(&fleet.replicas, fleet.children.iter_mut().map(|(_, child)| child)).await?;
        let until = Instant::now() + START;
        while keyward.converged().await?.len() < fleet.replicas.len() {
            if Instant::now() > until {
                return Err(format!("only {:?} are proven to use the value", keyward.converged().await?));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(fleet)
    }

    /// The names of the replicas.
    pub(crate) fn names(&self) -> Vec<String> {
        self.replicas.iter().map(|r| r.name.clone()).collect()
    }

    /// One of them.
    pub(crate) fn pick(&self, rng: &SeededRng) -> Result<String, String> {
        let n = usize::try_from(rng.below(u64::try_from(self.replicas.len()).unwrap_or(0))).unwrap_or(0);
        self.replicas.get(n).map(|r| r.name.clone()).ok_or_else(|| "there are no replicas".to_owned())
    }

    /// Signals all processes of one replica.
    pub(crate) fn signal(&self, replica: &str, signal: Signal) -> Result<(), String> {
        let mut hit = false;
        for (_, child) in self.children.iter().filter(|(name, _)| name == replica) {
            child.signal_all(signal);
            hit = true;
        }
        if hit { Ok(()) } else { Err(format!("`{replica}` has no process")) }
    }

    /// Where the services write, for a probe of the demonstration itself.
    pub(crate) fn place(&self, stage: &Stage) -> Place {
        Place {
            host: stage.cluster.host().to_owned(),
            port: stage.cluster.port(),
            database: DATABASE.to_owned(),
            table: "work".to_owned(),
            application: "keyward demo".to_owned(),
            life_ms: LIFE_MS,
        }
    }

    /// Ends all replicas in order: a service, then the agent that serves it.
    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        for agents in [false, true] {
            let mut these: Vec<&mut Child> =
                self.children.iter_mut().filter(|(name, child)| (child.name != *name) == agents).map(|(_, child)| child).collect();
            for child in &these {
                child.signal(Signal::TERM);
            }
            for child in &mut these {
                match child.wait(STOP).await {
                    Some(status) if status.success() => {}
                    Some(status) => return Err(format!("`{}` ended with {status}:\n{}", child.name, child.said())),
                    None => return Err(format!("`{}` does not end", child.name)),
                }
            }
        }
        Ok(())
    }
}

fn agent_config(name: &str, address: &str, port: u16, [role_id, secret_id, path, pid_file]: [&PathBuf; 4]) -> Value {
    json!({
        "address": address,
        "instance": name,
        "approle": { "role_id_file": role_id, "secret_id_file": secret_id },
        "file": { ROTATION: {
            "path": path,
            "allow_disk": true,
            "format": "json",
            "signal": { "pid_file": pid_file, "name": "HUP" },
            "health": { "http": format!("http://127.0.0.1:{port}/healthz"), "timeout": "4s", "interval": "50ms", "deadline": "6s" },
        }},
    })
}

fn run_command(name: &str, address: &str, port: u16, [role_id, secret_id]: [&PathBuf; 2], stage: &Stage, config: PathBuf) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["run".into()];
    let listen = format!("127.0.0.1:{port}");
    for (flag, value) in [
        ("-address", address.into()),
        ("-rotation", ROTATION.into()),
        ("-instance", name.into()),
        ("-role-id-file", role_id.into()),
        ("-secret-id-file", secret_id.into()),
        ("-listen", listen.into()),
        ("-env", "DB_USERNAME=username".into()),
        ("-env", "DB_PASSWORD=password".into()),
    ] {
        args.extend([flag.into(), value]);
    }
    args.extend(["-socket-as-stdin".into(), "--".into()]);
    args.extend([stage.program.clone().into(), "demo".into(), "service".into(), config.into()]);
    args
}

/// How long a service may take to drain.
const STOP: Duration = Duration::from_secs(20);

/// Waits until every replica says that it can work.
pub(crate) async fn serving(replicas: &[Replica], children: impl Iterator<Item = &mut Child>) -> Result<(), String> {
    let mut children: Vec<&mut Child> = children.collect();
    let until = Instant::now() + START;
    for replica in replicas {
        let address = egress::Address::parse(&format!("http://{}", replica.address)).map_err(|e| crate::explain(&e))?;
        let client = egress::Client::new(address, egress::Options::default());
        let mut last = String::new();
        while let Err(reason) = healthy(&client).await {
            last.clone_from(&reason);
            if let Some(child) =
                children.iter_mut().find_map(|c| c.ended().map(|status| format!("`{}` ended with {status}:\n{}", c.name, c.said())))
            {
                return Err(child);
            }
            if Instant::now() > until {
                return Err(format!("`{}` does not serve: {last}", replica.name));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn healthy(client: &egress::Client) -> Result<(), String> {
    let response = client.send_alone(egress::Request::new("GET", "/healthz")).await.map_err(|e| crate::explain(&e))?;
    let status = response.status;
    let body = response.body.bytes().await.map_err(|e| crate::explain(&e))?;
    if status == 200 { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(body.expose()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_the_canary_for_some_seed() {
        let mut first = Vec::new();
        for seed in 0..3 {
            let mut cast = cast(seed);
            cast.sort_by(|a, b| a.name.cmp(&b.name));
            for kind in [Kind::Provider, Kind::File, Kind::Environment] {
                assert_eq!(cast.iter().filter(|role| role.kind == kind).count(), 2);
            }
            first.push(cast[0].kind);
        }
        assert_eq!(first, [Kind::Provider, Kind::File, Kind::Environment]);
    }
}
