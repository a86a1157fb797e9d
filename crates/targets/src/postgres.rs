//! PostgreSQL: two login roles under one owner that cannot log in.
//!
//! What the administering role needs: `CREATEROLE`, membership in `pg_signal_backend` and `pg_read_all_stats`; it must not be a superuser.
//! What is sent: SCRAM verifiers, never passwords, because PostgreSQL logs a failed `ALTER ROLE … PASSWORD` with its text.
//!
//! Every act opens its own connection as the administering role and first takes `pg_advisory_lock` on the principal there. A statement of
//! ours that is still finishing after its client died holds that lock until its backend has ended, so what an act sees is never overtaken by
//! an older act. Advisory locks belong to one database: `admin_database` is that database, the same for all who administer the cluster.

mod guard;
mod link;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base::{Refusal, Rng, SecretString, ttl};
use engine::{Body, BoxFuture, Fault, Field, FieldKind, Login, RotationTarget, Session, TargetConfig, TargetKind};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::time::sleep;
use tokio_postgres::Client;

use link::{Address, Link, NoLink, TRUST, ask, change};

/// The name in a target's `kind`.
pub const KIND: &str = "postgres";
/// The longest name of a role, in bytes: PostgreSQL cuts longer ones off silently, so two names could become one.
pub const NAME_BYTES_MAX: usize = 63;
/// The code of the only refusal that proves anything about a password.
const WRONG_PASSWORD: &str = "28P01";
/// The code of what another cluster than the one that was checked says.
const STRANGER: &str = "another-cluster";
/// The code of what a standby says.
const STANDBY: &str = "standby";
/// What the names of PostgreSQL's own roles begin with; nobody else may use it (`CREATE ROLE`, "Notes").
const PREDEFINED: &str = "pg_";
/// What is said of such a role.
const IS_PREDEFINED: &str = "is predefined by PostgreSQL: its rights reach over the whole cluster";
/// What is said of a role that the administering role may not grant.
const NOT_ADMINISTERED: &str = "was made by somebody else: grant it to the administering role WITH ADMIN OPTION";
/// Sessions that are listed.
const SESSIONS_MAX: i64 = 1_000;
/// Between two looks at sessions that are ending.
const PAUSE: Duration = Duration::from_millis(10);
/// How long our own probe's session may take to end at the server.
const PROBE_END_MAX: Duration = Duration::from_secs(1);
/// Bounds of both timeouts.
const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

static FIELDS: &[Field] = &[
    Field::public("address", FieldKind::Text, "Where PostgreSQL listens: `host:port`, `[v6]:port` or `/socket/directory:port`."),
    Field::public("database", FieldKind::Text, "The database that the slots log in to. Default `postgres`."),
    Field::public(
        "admin_database",
        FieldKind::Text,
        "The database where the administering role logs in and its locks are held; one for the whole cluster. Default `postgres`.",
    ),
    Field::public(
        "admin_username",
        FieldKind::Text,
        "The administering role: CREATEROLE, member of pg_signal_backend and pg_read_all_stats, not a superuser.",
    ),
    Field::new("admin_password", FieldKind::Text, "Its password."),
    Field::public("connect_timeout", FieldKind::Duration, "Bounds each connection with its login, 50ms to 60s. Default 5s."),
    Field::public("statement_timeout", FieldKind::Duration, "Bounds each statement and each wait for a lock, 50ms to 60s. Default 10s."),
    Field::public("application_name", FieldKind::Text, "What our sessions call themselves. Default `keyward`."),
];

/// The kind, as the server lists it.
pub struct Kind {
    rng: Arc<dyn Rng>,
}

impl Kind {
    /// Draws verifiers' salts and unusable passwords from `rng`: the source for secrets.
    #[must_use]
    pub fn new(rng: Arc<dyn Rng>) -> Self {
        Self { rng }
    }
}

