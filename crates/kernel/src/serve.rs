//! One function serves a request. Whatever becomes of it (answered, refused, malformed), it leaves through one exit and is recorded there.

use std::sync::Arc;

use audit::{Recorded, Released, Reply};
use base::{CanonPath, Kind, Refusal};
use engine::{Access, Answer, AnyEngine, Body, Call, Caller, Cx, DutyKey, Meta, Mount, Need, Op, Permit, Routed, duty};
use policy::{Ask, Refused};
use store::{CommitError, Tx};
use tokio::sync::{MutexGuard, oneshot};

use crate::duties::Settled;
use crate::entry::Entry;
use crate::head::{Asked, BodyFault, BodySource, Head};
use crate::tokens::{self, Token};
use crate::{Kernel, mounts, reply, streams, sys};

/// Times that a handler is run before its conflicts are the caller's problem.
pub const ATTEMPTS_MAX: u32 = 32;
/// Conflicts after which a handler waits its turn: a crowd at one record is served one after another, and nobody is sent away.
pub const ATTEMPTS_FREE: u32 = 3;

/// What a request comes to, before it is released.
struct Done {
    reply: Reply,
    /// The commit that holds the record; none when the record is still to be written.
    recorded: Option<Recorded>,
    refusal: Option<Refusal>,
    stream: Option<streams::Opening>,
}

/// What one attempt comes to, before it commits.
struct Attempt {
    reply: Reply,
    wait: Option<DutyKey>,
    stream: Option<streams::Opening>,
    mount_type: String,
}

impl Kernel {
    /// Serves a request.
    pub async fn serve(self: &Arc<Self>, head: Head, body: Box<dyn BodySource>) -> Released {
        let mut entry = Entry::open(&head, self.request_id());
        let done = match self.answer(&head, body, &mut entry).await {
            Ok(done) => done,
            Err(refusal) => Done::refused(refusal, None, &entry, ""),
        };
        self.release(entry, done).await
    }

    /// Answers a request whose head could not be read. Recorded like any other.
    pub async fn reject(self: &Arc<Self>, remote: std::net::SocketAddr, refusal: Refusal) -> Released {
        let head = Head { method: String::new(), target: String::new(), headers: Vec::new(), remote };
        let entry = Entry::open(&head, self.request_id());
        let done = Done::refused(refusal, None, &entry, "");
        self.release(entry, done).await
    }

    async fn answer(self: &Arc<Self>, head: &Head, body: Box<dyn BodySource>, entry: &mut Entry) -> Result<Done, Refusal> {
        let limits = &self.shared.limits;
        let asked = head.asked(limits)?;
        entry.asked(&asked);
        let token = head.token(limits)?;
        if let Some(reply) = sys::status::answer(&self.shared, &asked) {
            return Ok(Done { reply: reply?, recorded: None, refusal: None, stream: None });
        }
        let bytes_max = self.admit(&asked, token, entry)?;
        let bytes = body.read(bytes_max).await.map_err(unread)?;
        entry.body(bytes.clone());
        self.transact(head, &asked, token, &bytes, entry).await
    }

    /// Refuses before the body is read whom the head alone refuses; else the bytes that the body may have.
    fn admit(&self, asked: &Asked, token: Option<&str>, entry: &mut Entry) -> Result<usize, Refusal> {
        let limits = &self.shared.limits;
        let mut tx = self.shared.store.begin()?;
        entry.again(tx.snapshot());
        let route = self.route(&mut tx, asked)?;
        if matches!(route.access(), Some(Access::Anonymous | Access::Optional)) {
            return Ok(limits.anonymous_body_bytes_max);
        }
        let (hash, found) = self.token(&mut tx, token)?;
        entry.token(token.unwrap_or_default());
        entry.caller(&found.caller(hash));
        Ok(limits.body_bytes_max)
    }

