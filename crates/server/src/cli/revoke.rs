//! `revoke identity`: ends all that an identity holds, then says what it could read and did read, and how to make that worthless.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::Command;

use screen::one_line;
use serde_json::{Map, Value, json};

use super::args::{Revoke, RevokeIdentity};
use super::audit::{self, Found};
use super::told::text;
use super::{Api, Failure, Outcome, output};

/// Rows of the audit log that are summed up; with more it is said that there are.
const ROWS_MAX: usize = 20_000;
/// Secrets that are listed to people; all are in `-format=json`.
const LISTED_MAX: usize = 50;

pub(super) async fn run(command: Revoke) -> Outcome {
    let Revoke::Identity(args) = command;
    identity(args).await
}

async fn identity(args: RevokeIdentity) -> Outcome {
    let api = Api::open(&args.remote)?;
    let asked = json!({ "identity": args.identity, "reason": args.reason });
    let answer = api.expect(&format!("revoking {}", args.identity), "POST", "sys/identities/revoke", &[], Some(&asked)).await?;
    let body = answer.json()?;
    let data = body.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
    let name = data.get("identity").and_then(Value::as_str).unwrap_or(&args.identity).to_owned();
    if !api.json {
        output::warnings(&body);
        output::out(&told(&data))?;
    }
    // From here on it is revoked: what cannot be found out is said, and is no failure.
    let query = [("identity".to_owned(), name), ("from".to_owned(), args.since.clone())];
    let read = audit::pages(&api, &query, ROWS_MAX).await;
    let rotations: Vec<&str> = names(&data, "/could_read/rotations").collect();
    if api.json {
        let (rows, failed) = match &read {
            Ok(found) => (json!(found.rows), Value::Null),
            Err(failure) => (Value::Null, json!(failure.text)),
        };
        let commands: Vec<String> = rotations.iter().map(|rotation| shell(&rotate(&args, rotation))).collect();
        let all = json!({ "revoked": data, "did_read": rows, "did_read_error": failed, "commands": commands });
        return output::line(&output::pretty(&all.to_string())).map(|()| 0);
    }
    match read {
        Ok(found) => output::out(&did_read(&found, &args.since))?,
        Err(failure) => output::note(&format!(
            "\nWhat it did read could not be found out. It is in the audit log: `read` on `sys/audit-log/who` is needed.\n{}",
            failure.text
        )),
    }
    offer(&args, &rotations)
}

/// What was revoked, and what the identity could read.
fn told(data: &Map<String, Value>) -> String {
    let number = |name: &str| data.get(name).and_then(Value::as_u64).unwrap_or(0);
    let flag = |name: &str| data.get(name).and_then(Value::as_bool).unwrap_or(false);
    let all = Value::Object(data.clone());
    let plus =
        |count: u64| format!("{count}{}", if flag("removal_goes_on") && count > 0 { " (and more, dead as well, removed now)" } else { "" });
    let rows = [
        ("identity", text(&all, "identity").to_owned()),
        ("tokens ended", plus(number("tokens_revoked"))),
        ("tokens below them ended", plus(number("child_tokens_revoked"))),
        ("streams ended", number("streams_ended").to_string()),
        ("secret ids destroyed", plus(number("secret_ids_destroyed"))),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| (name.to_owned(), one_line(&value))).collect();
    let mut out = format!("Success! Nothing of it works any more.\n\n{}", output::table(&rows));
    if flag("login_kept") {
        out.push_str("\nThe role stays. A new secret id lets it log in again.\n");
    }
    let secrets = all.pointer("/could_read/secrets").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if secrets.is_empty() {
        out.push_str("\nIts policies permit to read no secret.\n");
        return out;
    }
    out.push_str("\nIts policies permit to read\n");
    for secret in secrets.iter().take(LISTED_MAX) {
        let rotation = secret.get("rotation").and_then(Value::as_str).map(|name| format!("  (rotation {name})")).unwrap_or_default();
        out.push_str(&format!("  {}{}\n", one_line(text(secret, "path")), one_line(&rotation)));
    }
    if secrets.len() > LISTED_MAX || all.pointer("/could_read/more").and_then(Value::as_bool) == Some(true) {
        out.push_str("  and more: -format=json\n");
    }
    out
}

