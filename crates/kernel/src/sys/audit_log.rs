//! `sys/audit-log`: checkpoints, tiles and proofs of both trees, for export and for witnesses.

use audit::{Cursor, IDENTITIES_MAX, Layout, Question, TreeName};
use base::{Refusal, Timestamp};
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

/// Who saw a secret, or what identities saw. One page; `next` of its answer are the `change` and `access` of the next.
pub(super) fn who(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (body, now) = (&cx.call.body, cx.now());
    let time = |name: &str, default: Timestamp| match body.text(name)?.filter(|text| !text.is_empty()) {
        None => Ok(default),
        Some(text) => {
            Timestamp::parse_rfc3339(&text).or_else(|| base::ttl::parse(&text).ok().map(|span| now.before(span))).ok_or_else(|| {
                Refusal::invalid(format!("field `{name}`: expected a time such as `2026-01-31T12:00:00Z`, or a span back such as `24h`"))
            })
        }
    };
    let (from, to) = (time("from", Timestamp::ZERO)?, time("to", Timestamp(u64::MAX))?);
    let mut question = match (body.text("path")?.filter(|path| !path.is_empty()), body.list("identity")?.filter(|all| !all.is_empty())) {
        (Some(path), None) => Question::of_path(&path, from, to),
        (None, Some(identities)) if identities.len() <= IDENTITIES_MAX => Question::of_identities(identities, from, to),
        (None, Some(_)) => return Err(Refusal::invalid(format!("field `identity`: more than {IDENTITIES_MAX}"))),
        _ => return Err(Refusal::invalid("fields `path`, `identity`: expected one of the two")),
    };
    let cursor = match (body.int("change")?, body.int("access")?) {
        (Some(change), Some(access)) => Some(Cursor { change, access }),
        (None, None) => None,
        _ => return Err(Refusal::invalid("fields `change`, `access`: expected both, or none")),
    };
    let page = system.0.trail.who(&mut question, cursor).map_err(refuse)?;
    Answer::data(&json!({
        "rows": page.rows.iter().map(audit::Row::to_json).collect::<Vec<_>>(),
        "looked_at": page.looked_at,
        "identities": question.identities(),
        "next": page.next.map(|next| json!({ "change": next.change, "access": next.access })),
    }))
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
