//! Who is let in, route by route: every route of every engine that the server wires, asked by callers from nobody to a holder of everything.
//!
//! The rows come from the tables themselves, so a new route is tried without anyone remembering it.

use std::sync::Arc;
use std::time::Duration;

use base::time::ManualClock;
use base::{CanonPath, Limits, Refusal, SecretString};
use bytes::Bytes;
use engine::{Access, Answer, Cx, Duty, Engine, Meta, Op, Outcome, Owner, Permit, Route, Routed, Work};
use kernel::{Config, Head, Kernel, Lifetimes, Place};
use serde_json::{Value, json};
use server::wiring;

use crate::rig::ROOT;

/// What a caller holds, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Nothing,
    /// A text that is no token.
    Bogus,
    /// A token that was one.
    Revoked,
    /// A token whose policy grants nothing here.
    Token,
    /// Every capability everywhere but `sudo`.
    AllButSudo,
    /// Every capability everywhere.
    All,
}

const HOLDS: [Holds; 6] = [Holds::Nothing, Holds::Bogus, Holds::Revoked, Holds::Token, Holds::AllButSudo, Holds::All];

/// The least that opens a route.
fn opens(access: Access) -> Holds {
    match access {
        Access::Anonymous | Access::Optional => Holds::Nothing,
        Access::Token => Holds::Token,
        Access::Policy => Holds::AllButSudo,
        Access::Sudo => Holds::All,
    }
}

/// A table of routes, and where its engine is mounted.
struct Table {
    mount: String,
    metas: Vec<&'static Meta>,
}

impl Table {
    /// A path that leads to the route and to no other of the table.
    fn path(&self, meta: &Meta) -> String {
        let parts = meta.pattern.split('/').filter(|part| !part.is_empty()).map(|part| match part.strip_prefix(':') {
            None => part,
            Some(name) if name.ends_with('*') => "x/y",
            Some(_) => "x",
        });
        let below = parts.collect::<Vec<_>>().join("/");
        let routed = engine::route::find(&self.metas, meta.op, CanonPath::parse(&below).ok().as_ref());
        let Routed::To(index, _) = routed else { panic!("`{below}` leads nowhere in `{}`", self.mount) };
        assert!(std::ptr::eq(self.metas[index], meta), "`{below}` leads to `{}`, not to `{}`", self.metas[index].pattern, meta.pattern);
        format!("{}/{below}", self.mount).trim_end_matches('/').to_owned()
    }
}

struct House(Arc<Kernel>);

impl House {
    async fn open(kernel: Arc<Kernel>) -> Self {
        kernel.initialise(Some(SecretString::new(ROOT.into()))).await.unwrap();
        let house = Self(kernel);
        let all = ["create", "read", "update", "delete", "list", "patch"];
        for (name, path, capabilities) in
            [("token", "else", vec!["read"]), ("all-but-sudo", "*", all.to_vec()), ("all", "*", [&all[..], &["sudo"]].concat())]
        {
            let policy = json!({ "path": { path: { "capabilities": capabilities } } }).to_string();
            let (status, body) = house.ask(Op::Write, &format!("sys/policies/acl/{name}"), ROOT, &json!({ "policy": policy })).await;
            assert_eq!(status, 204, "{body}");
        }
        house
    }

    async fn ask(&self, op: Op, path: &str, token: &str, body: &Value) -> (u16, String) {
        let (method, body) = match op {
            Op::Read => ("GET", String::new()),
            Op::List => ("LIST", String::new()),
            Op::Write => ("POST", body.to_string()),
            Op::Patch => ("PATCH", body.to_string()),
            Op::Delete => ("DELETE", String::new()),
        };
        let mut headers = vec![("content-type".to_owned(), "application/merge-patch+json".to_owned())];
        if !token.is_empty() {
            headers.push(("x-vault-token".to_owned(), token.to_owned()));
        }
        let head = Head { method: method.into(), target: format!("/v1/{path}"), headers, remote: ([127, 0, 0, 1], 1).into() };
        let (status, _, body) = self.0.serve(head, Box::new(Bytes::from(body))).await.into_parts();
        match body {
            audit::Body::Bytes(bytes) => (status, String::from_utf8_lossy(&bytes).into_owned()),
            audit::Body::Frames(_) => (status, "a stream".into()),
        }
    }

