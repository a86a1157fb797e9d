//! `audit export` fetches checkpoints, tiles and entries, and lays them out as `keyward-verify` reads them. Nothing is believed there: what is
//! written is what came, and the verifier judges it. `audit who` asks a server who saw a secret, or an export, which the verifier judges first.

use ::audit::export::Directory;
use ::audit::{Layout, Question, TreeName};
use base::time::SystemClock;
use base::{Clock as _, Timestamp};
use screen::one_line;
use serde_json::{Value, json};
use verify::{Options, Verdict, Vkey};

use super::args::{Audit, AuditExport, AuditWho};
use super::{Api, Failure, Outcome, output};

pub(super) async fn run(command: Audit) -> Outcome {
    match command {
        Audit::Export(args) => export(args).await,
        Audit::Who(args) => who(args).await,
    }
}

/// Rows of an answer that are shown; with more, the time is to be narrowed.
const ROWS_MAX: usize = 20_000;

async fn who(args: AuditWho) -> Outcome {
    let found = match &args.export {
        Some(_) => offline(&args)?,
        None => {
            let api = Api::open(&args.remote)?;
            let mut query = vec![("path".to_owned(), args.path.clone())];
            query.extend(args.from.clone().map(|from| ("from".to_owned(), from)));
            query.extend(args.to.clone().map(|to| ("to".to_owned(), to)));
            pages(&api, &query, ROWS_MAX).await?
        }
    };
    if Api::wants_json(&args.remote)? {
        output::line(&output::pretty(&Value::Array(found.rows).to_string()))?;
    } else if found.rows.is_empty() {
        output::line(&format!("nobody: the log names no read, write or push of {} in that time", args.path))?;
    } else {
        output::out(&table(&found.rows))?;
    }
    if found.more {
        output::note(&format!("Only the first {ROWS_MAX} are shown: narrow the time with -from and -to."));
    }
    Ok(0)
}

/// What was found.
pub(super) struct Found {
    pub(super) rows: Vec<Value>,
    /// Whether there is more than was wanted.
    pub(super) more: bool,
}

/// All pages of an answer of `sys/audit-log/who`, up to so many rows.
pub(super) async fn pages(api: &Api, query: &[(String, String)], rows_max: usize) -> Result<Found, Failure> {
    let (mut rows, mut query, mut base) = (Vec::new(), query.to_vec(), query.to_vec());
    base.retain(|(name, _)| name != "identity");
    loop {
        let answer = api.expect("asking the audit log", "GET", "sys/audit-log/who", &query, None).await?;
        let body = answer.json()?;
        let mut page = body.pointer("/data/rows").and_then(Value::as_array).cloned().unwrap_or_default();
        rows.append(&mut page);
        let next = |tree: &str| body.pointer(&format!("/data/next/{tree}")).and_then(Value::as_u64);
        let (Some(change), Some(access)) = (next("change"), next("access")) else { return Ok(Found { rows, more: false }) };
        if rows.len() >= rows_max {
            rows.truncate(rows_max);
            return Ok(Found { rows, more: true });
        }
        query.clone_from(&base);
        // The tokens that were found to come from an identity are asked about as well.
        let identities = body.pointer("/data/identities").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        query.extend(identities.map(|identity| ("identity".to_owned(), identity.to_owned())));
        query.extend([("change".to_owned(), change.to_string()), ("access".to_owned(), access.to_string())]);
    }
}

