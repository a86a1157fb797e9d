//! What is not there, and what may have been meant instead. A hint is asked for with the caller's own rights, after a failure; where it may not
//! see what there is, it is told nothing more.

use serde_json::Value;

use super::{Answer, Api, Failure};

/// Names that are compared at most.
const COMPARED_MAX: usize = 10_000;

/// Whether a list has no entry: nothing is there, and nothing is said about it.
pub(super) fn is_empty_list(answer: &Answer) -> bool {
    let said = |body: Value| body.get("errors").and_then(Value::as_array).is_some_and(|errors| !errors.is_empty());
    answer.status == 404 && !answer.json().is_ok_and(said)
}

/// That there is no such thing, with the nearest name of its list.
pub(super) async fn missing(api: &Api, what: &str, list: &str, name: &str) -> Failure {
    let mut text = format!("No {what} named: {name}");
    if let Ok(answer) = api.call("LIST", &format!("{list}/"), &[], None).await
        && answer.ok()
        && let Ok(body) = answer.json()
    {
        let keys = body.pointer("/data/keys").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        if let Some(near) = nearest(name, keys) {
            text.push_str(&format!("\nDid you mean `{near}`?"));
        }
    }
    Failure::server(text)
}

/// That nothing is mounted where `path` is, if that is so and the caller may see the mounts.
pub(super) async fn no_engine(api: &Api, path: &str) -> Option<Failure> {
    let path = path.trim_matches('/');
    let first = path.split('/').next().filter(|first| !first.is_empty() && !matches!(*first, "sys" | "auth"))?;
    let answer = api.call("GET", "sys/mounts", &[], None).await.ok().filter(Answer::ok)?;
    let body = answer.json().ok()?;
    let mounts: Vec<&str> = body.get("data")?.as_object()?.keys().map(|mount| mount.trim_end_matches('/')).collect();
    if mounts.iter().any(|mount| path == *mount || path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))) {
        return None;
    }
    let mut text = format!("No engine is mounted at `{first}/`: keyward secrets enable -path={first} kv-v2");
    if let Some(near) = nearest(first, mounts.into_iter().filter(|mount| *mount != "sys")) {
        let rest = path.strip_prefix(first).unwrap_or_default();
        text.push_str(&format!("\nDid you mean `{near}{rest}`?"));
    }
    Some(Failure::server(text))
}

/// The one that differs least from what was written, if it differs by little.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (wanted.chars().count() / 3).max(1);
    let near = names.take(COMPARED_MAX).map(|name| (distance(wanted, name), name)).filter(|(distance, _)| (1..=most).contains(distance));
    near.min().map(|(_, name)| name)
}

/// Characters to insert, to leave out or to replace (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (n, c) in from.chars().enumerate() {
        let mut next = vec![n + 1];
        for ((known, above), diagonal) in to.iter().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(*known != c)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("é", "e", 1), ("same", "same", 0)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn only_what_is_near_is_named() {
        let names = ["billing", "orders-db", "orders"];
        for (wanted, near) in [
            ("biling", Some("billing")),
            ("order", Some("orders")),
            ("orders-bd", Some("orders-db")),
            ("billing", None),
            ("x", None),
            ("something-else", None),
        ] {
            assert_eq!(nearest(wanted, names.into_iter().filter(|name| *name != wanted)), near, "{wanted}");
        }
    }
}
