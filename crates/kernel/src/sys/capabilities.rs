//! `sys/capabilities`, `-self`, `-accessor`: what a token may do, as the access rules would decide it.

use base::{CanonPath, Refusal};
use engine::{Answer, Cx, Permit};
use serde_json::{Map, Value};

use super::{System, doubled};
use crate::tokens;

pub(super) fn of_self(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let policies = cx.call.caller()?.policies.clone();
    answer(system, cx, &policies)
}

pub(super) fn of_token(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let token = cx.call.body.need_text("token")?;
    let hash = tokens::hex(&tokens::hash(&token));
    let token = tokens::find(cx.tx, &hash)?.ok_or_else(|| Refusal::invalid("invalid token"))?;
    answer(system, cx, &token.policies)
}

pub(super) fn of_accessor(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let accessor = cx.call.body.need_text("accessor")?;
    let (_, token) = tokens::by_accessor(cx.tx, &accessor)?.ok_or_else(|| Refusal::invalid("invalid accessor"))?;
    answer(system, cx, &token.policies)
}

fn answer(system: &System, cx: &mut Cx<'_>, policies: &[String]) -> Result<Answer, Refusal> {
    let paths = match cx.call.body.list("paths")? {
        Some(paths) => paths,
        None => cx.call.body.list("path")?.unwrap_or_default(),
    };
    if paths.is_empty() {
        return Err(Refusal::invalid("field `paths`: missing"));
    }
    let rules = system.0.policies.rules(cx.tx, policies)?;
    let mut data = Map::new();
    for path in &paths {
        let canon = CanonPath::from_plain(path.trim_start_matches('/')).map_err(|e| Refusal::invalid(format!("field `paths`: {e}")))?;
        let found: Vec<Value> = policy::capabilities(&rules, &canon).iter().map(|c| c.as_str().into()).collect();
        if paths.len() == 1 {
            data.insert("capabilities".into(), found.clone().into());
        }
        data.insert(path.clone(), found.into());
    }
    doubled(cx.call, &data)
}