impl TargetKind for Kind {
    fn name(&self) -> &'static str {
        KIND
    }

    fn fields(&self) -> &'static [Field] {
        FIELDS
    }

    fn read(&self, body: &Body) -> Result<TargetConfig, Refusal> {
        let mut config = TargetConfig { kind: KIND.into(), ..TargetConfig::default() };
        let text =
            |name: &str, default: &str| Ok::<_, Refusal>(body.text(name)?.filter(|t| !t.is_empty()).unwrap_or_else(|| default.to_owned()));
        config.public.insert("address".into(), body.need_text("address")?);
        config.public.insert("database".into(), text("database", "postgres")?);
        config.public.insert("admin_database".into(), text("admin_database", "postgres")?);
        config.public.insert("admin_username".into(), body.need_text("admin_username")?);
        config.public.insert("application_name".into(), text("application_name", "keyward")?);
        for (name, default) in [("connect_timeout", 5), ("statement_timeout", 10)] {
            let span = body.duration(name)?.unwrap_or(Duration::from_secs(default));
            config.public.insert(name.into(), engine::answer::span(span));
        }
        config.secrets.insert("admin_password".into(), body.need_text("admin_password")?);
        Settings::read(&config)?;
        Ok(config)
    }

    fn open(&self, config: &TargetConfig) -> Result<Arc<dyn RotationTarget>, Refusal> {
        Ok(Arc::new(Postgres { settings: Settings::read(config)?, identity: config.identity.clone(), rng: Arc::clone(&self.rng) }))
    }
}

struct Settings {
    address: Address,
    database: String,
    admin_database: String,
    admin_username: String,
    admin_password: SecretString,
    connect_timeout: Duration,
    statement_timeout: Duration,
    application_name: String,
}

impl Settings {
    fn read(config: &TargetConfig) -> Result<Self, Refusal> {
        let wrong = |name: &str, why: &str| Refusal::invalid(format!("field `{name}`: {why}"));
        let text = |name: &str| {
            let value = config.public.get(name).filter(|t| !t.is_empty()).ok_or_else(|| wrong(name, "missing"))?;
            if value.contains(|c: char| c.is_control()) {
                return Err(wrong(name, "holds a control character"));
            }
            Ok(value.clone())
        };
        let name = |field: &str| {
            let value = text(field)?;
            if value.len() > NAME_BYTES_MAX {
                return Err(wrong(field, &format!("longer than {NAME_BYTES_MAX} bytes")));
            }
            Ok(value)
        };
        let span = |field: &str| {
            let span = ttl::parse(&text(field)?).map_err(|e| wrong(field, &e.to_string()))?;
            if TIMEOUT_RANGE.contains(&span) { Ok(span) } else { Err(wrong(field, "must be between 50ms and 60s")) }
        };
        let password = config.secrets.get("admin_password").filter(|p| !p.is_empty() && !p.contains('\0'));
        Ok(Self {
            address: Address::parse(&text("address")?).map_err(|why| wrong("address", why))?,
            database: name("database")?,
            admin_database: name("admin_database")?,
            admin_username: name("admin_username")?,
            admin_password: SecretString::new(password.ok_or_else(|| wrong("admin_password", "missing, or holds a NUL"))?.clone()),
            connect_timeout: span("connect_timeout")?,
            statement_timeout: span("statement_timeout")?,
            application_name: name("application_name")?,
        })
    }
}

/// An opened target.
struct Postgres {
    settings: Settings,
    /// The cluster's system identifier, once it was checked.
    identity: Option<String>,
    rng: Arc<dyn Rng>,
}

impl RotationTarget for Postgres {
    fn check(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(async {
            let admin = self.admin().await?;
            let client = admin.client()?;
            let seen = async {
                Ok((identity(client).await?, missing_rights(client).await?, has_database(client, &self.settings.database).await?))
            };
            let seen = ask(self.settings.statement_timeout, seen).await;
            admin.close().await;
            let (identity, missing, has_database) = seen?;
            if !missing.is_empty() {
                let text = format!("role `{}` {}", self.settings.admin_username, missing.join(", "));
                return Err(Fault::Refused { code: "42501".into(), text });
            }
            if !has_database {
                return Err(refused("3D000", format!("database `{}` does not exist: the slots could not log in", self.settings.database)));
            }
            let nobody = format!("keyward_check_{}", self.random_text(16)?);
            self.must_refuse(&self.settings.admin_username, &self.settings.admin_database).await?;
            self.must_refuse(&nobody, &self.settings.database).await?;
            Ok(identity)
        })
    }

