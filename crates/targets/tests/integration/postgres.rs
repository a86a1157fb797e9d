//! A slot pair on a real PostgreSQL, from adoption to a proven death, and everything that must not count as one.

use std::sync::Arc;

use base::SecretString;
use engine::{Body, Fault, Login, RotationTarget, TargetConfig, TargetKind};
use testkit::postgres::{Cluster, Mode};
use tokio_postgres::{Client, NoTls};

const ADMIN: &str = "keyward_admin";
const ADMIN_PASSWORD: &str = "admin-canary-b1f6";

/// A cluster with an administering role that has the rights it needs.
struct Bench {
    cluster: Cluster,
    root: Client,
}

impl Bench {
    async fn new() -> Self {
        let cluster = Cluster::create().unwrap();
        let superuser = cluster.superuser();
        let root = connect(&cluster, &superuser.user, &superuser.password).await.unwrap();
        let bench = Self { cluster, root };
        bench.sql(&format!("CREATE ROLE {ADMIN} LOGIN CREATEROLE PASSWORD '{ADMIN_PASSWORD}'")).await;
        bench.sql(&format!("GRANT pg_signal_backend, pg_read_all_stats TO {ADMIN}")).await;
        bench
    }

    /// As a number: 150018 for 15.18.
    async fn version(&self) -> i32 {
        self.root.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap().get(0)
    }

    async fn sql(&self, text: &str) {
        self.root.batch_execute(text).await.unwrap();
    }

    fn target(&self) -> Arc<dyn RotationTarget> {
        self.target_with(&format!("127.0.0.1:{}", self.cluster.port()), ADMIN, ADMIN_PASSWORD)
    }

    fn target_with(&self, address: &str, admin: &str, password: &str) -> Arc<dyn RotationTarget> {
        open(address, admin, password)
    }

    async fn login(&self, user: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
        connect(&self.cluster, user, password).await
    }
}

pub(crate) fn open(address: &str, admin: &str, password: &str) -> Arc<dyn RotationTarget> {
    open_known(address, admin, password, None)
}

fn open_known(address: &str, admin: &str, password: &str, identity: Option<String>) -> Arc<dyn RotationTarget> {
    let kind = targets::postgres::Kind::new(Arc::new(crypto::rng::SystemRng::new()));
    let text = format!(
        r#"{{"address":"{address}","admin_username":"{admin}","admin_password":"{password}","connect_timeout":"2s","statement_timeout":"2s"}}"#
    );
    let config = kind.read(&Body::from_json(text.as_bytes()).unwrap()).unwrap();
    kind.open(&TargetConfig { identity, ..config }).unwrap()
}

async fn connect(cluster: &Cluster, user: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(cluster.host()).port(cluster.port()).user(user).password(password).dbname("postgres").application_name("a service");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

fn slots(a: &str, b: &str) -> [String; 2] {
    [a.to_owned(), b.to_owned()]
}

fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}

fn wrong() -> Result<Login, Fault> {
    Ok(Login::WrongPassword { code: "28P01".into() })
}

fn refused(code: &str) -> Result<Login, Fault> {
    Ok(Login::Refused { code: code.into() })
}

