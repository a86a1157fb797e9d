//! The server of the demonstration: a process of its own, spoken to like any user does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use base::SecretString;
use client::Client;
use rustix::process::Signal;
use screen::{Evidence, Holding, Holdings, Run};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::child::Child;
use crate::leaks::Canary;
use crate::pool::Login;
use crate::stage::{DATABASE, Stage};

/// The rotation.
pub(crate) const ROTATION: &str = "orders-db";
/// The two login roles.
pub(crate) const SLOTS: [&str; 2] = ["orders_a", "orders_b"];
/// The role that owns what they make.
pub(crate) const OWNER: &str = "orders";
/// The secret's mount and path below it.
const SECRET: (&str, &str) = ("secret", "orders/db");
/// The role that administers the slots.
const ADMIN: &str = "keyward_admin";
/// How long the server may take to start.
const START: Duration = Duration::from_secs(30);

/// A server process and a client with its first token.
pub(crate) struct Keyward {
    child: Child,
    data: PathBuf,
    port: u16,
    pub(crate) address: String,
    pub(crate) client: Client,
    pub(crate) token: SecretString,
    /// The password of the administering role, once it has one.
    admin: std::sync::OnceLock<SecretString>,
}

impl Keyward {
    /// Starts a server with an empty data directory and waits until it answers.
    pub(crate) async fn start(stage: &mut Stage) -> Result<Self, String> {
        let data = stage.directory.join("server");
        let port = stage.port()?;
        let address = format!("http://127.0.0.1:{port}");
        let mut child = spawn(stage, &data, port)?;
        let client = Client::new(&address, None).map_err(|e| client::explain(&e))?;
        answers(&client, &mut child).await?;
        let path = data.join("root-token");
        let token = std::fs::read_to_string(&path).map_err(|e| format!("could not read `{}`: {e}", path.display()))?;
        let token = SecretString::new(token.trim().to_owned());
        client.set_token(token.clone());
        Ok(Self { child, data, port, address, client, token, admin: std::sync::OnceLock::new() })
    }

    /// `host:port` of the server.
    pub(crate) fn place(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Kills the process as a crash would, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), String> {
        self.child.signal(Signal::KILL);
        self.child.wait(Duration::from_secs(10)).await.map(drop).ok_or_else(|| "the killed server does not end".to_owned())
    }

    /// Starts it again over the same data.
    pub(crate) async fn restart(&mut self, stage: &Stage) -> Result<(), String> {
        self.child = spawn(stage, &self.data, self.port)?;
        answers(&self.client, &mut self.child).await
    }

