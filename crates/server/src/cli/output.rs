//! What is printed: Vault's two columns, its words for values and durations, and JSON in the order of the server.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use serde_json::{Map, Value};

use super::{Answer, Failure};

/// Between two columns.
const GLUE: &str = "    ";

/// What stands for an empty cell.
const EMPTY: &str = "n/a";

/// Writes to standard output. A reader that has gone away is no failure of ours.
pub(super) fn out(text: &str) -> Result<(), Failure> {
    write_all(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes a line to standard output.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    out(&format!("{text}\n"))
}

/// Writes a line to standard error.
pub(super) fn note(text: &str) {
    // Where nothing can be said, nothing is lost by saying nothing.
    write_all(&mut io::stderr().lock(), format!("{text}\n").as_bytes()).unwrap_or_default();
}

fn write_all(to: &mut impl io::Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::local(format!("Error writing output: {error}"))),
        _ => Ok(()),
    }
}

/// A bare value: with a line end for people, without for programs.
pub(super) fn raw(value: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() { line(value) } else { out(value) }
}

/// Rows under a heading with dashes; the last column is not padded, an empty cell is `n/a`.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let Some(head) = rows.first() else { return String::new() };
    let dashes: Vec<String> = head.iter().map(|cell| "-".repeat(cell.chars().count())).collect();
    let all: Vec<&Vec<String>> = std::iter::once(head).chain(std::iter::once(&dashes)).chain(rows.iter().skip(1)).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| {
            all.iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count().max(if cell.is_empty() { EMPTY.len() } else { 0 }))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell = if cell.is_empty() { EMPTY } else { cell };
            if at + 1 == row.len() {
                line.push_str(cell);
            } else {
                let _infallible = write!(line, "{cell:<width$}{GLUE}");
            }
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// `Key` and `Value`.
pub(super) fn table(rows: &[(String, String)]) -> String {
    let mut all = vec![vec!["Key".to_owned(), "Value".to_owned()]];
    all.extend(rows.iter().map(|(key, value)| vec![key.clone(), value.clone()]));
    columns(&all)
}

/// One column.
pub(super) fn keys<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut all = vec![vec!["Keys".to_owned()]];
    all.extend(names.into_iter().map(|name| vec![name.to_owned()]));
    columns(&all)
}

/// A heading between equal signs, as wide as the table below it.
pub(super) fn heading(title: &str, width: usize) -> String {
    let signs = width.checked_sub(title.chars().count() + 2).filter(|n| *n > 0).unwrap_or(4).next_multiple_of(2);
    let side = "=".repeat(signs / 2);
    format!("{side} {title} {side}\n")
}

/// A heading over a table of these members.
pub(super) fn heading_over(title: &str, data: &Map<String, Value>) -> String {
    heading(title, data.keys().map(|key| key.chars().count()).max().unwrap_or(0) + GLUE.len() + "Value".len())
}

/// The members in order of their names, values in Vault's words.
pub(super) fn rows(data: &Map<String, Value>) -> Vec<(String, String)> {
    let mut rows: Vec<_> = data.iter().map(|(key, value)| (key.clone(), member(key, value))).collect();
    rows.sort();
    rows
}

fn member(key: &str, value: &Value) -> String {
    let spans = ["period", "ttl", "duration", "lease_max", "ttl_max"];
    let is_span = spans.iter().any(|span| key == *span || key.ends_with(&format!("_{span}")));
    match value.as_u64().filter(|_| is_span) {
        Some(seconds) => span(seconds),
        None => shown(value),
    }
}

/// A value as Go prints it: lists as `[a b]`, objects as `map[k:v]`, nothing as `<nil>`.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(all) => format!("[{}]", all.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(all) => {
            let mut members: Vec<_> = all.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            members.sort();
            format!("map[{}]", members.join(" "))
        }
    }
}

