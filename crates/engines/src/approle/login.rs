//! `login`.

use std::time::Duration;

use base::{Refusal, SecretString};
use engine::{Access, Answer, Cx, Field, FieldKind, Grant, Op, Permit, Route};

use super::role::Role;
use super::secret_id::{Hash, consume};
use super::{AppRole, identity, principal};

pub(super) const LOGIN: Route<AppRole> = Route::new(
    Op::Write,
    "login",
    &[Field::new("role_id", FieldKind::Text, "The role's id."), Field::new("secret_id", FieldKind::Text, "A secret id of the role.")],
    "Log in.",
    login,
)
.access(Access::Anonymous);

fn login(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let body = &cx.call.body;
    let role_id = body.text("role_id")?.filter(|id| !id.is_empty()).ok_or_else(|| Refusal::invalid("missing role_id"))?;
    let secret_id: Option<SecretString> = body.secret("secret_id")?;
    let secret_id = secret_id.filter(|id| !id.expose().is_empty()).ok_or_else(|| Refusal::invalid("missing secret_id"))?;

    let hash = Hash::of(&secret_id);
    let found = Role::by_id(cx.tx, &cx.call.mount, &role_id)?;
    // an unknown role costs the same look-up as a known one; no role has an empty name
    let name = found.as_ref().map_or("", |(name, _)| name.as_str()).to_owned();
    let row = consume(cx, &name, &hash)?;
    let (Some((name, role)), Some(row)) = (found, row) else {
        return Err(Refusal::invalid("invalid role or secret ID"));
    };

    let mut metadata = row.metadata;
    metadata.insert("role_name".to_owned(), name.clone());
    cx.note("role", &name);
    let mount = &cx.call.mount;
    Ok(Answer::Login(Grant {
        principal: principal(mount, &name),
        display_name: identity(mount).replace('/', "-"),
        policies: role.token_policies.clone(),
        no_default_policy: role.token_no_default_policy,
        metadata,
        ttl: Duration::from_secs(role.token_ttl),
        ttl_max: Duration::from_secs(role.token_max_ttl),
        explicit_ttl_max: Duration::from_secs(role.token_explicit_max_ttl),
        period: Duration::from_secs(role.token_period),
        num_uses: role.token_num_uses,
        path: format!("{}/login", mount.path.trimmed()),
    }))
}

#[cfg(test)]
mod tests {
    use base::Kind;
    use engine::Op;
    use serde_json::json;

    use crate::bench::{Bench, Told};

    struct Door {
        auth: Bench,
        role_id: String,
    }

    impl Door {
        fn new(role: &str) -> Self {
            let auth = Bench::approle();
            auth.write("role/web", role).nothing();
            let role_id = auth.read("role/web/role-id").json()["role_id"].as_str().unwrap().to_owned();
            Self { auth, role_id }
        }

        fn secret(&self) -> String {
            self.auth.write("role/web/secret-id", "{}").json()["secret_id"].as_str().unwrap().to_owned()
        }

        fn login(&self, secret: &str) -> Told {
            self.auth.write("login", &json!({"role_id": self.role_id, "secret_id": secret}).to_string())
        }
    }

    #[test]
    fn asks_for_the_token_of_the_role() {
        let door = Door::new(
            r#"{"token_policies":["app"],"token_ttl":"20m","token_max_ttl":"2h","token_explicit_max_ttl":"1h","token_num_uses":7,"token_period":30,"token_no_default_policy":true}"#,
        );
        let grant = door.login(&door.secret()).login();
        assert_eq!(
            (grant.principal.as_str(), grant.path.as_str(), grant.display_name.as_str()),
            ("approle/web", "auth/approle/login", "approle")
        );
        assert_eq!((grant.policies, grant.no_default_policy, grant.num_uses), (vec!["app".to_owned()], true, 7));
        let spans = [grant.ttl, grant.ttl_max, grant.explicit_ttl_max, grant.period];
        assert_eq!(spans.map(|span| span.as_secs()), [1_200, 7_200, 3_600, 30]);
        assert_eq!(grant.metadata.into_iter().collect::<Vec<_>>(), [("role_name".to_owned(), "web".to_owned())]);
    }

    #[test]
    fn uses_are_counted() {
        let door = Door::new(r#"{"secret_id_num_uses":2}"#);
        let secret = door.secret();
        door.login(&secret).login();
        let left = door.auth.write("role/web/secret-id/lookup", &json!({"secret_id": secret}).to_string()).json();
        assert_eq!(left["secret_id_num_uses"], 1);
        door.login(&secret).login();
        door.login(&secret).invalid("invalid role or secret ID");
        assert_eq!((door.auth.count("secret-id"), door.auth.count("accessor")), (0, 0));
        // without a limit nothing is written
        let door = Door::new("{}");
        let secret = door.secret();
        let before = door.auth.head();
        for _ in 0..3 {
            door.login(&secret).login();
        }
        assert_eq!(door.auth.head(), before);
    }

    #[test]
    fn of_many_logins_with_a_single_use_exactly_one_wins() {
        let door = Door::new(r#"{"secret_id_num_uses":1,"secret_id_ttl":"1h"}"#);
        let body = json!({"role_id": door.role_id, "secret_id": door.secret()}).to_string();
        // all run on a snapshot in which the secret id is there
        let attempts: Vec<_> = (0..20).map(|_| door.auth.begin(Op::Write, "login", &body)).collect();
        let mut won = 0;
        for (tx, told) in attempts {
            told.login();
            if door.auth.commit(tx) {
                won += 1;
            } else {
                // what the kernel does with a conflict: again
                door.auth.write("login", &body).invalid("invalid role or secret ID");
            }
        }
        assert_eq!(won, 1);
        assert_eq!(door.auth.duties(), 0);
    }

    #[test]
    fn every_wrong_login_reads_the_same() {
        let door = Door::new(r#"{"secret_id_ttl":"10s"}"#);
        let secret = door.secret();
        door.auth.write("role/other", r#"{"role_id":"other"}"#).nothing();
        let other = door.auth.write("role/other/secret-id", "{}").json()["secret_id"].as_str().unwrap().to_owned();
        let with = |role: &str, secret: &str| door.auth.write("login", &json!({"role_id": role, "secret_id": secret}).to_string());
        let mut wrong = vec![
            with("unknown", &secret),
            with(&door.role_id, "unknown"),
            with(&door.role_id, &other),
            with("other", &secret),
            with("web", &secret),
            with(&door.role_id.to_uppercase(), &secret),
            with(&door.role_id, &secret.to_uppercase()),
        ];
        door.login(&secret).login();
        door.auth.pass_seconds(10);
        wrong.push(door.login(&secret));
        assert_eq!(door.auth.delete("role/web").nothing_but().len(), 1);
        wrong.push(door.login(&secret));
        for told in wrong {
            let refusal = told.refused(Kind::Invalid);
            assert_eq!((refusal.errors.as_slice(), refusal.warnings.len()), (["invalid role or secret ID".to_owned()].as_slice(), 0));
        }
        let missing = |body: &str, text: &str| {
            door.auth.write("login", body).invalid(text);
        };
        missing("{}", "missing role_id");
        missing(r#"{"role_id":"other"}"#, "missing secret_id");
        missing(r#"{"role_id":"","secret_id":"x"}"#, "missing role_id");
        missing(r#"{"role_id":1,"secret_id":"x"}"#, "field `role_id`");
    }
}
