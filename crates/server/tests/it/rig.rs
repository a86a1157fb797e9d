//! A server in this process on a free loopback port, and a client.

use std::sync::Arc;
use std::time::Duration;

use base::{SecretBytes, SecretString};
use egress::{Address, Client, Options, Request};
use kernel::Place;
use serde_json::Value;
use server::wiring;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub const ROOT: &str = "root-token";

pub struct Server {
    pub address: String,
    client: Client,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(wiring::open(Place::Memory).unwrap()).await
    }

    pub async fn with(kernel: Arc<kernel::Kernel>) -> Self {
        kernel.initialise(Some(SecretString::new(ROOT.into()))).await.unwrap();
        Self::serve(kernel).await
    }

    pub async fn serve(kernel: Arc<kernel::Kernel>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(wiring::serve(kernel, listener, stopped));
        let client = Client::new(Address::parse(&address).unwrap(), Options::default());
        Self { address, client, stop, served }
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.served.await.unwrap();
    }

    pub async fn call(&self, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let mut request = Request::new(method, &format!("/v1/{path}")).secret_header("x-vault-token", &SecretString::new(token.into()));
        if !body.is_null() {
            request = request.body(SecretBytes::new(serde_json::to_vec(&body).unwrap()));
        }
        let response = self.client.send(request).await.unwrap();
        let status = response.status;
        let bytes = response.body.bytes().await.unwrap();
        (status, serde_json::from_slice(bytes.expose()).unwrap_or(Value::Null))
    }

    /// The bytes of an answer that is not JSON.
    pub async fn bytes(&self, path: &str) -> (u16, Vec<u8>) {
        let request = Request::new("GET", &format!("/v1/{path}")).secret_header("x-vault-token", &SecretString::new(ROOT.into()));
        let response = self.client.send(request).await.unwrap();
        (response.status, response.body.bytes().await.unwrap().expose().clone())
    }

    /// Everything that was recorded.
    pub async fn records(&self) -> Vec<u8> {
        let mut leaves = Vec::new();
        for tree in ["change", "access"] {
            let (_, note) = self.bytes(&format!("sys/audit-log/{tree}/checkpoint")).await;
            let size: u64 = String::from_utf8(note).unwrap().lines().nth(1).unwrap().parse().unwrap();
            for (bundle, start) in (0..size).step_by(256).enumerate() {
                let width = (size - start).min(256);
                let partial = if width == 256 { String::new() } else { format!(".p/{width}") };
                let (status, bytes) = self.bytes(&format!("sys/audit-log/{tree}/tile/entries/{bundle:03}{partial}")).await;
                assert_eq!(status, 200);
                leaves.extend(bytes);
            }
        }
        leaves
    }

    /// Opens a stream of lines.
    pub async fn lines(&self, path: &str, token: &str) -> Result<egress::Lines, (u16, String)> {
        let request = Request::new("GET", &format!("/v1/{path}")).secret_header("x-vault-token", &SecretString::new(token.into()));
        let response = self.client.send_alone(request).await.unwrap();
        if response.status == 200 {
            return Ok(response.body.lines(1 << 20));
        }
        let status = response.status;
        Err((status, String::from_utf8(response.body.bytes().await.unwrap().expose().clone()).unwrap()))
    }

    /// A token with a policy of this text.
    pub async fn token(&self, name: &str, policy: &str) -> String {
        assert_eq!(self.call("PUT", &format!("sys/policies/acl/{name}"), ROOT, serde_json::json!({"policy": policy})).await.0, 204);
        let (status, body) = self.call("POST", "auth/token/create", ROOT, serde_json::json!({"policies": [name, "default"]})).await;
        assert_eq!(status, 200, "{body}");
        body["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Asks until the answer is as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asking = async {
            loop {
                let (_, body) = self.call("GET", path, ROOT, Value::Null).await;
                if wanted(&body) {
                    return body;
                }
                last = body;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(30), asking).await;
        answer.unwrap_or_else(|_| panic!("`{path}` stayed at {last:#}"))
    }
}
