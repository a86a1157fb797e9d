//! `kv`: asks for the version of the mount first, as every Vault client does, then reads and writes below the right prefix.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::api::Body;
use super::args::{Kv, KvAt, KvDelete, KvGet, KvMetadata, KvPut};
use super::{Answer, Api, Failure, Outcome, input, near, output, secret};

/// A secret in its mount.
struct Spot {
    mount: String,
    rest: String,
    versioned: bool,
}

impl Spot {
    /// The path with a prefix (`data`, `metadata`) where the mount has versions.
    fn path(&self, prefix: &str) -> String {
        if self.versioned { format!("{}/{prefix}/{}", self.mount, self.rest) } else { format!("{}/{}", self.mount, self.rest) }
    }
}

pub(super) async fn run(command: Kv) -> Outcome {
    match command {
        Kv::Get(args) => get(args).await,
        Kv::Put(args) => put(args).await,
        Kv::Delete(args) => delete_versions(&args).await,
        Kv::List(args) => {
            let api = Api::open(&args.remote)?;
            let path = spot(&api, &args).await?.path("metadata");
            secret::list_path(&api, path.trim_end_matches('/')).await
        }
        Kv::Metadata(KvMetadata::Get(args)) => metadata(args).await,
        Kv::Metadata(KvMetadata::Delete(args)) => delete_all(&args).await,
    }
}

/// The question before every use: what is mounted there, and has it versions?
async fn spot(api: &Api, at: &KvAt) -> Result<Spot, Failure> {
    let path = at.path.trim_matches('/');
    let (asked, below) = match &at.mount {
        Some(mount) => (mount.trim_matches('/').to_owned(), Some(path)),
        None => (path.to_owned(), None),
    };
    let answer = api.call("GET", &format!("sys/internal/ui/mounts/{asked}"), &[], None).await?;
    if answer.status == 404 {
        // A server older than the question has mounts without versions only.
        let (mount, rest) = path.split_once('/').unwrap_or((path, ""));
        return Ok(Spot { mount: mount.to_owned(), rest: rest.to_owned(), versioned: false });
    }
    if !answer.ok() {
        return Err(near::no_engine(api, &asked).await.unwrap_or_else(|| answer.refused_plainly()));
    }
    let body = answer.json()?;
    let mount = body.pointer("/data/path").and_then(Value::as_str).unwrap_or_default().trim_matches('/').to_owned();
    let versioned = body.pointer("/data/options/version").and_then(Value::as_str) == Some("2");
    let rest = match below {
        Some(below) => below.to_owned(),
        None => path.strip_prefix(&mount).unwrap_or_default().trim_start_matches('/').to_owned(),
    };
    Ok(Spot { mount, rest, versioned })
}

async fn get(args: KvGet) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let spot = spot(&api, &args.at).await?;
    let path = spot.path("data");
    let query: Vec<_> = args.version.map(|version| ("version".to_owned(), version.to_string())).into_iter().collect();
    if args.version.is_some() && !spot.versioned {
        return Err(Failure::local("Error: this mount has no versions"));
    }
    let answer = api.call("GET", &path, &query, None).await?;
    let gone = answer.status == 404 && answer.json().ok().is_some_and(|body| body.pointer("/data/metadata").is_some());
    let answer = if gone { answer } else { secret::found(answer, &format!("reading {path}"), &path)? };
    if !spot.versioned {
        output::answer(&answer, api.json, args.field.as_deref(), None)?;
        return Ok(0);
    }
    let body = if api.json { answer.json()? } else { answer.for_people()? };
    let data = body.pointer("/data/data").and_then(Value::as_object);
    if args.field.is_some() || api.json {
        output::answer(&answer, api.json, args.field.as_deref(), Some(data.unwrap_or(&Map::new())))?;
    } else {
        output::warnings(&body);
        output::out(&format!("{}{path}\n\n", output::heading("Secret Path", path.len())))?;
        if let Some(metadata) = body.pointer("/data/metadata").and_then(Value::as_object) {
            output::out(&format!("{}{}", output::heading_over("Metadata", metadata), output::table(&output::rows(metadata))))?;
        }
        if let Some(data) = data {
            output::out(&format!("\n{}{}", output::heading_over("Data", data), output::table(&output::rows(data))))?;
        }
    }
    // A version that was deleted is shown for its metadata, but it is not there.
    Ok(if gone { 2 } else { 0 })
}