/// The same from an export. It is believed only when the verifier finds it intact.
fn offline(args: &AuditWho) -> Result<Found, Failure> {
    let keys = args.key.iter().map(|key| Vkey::parse(key).map_err(|error| Failure::local(format!("Error: `-key={key}`: {error}"))));
    let options = Options { dir: args.export.clone().unwrap_or_default(), keys: keys.collect::<Result<_, _>>()?, pins: args.pin.clone() };
    let now = SystemClock.now();
    let time = |name: &str, text: &Option<String>, default: Timestamp| match text {
        None => Ok(default),
        Some(text) => {
            Timestamp::parse_rfc3339(text).or_else(|| base::ttl::parse(text).ok().map(|span| now.before(span))).ok_or_else(|| {
                Failure::local(format!("Error: `-{name}={text}` is neither a time such as 2026-01-31T12:00:00Z nor a span such as 24h"))
            })
        }
    };
    let (from, to) = (time("from", &args.from, Timestamp::ZERO)?, time("to", &args.to, Timestamp(u64::MAX))?);
    let mut question = Question::of_path(&args.path, from, to);
    let mut found = Vec::new();
    let report = verify::verify_each(&options, &mut |tree, index, entry| {
        // What is no JSON is a finding of the verifier's.
        if let Ok(leaf) = serde_json::from_slice::<Value>(entry)
            && found.len() <= ROWS_MAX
            && let Some(row) = question.row(tree, "", index, &leaf)
        {
            found.push((tree, row));
        }
    });
    if report.verdict != Verdict::Intact {
        return Err(Failure::local(format!(
            "Error: the export is not intact, so nothing in it is shown.\n\n{}",
            report.to_string().trim_end()
        )));
    }
    if report.keys_from_export {
        output::note("The keys came with the export: they show that it is whole, not whose it is. Give the keys that you know with -key.");
    }
    let more = found.len() > ROWS_MAX;
    let mut rows: Vec<Value> = found
        .into_iter()
        .take(ROWS_MAX)
        .map(|(tree, row)| {
            let mut row = row.to_json();
            let origin = report.trees.get(&tree).map(|tree| tree.origin.as_str()).unwrap_or_default();
            let index = row.get("entry").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(row) = row.as_object_mut() {
                row.insert("entry".to_owned(), json!(format!("{origin}{index}")));
            }
            row
        })
        .collect();
    rows.sort_by_key(|row| row.get("time").and_then(Value::as_str).and_then(Timestamp::parse_rfc3339));
    Ok(Found { rows, more })
}

/// Columns for people. Entries are named by tree and number; below the table it is said where they stand in full.
fn table(rows: &[Value]) -> String {
    let text = |row: &Value, name: &str| one_line(&row.get(name).map(output::shown).unwrap_or_default());
    let entry = |row: &Value| {
        let full = text(row, "entry");
        let (origin, index) = full.rsplit_once('/').unwrap_or_default();
        (origin.to_owned(), format!("{}/{index}", text(row, "tree")))
    };
    let head = ["Time", "Who", "Display", "Instance", "Operation", "Version", "Outcome", "Entry"];
    let mut all = vec![head.map(str::to_owned).to_vec()];
    let folder = rows.iter().any(|row| text(row, "path") != rows.first().map(|row| text(row, "path")).unwrap_or_default());
    let mut origins = std::collections::BTreeMap::new();
    for row in rows {
        let (origin, short) = entry(row);
        origins.insert(text(row, "tree"), origin);
        let mut cells: Vec<String> =
            ["time", "principal", "display", "instance", "operation", "version", "outcome"].map(|name| text(row, name)).to_vec();
        cells.push(short);
        if folder {
            cells.push(text(row, "path"));
        }
        all.push(cells);
    }
    if let (true, Some(head)) = (folder, all.first_mut()) {
        head.push("Path".to_owned());
    }
    let origins: String = origins.iter().map(|(tree, origin)| format!("{tree}/N is entry N of {origin}\n")).collect();
    format!("{}\n{origins}", output::columns(&all))
}

async fn export(args: AuditExport) -> Outcome {
    let api = Api::open(&args.remote)?;
    let failed = |error: ::audit::Error| Failure::local(format!("Error exporting the audit log: {error}"));
    let mut directory = Directory::create(&args.directory).map_err(failed)?;
    let mut files = 0_u64;
    for tree in TreeName::FETCH_ORDER {
        let checkpoint = fetch(&api, &Layout::Checkpoint.path(tree)).await?;
        let needed = Layout::of_checkpoint(&checkpoint)
            .map_err(|error| Failure::server(format!("Error exporting the audit log: the server's checkpoint cannot be read: {error}")))?;
        for file in needed {
            directory.put(tree, file, &fetch(&api, &file.path(tree)).await?).map_err(failed)?;
            files += 1;
        }
        directory.put(tree, Layout::Checkpoint, &checkpoint).map_err(failed)?;
        files += 1;
    }
    let vkeys = fetch(&api, "vkeys").await?;
    let vkeys = String::from_utf8(vkeys).map_err(|_| Failure::server("Error exporting the audit log: the server's keys are not text"))?;
    directory.finish(&vkeys).map_err(failed)?;
    output::line(&format!("Success! Exported the audit log ({files} files) to: {}", args.directory.display()))?;
    Ok(0)
}

async fn fetch(api: &Api, path: &str) -> Result<Vec<u8>, Failure> {
    let answer = api.expect("exporting the audit log", "GET", &format!("sys/audit-log/{path}"), &[], None).await?;
    Ok(answer.bytes().to_vec())
}
