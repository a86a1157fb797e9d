//! The services that are rotated: three ways to consume, two replicas of each.

use std::time::Duration;

use base::rng::SeededRng;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::child::Child;
use crate::keyward::{Keyward, POLICY};
use crate::load::Replica;
use crate::pool::Place;
use crate::service::Supply;
use crate::stage::{DATABASE, LIFE_MS, Stage};

/// How long a service may take until it serves.
const START: Duration = Duration::from_secs(30);

/// Six replicas, each with the processes that belong to it.
pub(crate) struct Fleet {
    pub(crate) replicas: Vec<Replica>,
    children: Vec<(String, Child)>,
}

impl Fleet {
    /// Starts all replicas and waits until each is proven to use the value in force.
    pub(crate) async fn start(stage: &mut Stage, keyward: &Keyward, seed: u64) -> Result<Self, String> {
        let mut replicas = Vec::new();
        let mut children = Vec::new();
        for (n, name) in names().enumerate() {
            let port = stage.port()?;
            let seed = seed.wrapping_mul(31).wrapping_add(u64::try_from(n).unwrap_or(0));
            let (role_id, secret_id) = keyward.identity(stage, &name).await?;
            let supply = Supply::Provider { server: keyward.address.clone(), policy: POLICY.to_owned(), role_id, secret_id };
            let config = stage.service(&name, "work", Some(port), supply, seed)?;
            children.push((name.clone(), stage.start(&name, &["demo".into(), "service".into(), config.into()], &[])?));
            replicas.push(Replica { name, address: format!("127.0.0.1:{port}") });
        }
        let mut fleet = Self { replicas, children };
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

    /// Ends all replicas in order.
    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        for (_, child) in &self.children {
            child.signal(Signal::TERM);
        }
        for (name, child) in &mut self.children {
            match child.wait(STOP).await {
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("`{name}` ended with {status}:\n{}", child.said())),
                None => return Err(format!("`{name}` does not end")),
            }
        }
        Ok(())
    }
}

/// How long a service may take to drain.
const STOP: Duration = Duration::from_secs(20);

/// The names of all replicas.
pub(crate) fn names() -> impl Iterator<Item = String> {
    ["provider", "file", "environment"].into_iter().flat_map(|kind| (1..=2).map(move |n| format!("{kind}-{n}")))
}

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
