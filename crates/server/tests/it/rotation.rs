//! Rotations on a real PostgreSQL.

use demo::cluster::Cluster;
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::rig::{ROOT, Server};

/// A cluster with an administering role that has what it needs and no more.
pub async fn cluster() -> (Cluster, tokio_postgres::Client) {
    let cluster = tokio::task::spawn_blocking(Cluster::create).await.unwrap().unwrap();
    let root = cluster.superuser();
    let (client, connection) = tokio_postgres::Config::new()
        .host(&root.host)
        .port(root.port)
        .user(&root.user)
        .password(&root.password)
        .dbname(&root.database)
        .connect(NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
        .batch_execute(
            "CREATE ROLE keyward LOGIN CREATEROLE PASSWORD 'admin-password' IN ROLE pg_signal_backend, pg_read_all_stats;
             CREATE TABLE work (id text PRIMARY KEY);",
        )
        .await
        .unwrap();
    (cluster, client)
}

pub async fn login(cluster: &Cluster, data: &Value) -> Result<tokio_postgres::Client, String> {
    let root = cluster.superuser();
    let (client, connection) = tokio_postgres::Config::new()
        .host(&root.host)
        .port(root.port)
        .dbname(&root.database)
        .user(data["username"].as_str().unwrap())
        .password(data["password"].as_str().unwrap())
        .connect(NoTls)
        .await
        .map_err(|e| e.code().map_or_else(|| e.to_string(), |c| c.code().to_owned()))?;
    tokio::spawn(connection);
    Ok(client)
}

pub async fn prepare(server: &Server, cluster: &Cluster) -> Value {
    assert_eq!(server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await.0, 204);
    let target = json!({
        "kind": "postgres",
        "address": format!("{}:{}", cluster.host(), cluster.port()),
        "database": cluster.superuser().database,
        "admin_username": "keyward",
        "admin_password": "admin-password",
    });
    let (status, body) = server.call("POST", "sys/lifecycle/targets/main", ROOT, target).await;
    assert_eq!(status, 204, "{body}");
    let rotation = json!({
        "path": "secret/data/orders/db", "target": "main", "owner": "orders", "slots": ["orders_a", "orders_b"],
        "soak": "100ms", "quiet_period": "300ms", "session_poll": "100ms", "soft_deadline": "2s", "hard_deadline": "1m", "backoff": "100ms",
        "holding_ttl": "1s",
    });
    let (status, body) = server.call("POST", "sys/lifecycle/rotations/orders-db", ROOT, rotation).await;
    assert_eq!(status, 200, "{body}");
    let run = body["data"]["run"].as_str().unwrap();
    server.until(&format!("sys/lifecycle/runs/{run}"), |r| r["data"]["phase"] == "closed").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_nothing_to_proven_death() {
    let (cluster, _root) = cluster().await;
    let server = Server::start().await;
    let first = prepare(&server, &cluster).await;
    assert_eq!((first["data"]["verdict"].as_str(), first["data"]["death_proven"].as_bool()), (Some("first"), Some(false)), "{first:#}");
    let (_, one) = server.call("GET", "secret/data/orders/db", ROOT, Value::Null).await;
    let one = one["data"]["data"].clone();
    let session = login(&cluster, &one).await.unwrap();
    let who = session.query_one("SELECT current_user::text, session_user::text", &[]).await.unwrap();
    assert_eq!((who.get::<_, String>(0).as_str(), who.get::<_, String>(1).as_str()), ("orders", "orders_a"));

    let (status, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "test"})).await;
    assert_eq!(status, 200, "{body}");
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    // The session on the old slot keeps the run in DRAIN, and is named.
    let held = server.until(&run, |r| r["data"]["phase"] == "drain" && r["data"]["held"] == true).await;
    assert!(held["data"]["waits_for"].to_string().contains("sessions"), "{held:#}");
    assert!(login(&cluster, &one).await.is_ok(), "while somebody uses it, the old credential works");
    drop(session);
    let closed = server.until(&run, |r| r["data"]["phase"] == "closed").await;
    assert_eq!((closed["data"]["verdict"].as_str(), closed["data"]["death_proven"].as_bool()), (Some("rotated"), Some(true)), "{closed:#}");
    assert_eq!(login(&cluster, &one).await.map(drop), Err("28P01".into()));
    let (_, two) = server.call("GET", "secret/data/orders/db", ROOT, Value::Null).await;
    assert_eq!((two["data"]["metadata"]["version"].as_u64(), two["data"]["data"]["username"].as_str()), (Some(2), Some("orders_b")));
    assert!(login(&cluster, &two["data"]["data"]).await.is_ok());

    // A managed path is written by its rotation alone.
    let (status, body) = server.call("POST", "secret/data/orders/db", ROOT, json!({"data": {"password": "mine"}})).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("orders-db"), "{body}");
    server.stop().await;
}
