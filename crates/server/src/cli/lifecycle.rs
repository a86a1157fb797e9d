//! `lifecycle`: rotations by hand, and what they are doing.

use std::time::Duration;

use serde_json::{Map, Value};

use super::args::{Dismiss, Lifecycle, Named, Rotate, Stored};
use super::{Answer, Api, Failure, Outcome, input, near, output, secret, told, watch};

pub(super) async fn run(command: Lifecycle) -> Outcome {
    match command {
        Lifecycle::Rotate(args) if args.emergency => emergency(args).await,
        Lifecycle::Rotate(args) => rotate(args).await,
        Lifecycle::Resume(args) => steered(args, "resume", "resuming", Map::new()).await,
        Lifecycle::Abort(args) => {
            let mut body = because(args.reason);
            body.insert("confirm".to_owned(), args.yes.into());
            steered(args.at, "abort", "aborting", body).await
        }
        Lifecycle::Close(args) => {
            let mut body = because(Some(args.reason));
            body.insert("confirm".to_owned(), args.yes.into());
            body.insert("accept_unproven".to_owned(), args.accept_unproven.into());
            steered(args.at, "close", "closing", body).await
        }
        Lifecycle::Dismiss(args) => dismiss(args).await,
        Lifecycle::Runs(remote) => listed(&Api::open(&remote)?, "sys/lifecycle/runs").await,
        Lifecycle::Show(args) => shown(args, "runs", told::run).await,
        Lifecycle::Watch(args) => watch::watch(args).await,
        Lifecycle::Holdings(args) => shown(args, "holdings", told::holdings).await,
        Lifecycle::Target(command) => stored(command, "targets").await,
        Lifecycle::Rotation(command) => stored(command, "rotations").await,
    }
}

/// What a table of runs shows; everything is in `-format=json` and in `lifecycle show`.
const BRIEF: [&str; 8] = ["rotation", "state", "phase", "waits_for", "opened", "opened_by", "verdict", "cause"];

async fn rotate(args: Rotate) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let name = args.at.name;
    let path = format!("sys/lifecycle/rotate/{name}");
    let answer = api.call("POST", &path, &[], Some(&because(args.reason))).await?;
    if answer.status == 404 {
        return Err(near::missing(&api, "rotation", "sys/lifecycle/rotations", &name).await);
    }
    let answer = there(answer, &format!("rotating {name}"), &format!("rotation named: {name}"))?;
    if !args.wait {
        return secret::written(&api, &answer, &path, None);
    }
    let body = answer.json()?;
    let run = body.pointer("/data/run").and_then(Value::as_str);
    follow(&api, run.ok_or_else(|| Failure::server(format!("Error rotating {name}: the answer names no run")))?).await
}

/// Between two looks at a run that is followed.
const PAUSE: Duration = Duration::from_millis(500);

