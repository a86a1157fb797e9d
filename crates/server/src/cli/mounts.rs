//! `auth` and `secrets`: what is mounted where.

use serde_json::{Value, json};

use super::args::{Enable, Mounts};
use super::{Api, Outcome, output};

pub(super) async fn run(command: Mounts, auth: bool) -> Outcome {
    let (root, what) = if auth { ("sys/auth", "auth method") } else { ("sys/mounts", "secrets engine") };
    match command {
        Mounts::Enable(args) => enable(args, auth, root).await,
        Mounts::Disable(args) => {
            let api = Api::open(&args.remote)?;
            let path = args.path.trim_matches('/');
            api.expect(&format!("disabling {what} at {path}/"), "DELETE", &format!("{root}/{path}"), &[], None).await?;
            output::line(&format!("Success! Disabled the {what} (if it existed) at: {path}/"))?;
            Ok(0)
        }
        Mounts::List(remote) => {
            let api = Api::open(&remote)?;
            let answer = api.expect(&format!("listing enabled {what}s"), "GET", root, &[], None).await?;
            let body = answer.json()?;
            let data = body.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
            if api.json {
                return output::line(&output::pretty(&Value::Object(data).to_string())).map(|()| 0);
            }
            let mut rows = vec![["Path", "Type", "Accessor", "Description"].map(str::to_owned).to_vec()];
            for (path, mount) in &data {
                let text = |name: &str| mount.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                rows.push(vec![path.clone(), text("type"), text("accessor"), text("description")]);
            }
            output::out(&output::columns(&rows))?;
            Ok(0)
        }
    }
}

async fn enable(args: Enable, auth: bool, root: &str) -> Outcome {
    let api = Api::open(&args.remote)?;
    let (kind, version) = match args.kind.as_str() {
        "kv-v1" => ("kv", Some(1)),
        "kv-v2" => ("kv", Some(2)),
        kind => (kind, args.version),
    };
    let path = args.path.as_deref().unwrap_or(kind).trim_matches('/').to_owned();
    let mut body = json!({ "type": kind, "description": args.description });
    if let (Some(version), Some(body)) = (version, body.as_object_mut()) {
        body.insert("options".to_owned(), json!({ "version": version.to_string() }));
    }
    let what = if auth { format!("enabling {kind} auth") } else { "enabling".to_owned() };
    api.expect(&what, "POST", &format!("{root}/{path}"), &[], Some(&body)).await?;
    let done = if auth { format!("{kind} auth method") } else { format!("the {kind} secrets engine") };
    output::line(&format!("Success! Enabled {done} at: {path}/"))?;
    Ok(0)
}
