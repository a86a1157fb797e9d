//! Servers that do not do what PostgreSQL does. Every act ends in time, and nothing that is not a proof looks like one.

use std::net::SocketAddr;
use std::time::Duration;

use engine::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::postgres::open;

/// How a server answers once it has read the start of a login.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Silent,
    Closes,
    Http,
    Garbage,
    HugeMessage,
    EndlessNotices,
    AsksForThePassword,
    AsksForMd5,
    AsksForMuchWork,
    LetsAnybodyIn,
    EndlessRows,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
    out
}

async fn endless(stream: &mut TcpStream, block: &[u8]) {
    while stream.write_all(block).await.is_ok() {}
}

async fn serve(mut stream: TcpStream, manner: Manner, heard: &mut Vec<u8>) -> std::io::Result<()> {
    stream.read_buf(heard).await?;
    let scram = [message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")].concat();
    match manner {
        Manner::Silent => {}
        Manner::Closes => return Ok(()),
        Manner::Http => stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?,
        Manner::Garbage => stream.write_all(&[0xfe; 8192]).await?,
        Manner::HugeMessage => {
            stream.write_all(b"R\x7f\xff\xff\xff").await?;
            endless(&mut stream, &[0; 65_536]).await;
        }
        Manner::EndlessNotices => endless(&mut stream, &message(b'N', b"SNOTICE\0C00000\0Mhello\0\0").repeat(500)).await,
        Manner::AsksForThePassword => stream.write_all(&message(b'R', &3_u32.to_be_bytes())).await?,
        Manner::AsksForMd5 => stream.write_all(&message(b'R', b"\0\0\0\x05salt")).await?,
        Manner::AsksForMuchWork => {
            stream.write_all(&scram).await?;
            let before = heard.len();
            stream.read_buf(heard).await?;
            let first = String::from_utf8_lossy(&heard[before..]).into_owned();
            let nonce = first.rsplit("r=").next().unwrap_or_default();
            let body = format!("\0\0\0\x0br={nonce}server,s=c2FsdHNhbHQ=,i=2000000000");
            stream.write_all(&message(b'R', body.as_bytes())).await?;
        }
        Manner::LetsAnybodyIn => stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).await?,
        Manner::EndlessRows => {
            stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).await?;
            endless(&mut stream, &message(b'D', &[0; 1024]).repeat(64)).await;
        }
    }
    // Whatever else is said stays unanswered; what it was is kept.
    while stream.read_buf(heard).await? > 0 {}
    Ok(())
}

/// Everything that clients said, once the last of them is gone.
type Heard = mpsc::UnboundedReceiver<Vec<u8>>;

async fn start(manner: Manner) -> (SocketAddr, Heard) {
    let (tell, heard) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                // A connection that breaks off has been heard all the same.
                serve(stream, manner, &mut all).await.ok();
                tell.send(all).ok();
            });
        }
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_ends_and_proves_nothing() {
    use Manner::*;
    let rows = [
        (Silent, "Unreachable"),
        (Closes, "Unreachable"),
        (Http, "Refused"),
        (Garbage, "Refused"),
        (HugeMessage, "Refused"),
        (EndlessNotices, "Refused"),
        (AsksForThePassword, "Refused"),
        (AsksForMd5, "Refused"),
        (AsksForMuchWork, "Refused"),
        (LetsAnybodyIn, "Refused"),
        (EndlessRows, "Refused"),
    ];
    let mut all = JoinSet::new();
    for (manner, expect) in rows {
        all.spawn(judge(manner, expect));
    }
    all.join_all().await;
}

async fn judge(manner: Manner, expect: &str) {
    let (address, mut heard) = start(manner).await;
    let target = open(&address.to_string(), "keyward_admin", "admin-canary-b1f6");
    let value = "value".to_owned().into();
    let acts = async {
        [
            target.check().await.unwrap_err(),
            target.set("owner", "slot", &value).await.unwrap_err(),
            target.probe("slot", &value).await.unwrap_err(),
            target.kill("slot").await.unwrap_err(),
        ]
    };
    // Four acts, two seconds to connect; the rest is for a busy machine.
    let faults = timeout(Duration::from_secs(30), acts).await.unwrap_or_else(|_| panic!("{manner:?} holds us up"));
    for fault in faults {
        let said = format!("{fault:?}");
        assert!(said.starts_with(expect), "{manner:?}: {said}");
        assert!(!said.contains("canary") && said.len() < 600, "{manner:?}: {said}");
        assert!(!matches!(fault, Fault::Unknown(_)), "{manner:?}: nothing was sent: {said}");
    }
    for _ in 0..4 {
        let said = heard.recv().await.unwrap();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("keyward_admin"), "{manner:?} heard nothing");
        assert!(!said.contains("canary"), "{manner:?} was told the password");
    }
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fault = open(&address.to_string(), "a", "b").check().await.unwrap_err();
    assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
}
