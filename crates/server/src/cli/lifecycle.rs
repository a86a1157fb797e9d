//! `lifecycle`: rotations by hand, and what they are doing.

use serde_json::{Map, Value};

use super::args::{Lifecycle, Named, Rotate, Stored};
use super::{Answer, Api, Failure, Outcome, input, output, secret};

pub(super) async fn run(command: Lifecycle) -> Outcome {
    match command {
        Lifecycle::Rotate(args) => rotate(args).await,
        Lifecycle::Resume(args) => steered(args, "resume", "resuming", None).await,
        Lifecycle::Abort(args) => steered(args.at, "abort", "aborting", args.reason).await,
        Lifecycle::Runs(remote) => listed(&Api::open(&remote)?, "sys/lifecycle/runs").await,
        Lifecycle::Show(args) => shown(args, "runs").await,
        Lifecycle::Holdings(args) => shown(args, "holdings").await,
        Lifecycle::Target(command) => stored(command, "targets").await,
        Lifecycle::Policy(command) => stored(command, "policies").await,
    }
}

/// What a table of runs shows; everything is in `-format=json` and in `lifecycle show`.
const BRIEF: [&str; 7] = ["policy", "state", "phase", "waits_for", "opened", "opened_by", "verdict"];

async fn rotate(args: Rotate) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let name = args.at.name;
    let path = format!("sys/lifecycle/rotate/{name}");
    let answer = api.call("POST", &path, &[], Some(&because(args.reason))).await?;
    secret::written(&api, &there(answer, &format!("rotating {name}"), &format!("rotation policy named: {name}"))?, &path, None)
}

async fn steered(args: Named, how: &str, doing: &str, reason: Option<String>) -> Outcome {
    let api = Api::open(&args.remote)?;
    let path = format!("sys/lifecycle/runs/{}/{how}", args.name);
    let answer = api.call("POST", &path, &[], Some(&because(reason))).await?;
    secret::written(&api, &there(answer, &format!("{doing} run {}", args.name), &format!("run named: {}", args.name))?, &path, None)
}

/// The body of a request that takes a reason.
fn because(reason: Option<String>) -> Map<String, Value> {
    reason.map(|reason| ("reason".to_owned(), reason.into())).into_iter().collect()
}

/// A success; `what` is named where it is not there.
fn there(answer: Answer, doing: &str, what: &str) -> Result<Answer, Failure> {
    match answer.status {
        404 => Err(Failure::server(format!("No {what}"))),
        _ if answer.ok() => Ok(answer),
        _ => Err(answer.refused(doing)),
    }
}

/// A list; where the server adds something to each name, one row for each with what it says.
async fn listed(api: &Api, path: &str) -> Outcome {
    let answer = secret::found(api.call("LIST", &format!("{path}/"), &[], None).await?, &format!("listing {path}"), path)?;
    let body = answer.json()?;
    if api.json {
        return output::line(&output::pretty(answer.text()?)).map(|()| 0);
    }
    let keys: Vec<&str> = body
        .pointer("/data/keys")
        .and_then(Value::as_array)
        .map(|keys| keys.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let info = body.pointer("/data/key_info").and_then(Value::as_object);
    let first = info.and_then(|info| keys.first().and_then(|key| info.get(*key))).and_then(Value::as_object);
    let Some(first) = first else {
        return output::out(&output::keys(keys)).map(|()| 0);
    };
    let columns: Vec<String> = BRIEF.iter().filter(|column| first.contains_key(**column)).map(|column| (*column).to_owned()).collect();
    let mut rows = vec![std::iter::once("Name".to_owned()).chain(columns.iter().map(|column| title(column))).collect::<Vec<_>>()];
    for key in keys {
        let about = info.and_then(|info| info.get(key));
        let cell = |column: &String| about.and_then(|about| about.get(column)).map(output::shown).unwrap_or_default();
        rows.push(std::iter::once(key.to_owned()).chain(columns.iter().map(cell)).collect());
    }
    output::out(&output::columns(&rows)).map(|()| 0)
}

fn title(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).map(|c| if c == '_' { ' ' } else { c }).collect()).unwrap_or_default()
}

async fn shown(args: Named, kind: &str) -> Outcome {
    let api = Api::open(&args.remote)?;
    let path = format!("sys/lifecycle/{kind}/{}", args.name);
    let answer = secret::found(api.call("GET", &path, &[], None).await?, &format!("reading {path}"), &path)?;
    output::answer(&answer, api.json, None, None)?;
    Ok(0)
}

async fn stored(command: Stored, kind: &str) -> Outcome {
    match command {
        Stored::Write(args) => {
            if args.data.is_empty() {
                return Err(Failure::local("Must supply data"));
            }
            let api = Api::open(&args.remote)?;
            let data = input::data(&args.data)?;
            let path = format!("sys/lifecycle/{kind}/{}", args.name);
            let answer = api.expect(&format!("writing data to {path}"), "PUT", &path, &[], Some(&data)).await?;
            secret::written(&api, &answer, &path, None)
        }
        Stored::Read(args) => shown(args, kind).await,
        Stored::List(remote) => listed(&Api::open(&remote)?, &format!("sys/lifecycle/{kind}")).await,
        Stored::Delete(args) => {
            let api = Api::open(&args.remote)?;
            let path = format!("sys/lifecycle/{kind}/{}", args.name);
            api.expect(&format!("deleting {path}"), "DELETE", &path, &[], None).await?;
            output::line(&format!("Success! Data deleted (if it existed) at: {path}")).map(|()| 0)
        }
    }
}