    /// A fresh token each time: some routes end the token that calls them.
    async fn token(&self, holds: Holds) -> String {
        let policy = match holds {
            Holds::Nothing => return String::new(),
            Holds::Bogus => return "hvs.aaaaaaaaaaaaaaaaaaaaaaaa".into(),
            Holds::Revoked | Holds::Token => "token",
            Holds::AllButSudo => "all-but-sudo",
            Holds::All => "all",
        };
        let (status, body) =
            self.ask(Op::Write, "auth/token/create", ROOT, &json!({ "policies": [policy], "no_default_policy": true })).await;
        assert_eq!(status, 200, "{body}");
        let token = serde_json::from_str::<Value>(&body).unwrap()["auth"]["client_token"].as_str().unwrap().to_owned();
        if holds == Holds::Revoked {
            assert_eq!(self.ask(Op::Write, "auth/token/revoke", ROOT, &json!({ "token": token })).await.0, 204);
        }
        token
    }

    /// The tables that the kernel routes by, each engine mounted.
    async fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        for (kind, metas) in self.0.routes() {
            let mount = match kind {
                "system" => "sys".to_owned(),
                "token" => "auth/token".to_owned(),
                "lifecycle" => "sys/lifecycle".to_owned(),
                other => self.mount(other).await,
            };
            tables.push(Table { mount, metas });
        }
        tables
    }

    async fn mount(&self, kind: &str) -> String {
        let body = json!({ "type": if kind == "kv" { "kv-v2" } else { kind } });
        if self.ask(Op::Write, &format!("sys/mounts/{kind}"), ROOT, &body).await.0 == 204 {
            return kind.to_owned();
        }
        let (status, answer) = self.ask(Op::Write, &format!("sys/auth/{kind}"), ROOT, &body).await;
        assert_eq!(status, 204, "`{kind}` can be mounted nowhere: {answer}");
        format!("auth/{kind}")
    }

    /// Tries every route as every caller; says who was let in, or kept out, against the tables.
    async fn faults(&self, tables: &[Table]) -> Vec<String> {
        let mut faults = Vec::new();
        for table in tables {
            for meta in &table.metas {
                let path = table.path(meta);
                for holds in HOLDS {
                    let token = self.token(holds).await;
                    let (status, body) = self.ask(meta.op, &path, &token, &json!({})).await;
                    let known = holds >= Holds::Token;
                    let uniform = if known { Refusal::denied() } else { Refusal::bad_token() };
                    let uniform = json!({ "errors": uniform.errors }).to_string();
                    let refused = status == 403 && body == uniform;
                    if refused != (holds < opens(meta.access)) {
                        faults.push(format!("{} {path} ({:?}) by {holds:?}: {status}", meta.op.name(), meta.access));
                    }
                }
            }
        }
        faults
    }
}

#[tokio::test]
async fn every_route_of_every_engine_lets_in_whom_its_table_says() {
    let house = House::open(wiring::open(Place::Memory).unwrap()).await;
    let tables = house.tables().await;
    let kinds: Vec<_> = house.0.routes().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["approle", "kv", "lifecycle", "system", "token"]);
    assert_eq!(house.faults(&tables).await, Vec::<String>::new());
}

/// Opening a route wider than usual, or closing one tighter, is a decision: it is made here as well.
#[tokio::test]
async fn routes_that_are_not_for_holders_of_a_policy() {
    let house = House::open(wiring::open(Place::Memory).unwrap()).await;
    let (mut special, mut seeing) = (Vec::new(), Vec::new());
    for table in house.tables().await {
        let metas = table.metas.iter().filter(|meta| meta.sees_token);
        seeing.extend(metas.map(|meta| format!("{} {}/{}", meta.op.name(), table.mount, meta.pattern)));
        let metas = table.metas.iter().filter(|meta| meta.access != Access::Policy);
        special.extend(metas.map(|meta| format!("{:?} {} {}/{}", meta.access, meta.op.name(), table.mount, meta.pattern)));
    }
    special.sort();
    assert_eq!(
        seeing,
        ["read auth/token/lookup-self", "update auth/token/lookup-self", "update auth/token/renew-self"],
        "no other handler sees the text of a token"
    );
    let expected = [
        "Anonymous update auth/approle/login",
        "Optional read sys/internal/ui/mounts",
        "Sudo delete sys/auth/:path*",
        "Sudo list auth/token/accessors",
        "Sudo read sys/auth/:path*",
        "Sudo update auth/token/create-orphan",
        "Sudo update auth/token/revoke-orphan",
        "Sudo update sys/auth/:path*",
        "Sudo update sys/identities/revoke",
        "Token read sys/internal/ui/mounts/:path*",
    ];
    assert_eq!(special, expected);
    // What is answered before any table is asked: how the server is.
    for (path, status) in [("sys/health", 200), ("sys/seal-status", 200), ("sys/leader", 200), ("sys/init", 200)] {
        assert_eq!(house.ask(Op::Read, path, "", &json!({})).await.0, status, "{path}");
    }
}