    fn adopt<'a>(&'a self, owner: &'a str, slots: &'a [String; 2]) -> BoxFuture<'a, Result<[bool; 2], Fault>> {
        Box::pin(async move {
            self.names(owner, slots)?;
            // In one order for everybody, so that no two adoptions wait for each other.
            let names: BTreeSet<&str> = slots.iter().map(String::as_str).chain([owner]).collect();
            let admin = self.admin().await?;
            let client = admin.client()?;
            for name in names {
                self.lock(client, name).await?;
            }
            let mut statements = String::new();
            let found = ask(self.settings.statement_timeout, role(client, owner)).await?;
            match found {
                Some(found) => found.check_owner(owner)?,
                None => statements.push_str(&format!("CREATE ROLE {} NOLOGIN;\n", escape_identifier(owner))),
            }
            let mut ours = [true; 2];
            for (slot, ours) in slots.iter().zip(&mut ours) {
                match ask(self.settings.statement_timeout, member(client, slot, owner)).await? {
                    Some(found) => {
                        found.check(slot)?;
                        *ours = found.enlistment(slot, owner).is_empty();
                    }
                    None => statements.push_str(&self.creation(slot, owner)?),
                }
            }
            if !statements.is_empty() {
                // One message of several statements is one transaction.
                self.execute(client, &statements).await?;
            }
            admin.close().await;
            Ok(ours)
        })
    }

    fn set<'a>(&'a self, owner: &'a str, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let verifier = self.verifier(password)?;
            let admin = self.locked(slot).await?;
            let client = admin.client()?;
            let mut statements = String::new();
            if let Some(found) = ask(self.settings.statement_timeout, member(client, slot, owner)).await? {
                found.check(slot)?;
                // Asked again at each turn: who acts as the owner gets what the owner has been given since.
                if let Some(found) = ask(self.settings.statement_timeout, role(client, owner)).await? {
                    found.check_owner(owner)?;
                }
                statements.push_str(&found.enlistment(slot, owner));
            }
            // One message of several statements is one transaction: nobody meets the role half changed.
            statements.push_str(&format!("ALTER ROLE {} LOGIN PASSWORD {}", escape_identifier(slot), escape_literal(&verifier)));
            self.execute(client, &statements).await?;
            admin.close().await;
            Ok(())
        })
    }

    fn probe<'a>(&'a self, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<Login, Fault>> {
        Box::pin(async move {
            let admin = self.locked(slot).await?;
            let login = self.try_login(admin.client()?, slot, password).await;
            admin.close().await;
            login
        })
    }

    fn sessions<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<Vec<Session>, Fault>> {
        Box::pin(async move {
            // Under the lock no probe of ours is among them.
            let admin = self.locked(slot).await?;
            let listed = ask(self.settings.statement_timeout, sessions(admin.client()?, slot)).await;
            admin.close().await;
            listed
        })
    }

    fn kill<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<u64, Fault>> {
        Box::pin(async move {
            let verifier = self.unusable()?;
            let admin = self.locked(slot).await?;
            // NOLOGIN besides the new verifier: a login that read the old verifier before this commit is still turned away at its end.
            // A wrong password stays a wrong password (28P01) on a role that may not log in, so the proof of death is not blurred.
            let sql = format!("ALTER ROLE {} NOLOGIN PASSWORD {}", escape_identifier(slot), escape_literal(&verifier));
            self.execute(admin.client()?, &sql).await?;
            let ended = change(self.settings.statement_timeout, end_sessions(admin.client()?, slot)).await;
            admin.close().await;
            ended
        })
    }
}

impl Postgres {
    async fn open(&self, user: &str, password: &SecretString, database: &str) -> Result<Link, NoLink> {
        let settings = &self.settings;
        Link::open(&link::Login {
            address: &settings.address,
            database,
            user,
            password,
            application: &settings.application_name,
            connect_timeout: settings.connect_timeout,
            statement_timeout: settings.statement_timeout,
        })
        .await
    }

    /// A connection of the administering role.
    async fn admin(&self) -> Result<Link, Fault> {
        let settings = &self.settings;
        let link = self.open(&settings.admin_username, &settings.admin_password, &settings.admin_database).await?;
        let known = if link.proven { self.known(&link).await } else { Err(trusting(&settings.admin_username)) };
        match known {
            Ok(()) => Ok(link),
            Err(fault) => {
                link.close().await;
                Err(fault)
            }
        }
    }