/// Seconds as Go prints a duration, without the parts that are zero: `768h`, `1m30s`.
pub(super) fn span(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    for (number, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
        if number > 0 {
            let _infallible = write!(text, "{number}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The rows of an answer: lease, token, then the data.
pub(super) fn secret_rows(body: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let flag = |value: &Value, name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let lease = number(body, "lease_duration");
    if lease > 0 {
        let id = text(body, "lease_id");
        if id.is_empty() {
            rows.push(("refresh_interval".to_owned(), span(lease)));
        } else {
            rows.push(("lease_id".to_owned(), id));
            rows.push(("lease_duration".to_owned(), span(lease)));
            rows.push(("lease_renewable".to_owned(), flag(body, "renewable").to_string()));
        }
    }
    if let Some(auth) = body.get("auth").filter(|auth| auth.is_object()) {
        let quoted = |name: &str| {
            let all = auth.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            format!("[{}]", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let life = number(auth, "lease_duration");
        rows.push(("token".to_owned(), text(auth, "client_token")));
        rows.push(("token_accessor".to_owned(), text(auth, "accessor")));
        rows.push(("token_duration".to_owned(), if life == 0 { "∞".to_owned() } else { span(life) }));
        rows.push(("token_renewable".to_owned(), flag(auth, "renewable").to_string()));
        rows.push(("token_policies".to_owned(), quoted("token_policies")));
        rows.push(("identity_policies".to_owned(), quoted("identity_policies")));
        rows.push(("policies".to_owned(), quoted("policies")));
        if let Some(meta) = auth.get("metadata").and_then(Value::as_object) {
            rows.extend(meta.iter().map(|(key, value)| (format!("token_meta_{key}"), shown(value))));
        }
    }
    if let Some(data) = body.get("data").and_then(Value::as_object) {
        rows.extend(self::rows(data));
    }
    rows
}

/// The warnings of an answer, on standard error.
pub(super) fn warnings(body: &Value) {
    let warnings = body.get("warnings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if warnings.is_empty() {
        return;
    }
    note("WARNING! The following warnings were returned from Vault:\n");
    for warning in warnings.iter().filter_map(Value::as_str) {
        note(&format!("  * {warning}"));
    }
    note("");
}

/// One field of an answer: of the token, of the lease, else of the data.
pub(super) fn field(body: &Value, data: Option<&Map<String, Value>>, name: &str) -> Result<Value, Failure> {
    let auth = body.get("auth").filter(|auth| auth.is_object());
    let special = match (name, auth) {
        ("token", Some(auth)) => auth.get("client_token").cloned(),
        ("token_accessor", Some(auth)) => auth.get("accessor").cloned(),
        ("token_duration", Some(auth)) => auth.get("lease_duration").cloned(),
        ("token_renewable", Some(auth)) => auth.get("renewable").cloned(),
        ("token_policies" | "policies" | "identity_policies", Some(auth)) => auth.get(name).cloned(),
        ("lease_id" | "lease_duration" | "renewable", None) if data.is_none_or(|data| !data.contains_key(name)) => body.get(name).cloned(),
        _ => None,
    };
    special
        .or_else(|| data.and_then(|data| data.get(name)).cloned())
        .ok_or_else(|| Failure::local(format!("Field \"{name}\" not present in secret")))
}

/// JSON as it came, with line breaks and two spaces: nothing is reordered and no number is touched.
pub(super) fn pretty(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        if quoted {
            text.push(c);
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => {
                quoted = true;
                text.push(c);
            }
            '{' | '[' => {
                text.push(c);
                while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                if let Some(close) = rest.next_if(|next| matches!((c, next), ('{', '}') | ('[', ']'))) {
                    text.push(close);
                } else {
                    depth += 1;
                    break_line(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                break_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => text.push(c),
        }
    }
    text
}

/// JSON in which every number that a double would change stands between quotes.
pub(super) fn exact(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let (mut rest, mut quoted, mut escaped) = (json, false, false);
    while let Some(c) = rest.chars().next() {
        let begins = !quoted && (c == '-' || c.is_ascii_digit());
        let number = begins.then(|| rest.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(rest.len()));
        let (taken, after) = rest.split_at_checked(number.unwrap_or(c.len_utf8())).unwrap_or((rest, ""));
        if begins && serde_json::from_str::<Value>(taken).map(|value| value.to_string()).ok().as_deref() != Some(taken) {
            let _infallible = write!(text, "\"{taken}\"");
        } else {
            text.push_str(taken);
        }
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            quoted = c == '"';
        }
        rest = after;
    }
    text
}

fn break_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.push_str(&"  ".repeat(depth));
}

/// Prints an answer in the wanted form.
pub(super) fn answer(answer: &Answer, json: bool, field: Option<&str>, data: Option<&Map<String, Value>>) -> Result<(), Failure> {
    let body = if json { answer.json()? } else { answer.for_people()? };
    let data = data.or_else(|| body.get("data").and_then(Value::as_object));
    match (field, json) {
        (Some(name), false) => {
            let value = self::field(&body, data, name)?;
            raw(&shown(&value))
        }
        (Some(name), true) => line(&pretty(&self::field(&body, data, name)?.to_string())),
        (None, true) => line(&pretty(answer.text()?)),
        (None, false) => {
            warnings(&body);
            let rows = secret_rows(&body);
            if rows.is_empty() { Ok(()) } else { out(&table(&rows)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn two_columns_to_the_byte() {
        let rows = secret_rows(&json!({
            "lease_id": "database/creds/x/abc", "lease_duration": 3600, "renewable": true,
            "data": {"username": "u", "password": "p", "ttl": 5400, "list": ["a", "b"], "none": null, "map": {"b": 1, "a": true}},
        }));
        assert_eq!(
            table(&rows),
            "Key                Value\n\
             ---                -----\n\
             lease_id           database/creds/x/abc\n\
             lease_duration     1h\n\
             lease_renewable    true\n\
             list               [a b]\n\
             map                map[a:true b:1]\n\
             none               <nil>\n\
             password           p\n\
             ttl                1h30m\n\
             username           u\n"
        );
        assert_eq!(keys(["a", "b/"]), "Keys\n----\na\nb/\n");
    }

    #[test]
    fn tokens_are_shown_as_vault_shows_them() {
        let rows = secret_rows(&json!({"auth": {
            "client_token": "hvs.x", "accessor": "acc", "lease_duration": 0, "renewable": false,
            "token_policies": ["default", "root"], "policies": ["default", "root"], "metadata": {"role_name": "web"},
        }}));
        assert_eq!(
            table(&rows),
            "Key                     Value\n\
             ---                     -----\n\
             token                   hvs.x\n\
             token_accessor          acc\n\
             token_duration          ∞\n\
             token_renewable         false\n\
             token_policies          [\"default\" \"root\"]\n\
             identity_policies       []\n\
             policies                [\"default\" \"root\"]\n\
             token_meta_role_name    web\n"
        );
    }

    #[test]
    fn headings() {
        assert_eq!(heading("Secret Path", "secret/data/hello".len()), "== Secret Path ==\n");
        let metadata = map(json!({"custom_metadata": null, "version": 1}));
        assert_eq!(heading_over("Metadata", &metadata), "======= Metadata =======\n");
        assert_eq!(heading_over("Data", &map(json!({"a": 1}))), "== Data ==\n");
        assert_eq!(heading_over("Data", &map(json!({"password": 1}))), "====== Data ======\n");
    }

    #[test]
    fn durations() {
        for (seconds, text) in [(0, "0s"), (1, "1s"), (60, "1m"), (90, "1m30s"), (3_605, "1h5s"), (2_764_800, "768h")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn pretty_json_keeps_order_numbers_and_strings() {
        assert_eq!(
            pretty(r#"{"z":{},"a":[1.50,"x\",: {}\\",[]],"n": null}"#),
            "{\n  \"z\": {},\n  \"a\": [\n    1.50,\n    \"x\\\",: {}\\\\\",\n    []\n  ],\n  \"n\": null\n}"
        );
    }

    #[test]
    fn numbers_are_shown_as_they_were_written() {
        for (json, expect) in [
            (r#"{"a":1,"b":-2.5,"c":[0,18446744073709551615],"d":true}"#, r#"{"a":1,"b":-2.5,"c":[0,18446744073709551615],"d":true}"#),
            (r#"{"a":12345678901234567890123,"b":[1.10,1e400]}"#, r#"{"a":"12345678901234567890123","b":["1.10","1e400"]}"#),
            (r#"{"1.10":"1.10\" 1.10, \\","é":1.10}"#, r#"{"1.10":"1.10\" 1.10, \\","é":"1.10"}"#),
            (r#"{"a":false,"e":null}"#, r#"{"a":false,"e":null}"#),
        ] {
            assert_eq!(exact(json), expect);
        }
    }

    #[test]
    fn fields() {
        let body = json!({"lease_id": "l", "auth": null, "data": {"a": "x", "lease_id": "own"}});
        let data = body["data"].as_object();
        assert_eq!(field(&body, data, "a").unwrap(), json!("x"));
        assert_eq!(field(&body, data, "lease_id").unwrap(), json!("own"));
        assert_eq!(field(&body, None, "lease_id").unwrap(), json!("l"));
        assert!(field(&body, data, "b").is_err());
        let body = json!({"auth": {"client_token": "t", "policies": ["p"]}});
        assert_eq!(field(&body, None, "token").unwrap(), json!("t"));
    }
}
