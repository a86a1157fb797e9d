//! `sys/internal/ui/mounts`: the question by which clients learn the version of a kv mount before they use it.

use base::{CanonPath, Refusal};
use engine::{Answer, Cx, Permit};
use serde_json::{Map, Value, json};

use super::System;
use super::mounts::{info, shown};
use crate::mounts;

/// The mounts that the caller's rules touch. Without a valid token those that are listed for everybody: none.
pub(super) fn mounts(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (mut secret, mut auth) = (Map::new(), Map::new());
    if let Some(caller) = &cx.call.caller {
        let rules = system.0.policies.rules(cx.tx, &caller.policies)?;
        for (path, record) in mounts::all(cx.tx)? {
            let at = CanonPath::from_plain(&path).map_err(|e| Refusal::internal(e.to_string()))?;
            if !rules.touches(&at) {
                continue;
            }
            if let Some(name) = shown(&path, &record, false) {
                secret.insert(format!("{name}/"), info(system, &record));
            }
            if let Some(name) = shown(&path, &record, true) {
                auth.insert(format!("{name}/"), info(system, &record));
            }
        }
    }
    Answer::data(&json!({ "secret": secret, "auth": auth }))
}

/// The mount of a path, for callers with any capability on it. One answer for "not yours" and "not there".
pub(super) fn mount(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let path = cx.call.capture_path("path")?;
    let denied = || {
        let text = format!("preflight capability check returned 403, please ensure client's policies grant access to path \"{path}/\"");
        Refusal::forbidden(text)
    };
    let policies = cx.call.caller()?.policies.clone();
    let mount = mounts::find(cx.tx, &path)?.ok_or_else(denied)?;
    let rules = system.0.policies.rules(cx.tx, &policies)?;
    if !rules.touches(&mount.path) {
        return Err(denied());
    }
    let at = CanonPath::from_plain(mount.path.trimmed()).map_err(|e| Refusal::internal(e.to_string()))?;
    let record = mounts::at(cx.tx, &at)?.ok_or_else(denied)?;
    let Value::Object(mut data) = info(system, &record) else { return Err(denied()) };
    data.insert("path".into(), mount.path.as_str().into());
    Answer::data(&data)
}