    /// Whether it is the primary of the cluster that was checked. What happens at another one proves nothing here.
    async fn known(&self, link: &Link) -> Result<(), Fault> {
        let found = ask(self.settings.statement_timeout, identity(link.client()?)).await?;
        match &self.identity {
            Some(expected) if found != *expected => Err(stranger(&found, expected)),
            _ => Ok(()),
        }
    }

    /// A connection of the administering role that holds the lock on `name`.
    async fn locked(&self, name: &str) -> Result<Link, Fault> {
        usable(name)?;
        if name == self.settings.admin_username {
            return Err(refused("42501", format!("`{name}` is the administering role itself")));
        }
        let link = self.admin().await?;
        self.lock(link.client()?, name).await?;
        Ok(link)
    }

    /// Waits for the lock on `name`; it is held until the connection ends.
    async fn lock(&self, client: &Client, name: &str) -> Result<(), Fault> {
        let act = async {
            match client.execute("SELECT pg_catalog.pg_advisory_lock($1)", &[&lock_key(name)]).await {
                Ok(_) => Ok(()),
                Err(e) if e.code().is_some_and(|c| c.code() == "57014") => {
                    Err(Fault::Unreachable(format!("another act still holds the lock on `{name}`")))
                }
                Err(e) => Err(link::asked(&e)),
            }
        };
        ask(self.settings.statement_timeout, act).await
    }

    async fn execute(&self, client: &Client, sql: &str) -> Result<(), Fault> {
        change(self.settings.statement_timeout, async { client.batch_execute(sql).await.map_err(|e| link::changed(&e)) }).await
    }

    /// A login as `user` with a random password must be refused as a wrong password.
    async fn must_refuse(&self, user: &str, database: &str) -> Result<(), Fault> {
        let random = crypto::password::generate(&*self.rng, crypto::password::LENGTH).map_err(|_| no_randomness())?;
        match self.open(user, &random, database).await {
            Ok(link) => {
                link.close().await;
                Err(trusting(user))
            }
            Err(NoLink::Refused { code, .. }) if code == WRONG_PASSWORD => Ok(()),
            Err(NoLink::Refused { code, text }) => Err(refused(
                &code,
                format!(
                    "a wrong password of `{user}` for database `{database}` is not refused as a wrong password (`{WRONG_PASSWORD}`), so no \
                     password could be proven dead here; pg_hba.conf must lead every role to `scram-sha-256`, not to `trust` or to no \
                     rule. The server said: {text}"
                ),
            )),
            Err(other) => Err(other.into()),
        }
    }

    /// Logs in as `slot`; the lock on it is held.
    async fn try_login(&self, admin: &Client, slot: &str, password: &SecretString) -> Result<Login, Fault> {
        let link = match self.open(slot, password, &self.settings.database).await {
            Ok(link) => link,
            Err(NoLink::Refused { code, .. }) if code == WRONG_PASSWORD => {
                return ask(self.settings.statement_timeout, judge_wrong(admin, slot)).await;
            }
            Err(NoLink::Refused { code, .. }) => return Ok(Login::Refused { code }),
            Err(other) => return Err(other.into()),
        };
        let proven = link.proven;
        let who = ask(self.settings.statement_timeout, who(link.client()?)).await;
        link.close().await;
        let who = who?;
        gone(admin, who.pid).await?;
        if !proven {
            return Ok(Login::Refused { code: TRUST.into() });
        }
        if self.identity.as_ref().is_some_and(|expected| *expected != who.system) {
            return Ok(Login::Refused { code: STRANGER.into() });
        }
        let expected = ask(self.settings.statement_timeout, role(admin, slot)).await?.and_then(|role| role.acts_as);
        if who.session == slot && who.current != slot && expected.as_deref() == Some(who.current.as_str()) {
            return Ok(Login::Accepted);
        }
        let reason = format!("role `{slot}` logs in, but not as the owner: what it creates would be closed to the other slot");
        Ok(Login::Unfit { reason })
    }

    fn names(&self, owner: &str, slots: &[String; 2]) -> Result<(), Fault> {
        let [a, b] = slots;
        for (field, name) in [("owner", owner), ("slots", a), ("slots", b)] {
            usable(name)?;
            if *name == self.settings.admin_username {
                return Err(unfit(field, name, &["is the administering role itself".into()]));
            }
            if name.starts_with(PREDEFINED) {
                return Err(unfit(field, name, &[IS_PREDEFINED.into()]));
            }
        }
        if a == b || a == owner || b == owner {
            return Err(refused("42710", "fields `owner`, `slots`: the owner and the two slots must be three roles".into()));
        }
        Ok(())
    }