/// What it did read, by secret.
fn did_read(found: &Found, since: &str) -> String {
    #[derive(Default)]
    struct Sum {
        reads: u64,
        pushes: u64,
        last: String,
        version: String,
    }
    let mut secrets: BTreeMap<&str, Sum> = BTreeMap::new();
    for row in &found.rows {
        let sum = secrets.entry(text(row, "path")).or_default();
        if text(row, "operation") == "pushed" {
            sum.pushes += 1
        } else {
            sum.reads += 1
        }
        text(row, "time").clone_into(&mut sum.last);
        if let Some(version) = row.get("version") {
            sum.version = version.to_string();
        }
    }
    if secrets.is_empty() {
        return format!("\nSince {since} it read no secret.\n");
    }
    let mut rows = vec![["Secret", "Reads", "Pushes", "Newest version", "Last"].map(str::to_owned).to_vec()];
    for (path, sum) in secrets {
        rows.push(vec![one_line(path), sum.reads.to_string(), sum.pushes.to_string(), sum.version, sum.last]);
    }
    let more = if found.more { "There is more: `-since` a shorter time, or `keyward audit who`.\n" } else { "" };
    format!("\nSince {since} it read\n\n{}{more}", output::columns(&rows))
}

/// Prints the command for each rotation, and at a terminal offers to run it.
fn offer(args: &RevokeIdentity, rotations: &[&str]) -> Outcome {
    if rotations.is_empty() {
        return Ok(0);
    }
    output::line("\nWhat it has read works until it is rotated:\n")?;
    for rotation in rotations {
        output::line(&format!("  {}", shell(&rotate(args, rotation))))?;
    }
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Ok(0);
    }
    let mut worst = 0;
    for rotation in rotations {
        output::out(&format!("\nRotate {rotation} now? Sessions on its old credential are ended. [y/N] "))?;
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).map_err(|error| Failure::local(format!("Error reading: {error}")))?;
        if read == 0 {
            break;
        }
        if matches!(line.trim(), "y" | "Y" | "yes") {
            worst = worst.max(start(args, rotation)?);
        }
    }
    Ok(worst)
}

/// Runs the command that was shown, and gives its exit code.
fn start(args: &RevokeIdentity, rotation: &str) -> Outcome {
    let failed = |error: std::io::Error| Failure::local(format!("Error starting `lifecycle rotate`: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(rotate(args, rotation));
    if let Some(token) = &args.remote.token {
        // Not as an argument, which everybody on this machine could see.
        command.env("BAO_TOKEN", token);
    }
    let status = command.status().map_err(failed)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The arguments of the emergency rotation.
fn rotate(args: &RevokeIdentity, rotation: &str) -> Vec<String> {
    let mut words: Vec<String> = ["lifecycle", "rotate", "-emergency", rotation].map(str::to_owned).to_vec();
    words.push(format!("-reason={}", args.reason));
    words.extend(args.remote.address.iter().map(|address| format!("-address={address}")));
    words.extend(args.remote.namespace.iter().map(|namespace| format!("-namespace={namespace}")));
    words
}

/// The same for a shell.
fn shell(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@".contains(c);
    let quoted = words.iter().map(|word| if word.chars().all(plain) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) });
    std::iter::once("keyward".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

fn names<'a>(data: &'a Map<String, Value>, at: &str) -> impl Iterator<Item = &'a str> {
    let (first, rest) = at.trim_start_matches('/').split_once('/').unwrap_or_default();
    data.get(first).and_then(|value| value.get(rest)).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let words = ["lifecycle", "rotate", "-emergency", "orders-db", "-reason=it's $HOME"].map(str::to_owned);
        assert_eq!(shell(&words), r"keyward lifecycle rotate -emergency orders-db '-reason=it'\''s $HOME'");
    }

    #[test]
    fn what_was_read_is_summed_up_by_secret() {
        let row = |path: &str, operation: &str, time: &str, version: u64| json!({"path": path, "operation": operation, "time": time, "version": version});
        let rows = vec![
            row("secret/data/a", "read", "T1", 1),
            row("secret/data/a", "pushed", "T2", 2),
            row("secret/data/\u{1b}b", "read", "T3", 7),
        ];
        assert_eq!(
            did_read(&Found { rows, more: false }, "24h"),
            "\nSince 24h it read\n\nSecret            Reads    Pushes    Newest version    Last\n\
             ------            -----    ------    --------------    ----\n\
             secret/data/ b    1        0         7                 T3\n\
             secret/data/a     1        1         2                 T2\n"
        );
        assert_eq!(did_read(&Found { rows: Vec::new(), more: false }, "1h"), "\nSince 1h it read no secret.\n");
    }
}
