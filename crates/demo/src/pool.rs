//! The services' connection pool: at most four connections, none older than a few seconds. The same in every part of the demonstration.
//!
//! A connection is opened with whatever credential the service has at that moment, and keeps it for its short life. Nothing is tried twice:
//! a request whose connection cannot be opened, or breaks, has failed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::rng::SeededRng;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, NoTls};

/// Connections of a pool.
pub(crate) const SIZE: usize = 4;
/// How often the pool looks after itself.
const TIDY: Duration = Duration::from_millis(100);
/// How long a pool that was refused leaves it to requests to log in.
const REFUSED: Duration = Duration::from_millis(500);
/// Bounds a login and a statement.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where and what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    /// The table that takes the rows: `id` and `replica`.
    pub(crate) table: String,
    /// What sessions call themselves: the name of the replica.
    pub(crate) application: String,
    /// The longest life of a connection; the shortest is half of it.
    pub(crate) life_ms: u64,
}

/// A name and a password. No `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Gives the credential for the next connection.
pub(crate) type Source = Arc<dyn Fn() -> Option<Login> + Send + Sync>;

/// Why a row was not written. Names no value.
pub(crate) type Failed = String;

struct Kept {
    client: Client,
    driver: JoinHandle<()>,
    until: Instant,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The driver says goodbye by itself when the client is gone; one that cannot is cut with the process.
        if self.client.is_closed() {
            self.driver.abort();
        }
    }
}

/// A pool. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    source: Source,
    slots: Semaphore,
    open: AtomicUsize,
    ending: AtomicBool,
    idle: Mutex<VecDeque<Kept>>,
    rng: SeededRng,
}

