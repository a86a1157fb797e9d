//! `sys/identities/revoke`: an identity loses all that it holds in one commit: tokens, streams, and what it logs in with.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::{CanonPath, Refusal};
use engine::{Answer, Cx, Mount, Permit, Removed};
use policy::Capability;
use serde_json::{Value, json};
use store::Tx;

use super::System;
use crate::identities::{self, Ended, ROOT};
use crate::{Kernel, mounts, tokens};

/// Secrets that are looked at, and that are named, where it is told what the identity could read.
const LOOKED_AT_MAX: usize = 10_000;
const NAMED_MAX: usize = 1_000;
/// What identities of tokens that were made directly begin with.
const TOKEN: &str = "token/";

/// What is to be revoked.
enum Target {
    /// The identity of an auth method.
    Login { principal: String, mount: Mount, name: String },
    /// The identity of a token that was made directly.
    Token { principal: String },
    /// One token of a login, found by its accessor.
    One { hash: String, principal: String },
}

pub(super) fn revoke(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let wanted = cx.call.body.need_text("identity")?;
    cx.call.body.need_text("reason")?;
    let kernel = system.0.tap.kernel().ok_or_else(|| Refusal::internal("the kernel has gone"))?;
    let look = &mut system.0.store.begin()?;
    let (principal, ended, secret_ids, role) = match find(&kernel, cx.tx, look, &wanted)? {
        Target::Login { principal, mount, name } => {
            let ended = identities::revoke(cx.tx, look, &principal)?;
            let plug = kernel.engine(&mount.kind)?;
            let identities = plug.engine.identifying().ok_or_else(|| unknown(&wanted))?;
            let secret_ids = identities.disarm(cx.tx, cx.host, &mount, &name)?;
            let policies = identities.policies(cx.tx, &mount, &name)?;
            (principal, ended, secret_ids, policies)
        }
        Target::Token { principal } => {
            let ended = identities::revoke(cx.tx, look, &principal)?;
            (principal, ended, Removed::default(), None)
        }
        Target::One { hash, principal } => {
            cx.warn(format!(
                "this is one token of the identity `{principal}`, which keeps its other tokens: revoke the identity to end them all"
            ));
            let ended = identities::end_one(cx.tx, look, &hash)?;
            (String::new(), ended, Removed::default(), None)
        }
    };
    let policies: BTreeSet<String> = ended.policies.iter().cloned().chain(role.iter().flatten().cloned()).collect();
    let principals: BTreeSet<&str> = ended.principals.iter().map(String::as_str).chain([principal.as_str()]).collect();
    let streams = system.0.places.count(principals.iter().copied().filter(|principal| *principal != ROOT));
    let Ended { tokens, below, more, .. } = ended;
    cx.note("tokens_revoked", tokens + below);
    cx.note("secret_ids_destroyed", secret_ids.count);
    Answer::data(&json!({
        "identity": if principal.is_empty() { wanted } else { principal.clone() },
        "tokens_revoked": tokens,
        "child_tokens_revoked": below,
        "secret_ids_destroyed": secret_ids.count,
        "streams_ended": streams,
        "removal_goes_on": more || secret_ids.more,
        "login_kept": role.is_some(),
        "policies": policies,
        "could_read": could_read(&kernel, look, &policies)?,
    }))
}

/// What `wanted` names. Whatever is wrong with it is said: who asks may revoke any identity.
fn find(kernel: &Arc<Kernel>, tx: &mut Tx, look: &mut Tx, wanted: &str) -> Result<Target, Refusal> {
    if wanted == ROOT {
        return Err(root());
    }
    let path = CanonPath::from_plain(&format!("auth/{wanted}")).map_err(|e| Refusal::invalid(format!("field `identity`: {e}")))?;
    if let Some(which) = wanted.strip_prefix(TOKEN) {
        if let Some((hash, token)) = tokens::by_accessor(look, which)? {
            let principal = token.principal;
            return match principal.as_str() {
                ROOT => Err(root()),
                direct if direct.starts_with(TOKEN) => Ok(Target::Token { principal }),
                _ => Ok(Target::One { hash, principal }),
            };
        }
        if !identities::has_tokens(look, wanted)? {
            return Err(Refusal::missing_because(format!(
                "no token has the accessor `{which}`; `keyward list auth/token/accessors` lists them. A token itself is never named here"
            )));
        }
        return Ok(Target::Token { principal: wanted.to_owned() });
    }
    let mount = mounts::find(tx, &path)?.ok_or_else(|| {
        let method = wanted.split('/').next().unwrap_or_default();
        Refusal::missing_because(format!("no auth method is mounted at `auth/{method}/`; an identity is named as in `approle/billing`"))
    })?;
    let name = path.below(&mount.path).filter(|name| !name.is_folder()).ok_or_else(|| unknown(wanted))?;
    let plug = kernel.engine(&mount.kind)?;
    let identities = plug.engine.identifying().ok_or_else(|| unknown(wanted))?;
    let principal = identities.principal(&mount, name.as_str())?;
    // A login may be gone while its tokens live.
    if identities.policies(tx, &mount, name.as_str())?.is_none() && !identities::has_tokens(look, &principal)? {
        return Err(unknown(wanted));
    }
    Ok(Target::Login { principal, name: name.as_str().to_owned(), mount })
}

fn root() -> Refusal {
    Refusal::invalid(
        "field `identity`: `root` is not revoked as an identity, since everything came from it; revoke a root token by itself: `keyward token \
         revoke -accessor ACCESSOR`",
    )
}

fn unknown(wanted: &str) -> Refusal {
    Refusal::missing_because(format!("no identity is named `{wanted}`: it has no login and no token"))
}

/// The secrets that these policies permit to read now, and the rotations among them. It is looked at beside the transaction: who writes a
/// secret meanwhile does not make the revocation run again.
fn could_read(kernel: &Arc<Kernel>, look: &mut Tx, policies: &BTreeSet<String>) -> Result<Value, Refusal> {
    let names: Vec<String> = policies.iter().cloned().collect();
    let rules = kernel.shared.policies.rules(look, &names)?;
    let (mut secrets, mut rotations, mut looked_at, mut more) = (Vec::new(), BTreeSet::new(), 0, false);
    for (path, record) in mounts::all(look)? {
        let Some(publish) = kernel.engine(&record.kind).ok().and_then(|plug| plug.engine.publishing()) else { continue };
        let mount = record.at(CanonPath::from_plain(&format!("{path}/")).map_err(|e| Refusal::internal(e.to_string()))?);
        let room = LOOKED_AT_MAX - looked_at;
        let found = publish.secrets(look, &mount, room)?;
        more |= found.len() == room;
        looked_at += found.len();
        for (below, rotation) in found {
            let path = mount.path.join(&below).map_err(|e| Refusal::internal(e.to_string()))?;
            let capabilities = policy::capabilities(&rules, &path);
            if !capabilities.iter().any(|capability| matches!(capability, Capability::Read | Capability::Root)) {
                continue;
            }
            if secrets.len() == NAMED_MAX {
                more = true;
                break;
            }
            rotations.extend(rotation.clone());
            secrets.push(json!({ "path": path, "rotation": rotation }));
        }
    }
    Ok(json!({ "secrets": secrets, "rotations": rotations, "more": more }))
}
