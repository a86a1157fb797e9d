//! Paths that belong to kv version 1. People arrive here with `vault read secret/x`; the answer tells them where to go.

use base::Refusal;
use engine::{Answer, Cx, Op, Permit, Route};

use super::Kv;

const HELP: &str = "No secret is here: values are below `data/`, lists below `metadata/`.";

pub(super) const READ: Route<Kv> = Route::new(Op::Read, ":path*", &[], HELP, elsewhere);
pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, ":path*", &[], HELP, elsewhere);
pub(super) const PATCH: Route<Kv> = Route::new(Op::Patch, ":path*", &[], HELP, elsewhere);
pub(super) const DELETE: Route<Kv> = Route::new(Op::Delete, ":path*", &[], HELP, elsewhere);
pub(super) const LIST: Route<Kv> = Route::new(Op::List, ":path*", &[], HELP, elsewhere);
pub(super) const ROOT_READ: Route<Kv> = Route::new(Op::Read, "", &[], HELP, elsewhere);
pub(super) const ROOT_LIST: Route<Kv> = Route::new(Op::List, "", &[], HELP, elsewhere);

fn elsewhere(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let first = cx.call.capture("path").split('/').next().unwrap_or_default();
    if matches!(first, "config" | "data" | "metadata" | "delete" | "undelete" | "destroy") {
        // the place is right, the operation is not one of its own
        return Err(Refusal::unsupported());
    }
    let command = match cx.call.op {
        Op::Read => "get",
        Op::List => "list",
        Op::Write => "put",
        Op::Patch => "patch",
        Op::Delete => "delete",
    };
    Err(Refusal::missing().warn(format!(
        "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the Vault CLI, use 'vault kv {command}' for this operation."
    )))
}

#[cfg(test)]
mod tests {
    use base::Kind;

    use crate::bench::Bench;

    #[test]
    fn says_where_to_go() {
        let kv = Bench::kv();
        for (answer, command) in [
            (kv.read("app"), "get"),
            (kv.write("app/x", "{}"), "put"),
            (kv.delete("app"), "delete"),
            (kv.list("app/"), "list"),
            (kv.list(""), "list"),
        ] {
            let refusal = answer.refused(Kind::Missing);
            assert!(refusal.warnings[0].starts_with("Invalid path for a versioned K/V secrets engine."));
            assert!(refusal.warnings[0].contains(&format!("'vault kv {command}'")));
        }
        for answer in [kv.list("data/a/"), kv.read("destroy/a"), kv.read("data"), kv.write("metadata", "{}"), kv.delete("config")] {
            answer.refused(Kind::Unsupported);
        }
    }
}