#[derive(serde::Serialize)]
struct NewVersion<'a> {
    data: &'a input::Data,
    options: BTreeMap<&'static str, u64>,
}

async fn put(args: KvPut) -> Outcome {
    if args.data.is_empty() {
        return Err(Failure::local("Must supply data"));
    }
    let api = Api::open(&args.at.remote)?;
    let data = input::data(&args.data)?;
    let spot = spot(&api, &args.at).await?;
    let path = spot.path("data");
    if args.cas.is_some() && !spot.versioned {
        return Err(Failure::local("Error: this mount has no versions"));
    }
    let new = NewVersion { data: &data, options: args.cas.map(|cas| ("cas", cas)).into_iter().collect() };
    let body: &dyn Body = if spot.versioned { &new } else { &data };
    let answer = api.expect(&format!("writing data to {path}"), "PUT", &path, &[], Some(body)).await?;
    if answer.is_empty() || args.field.is_some() || api.json {
        return secret::written(&api, &answer, &path, args.field.as_deref());
    }
    version(&answer, &path)?;
    Ok(0)
}

fn version(answer: &Answer, path: &str) -> Result<(), Failure> {
    let body = answer.json()?;
    output::warnings(&body);
    let Some(metadata) = body.get("data").and_then(Value::as_object) else { return Ok(()) };
    let headed = format!("{}{}", output::heading_over("Metadata", metadata), output::table(&output::rows(metadata)));
    output::out(&format!("{}{path}\n\n{headed}", output::heading("Secret Path", path.len())))
}

async fn delete_versions(args: &KvDelete) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let spot = spot(&api, &args.at).await?;
    let path = spot.path("data");
    if args.versions.is_empty() {
        api.expect(&format!("deleting {path}"), "DELETE", &path, &[], None).await?;
    } else if spot.versioned {
        let versions: BTreeMap<_, _> = [("versions", &args.versions)].into();
        api.expect(&format!("deleting {path}"), "PUT", &spot.path("delete"), &[], Some(&versions)).await?;
    } else {
        return Err(Failure::local("Error: this mount has no versions"));
    }
    deleted(&api, &path)
}

async fn delete_all(args: &KvAt) -> Outcome {
    let api = Api::open(&args.remote)?;
    let spot = spot(&api, args).await?;
    if !spot.versioned {
        return Err(Failure::local("Error: this mount has no versions"));
    }
    let path = spot.path("metadata");
    api.expect(&format!("deleting {path}"), "DELETE", &path, &[], None).await?;
    deleted(&api, &path)
}

/// The path is that of the data, also when versions were named: as Vault says it.
fn deleted(api: &Api, path: &str) -> Outcome {
    if !api.json {
        output::line(&format!("Success! Data deleted (if it existed) at: {path}"))?;
    }
    Ok(0)
}

async fn metadata(args: KvAt) -> Outcome {
    let api = Api::open(&args.remote)?;
    let spot = spot(&api, &args).await?;
    if !spot.versioned {
        return Err(Failure::local("Error: this mount has no versions"));
    }
    let path = spot.path("metadata");
    let answer = secret::found(api.call("GET", &path, &[], None).await?, &format!("reading {path}"), &path)?;
    if api.json {
        return output::line(&output::pretty(answer.text()?)).map(|()| 0);
    }
    let body = answer.json()?;
    let Some(mut data) = body.get("data").and_then(Value::as_object).cloned() else {
        return Err(Failure::server(format!("No value found at {path}")));
    };
    let versions = data.remove("versions");
    output::out(&format!("{}{path}\n\n", output::heading("Metadata Path", path.len())))?;
    output::out(&format!("{}{}", output::heading_over("Metadata", &data), output::table(&output::rows(&data))))?;
    let mut versions: Vec<_> = versions
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(number, version)| Some((number.parse::<u64>().ok()?, version.as_object()?)))
        .collect();
    versions.sort_by_key(|(number, _)| *number);
    for (number, version) in versions {
        let title = format!("Version {number}");
        output::out(&format!("\n{}{}", output::heading_over(&title, version), output::table(&output::rows(version))))?;
    }
    Ok(0)
}
