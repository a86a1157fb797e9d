//! `sys/audit-log`: checkpoints, tiles and proofs of both trees, for export and for witnesses.

use audit::{Layout, TreeName};
use base::Refusal;
use engine::{Answer, Cx, Permit};
use serde_json::json;

use super::System;

pub(super) fn vkeys(system: &System, _: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    Ok(Answer::Raw { content_type: "text/plain; charset=utf-8", body: system.0.trail.vkeys().map_err(refuse)?.into_bytes() })
}

pub(super) fn checkpoint(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let note = system.0.trail.checkpoint(tree(cx)?).map_err(refuse)?;
    Ok(Answer::Raw { content_type: "text/plain; charset=utf-8", body: note.into_bytes() })
}

pub(super) fn tile(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let file = Layout::parse(&format!("tile/{}", cx.call.capture("tile"))).map_err(|e| Refusal::invalid(e.to_string()))?;
    let body = system.0.trail.file(tree(cx)?, file).map_err(refuse)?;
    Ok(Answer::Raw { content_type: "application/octet-stream", body })
}

pub(super) fn proof(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let index = cx.call.capture("index").parse().map_err(|_| Refusal::invalid("field `index`: expected a whole number"))?;
    let proof = system.0.trail.proof(tree(cx)?, index).map_err(refuse)?;
    Ok(Answer::Raw { content_type: "text/plain; charset=utf-8", body: proof.into_bytes() })
}

pub(super) fn hash(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let field = cx.call.body.need_text("field")?;
    let input = cx.call.body.secret("input")?.ok_or_else(|| Refusal::invalid("field `input`: missing"))?;
    let hash = system.0.trail.hash(&field, input.expose().as_bytes()).map_err(refuse)?;
    Answer::data(&json!({ "hash": hash }))
}

fn tree(cx: &Cx<'_>) -> Result<TreeName, Refusal> {
    match cx.call.capture("tree") {
        "change" => Ok(TreeName::Change),
        "access" => Ok(TreeName::Access),
        _ => Err(Refusal::missing()),
    }
}

fn refuse(error: audit::Error) -> Refusal {
    match error {
        audit::Error::Sealed => Refusal::sealed(),
        audit::Error::NotFound { .. } => Refusal::missing(),
        other => Refusal::internal(other.to_string()),
    }
}