    /// Runs the handler until it commits without a conflict.
    async fn transact(
        self: &Arc<Self>,
        head: &Head,
        asked: &Asked,
        token: Option<&str>,
        bytes: &[u8],
        entry: &mut Entry,
    ) -> Result<Done, Refusal> {
        for attempt in 0..ATTEMPTS_MAX {
            let turn = self.turn(attempt).await;
            let mut tx = self.shared.store.begin()?;
            entry.again(tx.snapshot());
            let attempt = self.attempt(&mut tx, head, asked, token, bytes, entry);
            let (reply, refusal) = match &attempt {
                Ok(attempt) => (attempt.reply.clone(), None),
                Err(refusal) => {
                    tx.refuse();
                    (reply::refusal(refusal, &entry.id, ""), Some(refusal.clone()))
                }
            };
            if let Some(token) = token {
                self.spend(&mut tx, token)?;
            }
            // Registered before the commit that owes it: the runner may settle it before this task runs again.
            let expected = attempt.as_ref().ok().and_then(|a| a.wait.as_ref()).map(|duty| (duty.clone(), self.duties.expect(duty)));
            let committed = if tx.is_read_only() { Ok(Some(None)) } else { self.commit(tx, entry, &reply, refusal.as_ref()).await };
            drop(turn);
            let recorded = match committed {
                Ok(Some(recorded)) => recorded,
                other => {
                    if let Some((duty, _)) = &expected {
                        self.duties.forget(duty);
                    }
                    other?;
                    continue;
                }
            };
            let attempt = match attempt {
                Ok(attempt) => attempt,
                Err(refusal) => return Ok(Done::refused(refusal, recorded, entry, "")),
            };
            return match expected {
                None => Ok(Done { reply, recorded, refusal: None, stream: attempt.stream }),
                Some((duty, told)) => self.wait(&duty, told, &attempt.mount_type, entry).await,
            };
        }
        Err(CommitError::Conflict.into())
    }

