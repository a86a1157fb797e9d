//! `sys/`: what the kernel says and lets be changed about itself. One file per path, each holding its routes' handlers.

pub mod audit_log;
pub mod capabilities;
pub mod identities;
pub mod internal;
pub mod mounts;
pub mod policies;
pub mod status;
pub mod token;

use std::sync::Arc;

use base::Refusal;
use engine::{Access, Answer, Cx, Duty, Engine, Field, FieldKind, Op, Outcome, Owner, Route, Work};

use crate::Shared;

/// The engine that answers `sys/`.
pub struct System(pub(crate) Arc<Shared>);

const NO: &[Field] = &[];
const MOUNT: &[Field] = &[
    Field::public("type", FieldKind::Text, "the engine's type: `kv-v2`, `approle`"),
    Field::public("description", FieldKind::Text, "for people"),
    Field::public("options", FieldKind::Map, "`version` of kv"),
    Field::public("config", FieldKind::Any, "`default_lease_ttl`, `max_lease_ttl`"),
    Field::public("local", FieldKind::Bool, "accepted, without effect"),
    Field::public("seal_wrap", FieldKind::Bool, "accepted, without effect"),
    Field::public("external_entropy_access", FieldKind::Bool, "accepted, without effect"),
    Field::public("plugin_version", FieldKind::Text, "accepted when empty"),
    Field::public("plugin_name", FieldKind::Text, "an older name of `type`"),
];
const POLICY: &[Field] = &[
    Field::new("policy", FieldKind::Text, "the policy's text: HCL or JSON, plain or in base64"),
    Field::new("rules", FieldKind::Text, "an older name of `policy`"),
    Field::public("name", FieldKind::Text, "the name again; ignored"),
];
const PATHS: &[Field] = &[
    Field::public("paths", FieldKind::List, "the paths asked about"),
    Field::public("path", FieldKind::List, "an older name of `paths`"),
    Field::new("token", FieldKind::Text, "the token asked about"),
    Field::new("accessor", FieldKind::Text, "its accessor"),
];

const IDENTITY: &[Field] = &[
    Field::public("identity", FieldKind::Text, "`approle/billing`, or `token/` and the accessor of a token"),
    Field::public("reason", FieldKind::Text, "why, for the record"),
];

const WHO: &[Field] = &[
    Field::public("path", FieldKind::Text, "who saw this secret"),
    Field::public("identity", FieldKind::List, "what these identities saw, and those of tokens that they made"),
    Field::public("from", FieldKind::Text, "not before: a time, or a span back"),
    Field::public("to", FieldKind::Text, "not after: a time, or a span back"),
    Field::public("change", FieldKind::Int, "where the page begins: the next entry of the change tree"),
    Field::public("access", FieldKind::Int, "where the page begins: the next entry of the access tree"),
];