/// Tells the phases of a run as they begin, and those it waits for, until it is closed. As JSON only the closed run is printed.
async fn follow(api: &Api, run: &str) -> Outcome {
    let path = format!("sys/lifecycle/runs/{run}");
    let (mut told, mut waited) = (0, String::new());
    if !api.json {
        output::note(&format!("run {run}"));
    }
    loop {
        let answer = there(api.call("GET", &path, &[], None).await?, &format!("following run {run}"), &format!("run named: {run}"))?;
        let body = answer.json()?;
        let data = body.get("data").unwrap_or(&Value::Null);
        if !api.json {
            let phases = data.get("phases").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for phase in phases.iter().skip(told) {
                output::line(told::text(phase, "phase"))?;
            }
            told = phases.len().max(told);
            let stands = data.get("parked").is_some_and(Value::is_string) || data.get("held") == Some(&Value::Bool(true));
            let waits = if stands { told::waiting(data) } else { String::new() };
            if !waits.is_empty() && waits != waited {
                output::note(&format!("waits for {waits}"));
            }
            waited = waits;
        }
        if let Some(verdict) = data.get("verdict").and_then(Value::as_str) {
            if api.json {
                output::line(&output::pretty(answer.text()?))?;
            }
            if matches!(verdict, "rotated" | "first") {
                return Ok(0);
            }
            let cause =
                data.get("cause").map(told::cause).filter(|cause| !cause.is_empty()).unwrap_or_else(|| "no cause was recorded".to_owned());
            return Err(Failure::server(format!("Run {run} ended as `{verdict}`: {cause}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Shows what an emergency would break, asks, declares it, and follows it until the old value is proven dead.
async fn emergency(args: Rotate) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let name = &args.at.name;
    let path = format!("sys/lifecycle/emergency/{name}");
    let missing = format!("rotation named: {name}");
    if !args.yes {
        let answer =
            there(api.call("GET", &path, &[], None).await?, &format!("looking at what an emergency in {name} would do"), &missing)?;
        let body = answer.json()?;
        output::note(&told::emergency(body.get("data").unwrap_or(&Value::Null)));
        if !input::agreed("Revoke the value in force now?")? {
            return Err(Failure::local("Nothing was done."));
        }
    }
    let mut body = because(args.reason);
    body.extend(args.deadline.map(|deadline| ("deadline".to_owned(), deadline.into())));
    let answer = there(api.call("POST", &path, &[], Some(&body)).await?, &format!("declaring an emergency in {name}"), &missing)?;
    let body = answer.json()?;
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let mut run = text("/data/run").ok_or_else(|| Failure::server(format!("Error in {name}: the answer names no run")))?;
    loop {
        let outcome = follow(&api, &run).await;
        let path = format!("sys/lifecycle/runs/{run}");
        let ended = api.expect(&format!("reading {path}"), "GET", &path, &[], None).await?.json()?;
        let data = ended.get("data").unwrap_or(&Value::Null);
        let emergency = data.get("emergency").unwrap_or(&Value::Null);
        if let Some(milliseconds) = emergency.get("dead_after_milliseconds").and_then(Value::as_u64) {
            if !api.json {
                output::line(&told::dead(data, milliseconds))?;
            }
            return outcome;
        }
        // A run that was turning back had to end first; the next one is open already.
        let follows = emergency.get("another_run_follows") == Some(&Value::Bool(true));
        let path = format!("sys/lifecycle/rotations/{name}");
        let rotation = api.expect(&format!("reading {path}"), "GET", &path, &[], None).await?.json()?;
        match rotation.pointer("/data/open_run").and_then(Value::as_str) {
            Some(next) if follows && next != run => next.clone_into(&mut run),
            _ => return outcome,
        }
    }
}

async fn dismiss(args: Dismiss) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let instance = args.at.name;
    let mut body = because(Some(args.reason));
    body.insert("instance".to_owned(), instance.clone().into());
    body.extend(args.rotation.map(|rotation| ("rotation".to_owned(), rotation.into())));
    let path = "sys/lifecycle/dismiss";
    let answer = there(
        api.call("POST", path, &[], Some(&body)).await?,
        &format!("dismissing {instance}"),
        &format!("rotation knows an instance: {instance}"),
    )?;
    secret::written(&api, &answer, path, None)
}

async fn steered(args: Named, how: &str, doing: &str, body: Map<String, Value>) -> Outcome {
    let api = Api::open(&args.remote)?;
    let path = format!("sys/lifecycle/runs/{}/{how}", args.name);
    let answer = api.call("POST", &path, &[], Some(&body)).await?;
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
    let answer = api.call("LIST", &format!("{path}/"), &[], None).await?;
    if near::is_empty_list(&answer) {
        // An empty list is no failure: it is how each of them begins.
        return output::line(if api.json { "{\n  \"data\": {\n    \"keys\": []\n  }\n}" } else { "none yet" }).map(|()| 0);
    }
    let answer = secret::found(answer, &format!("listing {path}"), path)?;
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
        let cell = |column: &String| about.map(|about| told::cell(column, about)).unwrap_or_default();
        rows.push(std::iter::once(key.to_owned()).chain(columns.iter().map(cell)).collect());
    }
    output::out(&output::columns(&rows)).map(|()| 0)
}

fn title(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).map(|c| if c == '_' { ' ' } else { c }).collect()).unwrap_or_default()
}

/// One of a kind, to people in the words of `told`.
async fn shown(args: Named, kind: &str, told: impl Fn(&Map<String, Value>) -> String) -> Outcome {
    let api = Api::open(&args.remote)?;
    let path = format!("sys/lifecycle/{kind}/{}", args.name);
    let answer = api.call("GET", &path, &[], None).await?;
    if answer.status == 404 {
        // Holdings are those of a rotation.
        let (what, among) = match kind {
            "runs" => ("run", kind),
            "targets" => ("target", kind),
            _ => ("rotation", "rotations"),
        };
        return Err(near::missing(&api, what, &format!("sys/lifecycle/{among}"), &args.name).await);
    }
    let answer = secret::found(answer, &format!("reading {path}"), &path)?;
    let body = answer.for_people()?;
    match body.get("data").and_then(Value::as_object).filter(|_| !api.json) {
        Some(data) => {
            output::warnings(&body);
            output::out(&told(data))?;
        }
        None => output::answer(&answer, api.json, None, None)?,
    }
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
        Stored::Read(args) => shown(args, kind, |data| output::table(&output::rows(data))).await,
        Stored::List(remote) => listed(&Api::open(&remote)?, &format!("sys/lifecycle/{kind}")).await,
        Stored::Delete(args) => {
            let api = Api::open(&args.remote)?;
            let path = format!("sys/lifecycle/{kind}/{}", args.name);
            api.expect(&format!("deleting {path}"), "DELETE", &path, &[], None).await?;
            output::line(&format!("Success! Data deleted (if it existed) at: {path}")).map(|()| 0)
        }
    }
}
