//! A search for secrets where they do not belong, while everything still runs: logs, arguments and environments of all processes, files
//! that others could read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A secret and what to call it.
pub(crate) struct Canary {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Where a secret may lie: a place and its bytes.
struct Place {
    name: String,
    bytes: Vec<u8>,
}

/// Searches, and returns how many places were searched.
///
/// # Errors
/// Names each secret that was found, and where.
pub(crate) fn search(canaries: &[Canary], directory: &Path, logs: &[(&str, String)]) -> Result<usize, String> {
    let mut places: Vec<Place> =
        logs.iter().map(|(name, text)| Place { name: (*name).to_owned(), bytes: text.clone().into_bytes() }).collect();
    files(directory, &mut places)?;
    processes(&mut places)?;
    let found: Vec<String> = places
        .iter()
        .flat_map(|place| canaries.iter().filter(|c| holds(&place.bytes, &c.text)).map(|c| format!("the {} is in {}", c.name, place.name)))
        .collect();
    if !found.is_empty() {
        return Err(found.join("; "));
    }
    // A search that finds no secret must be able to find something.
    let own = std::env::args().next().unwrap_or_default();
    let sees = places.iter().any(|place| holds(&place.bytes, &own)) && logs.iter().all(|(_, text)| !text.is_empty());
    if sees { Ok(places.len()) } else { Err("the search for secrets looked at nothing".to_owned()) }
}

/// Logs, and every file that others could read.
fn files(directory: &Path, places: &mut Vec<Place>) -> Result<(), String> {
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        // What is gone by now, such as a file that was just replaced, holds nothing.
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if about.is_dir() {
            let entries = fs::read_dir(&path).map_err(|e| format!("could not list `{}`: {e}", path.display()))?;
            open.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
            continue;
        }
        let is_log = path.extension().is_some_and(|e| e == "log");
        let is_open = about.permissions().mode() & 0o077 != 0;
        if about.is_file()
            && (is_log || is_open)
            && let Ok(bytes) = fs::read(&path)
        {
            places.push(Place { name: format!("the file `{}`", path.display()), bytes });
        }
    }
    Ok(())
}

/// Arguments and environments of all processes, but the environment of the service that gets its password that way.
fn processes(places: &mut Vec<Place>) -> Result<(), String> {
    let entries = fs::read_dir("/proc").map_err(|e| format!("could not list the processes: {e}"))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else { continue };
        // A process that has ended meanwhile, or is not ours to look into, holds nothing of ours.
        let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut after_program = arguments.split(|byte| *byte == 0).skip(1);
        let is_service = after_program.next() == Some(b"demo") && after_program.next() == Some(b"service");
        let by_environment = is_service && holds(&arguments, &format!("-{}-", crate::fleet::ENVIRONMENT));
        let shown = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if !by_environment && let Ok(environment) = fs::read(entry.path().join("environ")) {
            places.push(Place { name: format!("the environment of process {pid} ({shown})"), bytes: environment });
        }
        places.push(Place { name: format!("the arguments of process {pid} ({shown})"), bytes: arguments });
    }
    Ok(())
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(text: &str) -> Vec<Canary> {
        vec![Canary { name: "password".into(), text: text.into() }]
    }

    #[test]
    fn finds_a_secret_in_each_kind_of_place() {
        let directory = std::env::temp_dir().join(format!("keyward-leaks-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("open.txt");
        fs::write(&file, "x CANARY-FILE y").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let logs = [("a log", "demo CANARY-LOG".to_owned())];
        let found = |text: &str| search(&canary(text), &directory, &logs);
        assert!(found("CANARY-FILE").unwrap_err().contains("open.txt"));
        assert!(found("CANARY-LOG").unwrap_err().contains("a log"));
        // The arguments of this very process hold its own name.
        let own = std::env::args().next().unwrap();
        assert!(found(&own).unwrap_err().contains("the arguments of process"));
        assert!(found("CANARY-NOWHERE").unwrap() > 3);
        // What only its owner reads is where secrets may lie.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(found("CANARY-FILE").is_ok());
        fs::remove_dir_all(&directory).unwrap();
    }
}