    /// Ends it in order.
    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        self.child.signal(Signal::TERM);
        match self.child.wait(Duration::from_secs(20)).await {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the server ended with {status}:\n{}", self.child.said())),
            None => Err("the server does not end".to_owned()),
        }
    }

    /// Mounts, identities, the target and the rotation. Returns the first run, which gives the secret its first value.
    pub(crate) async fn furnish(&self, stage: &Stage, database: &str) -> Result<String, String> {
        let made = SecretString::new(random()?);
        let password = self.admin.get_or_init(|| made);
        let root = stage.sql("postgres").await?;
        root.run(&format!("CREATE ROLE {ADMIN} LOGIN CREATEROLE PASSWORD '{}'", password.expose())).await?;
        root.run(&format!("GRANT pg_signal_backend, pg_read_all_stats TO {ADMIN}")).await?;
        self.post("sys/mounts/secret", &json!({ "type": "kv", "options": { "version": "2" } })).await?;
        self.post("sys/auth/approle", &json!({ "type": "approle" })).await?;
        let (mount, path) = SECRET;
        let rules = format!(
            "path \"{mount}/data/{path}\" {{ capabilities = [\"read\"] }}\n\
             path \"sys/lifecycle/watch\" {{ capabilities = [\"read\"] }}\n\
             path \"sys/lifecycle/ack\" {{ capabilities = [\"update\"] }}\n\
             path \"sys/lifecycle/goodbye\" {{ capabilities = [\"update\"] }}\n"
        );
        self.post("sys/policies/acl/orders", &json!({ "policy": rules })).await?;
        let target = json!({
            "kind": "postgres", "address": database, "database": DATABASE,
            "admin_username": ADMIN, "admin_password": password.expose(),
            "connect_timeout": "3s", "statement_timeout": "5s",
        });
        self.post("sys/lifecycle/targets/shop", &target).await?;
        let rotation = json!({
            "path": format!("{mount}/data/{path}"), "target": "shop", "owner": OWNER, "slots": SLOTS,
            "required_level": "L2", "canaries": 1, "soak": "300ms", "quiet_period": "1s", "session_poll": "100ms",
            "soft_deadline": "3s", "hard_deadline": "90s", "on_hard_deadline": "hold", "verifications": 2,
            "backoff": "200ms", "backoff_max": "2s", "holding_ttl": "20s",
        });
        let made = self.post(&format!("sys/lifecycle/rotations/{ROTATION}"), &rotation).await?;
        run_of(&made)
    }

    /// An AppRole for one service: writes its two ids into files and returns the paths.
    pub(crate) async fn identity(&self, stage: &Stage, service: &str) -> Result<(PathBuf, PathBuf), String> {
        #[derive(Deserialize)]
        struct RoleId {
            role_id: String,
        }
        #[derive(Deserialize)]
        struct SecretId {
            secret_id: String,
        }
        let role = format!("auth/approle/role/{service}");
        self.post(&role, &json!({ "token_policies": ["orders"], "token_ttl": "1h" })).await?;
        let said = |e: client::Error| client::explain(&e);
        let id: RoleId = self.client.read(&format!("{role}/role-id"), &[]).await.and_then(|r| r.data()).map_err(said)?;
        let secret: SecretId = self.client.write(&format!("{role}/secret-id"), &json!({})).await.and_then(|r| r.data()).map_err(said)?;
        let (a, b) = (stage.directory.join(format!("{service}.role-id")), stage.directory.join(format!("{service}.secret-id")));
        for (path, text) in [(&a, &id.role_id), (&b, &secret.secret_id)] {
            crate::stage::private_bytes(path, text.as_bytes()).map_err(|e| format!("could not write `{}`: {e}", path.display()))?;
        }
        Ok((a, b))
    }

    /// Opens a run.
    pub(crate) async fn rotate(&self, reason: &str) -> Result<String, String> {
        run_of(&self.post(&format!("sys/lifecycle/rotate/{ROTATION}"), &json!({ "reason": reason })).await?)
    }

    /// One run as it is now.
    pub(crate) async fn run(&self, id: &str) -> Result<Run, String> {
        run(&self.client, id).await
    }

    /// Names of the consumers that have proven to use the generation in force.
    pub(crate) async fn converged(&self) -> Result<Vec<String>, String> {
        let held = holdings(&self.client).await?;
        let there = |h: &Holding| h.generation.is_some() && h.generation == held.generation && h.level.as_deref() == Some("L2");
        Ok(held.key_info.into_iter().filter(|(_, h)| there(h)).map(|(name, _)| name).collect())
    }

    /// The value of the secret as any client reads it.
    pub(crate) async fn current(&self) -> Result<Login, String> {
        let secret = self.client.kv_get(SECRET.0, SECRET.1, None).await.map_err(|e| client::explain(&e))?;
        let data = secret.ok_or_else(|| "the secret has no value".to_owned())?.data;
        let text =
            |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("the secret has no `{name}`"));
        Ok(Login { username: text("username")?, password: text("password")? })
    }

    /// Every secret that went through the server so far, with what to call it.
    pub(crate) async fn canaries(&self) -> Result<Vec<Canary>, String> {
        let canary = |name: String, text: &str| Canary { name, text: text.to_owned() };
        let mut found = vec![canary("root token".to_owned(), self.token.expose())];
        found.extend(self.admin.get().map(|admin| canary("administering role's password".to_owned(), admin.expose())));
        let newest = self.client.kv_get(SECRET.0, SECRET.1, None).await.map_err(|e| client::explain(&e))?;
        let newest = newest.and_then(|secret| secret.version()).ok_or("the secret has no version")?;
        for version in 1..=newest {
            let secret = self.client.kv_get(SECRET.0, SECRET.1, Some(version)).await.map_err(|e| client::explain(&e))?;
            if let Some(password) = secret.as_ref().and_then(|s| s.data.get("password")).and_then(Value::as_str) {
                found.push(canary(format!("password of version {version}"), password));
            }
        }
        Ok(found)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let reply = self.client.write(path, body).await.map_err(|e| client::explain(&e))?;
        if reply.raw().expose().is_empty() { Ok(Value::Null) } else { reply.json().map_err(|e| client::explain(&e)) }
    }
}

