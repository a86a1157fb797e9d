//! The demonstration's own access to its PostgreSQL, as the superuser that made it.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Config, NoTls};

use crate::cluster::Superuser;

/// A session of the superuser.
pub(crate) struct Sql {
    client: Client,
}

impl Sql {
    pub(crate) async fn connect(root: &Superuser, database: &str) -> Result<Self, String> {
        let mut config = Config::new();
        config.host(&root.host).port(root.port).user(&root.user).password(&root.password).dbname(database);
        config.application_name("keyward demo");
        let (client, connection) = config.connect(NoTls).await.map_err(|e| said(&e))?;
        // How it ends is seen by whoever uses the client.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client })
    }

    /// Runs statements.
    pub(crate) async fn run(&self, text: &str) -> Result<(), String> {
        self.client.batch_execute(text).await.map_err(|e| said(&e))
    }

    /// The texts in the first column.
    pub(crate) async fn texts(&self, query: &str) -> Result<Vec<String>, String> {
        let rows = self.client.query(query, &[]).await.map_err(|e| said(&e))?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(|e| said(&e))
    }

    /// How many sessions each application has with each of the roles.
    pub(crate) async fn sessions(&self, roles: &[&str]) -> Result<BTreeMap<(String, String), u64>, String> {
        let query = "SELECT application_name, usename::text, count(*) FROM pg_stat_activity WHERE usename::text = ANY($1) GROUP BY 1, 2";
        let rows = self.client.query(query, &[&roles]).await.map_err(|e| said(&e))?;
        let read = |row: &tokio_postgres::Row| -> Result<_, tokio_postgres::Error> {
            let count: i64 = row.try_get(2)?;
            Ok(((row.try_get(0)?, row.try_get(1)?), u64::try_from(count).unwrap_or(0)))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|e| said(&e))
    }

    /// The ids in a table of rows, and how many rows it has.
    pub(crate) async fn ids(&self, table: &str) -> Result<(BTreeSet<String>, usize), String> {
        let all = self.texts(&format!("SELECT id FROM {table}")).await?;
        let count = all.len();
        Ok((all.into_iter().collect(), count))
    }
}

/// A table for rows of a service.
pub(crate) fn table(name: &str) -> String {
    // No key on `id`: a request that was executed twice must leave two rows.
    format!("CREATE TABLE {name} (id text NOT NULL, replica text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())")
}

fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("PostgreSQL says {}: {}", db.code().code(), db.message()),
        None => format!("the connection to PostgreSQL failed: {error}"),
    }
}