    /// Makes a role that is a slot of `owner` with a password that nobody knows.
    fn creation(&self, slot: &str, owner: &str) -> Result<String, Fault> {
        let verifier = escape_literal(&self.unusable()?);
        let role = escape_identifier(slot);
        Ok(format!("CREATE ROLE {role} LOGIN INHERIT PASSWORD {verifier};\n{}{}", membership(slot, owner), acting(slot, owner)))
    }

    fn verifier(&self, password: &SecretString) -> Result<String, Fault> {
        let mut salt = [0_u8; 16];
        self.rng.fill(&mut salt).map_err(|_| no_randomness())?;
        crypto::scram::verifier(password, &salt, crypto::scram::ITERATIONS)
            .ok_or_else(|| refused("22023", "a password for PostgreSQL must be ASCII".into()))
    }

    /// The verifier of a password that nobody knows.
    fn unusable(&self) -> Result<String, Fault> {
        self.verifier(&crypto::password::generate(&*self.rng, crypto::password::LENGTH).map_err(|_| no_randomness())?)
    }

    fn random_text(&self, len: usize) -> Result<String, Fault> {
        base::id::base62(&*self.rng, len).map_err(|_| no_randomness())
    }
}

/// What the catalogue says of a role.
struct Role {
    login: bool,
    superuser: bool,
    createrole: bool,
    createdb: bool,
    bypassrls: bool,
    replication: bool,
    inherits: bool,
    expires: bool,
    acts_as: Option<String>,
    /// Whether the administering role may grant and alter it. Since PostgreSQL 16 CREATEROLE alone is not enough for a role that somebody
    /// else has made (`CREATE ROLE`, "Notes").
    administered: bool,
    /// Roles with rights over the whole cluster that it is a member of, directly or through others.
    powerful: Vec<String>,
}

impl Role {
    /// What it can do beyond one application: nobody who may write a rotation gets that by it.
    fn powers(&self, name: &str) -> Vec<String> {
        let own = [
            (name.starts_with(PREDEFINED), IS_PREDEFINED),
            (self.superuser, "is a superuser"),
            (self.createrole, "has CREATEROLE"),
            (self.createdb, "has CREATEDB"),
            (self.bypassrls, "has BYPASSRLS"),
            (self.replication, "has REPLICATION"),
        ];
        let own = own.into_iter().filter(|(has, _)| *has).map(|(_, text)| text.to_owned());
        own.chain(self.powerful.iter().map(|role| format!("is a member of `{role}`"))).collect()
    }

    /// Whether it may own what both slots make.
    fn check_owner(&self, owner: &str) -> Result<(), Fault> {
        let mut wrong = self.powers(owner);
        if self.login {
            wrong.push("may log in".into());
        }
        if !self.administered {
            wrong.push(NOT_ADMINISTERED.into());
        }
        if wrong.is_empty() { Ok(()) } else { Err(unfit("owner", owner, &wrong)) }
    }
}

struct Member {
    role: Role,
    member: bool,
}

impl Member {
    /// Whether the role may be a slot at all.
    fn check(&self, slot: &str) -> Result<(), Fault> {
        let mut wrong = self.role.powers(slot);
        if !self.role.inherits {
            wrong.push("is NOINHERIT".into());
        }
        if self.role.expires {
            wrong.push("has a VALID UNTIL, which would refuse logins on its own".into());
        }
        if !self.role.administered {
            wrong.push(NOT_ADMINISTERED.into());
        }
        if wrong.is_empty() { Ok(()) } else { Err(unfit("slots", slot, &wrong)) }
    }

    /// What the role still lacks to be a slot of `owner`. Changes who its sessions act as, so it waits until the role's turn has come.
    fn enlistment(&self, slot: &str, owner: &str) -> String {
        let mut statements = String::new();
        if !self.member {
            statements.push_str(&membership(slot, owner));
        }
        if self.role.acts_as.as_deref() != Some(owner) {
            statements.push_str(&acting(slot, owner));
        }
        statements
    }
}

