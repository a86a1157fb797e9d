//! Who saw a secret, and what an identity saw: the auditor's questions, asked of leaves one by one.
//!
//! A secret is seen by a request for its path, or by a push to who follows it. Where the leaves come from, and whether they are to be believed,
//! is left to others: [`crate::Trail::who`] reads its own trees, `keyward audit who -export` those that the verifier has checked.

use std::collections::BTreeSet;

use base::Timestamp;
use serde_json::{Map, Value, json};
use tlog::export::TreeName;

/// Identities that one question is about at most, those that came from them among them.
pub const IDENTITIES_MAX: usize = 1_000;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    about: About,
    /// Not before.
    pub from: Timestamp,
    /// Not after.
    pub to: Timestamp,
}

#[derive(Clone, Debug)]
enum About {
    /// A secret, or all below a folder, as people or as clients write it.
    Path(String),
    /// What these principals saw. Those of tokens that they made are added as they are found.
    Identities(BTreeSet<String>),
}

impl Question {
    /// Who saw the secret at this path: `secret/orders/db`, or as clients read it, `secret/data/orders/db`. With a slash at its end: all below.
    #[must_use]
    pub fn of_path(path: &str, from: Timestamp, to: Timestamp) -> Self {
        Self { about: About::Path(path.trim_start_matches('/').to_owned()), from, to }
    }

    /// Which secrets these identities saw.
    #[must_use]
    pub fn of_identities(identities: impl IntoIterator<Item = String>, from: Timestamp, to: Timestamp) -> Self {
        Self { about: About::Identities(identities.into_iter().take(IDENTITIES_MAX).collect()), from, to }
    }

    /// The identities that are asked about by now.
    #[must_use]
    pub fn identities(&self) -> Vec<&str> {
        match &self.about {
            About::Path(_) => Vec::new(),
            About::Identities(all) => all.iter().map(String::as_str).collect(),
        }
    }

    /// The row of a leaf, if it answers the question. Leaves are to be shown in the order of time.
    pub fn row(&mut self, tree: TreeName, origin: &str, index: u64, leaf: &Value) -> Option<Row> {
        let time = Timestamp(leaf.get("time")?.as_u64()?);
        let record = leaf.get("record")?;
        if time < self.from || time > self.to {
            return None;
        }
        let seen = Seen::of(record)?;
        match &mut self.about {
            About::Path(path) => seen.is_at(path).then_some(())?,
            About::Identities(all) => {
                if !all.contains(&seen.principal) {
                    return None;
                }
                if let Some(made) = text(record, "/facts/made").filter(|_| all.len() < IDENTITIES_MAX) {
                    all.insert(made.to_owned());
                }
                seen.got_a_secret().then_some(())?;
            }
        }
        Some(Row { time, tree, entry: format!("{origin}/{index}"), seen })
    }
}

/// What a record says of somebody and a path.
#[derive(Clone, Debug)]
struct Seen {
    operation: &'static str,
    principal: String,
    display: String,
    instance: String,
    remote: String,
    path: String,
    mount: String,
    version: Option<u64>,
    generation: String,
    status: Option<u64>,
}

impl Seen {
    fn of(record: &Value) -> Option<Self> {
        let owned = |at: &str| text(record, at).unwrap_or_default().to_owned();
        let fact = |name: &str| owned(&format!("/facts/{name}"));
        let number = |at: &str| record.pointer(at).and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
        let push = match text(record, "/kind")? {
            "push" => true,
            "request" => false,
            _ => return None,
        };
        let operation = if push {
            "pushed"
        } else {
            match text(record, "/request/operation")? {
                "read" => "read",
                "update" => "written",
                "patch" => "patched",
                "delete" => "deleted",
                "list" => "listed",
                _ => "asked",
            }
        };
        let generation = if push { fact("using") } else { String::new() };
        if push && [generation.as_str(), fact("standby").as_str()].iter().all(|which| matches!(*which, "" | "none")) {
            // Nothing was pushed but the word that there is nothing.
            return None;
        }
        Some(Self {
            operation,
            // A push of before names its principal as a fact.
            principal: text(record, "/auth/principal").map_or_else(|| fact("principal"), str::to_owned),
            display: owned("/auth/display"),
            instance: fact("instance"),
            remote: owned("/request/remote"),
            path: if push { fact("path") } else { owned("/request/path") },
            mount: owned("/request/mount"),
            version: number("/facts/version").or_else(|| number("/response/version")),
            generation,
            status: number("/response/status"),
        })
    }