/// Fails unless `result` is a refusal that says all of `words`.
fn says<T: std::fmt::Debug>(result: Result<T, Fault>, words: &[&str]) {
    match result {
        Err(Fault::Refused { code, text }) => {
            for word in words {
                assert!(format!("{code}: {text}").contains(word), "{code}: {text}: `{word}` is not said");
            }
        }
        other => panic!("{other:?} instead of {words:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_pair_lives_and_dies() {
    let bench = Bench::new().await;
    let target = bench.target();
    target.check().await.unwrap();
    let pair = slots("orders_a", "orders_b");
    target.adopt("orders", &pair).await.unwrap();
    target.adopt("orders", &pair).await.unwrap();
    let (one, two) = (secret("the-first-value"), secret("the-second-value"));
    assert_eq!(target.probe("orders_a", &one).await, wrong(), "an adopted slot has no usable password");

    target.set("orders", "orders_a", &one).await.unwrap();
    assert_eq!(target.probe("orders_a", &one).await, Ok(Login::Accepted));
    assert_eq!(target.probe("orders_a", &two).await, wrong());
    assert_eq!(target.sessions("orders_a").await.unwrap(), [], "a probe left its session");

    // What one slot makes belongs to the owner, so the other can use it.
    bench.sql("GRANT CREATE ON SCHEMA public TO orders").await;
    let a = bench.login("orders_a", one.expose()).await.unwrap();
    a.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    target.set("orders", "orders_b", &two).await.unwrap();
    let b = bench.login("orders_b", two.expose()).await.unwrap();
    b.batch_execute("INSERT INTO t VALUES (1); DROP TABLE t").await.unwrap();

    let seen = target.sessions("orders_a").await.unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].client.as_str(), seen[0].application.as_str()), ("127.0.0.1", "a service"));

    // A session survives a new password; only the kill ends it.
    target.set("orders", "orders_a", &secret("another")).await.unwrap();
    a.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(target.kill("orders_a").await, Ok(1));
    assert!(a.batch_execute("SELECT 1").await.is_err());
    for value in ["the-first-value", "another"] {
        assert_eq!(target.probe("orders_a", &secret(value)).await, wrong(), "{value}");
    }
    assert_eq!(target.sessions("orders_a").await.unwrap(), []);
    assert_eq!(target.kill("orders_a").await, Ok(0), "dead twice is dead");
    assert_eq!(target.probe("orders_b", &two).await, Ok(Login::Accepted), "the other slot is untouched");

    // A dead slot is adopted and used again.
    assert_eq!(target.adopt("orders", &pair).await, Ok([true, true]));
    target.set("orders", "orders_a", &one).await.unwrap();
    assert_eq!(target.probe("orders_a", &one).await, Ok(Login::Accepted));
}