fn membership(slot: &str, owner: &str) -> String {
    format!("GRANT {} TO {};\n", escape_identifier(owner), escape_identifier(slot))
}

fn acting(slot: &str, owner: &str) -> String {
    format!("ALTER ROLE {} SET role = {};\n", escape_identifier(slot), escape_literal(owner))
}

async fn role(client: &Client, name: &str) -> Result<Option<Role>, Fault> {
    // The owner of the database is a member of pg_database_owner by that alone; nobody else can be.
    const SQL: &str = "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolinherit, \
         rolvaliduntil IS NOT NULL, \
         (SELECT pg_catalog.substr(c, 6) FROM pg_catalog.unnest(rolconfig) AS c WHERE c LIKE 'role=%' LIMIT 1), \
         pg_catalog.current_setting('server_version_num')::int < 160000 \
         OR pg_catalog.pg_has_role(session_user, oid, 'MEMBER WITH ADMIN OPTION'), \
         ARRAY(SELECT p.rolname::text FROM pg_catalog.pg_roles p WHERE NOT r.rolsuper AND p.oid <> r.oid \
         AND p.rolname <> 'pg_database_owner' AND pg_catalog.pg_has_role(r.oid, p.oid, 'MEMBER') \
         AND (p.rolname LIKE 'pg\\_%' OR p.rolname = session_user OR p.rolsuper OR p.rolcreaterole OR p.rolcreatedb OR p.rolbypassrls \
         OR p.rolreplication) ORDER BY p.rolname LIMIT 5) \
         FROM pg_catalog.pg_roles r WHERE rolname = $1";
    let row = client.query_opt(SQL, &[&name]).await.map_err(|e| link::asked(&e))?;
    row.map(|row| {
        Ok(Role {
            login: row.try_get(0)?,
            superuser: row.try_get(1)?,
            createrole: row.try_get(2)?,
            createdb: row.try_get(3)?,
            bypassrls: row.try_get(4)?,
            replication: row.try_get(5)?,
            inherits: row.try_get(6)?,
            expires: row.try_get(7)?,
            acts_as: row.try_get(8)?,
            administered: row.try_get(9)?,
            powerful: row.try_get(10)?,
        })
    })
    .transpose()
    .map_err(|e| link::asked(&e))
}

async fn member(client: &Client, slot: &str, owner: &str) -> Result<Option<Member>, Fault> {
    let Some(role) = role(client, slot).await? else { return Ok(None) };
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles o ON o.oid = m.roleid \
         JOIN pg_catalog.pg_roles s ON s.oid = m.member WHERE s.rolname = $1 AND o.rolname = $2)";
    let row = client.query_one(SQL, &[&slot, &owner]).await.map_err(|e| link::asked(&e))?;
    Ok(Some(Member { role, member: row.try_get(0).map_err(|e| link::asked(&e))? }))
}

async fn has_database(client: &Client, name: &str) -> Result<bool, Fault> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1 AND datallowconn)";
    let row = client.query_one(SQL, &[&name]).await.map_err(|e| link::asked(&e))?;
    row.try_get(0).map_err(|e| link::asked(&e))
}

/// What the administering role lacks or has too much of, as the ends of a sentence.
async fn missing_rights(client: &Client) -> Result<Vec<&'static str>, Fault> {
    const SQL: &str = "SELECT rolsuper, rolcreaterole, pg_catalog.pg_has_role(oid, 'pg_signal_backend', 'USAGE'), \
         pg_catalog.pg_has_role(oid, 'pg_read_all_stats', 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = session_user";
    let row = client.query_one(SQL, &[]).await.map_err(|e| link::asked(&e))?;
    let rights = (|| Ok([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?]))();
    let [superuser, createrole, signal, stats]: [bool; 4] = rights.map_err(|e: tokio_postgres::Error| link::asked(&e))?;
    if superuser {
        // A superuser has every other right without being given it.
        return Ok(vec!["is a superuser; give it CREATEROLE, pg_signal_backend and pg_read_all_stats instead"]);
    }
    let rows = [
        (createrole, "lacks CREATEROLE"),
        (signal, "lacks membership in pg_signal_backend"),
        (stats, "lacks membership in pg_read_all_stats"),
    ];
    Ok(rows.into_iter().filter_map(|(has, text)| (!has).then_some(text)).collect())
}