    /// Whether this is about the secret at `asked`, or with a slash at its end about one below it.
    fn is_at(&self, asked: &str) -> bool {
        let same = |path: &str| path == asked || (asked.ends_with('/') && path.starts_with(asked));
        same(&self.path) || self.plain().is_some_and(|plain| same(&plain))
    }

    /// The path as people write it: without the `data/` behind the mount. A push does not name the mount: there the first one is taken.
    fn plain(&self) -> Option<String> {
        let (mount, below) = if self.mount.is_empty() {
            self.path.split_at_checked(self.path.find("/data/")? + 1)?
        } else {
            (self.mount.as_str(), self.path.strip_prefix(&self.mount)?)
        };
        below.strip_prefix("data/").map(|rest| format!("{mount}{rest}"))
    }

    /// Whether the answer held a secret. Only the reads of a secret name a version.
    fn got_a_secret(&self) -> bool {
        match self.operation {
            "pushed" => true,
            "read" => self.version.is_some() && self.status.is_some_and(|status| status < 300),
            _ => false,
        }
    }

    fn outcome(&self) -> &'static str {
        match self.status {
            None => "sent",
            Some(..300) => "done",
            Some(401 | 403) => "refused",
            Some(404) => "nothing there",
            Some(_) => "failed",
        }
    }
}

fn text<'a>(record: &'a Value, at: &str) -> Option<&'a str> {
    record.pointer(at)?.as_str()
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Row {
    time: Timestamp,
    tree: TreeName,
    entry: String,
    seen: Seen,
}