/// The control of the proof: a revocation that changes nothing is seen, because the old value is still accepted.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_prove_nothing_are_told_from_a_wrong_password() {
    let mut bench = Bench::new().await;
    let target = bench.target();
    target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap();
    let value = secret("right");
    target.set("pay", "pay_a", &value).await.unwrap();
    assert_eq!(target.probe("pay_a", &value).await, Ok(Login::Accepted));

    bench.sql("ALTER ROLE pay_a NOLOGIN").await;
    assert_eq!(target.probe("pay_a", &value).await, refused("28000"), "NOLOGIN");
    assert_eq!(target.probe("pay_a", &secret("no")).await, wrong(), "a wrong password stays one without LOGIN");
    bench.sql("ALTER ROLE pay_a LOGIN VALID UNTIL '2001-01-01'").await;
    assert_eq!(target.probe("pay_a", &value).await, refused("valid-until"), "expired, and alive when that is moved");
    says(target.adopt("pay", &slots("pay_a", "pay_b")).await, &["pay_a", "VALID UNTIL"]);
    bench.sql("ALTER ROLE pay_a VALID UNTIL 'infinity'; UPDATE pg_authid SET rolvaliduntil = NULL WHERE rolname = 'pay_a'").await;
    bench.sql("ALTER ROLE pay_a CONNECTION LIMIT 0").await;
    assert!(matches!(target.probe("pay_a", &value).await, Err(Fault::Unreachable(text)) if text.contains("53300")), "no connection left");
    bench.sql("ALTER ROLE pay_a CONNECTION LIMIT -1; ALTER ROLE pay_a RENAME TO pay_z").await;
    assert_eq!(target.probe("pay_a", &value).await, refused("42704"), "alive under another name");
    bench.sql(&format!("ALTER ROLE pay_z RENAME TO pay_a; REVOKE pay FROM pay_a GRANTED BY {ADMIN}")).await;
    assert!(matches!(target.probe("pay_a", &value).await, Ok(Login::Unfit { .. })), "logs in, and not as the owner");
    target.set("pay", "pay_a", &value).await.unwrap();
    assert_eq!(target.probe("pay_a", &value).await, Ok(Login::Accepted), "setting mends it");

    let only_admin = format!("host all {ADMIN} 127.0.0.1/32 scram-sha-256");
    bench.cluster.hba(&[&only_admin]).unwrap();
    assert_eq!(target.probe("pay_a", &value).await, refused("28000"), "no rule in pg_hba.conf");
    says(target.check().await, &["28000", "pg_hba.conf"]);
    bench.cluster.hba(&[&only_admin, "host all all 127.0.0.1/32 trust"]).unwrap();
    assert_eq!(target.probe("pay_a", &value).await, refused("trust"), "nobody asked for the password");
    assert_eq!(target.probe("pay_a", &secret("no")).await, refused("trust"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_never_a_death() {
    let mut bench = Bench::new().await;
    let target = bench.target();
    target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap();
    let value = secret("right");
    target.set("pay", "pay_a", &value).await.unwrap();
    bench.cluster.stop(Mode::Fast).unwrap();
    for _ in 0..3 {
        for fault in [
            target.check().await.unwrap_err(),
            target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap_err(),
            target.probe("pay_a", &value).await.unwrap_err(),
            target.probe("pay_a", &secret("no")).await.unwrap_err(),
            target.set("pay", "pay_a", &value).await.unwrap_err(),
            target.sessions("pay_a").await.unwrap_err(),
            target.kill("pay_a").await.unwrap_err(),
        ] {
            assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
        }
    }
    bench.cluster.start().unwrap();
    assert_eq!(target.probe("pay_a", &value).await, Ok(Login::Accepted), "nothing was done meanwhile");
}

/// A server without a free connection said no to the administering role, and that was taken for its answer to what was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_is_never_a_verdict() {
    let bench = Bench::new().await;
    let target = bench.target();
    target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap();
    let value = secret("right");
    target.set("pay", "pay_a", &value).await.unwrap();
    bench.sql(&format!("ALTER ROLE {ADMIN} CONNECTION LIMIT 0")).await;
    for fault in [
        target.check().await.unwrap_err(),
        target.probe("pay_a", &value).await.unwrap_err(),
        target.set("pay", "pay_a", &secret("other")).await.unwrap_err(),
        target.sessions("pay_a").await.unwrap_err(),
        target.kill("pay_a").await.unwrap_err(),
    ] {
        assert!(matches!(&fault, Fault::Unreachable(text) if text.contains("53300")), "{fault:?}");
    }
    bench.sql(&format!("ALTER ROLE {ADMIN} CONNECTION LIMIT -1")).await;
    assert_eq!(target.probe("pay_a", &value).await, Ok(Login::Accepted), "nothing was done meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_prove_anything_is_refused() {
    let mut bench = Bench::new().await;
    let address = format!("127.0.0.1:{}", bench.cluster.port());
    bench.target().check().await.unwrap();

    let superuser = bench.cluster.superuser();
    says(bench.target_with(&address, &superuser.user, &superuser.password).check().await, &["is a superuser"]);
    bench.sql("CREATE ROLE weak LOGIN PASSWORD 'weak'").await;
    let weak = bench.target_with(&address, "weak", "weak");
    says(weak.check().await, &["lacks CREATEROLE", "lacks membership in pg_signal_backend", "lacks membership in pg_read_all_stats"]);
    bench.sql("ALTER ROLE weak CREATEROLE; GRANT pg_signal_backend TO weak").await;
    says(weak.check().await, &["`weak` lacks membership in pg_read_all_stats"]);
    // Whether a membership counts by itself is asked of the role, since 16 of each grant as it was when it was made.
    bench.sql("ALTER ROLE weak NOINHERIT; REVOKE pg_signal_backend FROM weak; GRANT pg_signal_backend, pg_read_all_stats TO weak").await;
    says(weak.check().await, &["lacks membership in pg_signal_backend"]);
    bench.sql("ALTER ROLE weak INHERIT; REVOKE pg_signal_backend, pg_read_all_stats FROM weak").await;
    bench.sql("GRANT pg_signal_backend, pg_read_all_stats TO weak").await;
    weak.check().await.unwrap();
    says(bench.target_with(&address, ADMIN, "wrong").check().await, &["28P01"]);

    bench.cluster.hba(&["host all all 127.0.0.1/32 trust"]).unwrap();
    says(bench.target().check().await, &["trust", "without a proof of its password"]);
    bench.cluster.hba(&[&format!("host all {ADMIN} 127.0.0.1/32 scram-sha-256"), "host all all 127.0.0.1/32 trust"]).unwrap();
    says(bench.target().check().await, &["28000", "`trust`", "keyward_check_"]);
    bench.cluster.hba(&["host all all 127.0.0.1/32 password"]).unwrap();
    says(bench.target().check().await, &["asks for the password itself"]);
    bench.cluster.hba_default().unwrap();
    bench.target().check().await.unwrap();

    // The socket is a way in as well.
    let socket = format!("{}:{}", bench.cluster.socket_directory().display(), bench.cluster.port());
    bench.target_with(&socket, ADMIN, ADMIN_PASSWORD).check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_checked_before_it_is_adopted() {
    let bench = Bench::new().await;
    let target = bench.target();
    bench.sql("CREATE ROLE o_login LOGIN; CREATE ROLE o_super SUPERUSER; CREATE ROLE o_ok; CREATE ROLE s_super LOGIN SUPERUSER").await;
    bench.sql("CREATE ROLE s_create LOGIN CREATEROLE; CREATE ROLE s_rls LOGIN BYPASSRLS; CREATE ROLE s_no LOGIN NOINHERIT").await;
    bench.sql("CREATE ROLE s_plain LOGIN PASSWORD 'in use'; CREATE ROLE f_else LOGIN").await;
    bench.sql("CREATE ROLE s_db LOGIN CREATEDB; CREATE ROLE s_repl LOGIN REPLICATION; CREATE ROLE o_db CREATEDB").await;
    // Rights over the whole cluster also come by membership, at any distance.
    bench.sql("CREATE ROLE far; GRANT pg_read_all_data TO far; CREATE ROLE o_far; GRANT far TO o_far").await;
    bench.sql("CREATE ROLE s_far LOGIN; GRANT far TO s_far; CREATE ROLE s_run LOGIN; GRANT pg_execute_server_program TO s_run").await;
    bench.sql(&format!("CREATE ROLE s_deep LOGIN; GRANT o_super TO s_deep; CREATE ROLE s_admin LOGIN; GRANT {ADMIN} TO s_admin")).await;
    bench.sql(&format!("GRANT o_ok, s_plain TO {ADMIN} WITH ADMIN OPTION")).await;
    let rows: [(&str, &str, &str, &[&str]); 22] = [
        ("pg_execute_server_program", "f_a", "f_b", &["field `owner`", "`pg_execute_server_program`", "predefined"]),
        ("pg_read_all_data", "f_a", "f_b", &["field `owner`", "`pg_read_all_data`", "predefined"]),
        ("pg_database_owner", "f_a", "f_b", &["field `owner`", "predefined"]),
        ("o_far", "f_a", "f_b", &["field `owner`", "`o_far` is a member of `pg_read_all_data`"]),
        ("o_db", "f_a", "f_b", &["field `owner`", "`o_db` has CREATEDB"]),
        (ADMIN, "f_a", "f_b", &["field `owner`", "the administering role itself"]),
        ("o_ok", "pg_monitor", "f_b", &["field `slots`", "`pg_monitor`", "predefined"]),
        ("o_ok", "s_far", "f_b", &["field `slots`", "`s_far` is a member of `pg_read_all_data`"]),
        ("o_ok", "f_a", "s_run", &["field `slots`", "`s_run` is a member of `pg_execute_server_program`"]),
        ("o_ok", "f_a", "s_deep", &["field `slots`", "`s_deep` is a member of `o_super`"]),
        ("o_ok", "f_a", "s_admin", &["field `slots`", "`s_admin` is a member of", ADMIN]),
        ("o_ok", "s_db", "s_repl", &["field `slots`", "`s_db` has CREATEDB"]),
        ("o_login", "f_a", "f_b", &["`o_login`", "may log in"]),
        ("o_super", "f_a", "f_b", &["`o_super`", "superuser"]),
        ("o_ok", "s_super", "f_b", &["`s_super`", "superuser"]),
        ("o_ok", "f_a", "s_create", &["`s_create`", "CREATEROLE"]),
        ("o_ok", "f_a", "s_rls", &["`s_rls`", "BYPASSRLS"]),
        ("o_ok", "s_repl", "f_b", &["`s_repl`", "REPLICATION"]),
        ("o_ok", "f_a", "s_no", &["`s_no`", "NOINHERIT"]),
        ("o_ok", "f_a", "f_a", &["three roles"]),
        ("o_ok", "f_a", ADMIN, &["the administering role itself"]),
        ("o_ok", "f_a", "", &["1 to 63 bytes"]),
    ];
    for (owner, a, b, words) in rows {
        says(target.adopt(owner, &slots(a, b)).await, words);
    }
    let made = bench.root.query("SELECT FROM pg_roles WHERE rolname LIKE 'f\\__'", &[]).await.unwrap();
    assert!(made.is_empty(), "a refused adoption left roles behind");
    says(target.set("o_ok", ADMIN, &secret("x")).await, &["the administering role itself"]);
    says(target.kill(ADMIN).await.map(drop), &["the administering role itself"]);

    // What an owner was given since is seen when a slot is to act as it.
    bench.sql("CREATE ROLE o_later").await;
    bench.sql(&format!("GRANT o_later TO {ADMIN} WITH ADMIN OPTION")).await;
    target.adopt("o_later", &slots("l_a", "l_b")).await.unwrap();
    bench.sql("GRANT pg_write_server_files TO o_later").await;
    says(target.set("o_later", "l_a", &secret("x")).await, &["is a member of `pg_write_server_files`"]);

    // Since 16, what somebody else made must be given to the administering role first.
    if bench.version().await >= 160_000 {
        says(target.adopt("o_ok", &slots("f_else", "f_b")).await, &["`f_else`", "WITH ADMIN OPTION"]);
        says(target.adopt("f_else", &slots("f_a", "f_b")).await, &["`f_else`", "WITH ADMIN OPTION"]);
    }

    // An existing role keeps its password until it is set.
    assert_eq!(target.adopt("o_ok", &slots("s_plain", "f_b")).await, Ok([false, true]), "one of them was made by somebody else");
    bench.login("s_plain", "in use").await.unwrap();
    assert!(matches!(target.probe("s_plain", &secret("in use")).await, Ok(Login::Unfit { .. })), "it is no slot before its turn");
}

/// K05: names are data.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_never_read_as_sql() {
    let bench = Bench::new().await;
    let target = bench.target();
    bench.sql("CREATE TABLE witness ()").await;
    let long = "x".repeat(62);
    let names = [
        "plain",
        "with space",
        "quo\"te",
        "apo'strophe",
        "back\\slash",
        "semi;DROP TABLE witness;--",
        "x'; DROP TABLE witness; --",
        "\"; DROP TABLE witness; --",
        "$$dollar$$",
        "schlüssel-日本",
        "UPPER",
        "select",
        "line\nbreak",
        long.as_str(),
    ];
    for name in names {
        let pair = slots(&format!("{name}1"), &format!("{name}2"));
        target.adopt(name, &pair).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        target.set(name, &pair[0], &secret("value")).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(target.probe(&pair[0], &secret("value")).await, Ok(Login::Accepted), "{name}");
        assert_eq!(target.sessions(&pair[0]).await, Ok(vec![]), "{name}");
        assert_eq!(target.kill(&pair[0]).await, Ok(0), "{name}");
        assert_eq!(target.probe(&pair[0], &secret("value")).await, wrong(), "{name}");
        let there = bench.root.query("SELECT FROM pg_roles WHERE rolname = ANY($1)", &[&vec![name, &pair[0], &pair[1]]]).await.unwrap();
        assert_eq!(there.len(), 3, "{name}");
    }
    bench.root.query("SELECT FROM witness", &[]).await.unwrap();
    // One byte more would be cut off by PostgreSQL: two names would be one role.
    says(target.set("plain", &format!("{long}12"), &secret("value")).await, &["1 to 63 bytes"]);
    assert_eq!(
        target.set("plain", "plain1", &secret("pässword")).await.unwrap_err(),
        Fault::Refused { code: "22023".into(), text: "a password for PostgreSQL must be ASCII".into() }
    );
}

/// PostgreSQL writes a statement that fails to its log, whole, under its default settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_reaches_no_log_even_when_the_statement_fails() {
    const CANARY: &str = "canary-7d20c5a1f3";
    let bench = Bench::new().await;
    let target = bench.target();
    // Only a superuser may alter a superuser.
    bench.sql("CREATE ROLE above LOGIN SUPERUSER").await;
    says(target.set("nobody", "above", &secret(CANARY)).await, &["42501", "superuser"]);
    says(target.set("nobody", "absent", &secret(CANARY)).await, &["42704"]);
    assert_eq!(target.probe("above", &secret(CANARY)).await, wrong());
    let log = bench.cluster.log().unwrap();
    assert!(
        log.contains("STATEMENT:  ALTER ROLE \"absent\" LOGIN PASSWORD 'SCRAM-SHA-256$4096:"),
        "the log does not show the failure:\n{log}"
    );
    assert!(log.contains("password authentication failed for user \"above\""), "{log}");
    assert!(!log.contains(CANARY) && !log.contains(ADMIN_PASSWORD), "a password is in the log");

    // The control: sent as itself, a password would be there.
    let admin = bench.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    assert!(admin.batch_execute(&format!("ALTER ROLE above PASSWORD '{CANARY}'")).await.is_err());
    assert!(bench.cluster.log().unwrap().contains(CANARY), "the search is blind");
}

/// A statement of a client that is gone may still be finishing. Whoever acts on the same principal waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn acts_wait_for_the_lock_on_the_principal() {
    let bench = Bench::new().await;
    let target = bench.target();
    target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap();
    target.set("pay", "pay_a", &secret("right")).await.unwrap();
    let key = {
        let digest = crypto::hash::sha256(b"keyward principal\0pay_a");
        i64::from_be_bytes(digest[..8].try_into().unwrap())
    };
    let late = bench.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    late.execute("SELECT pg_advisory_lock($1)", &[&key]).await.unwrap();

    // Held for longer than the time-out: nothing is done, and that is known.
    let fault = target.set("pay", "pay_a", &secret("other")).await.unwrap_err();
    // By PostgreSQL's word about the lock, or by our own clock when that word comes late.
    assert!(matches!(&fault, Fault::Unreachable(text) if text.contains("lock") || text.contains("no answer within")), "{fault:?}");
    let fault = target.probe("pay_a", &secret("right")).await.unwrap_err();
    assert!(matches!(&fault, Fault::Unreachable(_)), "{fault:?}");
    assert_eq!(target.probe("pay_b", &secret("right")).await, wrong(), "another principal is free");

    // Let go while somebody waits: the waiter sees what the late statement did.
    let waiter = tokio::spawn({
        let target = Arc::clone(&target);
        async move { target.probe("pay_a", &secret("right")).await }
    });
    let waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    while bench.root.query(waiting, &[]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    late.batch_execute("ALTER ROLE pay_a PASSWORD NULL").await.unwrap();
    drop(late);
    assert_eq!(waiter.await.unwrap(), wrong());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_during_a_change_leaves_the_outcome_unknown() {
    let mut bench = Bench::new().await;
    let target = bench.target();
    target.adopt("pay", &slots("pay_a", "pay_b")).await.unwrap();
    // Another transaction holds the role's row, so the change is sent and cannot finish.
    let holder = bench.cluster.superuser();
    let holder = bench.login(&holder.user, &holder.password).await.unwrap();
    holder.batch_execute("BEGIN; ALTER ROLE pay_a CONNECTION LIMIT 5").await.unwrap();
    let change = tokio::spawn({
        let target = Arc::clone(&target);
        async move { target.set("pay", "pay_a", &secret("right")).await }
    });
    let waiting = "SELECT FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE \"pay_a\"%' AND wait_event_type = 'Lock'";
    while bench.root.query(waiting, &[]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.cluster.kill().unwrap();
    let fault = change.await.unwrap().unwrap_err();
    assert!(matches!(fault, Fault::Unknown(_)), "{fault:?}");
    bench.cluster.start().unwrap();
    assert_eq!(target.probe("pay_a", &secret("right")).await, wrong(), "the probe finds out");
}

/// What another cluster says of the same names is not an answer: each act is refused, and a login there is no proof.
#[tokio::test]
async fn another_cluster_at_the_same_address_is_refused() {
    let (one, other) = (Bench::new().await, Bench::new().await);
    let names = slots("orders_a", "orders_b");
    let (here, there) = (one.target().check().await.unwrap(), other.target().check().await.unwrap());
    assert_ne!(here, there);
    assert_eq!(here, one.target().check().await.unwrap(), "it stays the same");
    let address = format!("127.0.0.1:{}", one.cluster.port());
    let right = open_known(&address, ADMIN, ADMIN_PASSWORD, Some(here));
    right.adopt("orders", &names).await.unwrap();
    right.set("orders", "orders_a", &secret("first-value")).await.unwrap();
    assert_eq!(right.probe("orders_a", &secret("first-value")).await, Ok(Login::Accepted));
    let wrong = open_known(&address, ADMIN, ADMIN_PASSWORD, Some(there));
    let strange = |result: Result<(), Fault>| match result {
        Err(Fault::Refused { code, .. }) => assert_eq!(code, "another-cluster"),
        other => panic!("{other:?}"),
    };
    strange(wrong.check().await.map(drop));
    strange(wrong.adopt("orders", &names).await.map(drop));
    strange(wrong.set("orders", "orders_a", &secret("second-value")).await);
    strange(wrong.probe("orders_a", &secret("first-value")).await.map(drop));
    strange(wrong.sessions("orders_a").await.map(drop));
    strange(wrong.kill("orders_a").await.map(drop));
    assert_eq!(right.probe("orders_a", &secret("first-value")).await, Ok(Login::Accepted), "nothing was changed");
}

/// An address behind which two clusters take turns, as behind a balancer: the administering role meets the one that was checked, the login
/// the other one, where the same password works as well.
#[tokio::test]
async fn a_login_at_another_cluster_is_no_proof() {
    let (one, other) = (Bench::new().await, Bench::new().await);
    for bench in [&one, &other] {
        bench.target().adopt("orders", &slots("orders_a", "orders_b")).await.unwrap();
        bench.target().set("orders", "orders_a", &secret("the-same")).await.unwrap();
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ports = [one.cluster.port(), other.cluster.port()];
    tokio::spawn(async move {
        for port in ports.into_iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    let identity = one.target().check().await.unwrap();
    let target = open_known(&address, ADMIN, ADMIN_PASSWORD, Some(identity));
    assert_eq!(target.probe("orders_a", &secret("the-same")).await, refused("another-cluster"));
}

/// A standby has the identity of its primary and shows its own sessions only: an address that came to lead to one made a slot look silent.
#[tokio::test]
async fn a_standby_is_refused() {
    let mut bench = Bench::new().await;
    let target = bench.target();
    target.adopt("orders", &slots("orders_a", "orders_b")).await.unwrap();
    target.set("orders", "orders_a", &secret("the-value")).await.unwrap();
    let signal = bench.cluster.directory().join("data/standby.signal");
    bench.cluster.stop(Mode::Fast).unwrap();
    std::fs::write(&signal, "").unwrap();
    bench.cluster.start().unwrap();
    for result in [
        target.check().await.map(drop),
        target.sessions("orders_a").await.map(drop),
        target.probe("orders_a", &secret("the-value")).await.map(drop),
        target.set("orders", "orders_a", &secret("another")).await,
        target.kill("orders_a").await.map(drop),
    ] {
        says(result, &["a standby answers"]);
    }
    bench.cluster.stop(Mode::Fast).unwrap();
    std::fs::remove_file(&signal).unwrap();
    bench.cluster.start().unwrap();
    assert_eq!(target.probe("orders_a", &secret("the-value")).await, Ok(Login::Accepted));
}

/// A role that a service uses today becomes a slot when its turn has come, not before: until then its logins act as they always did.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_in_use_stays_as_it_is_until_its_turn() {
    let bench = Bench::new().await;
    let target = bench.target();
    bench.sql("CREATE ROLE legacy LOGIN PASSWORD 'old'; GRANT CREATE ON SCHEMA public TO legacy").await;
    bench.login("legacy", "old").await.unwrap().batch_execute("CREATE TABLE pre (n int); INSERT INTO pre VALUES (7)").await.unwrap();
    // What docs/lifecycle.md says to do first: what the role made belongs to the owner, and the role is its member.
    bench
        .sql("CREATE ROLE billing; GRANT billing TO legacy; GRANT CREATE ON SCHEMA public TO billing; REASSIGN OWNED BY legacy TO billing")
        .await;
    bench.sql(&format!("GRANT billing, legacy TO {ADMIN} WITH ADMIN OPTION")).await;
    target.adopt("billing", &slots("legacy", "billing_b")).await.unwrap();
    let who = "SELECT current_user || ' ' || n FROM pre";
    let acts = async |user: &str, password: &str| -> String {
        let client = bench.login(user, password).await.unwrap();
        client.query_one(who, &[]).await.unwrap().get(0)
    };
    assert_eq!(acts("legacy", "old").await, "legacy 7", "a new login is what it was");
    target.set("billing", "billing_b", &secret("one")).await.unwrap();
    assert_eq!(acts("billing_b", "one").await, "billing 7", "the other slot sees what was there");
    target.set("billing", "legacy", &secret("two")).await.unwrap();
    assert_eq!(acts("legacy", "two").await, "billing 7", "its turn has come");
    assert_eq!(target.probe("legacy", &secret("two")).await, Ok(Login::Accepted));
}

/// A database that is not there was noticed when the first value was tried, long after the target had been accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_has_the_database_that_it_names() {
    let bench = Bench::new().await;
    let kind = targets::postgres::Kind::new(Arc::new(crypto::rng::SystemRng::new()));
    let text = format!(
        r#"{{"address":"127.0.0.1:{}","database":"nodb","admin_username":"{ADMIN}","admin_password":"{ADMIN_PASSWORD}"}}"#,
        bench.cluster.port()
    );
    let config = kind.read(&Body::from_json(text.as_bytes()).unwrap()).unwrap();
    says(kind.open(&config).unwrap().check().await, &["3D000", "`nodb` does not exist"]);
}