/// A login of `slot` was refused as a wrong password. PostgreSQL says the same of a role that is not there (renamed, and alive under its new
/// name) and of one past its VALID UNTIL (alive again when that is moved): these prove nothing.
async fn judge_wrong(admin: &Client, slot: &str) -> Result<Login, Fault> {
    Ok(match role(admin, slot).await? {
        None => Login::Refused { code: "42704".into() },
        Some(role) if role.expires => Login::Refused { code: "valid-until".into() },
        Some(_) => Login::WrongPassword { code: WRONG_PASSWORD.into() },
    })
}

/// What stays the same for as long as it is the same cluster, its physical copies included: made by `initdb`, public to every role
/// (PostgreSQL, "Control Data Functions"). A standby has it too and is refused: it shows its own sessions only.
async fn identity(client: &Client) -> Result<String, Fault> {
    const SQL: &str = "SELECT system_identifier::text, pg_catalog.pg_is_in_recovery() FROM pg_catalog.pg_control_system()";
    let row = client.query_one(SQL, &[]).await.map_err(|e| link::asked(&e))?;
    let (system, standby) = (|| Ok((row.try_get(0)?, row.try_get(1)?)))().map_err(|e: tokio_postgres::Error| link::asked(&e))?;
    if standby {
        return Err(refused(STANDBY, "a standby answers: only the primary takes changes and shows who is logged in to it".into()));
    }
    Ok(system)
}

struct Who {
    system: String,
    current: String,
    session: String,
    pid: i32,
}

async fn who(client: &Client) -> Result<Who, Fault> {
    const SQL: &str = "SELECT system_identifier::text, current_user::text, session_user::text, pg_catalog.pg_backend_pid() \
         FROM pg_catalog.pg_control_system()";
    let row = client.query_one(SQL, &[]).await.map_err(|e| link::asked(&e))?;
    (|| Ok(Who { system: row.try_get(0)?, current: row.try_get(1)?, session: row.try_get(2)?, pid: row.try_get(3)? }))()
        .map_err(|e| link::asked(&e))
}

/// Waits until our probe's session has ended, so that nobody counts it. One that stays is counted: the safe side.
async fn gone(admin: &Client, pid: i32) -> Result<(), Fault> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1)";
    let wait = async {
        loop {
            let row = admin.query_one(SQL, &[&pid]).await.map_err(|e| link::asked(&e))?;
            if !row.try_get::<_, bool>(0).map_err(|e| link::asked(&e))? {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PROBE_END_MAX, wait).await.unwrap_or(Ok(()))
}

async fn sessions(client: &Client, slot: &str) -> Result<Vec<Session>, Fault> {
    const SQL: &str = "SELECT pid::text, coalesce(pg_catalog.host(client_addr), 'local'), coalesce(application_name, '') \
         FROM pg_catalog.pg_stat_activity WHERE usename = $1 ORDER BY pid LIMIT $2";
    let rows = client.query(SQL, &[&slot, &SESSIONS_MAX]).await.map_err(|e| link::asked(&e))?;
    rows.iter()
        .map(|row| Ok(Session { id: row.try_get(0)?, client: row.try_get(1)?, application: row.try_get(2)? }))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| link::asked(&e))
}

/// Ends the sessions of `slot` until none is left; the caller bounds the time.
async fn end_sessions(client: &Client, slot: &str) -> Result<u64, Fault> {
    const SQL: &str = "SELECT pid, pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usename = $1";
    let mut ended = BTreeSet::new();
    loop {
        let rows = client.query(SQL, &[&slot]).await.map_err(|e| link::changed(&e))?;
        if rows.is_empty() {
            return Ok(u64::try_from(ended.len()).unwrap_or(u64::MAX));
        }
        for row in &rows {
            ended.insert(row.try_get::<_, i32>(0).map_err(|e| link::changed(&e))?);
        }
        sleep(PAUSE).await;
    }
}

/// The advisory lock of a role.
fn lock_key(name: &str) -> i64 {
    let digest = crypto::hash::sha256(format!("keyward principal\0{name}").as_bytes());
    digest.first_chunk().map_or(0, |eight| i64::from_be_bytes(*eight))
}