/// The policy that every token has granted a dozen paths that lead nowhere.
#[tokio::test]
async fn the_default_policy_grants_what_there_is() {
    let house = House::open(wiring::open(Place::Memory).unwrap()).await;
    let tables = house.tables().await;
    let default = policy::Policy::parse(policy::PolicyName::default_policy(), policy::DEFAULT_TEXT).unwrap();
    for rule in default.rules() {
        let leads = tables.iter().any(|table| {
            let below = rule.path().strip_prefix(&format!("{}/", table.mount)).and_then(|below| CanonPath::parse(below).ok());
            below.is_some_and(|below| {
                let ops = [Op::Read, Op::List, Op::Write, Op::Patch, Op::Delete];
                ops.iter().any(|op| matches!(engine::route::find(&table.metas, *op, Some(&below)), Routed::To(..)))
            })
        });
        assert!(leads, "{}", rule.path());
    }
}

/// An engine that is more open, or more closed, than the tables below say.
struct Leaky;

const NOTHING: fn(&Leaky, &mut Cx<'_>, Permit) -> Result<Answer, Refusal> = |_, _, _| Ok(Answer::Nothing);
static REAL: &[Route<Leaky>] = &[
    Route::new(Op::Read, "as-said/:name", &[], "", NOTHING),
    Route::new(Op::Read, "for-anybody/:path*", &[], "", NOTHING).access(Access::Anonymous),
    Route::new(Op::Write, "for-any-token", &[], "", NOTHING).access(Access::Token),
    Route::new(Op::Delete, "without-sudo/:path**", &[], "", NOTHING),
    Route::new(Op::List, "closed", &[], "", NOTHING),
    Route::new(Op::Patch, "wordy", &[], "", |_, _, _| Err(Refusal::missing())).also(|_, _| Err(Refusal::invalid("field `x`: missing"))),
];
static SAID: &[Route<Leaky>] = &[
    Route::new(Op::Read, "as-said/:name", &[], "", NOTHING),
    Route::new(Op::Read, "for-anybody/:path*", &[], "", NOTHING),
    Route::new(Op::Write, "for-any-token", &[], "", NOTHING),
    Route::new(Op::Delete, "without-sudo/:path**", &[], "", NOTHING).access(Access::Sudo),
    Route::new(Op::List, "closed", &[], "", NOTHING).access(Access::Token),
    Route::new(Op::Patch, "wordy", &[], "", NOTHING),
];

impl Engine for Leaky {
    const KIND: &'static str = "leaky";

    fn routes() -> &'static [Route<Self>] {
        REAL
    }
}

impl Owner for Leaky {
    fn perform(&self, _: &mut Cx<'_>, _: &Duty) -> Result<Work, Refusal> {
        Err(Refusal::internal("owes nothing"))
    }

    fn settle(&self, _: &mut Cx<'_>, _: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        Err(Refusal::internal("owes nothing"))
    }
}

/// The control: the same checker reports each route that is not what its table says, and no other.
#[tokio::test]
async fn a_route_that_is_not_what_its_table_says_is_reported() {
    let lifetime = Duration::from_secs(3_600);
    let kernel = Kernel::open(Config {
        place: Place::Memory,
        limits: Limits::default(),
        lifetimes: Lifetimes { default: lifetime, max: lifetime },
        version: wiring::VERSION.into(),
        cluster_name: "test".into(),
        heartbeat: lifetime,
        grace: Duration::ZERO,
        clock: Arc::new(ManualClock::new()),
        rng: Arc::new(crypto::rng::SystemRng::new()),
        engines: vec![Arc::new(Leaky)],
    });
    let house = House::open(kernel.unwrap()).await;
    let mount = house.mount("leaky").await;
    let said = Table { mount, metas: SAID.iter().map(|route| &route.meta).collect() };
    let expected = [
        "read leaky/for-anybody/x/y (Policy) by Nothing: 204",
        "read leaky/for-anybody/x/y (Policy) by Bogus: 204",
        "read leaky/for-anybody/x/y (Policy) by Revoked: 204",
        "read leaky/for-anybody/x/y (Policy) by Token: 204",
        "update leaky/for-any-token (Policy) by Token: 204",
        "delete leaky/without-sudo/x/y (Sudo) by AllButSudo: 204",
        "list leaky/closed (Token) by Token: 403",
    ];
    assert_eq!(house.faults(&[said]).await, expected);
}
