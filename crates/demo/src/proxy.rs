//! A proxy before PostgreSQL that can hold back an answer once the target has applied a change.
//!
//! It only forwards bytes, until it is armed: then the first `CommandComplete` of the named command is kept, and everything after it on that
//! connection. Whoever sent the command cannot know that it was done: the ambiguous moment of a rotation, made at will.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Bytes that one message of the server may have.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

struct Armed {
    /// The command's tag in `CommandComplete`, for example `ALTER ROLE`.
    tag: String,
    /// So many of them pass first.
    skip: u64,
    held: oneshot::Sender<()>,
}

type Trap = Arc<Mutex<Option<Armed>>>;

/// A proxy that runs until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    trap: Trap,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a loopback port and forwards to `target`.
    pub(crate) async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let trap = Trap::default();
        let task = tokio::spawn(accept(listener, target, Arc::clone(&trap)));
        Ok(Self { address, trap, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `skip` answers to commands with this tag pass and holds back the next. What is returned resolves when that has happened: the
    /// change is applied, and who asked for it does not know. It stays so until the connection ends.
    pub(crate) fn arm(&self, tag: &str, skip: u64) -> oneshot::Receiver<()> {
        let (held, wait) = oneshot::channel();
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(Armed { tag: tag.to_owned(), skip, held });
        wait
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, trap: Trap) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let trap = Arc::clone(&trap);
                connections.spawn(async move {
                    // Both sides see a closed connection when one of them has gone.
                    if let Ok(server) = TcpStream::connect(target).await {
                        forward(client, server, &trap).await.unwrap_or_default();
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, trap: &Trap) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let down = async {
        let mut buffer = Vec::with_capacity(8 << 10);
        let mut holding = false;
        while from_server.read_buf(&mut buffer).await? > 0 {
            while let Some(length) = message(&buffer)? {
                holding = holding || caught(buffer.get(..length).unwrap_or_default(), trap);
                if !holding {
                    to_client.write_all(buffer.get(..length).unwrap_or_default()).await?;
                }
                buffer.drain(..length);
            }
        }
        to_client.shutdown().await
    };
    // When the client has gone, so has whoever waits for an answer.
    tokio::select! {
        done = up => done,
        done = down => done,
    }
}

/// The length of a whole message at the start of `buffer`.
fn message(buffer: &[u8]) -> io::Result<Option<usize>> {
    let Some([_, length @ ..]) = buffer.first_chunk::<5>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if !(4..MESSAGE_BYTES_MAX).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of PostgreSQL"));
    }
    Ok((buffer.len() > length).then_some(length + 1))
}

/// Whether this message is the answer that is waited for. A trap works once.
fn caught(message: &[u8], trap: &Trap) -> bool {
    let Some((b'C', rest)) = message.split_first() else { return false };
    let tag = rest.get(4..).unwrap_or_default();
    let mut trap = trap.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(armed) = trap.as_mut().filter(|armed| tag.strip_suffix(b"\0") == Some(armed.tag.as_bytes())) else { return false };
    if armed.skip > 0 {
        armed.skip -= 1;
        return false;
    }
    if let Some(armed) = trap.take() {
        // Nobody waits any more: it is held all the same.
        armed.held.send(()).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use tokio_postgres::{Client, Config, NoTls};

    async fn connect(cluster: &Cluster, port: u16) -> Client {
        let root = cluster.superuser();
        let mut config = Config::new();
        config.host(&root.host).port(port).user(&root.user).password(&root.password).dbname(&root.database);
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        client
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_change_is_applied_and_its_answer_never_comes() {
        let cluster = Cluster::create().unwrap();
        let target: SocketAddr = format!("127.0.0.1:{}", cluster.port()).parse().unwrap();
        let proxy = Proxy::start(target).await.unwrap();
        let direct = connect(&cluster, cluster.port()).await;
        let through = connect(&cluster, proxy.address().port()).await;
        through.batch_execute("CREATE ROLE one; ALTER ROLE one CONNECTION LIMIT 3").await.unwrap();

        let held = proxy.arm("ALTER ROLE", 1);
        through.batch_execute("ALTER ROLE one CONNECTION LIMIT 5").await.unwrap();
        through.query("SELECT repeat('x', 100000)", &[]).await.unwrap();
        let asking = tokio::spawn(async move { through.batch_execute("ALTER ROLE one CONNECTION LIMIT 7").await });
        held.await.unwrap();
        let row = direct.query_one("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'one'", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 7, "held back before it was applied");
        assert!(!asking.is_finished());

        // The trap works once, and others pass meanwhile.
        connect(&cluster, proxy.address().port()).await.batch_execute("ALTER ROLE one CONNECTION LIMIT 9").await.unwrap();
        assert!(!asking.is_finished());
        drop(proxy);
        drop(cluster);
        assert!(asking.await.unwrap().is_err());
    }

    #[test]
    fn only_whole_messages_count() {
        assert_eq!(message(b"C\0\0\0").unwrap(), None);
        assert_eq!(message(b"C\0\0\0\x05").unwrap(), None);
        assert_eq!(message(b"C\0\0\0\x05xZ").unwrap(), Some(6));
        assert!(message(b"C\0\0\0\x03").is_err() && message(b"HTTP/").is_err());
    }
}