fn usable(name: &str) -> Result<(), Fault> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(refused("42602", format!("the name of a role has 1 to {NAME_BYTES_MAX} bytes and no NUL")));
    }
    Ok(())
}

fn refused(code: &str, text: String) -> Fault {
    Fault::Refused { code: code.to_owned(), text }
}

/// A role that cannot be what this field of a policy makes of it.
fn unfit(field: &str, role: &str, wrong: &[String]) -> Fault {
    refused("42501", format!("field `{field}`: role `{role}` {}", wrong.join(", ")))
}

fn trusting(user: &str) -> Fault {
    let text = format!(
        "role `{user}` is let in without a proof of its password (`trust`, `peer` or the like in pg_hba.conf): nothing could be proven dead here"
    );
    refused(TRUST, text)
}

fn stranger(found: &str, expected: &str) -> Fault {
    let text = format!(
        "the cluster that answers (system identifier {found}) is not the one that was checked ({expected}); a standby that takes over keeps \
         the identifier, a restored dump does not"
    );
    refused(STRANGER, text)
}

fn no_randomness() -> Fault {
    Fault::Unreachable("no randomness: nothing was sent".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Kind {
        Kind::new(Arc::new(crypto::rng::SystemRng::new()))
    }

    fn read(json: &str) -> Result<TargetConfig, String> {
        kind().read(&Body::from_json(json.as_bytes()).unwrap()).map_err(|r| r.errors.join("; "))
    }

    #[test]
    fn a_configuration_is_read_shown_and_opened() {
        let config = read(
            r#"{"address":"127.0.0.1:5432","admin_username":"kw","admin_password":"s3cret","statement_timeout":"2s","connect_timeout":1}"#,
        )
        .unwrap();
        let shown = format!("{:?}", config.public);
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(config.public["statement_timeout"], "2s");
        assert_eq!(config.public["connect_timeout"], "1s");
        assert_eq!(config.public["admin_database"], "postgres");
        assert!(kind().open(&config).is_ok());
        let listed: Vec<&str> = FIELDS.iter().map(|f| f.name).collect();
        for name in config.public.keys().chain(config.secrets.keys()) {
            assert!(listed.contains(&name.as_str()), "`{name}` is not documented");
        }
        assert_eq!(config.public.len() + config.secrets.len(), listed.len());
    }

    #[test]
    fn wrong_fields_are_named_and_their_values_kept_quiet() {
        for (json, field) in [
            (r#"{"admin_username":"a","admin_password":"p"}"#, "address"),
            (r#"{"address":"10.1.2.3:5432","admin_username":"a","admin_password":"p"}"#, "address"),
            (r#"{"address":"127.0.0.1:1","admin_password":"p"}"#, "admin_username"),
            (r#"{"address":"127.0.0.1:1","admin_username":"a"}"#, "admin_password"),
            (r#"{"address":"127.0.0.1:1","admin_username":"a","admin_password":"p","statement_timeout":"10ms"}"#, "statement_timeout"),
            (r#"{"address":"127.0.0.1:1","admin_username":"a","admin_password":"p","connect_timeout":"2h"}"#, "connect_timeout"),
            (r#"{"address":"127.0.0.1:1","admin_username":"a\u0000b","admin_password":"p"}"#, "admin_username"),
            (r#"{"address":"127.0.0.1:1","admin_username":"a","admin_password":"canary\u0000b"}"#, "admin_password"),
        ] {
            let said = read(json).unwrap_err();
            assert!(said.contains(&format!("field `{field}`")) && !said.contains("canary"), "{json}: {said}");
        }
    }

    #[test]
    fn locks_are_fixed_and_differ() {
        assert_eq!(lock_key("orders_a"), lock_key("orders_a"));
        assert_ne!(lock_key("orders_a"), lock_key("orders_b"));
        // Two builds at one target must agree.
        assert_eq!(lock_key("orders_a"), {
            let digest = crypto::hash::sha256(b"keyward principal\0orders_a");
            i64::from_be_bytes(digest[..8].try_into().unwrap())
        });
    }

    #[test]
    fn names_are_bounded() {
        for (name, ok) in
            [("a", true), ("", false), (&"x".repeat(63), true), (&"x".repeat(64), false), ("a\0b", false), (&"é".repeat(32), false)]
        {
            assert_eq!(usable(name).is_ok(), ok, "{name:?}");
        }
    }
}
