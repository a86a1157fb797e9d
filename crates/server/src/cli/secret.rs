//! `read`, `write`, `list`, `delete`: any path.

use serde_json::Value;

use super::args::{At, Read, Write};
use super::{Answer, Api, Failure, Outcome, input, near, output};

pub(super) async fn read(args: Read) -> Outcome {
    let api = Api::open(&args.remote)?;
    let mut query = Vec::new();
    for (name, value) in input::data(&args.data)? {
        match serde_json::from_str(value.get()).unwrap_or_default() {
            Value::Array(all) => query.extend(all.iter().map(|value| (name.clone(), output::shown(value)))),
            value => query.push((name, output::shown(&value))),
        }
    }
    let path = args.path.trim_matches('/');
    let answer = placed(&api, api.call("GET", path, &query, None).await?, &format!("reading {path}"), path).await?;
    let answer = found(answer, &format!("reading {path}"), path)?;
    if std::str::from_utf8(answer.bytes()).is_ok_and(|text| !text.trim_start().starts_with('{')) {
        // A raw answer (a checkpoint, a certificate) is printed as it is.
        return output::out(answer.text()?).map(|()| 0);
    }
    print_bare(&api, &answer, args.field.as_deref())
}

/// Prints an answer; one without the envelope is all data.
fn print_bare(api: &Api, answer: &Answer, field: Option<&str>) -> Outcome {
    let body = if api.json { answer.json()? } else { answer.for_people()? };
    let bare = body.as_object().filter(|body| !body.contains_key("data") && !body.contains_key("auth")).cloned();
    match bare {
        Some(data) if !api.json && field.is_none() => output::out(&output::table(&output::rows(&data)))?,
        bare => output::answer(answer, api.json, field, bare.as_ref())?,
    }
    Ok(0)
}

/// An answer of an engine. Where none is mounted it is said so, to who may see the mounts.
async fn placed(api: &Api, answer: Answer, doing: &str, path: &str) -> Result<Answer, Failure> {
    let lost = answer.status == 404 && answer.text().is_ok_and(|text| text.contains("no handler for route"));
    if !lost {
        return Ok(answer);
    }
    Err(near::no_engine(api, path).await.unwrap_or_else(|| answer.refused(doing)))
}

/// An answer with something in it. A missing thing is told with the warnings that came with it.
pub(super) fn found(answer: Answer, doing: &str, path: &str) -> Result<Answer, Failure> {
    match answer.status {
        404 => {
            let body = answer.json().unwrap_or_default();
            let texts = body.get("errors").and_then(Value::as_array).is_some_and(|errors| !errors.is_empty());
            if texts {
                return Err(answer.refused(doing));
            }
            output::warnings(&body);
            Err(Failure::server(format!("No value found at {path}")))
        }
        204 => Err(Failure::server(format!("No value found at {path}"))),
        _ if answer.ok() => Ok(answer),
        _ => Err(answer.refused(doing)),
    }
}

pub(super) async fn write(args: Write) -> Outcome {
    if args.data.is_empty() && !args.force {
        return Err(Failure::local("Must supply data or use -force"));
    }
    let api = Api::open(&args.remote)?;
    let data = input::data(&args.data)?;
    let path = args.path.trim_matches('/');
    let doing = format!("writing data to {path}");
    let answer = placed(&api, api.call("PUT", path, &[], Some(&data)).await?, &doing, path).await?;
    let answer = if answer.ok() { answer } else { return Err(answer.refused(&doing)) };
    written(&api, &answer, path, args.field.as_deref())
}

/// Prints what a write gave, or that it is done.
pub(super) fn written(api: &Api, answer: &Answer, path: &str, field: Option<&str>) -> Outcome {
    if answer.is_empty() {
        if let Some(field) = field {
            return Err(Failure::local(format!("Field \"{field}\" not present in secret")));
        }
        if !api.json {
            output::line(&format!("Success! Data written to: {path}"))?;
        }
        return Ok(0);
    }
    output::answer(answer, api.json, field, None)?;
    Ok(0)
}

pub(super) async fn list(args: At) -> Outcome {
    let api = Api::open(&args.remote)?;
    list_path(&api, args.path.trim_matches('/')).await
}

pub(super) async fn list_path(api: &Api, path: &str) -> Outcome {
    let folder = format!("{}/", path.trim_end_matches('/'));
    let answer = placed(api, api.call("LIST", &folder, &[], None).await?, &format!("listing {path}"), path).await?;
    let answer = found(answer, &format!("listing {path}"), path)?;
    let body = answer.json()?;
    let keys = body.pointer("/data/keys").and_then(Value::as_array);
    let Some(keys) = keys else { return Err(Failure::server(format!("No entries found at {path}"))) };
    if api.json {
        output::line(&output::pretty(&Value::Array(keys.clone()).to_string()))?;
    } else {
        output::warnings(&body);
        output::out(&output::keys(keys.iter().filter_map(Value::as_str)))?;
    }
    Ok(0)
}

pub(super) async fn delete(args: At) -> Outcome {
    let api = Api::open(&args.remote)?;
    let path = args.path.trim_matches('/');
    let answer = api.expect(&format!("deleting {path}"), "DELETE", path, &[], None).await?;
    output::warnings(&answer.json()?);
    if !api.json {
        output::line(&format!("Success! Data deleted (if it existed) at: {path}"))?;
    }
    Ok(0)
}