/// One run as it is now.
pub(crate) async fn run(client: &Client, id: &str) -> Result<Run, String> {
    client.read(&format!("sys/lifecycle/runs/{id}"), &[]).await.and_then(|r| r.data()).map_err(|e| client::explain(&e))
}

/// Who holds what.
pub(crate) async fn holdings(client: &Client) -> Result<Holdings, String> {
    client.read(&format!("sys/lifecycle/holdings/{ROTATION}"), &[]).await.and_then(|r| r.data()).map_err(|e| client::explain(&e))
}

fn spawn(stage: &Stage, data: &std::path::Path, port: u16) -> Result<Child, String> {
    let args: Vec<OsString> =
        ["server".into(), "-data".into(), data.into(), "-listen-address".into(), format!("127.0.0.1:{port}").into()].into();
    stage.start("server", &args, &[])
}

async fn answers(client: &Client, child: &mut Child) -> Result<(), String> {
    let until = Instant::now() + START;
    loop {
        let Err(error) = client.call("GET", "sys/health", &[], None).await else { return Ok(()) };
        if let Some(status) = child.ended() {
            return Err(format!("the server ended with {status}:\n{}", child.said()));
        }
        if Instant::now() > until {
            return Err(format!("the server does not answer: {}", client::explain(&error)));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn run_of(reply: &Value) -> Result<String, String> {
    reply.pointer("/data/run").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| "the answer names no run".to_owned())
}

/// 24 random bytes in hexadecimal.
fn random() -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = [0_u8; 24];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| format!("could not read `/dev/urandom`: {e}"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// For each consumer that proved to use what was published, the microseconds from the moment `current` moved. One that had it before (a
/// canary) took none.
pub(crate) fn propagation(run: &Run) -> Vec<u64> {
    let at = |e: &Evidence| e.at.unwrap_or_default().0;
    let published = run.evidence.iter().find_map(|e| Some((at(e), e.found.pointer("/published/generation")?.as_u64()?)));
    let Some((moved, generation)) = published else { return Vec::new() };
    let used = |e: &Evidence| {
        let ack = e.found.get("acknowledged")?;
        (ack.get("generation")?.as_u64()? == generation && ack.get("level")? == "L2").then(|| at(e).saturating_sub(moved))
    };
    run.evidence.iter().filter_map(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(evidence: Value) -> Run {
        Run::read(&json!({ "phase": "closed", "evidence": evidence })).unwrap()
    }

    #[test]
    fn propagation_counts_from_the_move_of_current() {
        let at = |us: u64| base::Timestamp(1_767_225_600_000_000 + us).rfc3339();
        let ack = |us: u64, who: &str, generation: u64, level: &str| {
            let found = json!({ "acknowledged": { "instance": who, "generation": generation, "level": level } });
            json!({ "at": at(us), "phase": "rollout", "found": found })
        };
        let run = run(json!([
            ack(50, "canary", 7, "L2"),
            { "at": at(100), "phase": "rollout", "found": { "published": { "generation": 7 } } },
            ack(90, "b", 7, "L1"),
            ack(350, "b", 7, "L2"),
            ack(400, "c", 6, "L2"),
            ack(900, "d", 7, "L2"),
        ]));
        assert_eq!(propagation(&run), [0, 250, 800]);
        assert_eq!(propagation(&Run::default()), Vec::<u64>::new());
    }
}
