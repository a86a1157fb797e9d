//! `status`.

use serde_json::Value;

use super::args::Remote;
use super::{Api, Failure, Outcome, output};

pub(super) async fn status(remote: &Remote) -> Outcome {
    // 2 means sealed here, and nothing else: a server that refuses or says something else is an error like any other.
    seal(remote).await.map_err(|failure| Failure::local(failure.text))
}

async fn seal(remote: &Remote) -> Outcome {
    let api = Api::open(remote)?;
    let answer = api.expect("checking seal status", "GET", "sys/seal-status", &[], None).await?;
    let body = answer.json()?;
    let sealed = body.get("sealed").and_then(Value::as_bool);
    let sealed = sealed.ok_or_else(|| Failure::server("Error checking seal status: the answer does not say whether it is sealed"))?;
    if api.json {
        output::line(&output::pretty(answer.text()?))?;
    } else {
        let mut rows = Vec::new();
        for (label, member) in [
            ("Seal Type", "type"),
            ("Initialized", "initialized"),
            ("Sealed", "sealed"),
            ("Total Shares", "n"),
            ("Threshold", "t"),
            ("Version", "version"),
            ("Build Date", "build_date"),
            ("Storage Type", "storage_type"),
            ("Cluster Name", "cluster_name"),
            ("Cluster ID", "cluster_id"),
        ] {
            match body.get(member) {
                None | Some(Value::Null) => {}
                Some(value) => rows.push((label.to_owned(), output::shown(value))),
            }
        }
        rows.push(("HA Enabled".to_owned(), "false".to_owned()));
        output::out(&output::table(&rows))?;
    }
    Ok(if sealed { 2 } else { 0 })
}