static ROUTES: &[Route<System>] = &[
    Route::new(Op::Read, "mounts", NO, "all secrets engines", mounts::list_secrets),
    Route::new(Op::Read, "mounts/:path*", NO, "one secrets engine", mounts::read_secrets),
    Route::new(Op::Write, "mounts/:path*", MOUNT, "mount a secrets engine", mounts::write_secrets),
    Route::new(Op::Delete, "mounts/:path*", NO, "unmount a secrets engine", mounts::delete_secrets),
    Route::new(Op::Read, "auth", NO, "all auth methods", mounts::list_auth),
    Route::new(Op::Read, "auth/:path*", NO, "one auth method", mounts::read_auth).access(Access::Sudo),
    Route::new(Op::Write, "auth/:path*", MOUNT, "enable an auth method", mounts::write_auth).access(Access::Sudo),
    Route::new(Op::Delete, "auth/:path*", NO, "disable an auth method", mounts::delete_auth).access(Access::Sudo),
    Route::new(Op::Read, "policies/acl", NO, "names of all policies", policies::list),
    Route::new(Op::List, "policies/acl", NO, "names of all policies", policies::list),
    Route::new(Op::Read, "policies/acl/:name", NO, "one policy", policies::read),
    Route::new(Op::Write, "policies/acl/:name", POLICY, "write a policy", policies::write).strict(),
    Route::new(Op::Delete, "policies/acl/:name", NO, "delete a policy", policies::delete),
    Route::new(Op::Read, "policy", NO, "names of all policies, older form", policies::list_legacy),
    Route::new(Op::List, "policy", NO, "names of all policies, older form", policies::list_legacy),
    Route::new(Op::Read, "policy/:name", NO, "one policy, older form", policies::read_legacy),
    Route::new(Op::Write, "policy/:name", POLICY, "write a policy, older form", policies::write).strict(),
    Route::new(Op::Delete, "policy/:name", NO, "delete a policy, older form", policies::delete),
    Route::new(Op::Write, "capabilities-self", PATHS, "what the caller may do", capabilities::of_self),
    Route::new(Op::Write, "capabilities", PATHS, "what a token may do", capabilities::of_token),
    Route::new(Op::Write, "capabilities-accessor", PATHS, "what the token of an accessor may do", capabilities::of_accessor),
    Route::new(Op::Read, "internal/ui/mounts", NO, "mounts the caller may see", internal::mounts).access(Access::Optional),
    Route::new(Op::Read, "internal/ui/mounts/:path*", NO, "the mount of a path", internal::mount).access(Access::Token),
    Route::new(Op::Read, "audit-log/vkeys", NO, "the keys that sign both trees", audit_log::vkeys),
    Route::new(Op::Read, "audit-log/:tree/checkpoint", NO, "the newest signed checkpoint", audit_log::checkpoint),
    Route::new(Op::Read, "audit-log/:tree/tile/:tile*", NO, "hashes or entries, as C2SP tiles", audit_log::tile),
    Route::new(Op::Read, "audit-log/:tree/proof/:index", NO, "an inclusion proof", audit_log::proof),
    Route::new(Op::Read, "audit-log/who", WHO, "who saw a secret, or what an identity saw", audit_log::who).strict(),
    Route::new(
        Op::Write,
        "audit-log/hash",
        &[Field::public("field", FieldKind::Text, "path of the field"), Field::new("input", FieldKind::Text, "the value")],
        "the keyed hash under which a value stands in records",
        audit_log::hash,
    ),
    Route::new(Op::Write, "identities/revoke", IDENTITY, "end all that an identity holds: tokens, streams, secret ids", identities::revoke)
        .strict()
        .access(Access::Sudo),
    Route::new(Op::Read, "duties", NO, "what is owed to the world, and since when", status::duties),
    Route::new(Op::List, "duties", NO, "what is owed to the world, and since when", status::duties),
];

impl Engine for System {
    const KIND: &'static str = "system";

    fn routes() -> &'static [Route<Self>] {
        ROUTES
    }
}

impl Owner for System {
    fn perform(&self, _: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
        Err(Refusal::internal(format!("`sys/` owes no duty of the kind `{}`", duty.kind)))
    }

    fn settle(&self, _: &mut Cx<'_>, duty: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        Err(Refusal::internal(format!("`sys/` owes no duty of the kind `{}`", duty.kind)))
    }
}

/// Both under `data` and at the top level: what old clients of these paths read.
pub(crate) fn doubled(call: &engine::Call, data: &serde_json::Map<String, serde_json::Value>) -> Result<Answer, Refusal> {
    let mut body = data.clone();
    body.insert("request_id".into(), call.id.as_str().into());
    body.insert("lease_id".into(), "".into());
    body.insert("renewable".into(), false.into());
    body.insert("lease_duration".into(), 0.into());
    body.insert("data".into(), serde_json::Value::Object(data.clone()));
    body.insert("wrap_info".into(), serde_json::Value::Null);
    body.insert("warnings".into(), serde_json::Value::Null);
    body.insert("auth".into(), serde_json::Value::Null);
    body.insert("mount_type".into(), call.mount.kind.as_str().into());
    Ok(Answer::Bare(None, engine::answer::raw(&body)?))
}