impl Pool {
    pub(crate) fn new(place: Place, source: Source, seed: u64) -> Self {
        let shared = Shared {
            place,
            source,
            slots: Semaphore::new(SIZE),
            open: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            idle: Mutex::new(VecDeque::new()),
            rng: SeededRng::new(seed),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Writes one row with its own id.
    pub(crate) async fn insert(&self, id: &str) -> Result<(), Failed> {
        let _slot = self.shared.slots.acquire().await.map_err(|_| "the pool is closed".to_owned())?;
        let kept = match self.take() {
            Some(kept) => kept,
            None => self.open().await?,
        };
        let place = &self.shared.place;
        let sql = format!("INSERT INTO {} (id, replica) VALUES ($1, $2)", place.table);
        let done = timeout(PATIENCE, kept.client.execute(&sql, &[&id, &place.application])).await;
        match done {
            Ok(Ok(_)) => {
                self.give_back(kept);
                Ok(())
            }
            Ok(Err(error)) => {
                self.lost();
                Err(said(&error))
            }
            Err(_) => {
                self.lost();
                Err("the database did not answer in time".to_owned())
            }
        }
    }

    /// From now on connections are opened for requests only, so that the pool runs dry while its process drains.
    pub(crate) fn run_dry(&self) {
        self.shared.ending.store(true, Ordering::Release);
    }

    /// Keeps the pool full and young, for ever.
    pub(crate) async fn tend(self) {
        let mut ticks = interval(TIDY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fill_from = Instant::now();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let old: VecDeque<Kept> = {
                let mut idle = self.idle();
                let (old, young) = std::mem::take(&mut *idle).into_iter().partition(|k| k.until <= now || k.client.is_closed());
                *idle = young;
                old
            };
            old.into_iter().for_each(|kept| self.close(kept));
            let wants_more = || self.shared.open.load(Ordering::Acquire) < SIZE && !self.shared.ending.load(Ordering::Acquire);
            while now >= fill_from && wants_more() {
                let Ok(_slot) = self.shared.slots.try_acquire() else { break };
                let Ok(kept) = self.open().await else {
                    // It fails again when a request needs it, and is told there.
                    fill_from = Instant::now() + REFUSED;
                    break;
                };
                self.give_back(kept);
            }
        }
    }

    /// The oldest connection that is young enough.
    fn take(&self) -> Option<Kept> {
        loop {
            let kept = self.idle().pop_front()?;
            if kept.until > Instant::now() && !kept.client.is_closed() {
                return Some(kept);
            }
            self.close(kept);
        }
    }

    fn give_back(&self, kept: Kept) {
        if kept.until > Instant::now() {
            self.idle().push_back(kept);
        } else {
            self.close(kept);
        }
    }

    async fn open(&self) -> Result<Kept, Failed> {
        let login = (self.shared.source)().ok_or_else(|| "there is no credential yet".to_owned())?;
        let (client, driver) = connect(&self.shared.place, &login).await?;
        self.shared.open.fetch_add(1, Ordering::AcqRel);
        let life = self.shared.place.life_ms;
        let life = life / 2 + self.shared.rng.below(life / 2 + 1);
        Ok(Kept { client, driver, until: Instant::now() + Duration::from_millis(life) })
    }

    fn close(&self, kept: Kept) {
        drop(kept);
        self.lost();
    }

    fn lost(&self) {
        self.shared.open.fetch_sub(1, Ordering::AcqRel);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, VecDeque<Kept>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Inserts a row and rolls back, over a connection of its own: whether a service can do its work with this login.
pub(crate) async fn probe(place: &Place, login: &Login) -> Result<(), Failed> {
    let (mut client, driver) = connect(place, login).await?;
    let work = async {
        let transaction = client.transaction().await?;
        let sql = format!("INSERT INTO {} (id, replica) VALUES ('probe', $1)", place.table);
        transaction.execute(&sql, &[&place.application]).await?;
        transaction.rollback().await
    };
    let done = timeout(PATIENCE, work).await.map_err(|_| "the database did not answer in time".to_owned())?;
    drop(client);
    // Goodbye is said when this returns, or the time is up.
    drop(timeout(PATIENCE, driver).await);
    done.map_err(|e| said(&e))
}

async fn connect(place: &Place, login: &Login) -> Result<(Client, JoinHandle<()>), Failed> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&place.host)
        .port(place.port)
        .dbname(&place.database)
        .user(&login.username)
        .password(&login.password)
        .application_name(&place.application);
    let (client, connection) =
        timeout(PATIENCE, config.connect(NoTls)).await.map_err(|_| "no login in time".to_owned())?.map_err(|e| said(&e))?;
    // How it ends is seen by whoever uses the client.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((client, driver))
}

fn said(error: &tokio_postgres::Error) -> Failed {
    match error.as_db_error() {
        Some(db) => format!("PostgreSQL says {}: {}", db.code().code(), db.message()),
        None => format!("the connection to PostgreSQL failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::sql::{Sql, table};

    struct Bench {
        _cluster: Cluster,
        root: Sql,
        place: Place,
        login: Arc<Mutex<Login>>,
    }

    impl Bench {
        async fn new() -> Self {
            let cluster = Cluster::create().unwrap();
            let root = Sql::connect(&cluster.superuser(), "postgres").await.unwrap();
            root.run(&format!("{}; CREATE ROLE a LOGIN PASSWORD 'pa'; CREATE ROLE b LOGIN PASSWORD 'pb'", table("work"))).await.unwrap();
            root.run("GRANT INSERT ON work TO a, b").await.unwrap();
            let place = Place {
                host: cluster.host().to_owned(),
                port: cluster.port(),
                database: "postgres".into(),
                table: "work".into(),
                application: "replica-1".into(),
                life_ms: 600,
            };
            Self { _cluster: cluster, root, place, login: Arc::new(Mutex::new(login("a", "pa"))) }
        }

        fn pool(&self) -> Pool {
            let login = Arc::clone(&self.login);
            Pool::new(self.place.clone(), Arc::new(move || Some(login.lock().unwrap().clone())), 1)
        }

        /// The users of the pool's sessions.
        async fn sessions(&self) -> Vec<String> {
            self.root.texts("SELECT usename::text FROM pg_stat_activity WHERE application_name = 'replica-1'").await.unwrap()
        }
    }

    fn login(username: &str, password: &str) -> Login {
        Login { username: username.into(), password: password.into() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pool_is_full_young_and_follows_the_credential() {
        let bench = Bench::new().await;
        let pool = bench.pool();
        let tending = tokio::spawn(pool.clone().tend());
        while bench.sessions().await.len() < SIZE {
            tokio::task::yield_now().await;
        }
        let mut work = tokio::task::JoinSet::new();
        for n in 0..100 {
            let pool = pool.clone();
            work.spawn(async move { pool.insert(&format!("id-{n}")).await });
        }
        assert!(work.join_all().await.iter().all(Result::is_ok));
        assert_eq!(bench.root.ids("work").await.unwrap().1, 100);
        // By our own count: the server ends a session a moment after we have closed it.
        assert!(pool.shared.open.load(Ordering::Acquire) <= SIZE, "more than the pool's size");

        *bench.login.lock().unwrap() = login("b", "pb");
        let since = Instant::now();
        while bench.sessions().await.iter().any(|user| user == "a") {
            pool.insert("meanwhile").await.unwrap();
        }
        // Lives of 600 ms at most; the rest is for a busy machine.
        assert!(since.elapsed() < Duration::from_secs(20), "a connection outlived its time: {:?}", since.elapsed());

        // What drains opens nothing by itself, and what is open still ends in time.
        pool.run_dry();
        while !bench.sessions().await.is_empty() {
            tokio::task::yield_now().await;
        }
        pool.insert("the last").await.unwrap();
        assert_eq!(bench.sessions().await.len(), 1);

        // A password that no longer fits: what is open works on, what must be opened fails, and nothing is tried twice.
        bench.root.run("ALTER ROLE b PASSWORD 'other'").await.unwrap();
        let failed = loop {
            if let Err(failed) = pool.insert("after").await {
                break failed;
            }
        };
        assert!(failed.contains("28P01"), "{failed}");
        tending.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_probe_does_the_work_and_leaves_nothing() {
        let bench = Bench::new().await;
        probe(&bench.place, &login("a", "pa")).await.unwrap();
        assert_eq!(bench.root.ids("work").await.unwrap().1, 0, "the row stayed");
        // The server ends the session a moment after the goodbye.
        while !bench.sessions().await.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(probe(&bench.place, &login("a", "wrong")).await.unwrap_err().contains("28P01"));
        bench.root.run("ALTER ROLE a SET default_transaction_read_only = on").await.unwrap();
        let refused = probe(&bench.place, &login("a", "pa")).await.unwrap_err();
        assert!(refused.contains("25006") && !refused.contains("pa\""), "{refused}");
    }
}