    /// What an attempt holds while it runs and commits: nothing at first, the one turn after several conflicts.
    pub(crate) async fn turn(&self, attempt: u32) -> Option<MutexGuard<'_, ()>> {
        if attempt < ATTEMPTS_FREE { None } else { Some(self.shared.crowd.lock().await) }
    }

    /// `None` for a conflict: run the handler again.
    async fn commit(&self, tx: Tx, entry: &Entry, reply: &Reply, refusal: Option<&Refusal>) -> Result<Option<Option<Recorded>>, Refusal> {
        let record = entry.record(self.shared.trail.record(audit::Kind::Request), reply.status, Some(&reply.body), refusal);
        let leaf: store::LeafFn = Box::new(move |stamp| audit::change_leaf(&record, stamp.seq, stamp.time, &stamp.changes));
        match self.shared.store.commit(tx, leaf).await {
            Ok(committed) => Ok(Some(Some(committed.durable.into()))),
            Err(CommitError::Conflict) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    fn attempt(
        self: &Arc<Self>,
        tx: &mut Tx,
        head: &Head,
        asked: &Asked,
        token: Option<&str>,
        bytes: &[u8],
        entry: &mut Entry,
    ) -> Result<Attempt, Refusal> {
        let route = self.route(tx, asked)?;
        let caller = self.caller(tx, route.access(), token)?;
        if let Some(caller) = &caller {
            entry.caller(caller);
        }
        let found = match route {
            Route::Found(found) => found,
            Route::Lost(refusal) => {
                // Who may not even ask learns nothing about what exists.
                let policies = caller.as_ref().map(|c| c.policies.as_slice()).unwrap_or_default();
                let rules = self.shared.policies.rules(tx, policies)?;
                let asks = [Ask::new(need(asked.op, true), &asked.path)];
                let permit = policy::decide::<Refusal>(&rules, &asks, &mut || Ok(true)).map_err(|e| deny(entry, e))?;
                entry.permitted(&permit);
                return Err(refusal);
            }
        };
        entry.mount(found.mount.path.as_str());
        let mut body = asked.body(bytes, &self.shared.limits)?;
        entry.public_fields(found.meta, &body);
        let mut warnings = Vec::new();
        unknown_fields(found.meta, &body, &mut warnings)?;
        if let (true, Some(text)) = (found.meta.sees_token, token) {
            body.add_query("token", &[text.to_owned()]);
        }
        let call = Arc::new(Call {
            id: entry.id.clone(),
            op: asked.op,
            mount: found.mount.clone(),
            path: asked.path.below(&found.mount.path),
            captures: found.captures,
            body,
            caller,
            remote: Some(head.remote.ip()),
        });
        let engine = &self.engine(&found.mount.kind)?.engine;
        let mut cx = Cx::new(tx, &call, self.as_ref());
        cx.warnings = warnings;
        let permit = match found.meta.access {
            Access::Anonymous | Access::Optional | Access::Token => Permit::public_route(),
            Access::Policy | Access::Sudo => {
                let caller = call.caller()?;
                let permit = self.decide(&mut cx, engine.as_ref(), found.meta, found.index, caller, &asked.path).map_err(|e| match e {
                    Stop::Denied(denied) => deny(entry, denied),
                    Stop::Refused(refusal) => refusal,
                })?;
                entry.permitted(&permit);
                permit
            }
        };
        let answer = engine.handle(found.index, &mut cx, permit);
        let (warnings, facts) = (std::mem::take(&mut cx.warnings), std::mem::take(&mut cx.facts));
        entry.facts(&facts);
        match answer? {
            Answer::Stream(_) if asked.head_only => Err(Refusal::unsupported()),
            answer => self.bind(tx, &call, answer, &warnings),
        }
    }

    /// Whether the rules of the caller permit `path` and whatever else its route asks for.
    fn decide(
        &self,
        cx: &mut Cx<'_>,
        engine: &dyn AnyEngine,
        meta: &Meta,
        index: usize,
        caller: &Caller,
        path: &CanonPath,
    ) -> Result<Permit, Stop> {
        let also = engine.also(index, cx);
        let rules = self.shared.policies.rules(cx.tx, &caller.policies)?;
        let tells = meta.op == Op::Write && engine.tells(index);
        let own = Ask::new(need(meta.op, tells), path);
        let own = if meta.access == Access::Sudo { own.protected() } else { own };
        let asks: Vec<_> = std::iter::once(own).chain(also.iter().flatten().map(|(need, path)| Ask::new(*need, path))).collect();
        let permit = policy::decide(&rules, &asks, &mut || engine.exists(index, cx).unwrap_or(Ok(true))).map_err(Stop::Denied)?;
        // What is wrong with the input is said to those who may ask.
        also?;
        Ok(permit)
    }

    /// Whether a call that was permitted once would be so now: its mount is there, the token lives, and its rules still say yes.
    pub(crate) fn still_permitted(&self, tx: &mut Tx, call: &Call) -> Result<(), Refusal> {
        let Some(caller) = &call.caller else { return Ok(()) };
        mounts::at(tx, &call.mount.path)?.filter(|record| record.id == call.mount.id).ok_or_else(Refusal::missing)?;
        tokens::find(tx, &tokens::hex(&caller.token_hash))?.ok_or_else(Refusal::bad_token)?;
        let path = match &call.path {
            Some(below) => call.mount.path.join(below).map_err(|e| Refusal::internal(e.to_string()))?,
            None => call.mount.path.clone(),
        };
        let plug = self.engine(&call.mount.kind)?;
        let Routed::To(index, _) = engine::route::find(&plug.metas, call.op, call.path.as_ref()) else {
            return Err(Refusal::internal("a call without a route"));
        };
        match plug.metas.get(index) {
            Some(meta) if meta.access == Access::Token => Ok(()),
            Some(meta) => {
                let mut cx = Cx::new(tx, call, self);
                self.decide(&mut cx, plug.engine.as_ref(), meta, index, caller, &path).map(drop).map_err(|stop| match stop {
                    Stop::Denied(denied) => denied.into(),
                    Stop::Refused(refusal) => refusal,
                })
            }
            None => Err(Refusal::internal("a route without a description")),
        }
    }

    /// Makes the answer true within the same transaction: tokens are made here, duties are waited for later.
    fn bind(&self, tx: &mut Tx, call: &Arc<Call>, answer: Answer, warnings: &[String]) -> Result<Attempt, Refusal> {
        let kind = call.mount.kind.as_str();
        let plain = |reply| Attempt { reply, wait: None, stream: None, mount_type: kind.to_owned() };
        Ok(match answer {
            Answer::Data(data) => plain(reply::data(Some(data), warnings, &call.id, kind)),
            Answer::Bare(status, body) => plain(reply::bare(status.unwrap_or(200), &body)),
            Answer::Raw { content_type, body } => plain(Reply::of(200, content_type, body)),
            Answer::Nothing => plain(reply::data(None, warnings, &call.id, kind)),
            Answer::Login(grant) => {
                let (text, hash, token) = tokens::grant(tx, self.shared.rng.as_ref(), &grant, call.mount.id, self.shared.lifetimes)?;
                sys::token::owe_expiry(tx, &hash, &token)?;
                let auth = reply::auth_of(text.expose(), &token, tx.now());
                plain(reply::auth(auth, warnings, &call.id, kind))
            }
            Answer::Auth(auth) => plain(reply::auth(*auth, warnings, &call.id, kind)),
            Answer::After(id) => {
                duty::await_for(tx, &id, &call.id)?;
                Attempt { wait: Some(id), ..plain(Reply::empty(202)) }
            }
            Answer::Stream(feed) => {
                let principal = call.caller.as_ref().map_or("", |caller| caller.principal.as_str());
                let place = self.shared.places.take(principal, &self.shared.limits)?;
                Attempt {
                    stream: Some(streams::Opening { feed, call: Arc::clone(call), place }),
                    ..plain(Reply::of(200, "application/x-ndjson", "").header("cache-control", "no-store"))
                }
            }
        })
    }

    /// Waits for the duty that the request owes, as long as a request may wait for one.
    async fn wait(&self, duty: &DutyKey, told: oneshot::Receiver<Settled>, mount_type: &str, entry: &Entry) -> Result<Done, Refusal> {
        let Ok(Ok(settled)) = tokio::time::timeout(self.shared.limits.act_timeout, told).await else {
            self.duties.forget(duty);
            return Err(self.unsettled(duty));
        };
        let recorded = Some(settled.recorded);
        match settled.answer {
            Ok(Answer::Data(data)) => {
                let reply = reply::data(Some(data), &settled.warnings, &entry.id, mount_type);
                Ok(Done { reply, recorded, refusal: None, stream: None })
            }
            Ok(Answer::Nothing) => {
                let reply = reply::data(None, &settled.warnings, &entry.id, mount_type);
                Ok(Done { reply, recorded, refusal: None, stream: None })
            }
            Ok(_) => Err(Refusal::internal("a duty was settled with an answer that no request can wait for")),
            Err(refusal) => Ok(Done::refused(refusal, recorded, entry, mount_type)),
        }
    }

    /// The one exit.
    async fn release(self: &Arc<Self>, entry: Entry, done: Done) -> Released {
        if let Some(log) = done.refusal.as_ref().and_then(|r| r.log.as_deref()) {
            tracing::error!(request = %entry.id, reason = %log, "a request failed");
        }
        tracing::debug!(request = %entry.id, status = done.reply.status, "a request was answered");
        let recorded = match done.recorded {
            Some(recorded) => recorded,
            None => {
                let record = entry.record(
                    self.shared.trail.record(audit::Kind::Request),
                    done.reply.status,
                    Some(&done.reply.body),
                    done.refusal.as_ref(),
                );
                match self.shared.trail.record_access(record).await {
                    Ok(recorded) => recorded,
                    Err(poisoned) => {
                        tracing::error!(reason = %poisoned, "a request could not be recorded and was not answered");
                        self.step_down();
                        return Released::unavailable();
                    }
                }
            }
        };
        match done.stream {
            None => self.shared.trail.release(done.reply, recorded),
            Some(stream) => streams::open(self, stream, done.reply, &recorded),
        }
    }

    /// Who calls, with one use less; nobody where nobody is asked who he is.
    fn caller(&self, tx: &mut Tx, access: Option<Access>, token: Option<&str>) -> Result<Option<Caller>, Refusal> {
        let found = match (access, token) {
            (Some(Access::Anonymous), _) | (Some(Access::Optional), None) => return Ok(None),
            (Some(Access::Optional), Some(text)) => {
                let hash = tokens::hash(text);
                tokens::find(tx, &tokens::hex(&hash))?.map(|token| (hash, token))
            }
            (_, token) => Some(self.token(tx, token)?),
        };
        let Some((hash, mut token)) = found else { return Ok(None) };
        tokens::take_use(tx, &tokens::hex(&hash), &mut token)?;
        Ok(Some(token.caller(hash)))
    }

    /// The living token that was presented.
    fn token(&self, tx: &mut Tx, token: Option<&str>) -> Result<([u8; 32], Token), Refusal> {
        let hash = tokens::hash(token.ok_or_else(Refusal::bad_token)?);
        let token = tokens::find(tx, &tokens::hex(&hash))?.ok_or_else(Refusal::bad_token)?;
        Ok((hash, token))
    }

    /// Revokes a token whose last use this was, whatever came of the request.
    fn spend(&self, tx: &mut Tx, token: &str) -> Result<(), Refusal> {
        let hash = tokens::hex(&tokens::hash(token));
        if tokens::find(tx, &hash)?.is_some_and(|t| t.uses == Some(0)) {
            tokens::revoke(tx, &hash)?;
        }
        Ok(())
    }

    fn route(&self, tx: &mut Tx, asked: &Asked) -> Result<Route, Refusal> {
        let Some(mount) = mounts::find(tx, &asked.path)? else {
            let text = format!("no handler for route \"{}\". route entry not found.", asked.path);
            return Ok(Route::Lost(Refusal::missing_because(text)));
        };
        let below = asked.path.below(&mount.path);
        let plug = self.engine(&mount.kind)?;
        Ok(match engine::route::find(&plug.metas, asked.op, below.as_ref()) {
            Routed::To(index, captures) => match plug.metas.get(index) {
                Some(meta) => Route::Found(Found { mount, index, meta, captures }),
                None => return Err(Refusal::internal("a route without a description")),
            },
            Routed::Unsupported => Route::Lost(Refusal::unsupported()),
            Routed::Unknown => Route::Lost(Refusal::missing_because("1 error occurred:\n\t* unsupported path\n\n")),
        })
    }
}

/// Why there is no permit.
enum Stop {
    Denied(Refused<Refusal>),
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

enum Route {
    Found(Found),
    Lost(Refusal),
}

struct Found {
    mount: Mount,
    index: usize,
    meta: &'static Meta,
    captures: engine::Captures,
}

impl Route {
    fn access(&self) -> Option<Access> {
        match self {
            Self::Found(found) => Some(found.meta.access),
            Self::Lost(_) => None,
        }
    }
}

impl Done {
    fn refused(refusal: Refusal, recorded: Option<Recorded>, entry: &Entry, mount_type: &str) -> Self {
        Self { reply: reply::refusal(&refusal, &entry.id, mount_type), recorded, refusal: Some(refusal), stream: None }
    }
}

/// What an operation needs; a write that does not tell create from update is an update.
fn need(op: Op, tells: bool) -> Need {
    match op {
        Op::Read => Need::Read,
        Op::List => Need::List,
        Op::Write if tells => Need::Write,
        Op::Write => Need::Update,
        Op::Patch => Need::Patch,
        Op::Delete => Need::Delete,
    }
}

fn deny(entry: &mut Entry, refused: Refused<Refusal>) -> Refusal {
    if let Refused::Denied(denied) = &refused {
        entry.denied(denied);
    }
    refused.into()
}

fn unread(fault: BodyFault) -> Refusal {
    match fault {
        BodyFault::TooLarge => Refusal::of(Kind::TooLarge, "http: request body too large"),
        BodyFault::TooSlow => Refusal::of(Kind::Late, "the body was not complete in time"),
        BodyFault::Broken => Refusal::invalid("the body ended early"),
    }
}

fn unknown_fields(meta: &Meta, body: &Body, warnings: &mut Vec<String>) -> Result<(), Refusal> {
    let unknown: Vec<&str> = body.members().map(|(name, _)| name).filter(|name| !meta.fields.iter().any(|f| f.name == *name)).collect();
    if unknown.is_empty() || meta.fields.iter().any(|f| f.name == "*") {
        return Ok(());
    }
    let names = unknown.iter().take(8).map(|n| n.chars().take(64).collect::<String>()).collect::<Vec<_>>().join(" ");
    if meta.strict {
        let known = meta.fields.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
        return Err(Refusal::invalid(format!("unknown field `{names}`; this path reads: {known}")));
    }
    warnings.push(format!("Endpoint ignored these unrecognized parameters: [{names}]"));
    Ok(())
}