impl Row {
    /// As it stands in answers and in `-format=json`. What is not known is left out.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let seen = &self.seen;
        let mut out = Map::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                out.insert(name.to_owned(), value.into());
            }
        };
        put("time", &self.time.rfc3339());
        put("principal", &seen.principal);
        put("display", &seen.display);
        put("instance", &seen.instance);
        put("remote", &seen.remote);
        put("operation", seen.operation);
        put("path", &seen.path);
        put("generation", &seen.generation);
        put("outcome", seen.outcome());
        put("tree", self.tree.as_str());
        put("entry", &self.entry);
        for (name, number) in [("version", seen.version), ("status", seen.status)] {
            if let Some(number) = number {
                out.insert(name.to_owned(), json!(number));
            }
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: &mut Question, record: Value) -> Option<Value> {
        question.row(TreeName::Access, "c/access/1", 7, &json!({"time": 5_000_000, "record": record})).map(|row| row.to_json())
    }

    fn read(principal: &str, path: &str) -> Value {
        json!({
            "kind": "request", "auth": {"principal": principal, "display": "d"}, "response": {"status": 200}, "facts": {"version": "3"},
            "request": {"operation": "read", "path": path, "mount": "secret/", "remote": "10.0.0.1:5"},
        })
    }

    fn push(path: &str) -> Value {
        json!({"kind": "push", "auth": {"principal": "approle/web", "display": "approle"},
            "facts": {"path": path, "instance": "web-1", "using": "4", "standby": "none", "version": "2"}})
    }

    fn of_path(path: &str) -> Question {
        Question::of_path(path, Timestamp(5_000_000), Timestamp(5_000_000))
    }

    #[test]
    fn a_row_says_who_what_and_where_it_stands() {
        assert_eq!(
            ask(&mut of_path("secret/a/b"), read("token/x", "secret/data/a/b")).unwrap(),
            json!({"time": "1970-01-01T00:00:05Z", "principal": "token/x", "display": "d", "remote": "10.0.0.1:5", "operation": "read",
                "path": "secret/data/a/b", "outcome": "done", "tree": "access", "entry": "c/access/1/7", "version": 3, "status": 200})
        );
        assert_eq!(
            ask(&mut of_path("secret/a/b"), push("secret/data/a/b")).unwrap(),
            json!({"time": "1970-01-01T00:00:05Z", "principal": "approle/web", "display": "approle", "instance": "web-1", "operation": "pushed",
                "path": "secret/data/a/b", "generation": "4", "outcome": "sent", "tree": "access", "entry": "c/access/1/7", "version": 2})
        );
    }

    #[test]
    fn paths() {
        for (asked, path, found) in [
            ("secret/a/b", "secret/data/a/b", true),
            ("secret/data/a/b", "secret/data/a/b", true),
            ("/secret/a/b", "secret/data/a/b", true),
            ("secret/a", "secret/data/a/b", false),
            ("secret/a/", "secret/data/a/b", true),
            ("secret/data/", "secret/data/a/b", true),
            ("secret/a/b", "secret/metadata/a/b", false),
            ("secret/metadata/a/b", "secret/metadata/a/b", true),
            ("secret/data/a", "secret/data/data/a", true),
            ("secret/a", "secret/data/data/a", false),
            ("secret/", "secret/data/a", true),
        ] {
            assert_eq!(ask(&mut of_path(asked), read("x", path)).is_some(), found, "{asked} {path}");
            if path.starts_with("secret/data/") {
                assert_eq!(ask(&mut of_path(asked), push(path)).is_some(), found, "pushed: {asked} {path}");
            }
        }
    }

    #[test]
    fn outcomes_and_operations() {
        let mut record = read("x", "secret/data/a");
        for (operation, status, said) in [
            ("read", 200, "read done"),
            ("read", 403, "read refused"),
            ("read", 404, "read nothing there"),
            ("update", 200, "written done"),
            ("delete", 204, "deleted done"),
            ("patch", 400, "patched failed"),
        ] {
            record["request"]["operation"] = operation.into();
            record["response"]["status"] = status.into();
            let row = ask(&mut of_path("secret/a"), record.clone()).unwrap();
            assert_eq!(format!("{} {}", row["operation"].as_str().unwrap(), row["outcome"].as_str().unwrap()), said);
        }
        let mut nothing = push("secret/data/a");
        nothing["facts"]["using"] = "none".into();
        assert_eq!(ask(&mut of_path("secret/a"), nothing), None);
        assert_eq!(ask(&mut of_path("secret/a"), json!({"kind": "duty", "facts": {"path": "secret/data/a"}})), None);
        let outside = Question::of_path("secret/a", Timestamp(5_000_001), Timestamp(u64::MAX));
        assert_eq!(ask(&mut outside.clone(), read("x", "secret/data/a")), None);
    }

    #[test]
    fn an_identity_is_followed_into_what_it_made() {
        let mut question = Question::of_identities(["approle/web".to_owned()], Timestamp(0), Timestamp(u64::MAX));
        assert_eq!(ask(&mut question, read("token/x", "secret/data/a")), None);
        let made = json!({"kind": "request", "auth": {"principal": "approle/web"}, "response": {"status": 200}, "facts": {"made": "token/x"},
            "request": {"operation": "update", "path": "auth/token/create", "mount": "auth/token/"}});
        assert_eq!(ask(&mut question, made), None);
        assert_eq!(question.identities(), ["approle/web", "token/x"]);
        assert!(ask(&mut question, read("token/x", "secret/data/a")).is_some());
        assert!(ask(&mut question, push("secret/data/b")).is_some());
        let mut refused = read("token/x", "secret/data/a");
        refused["response"]["status"] = 403.into();
        assert_eq!(ask(&mut question, refused), None, "it did not see that");
        let mut other = read("token/x", "sys/mounts");
        other["facts"] = json!({});
        assert_eq!(ask(&mut question, other), None);
    }
}
