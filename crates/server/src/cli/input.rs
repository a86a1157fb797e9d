//! What is written: `k=v`, `k=@file`, `k=-`, a JSON file, JSON from standard input. Secrets need never be arguments.

use std::fs;
use std::io::Read as _;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::Failure;

/// Bytes of a file or of standard input at most.
const INPUT_BYTES_MAX: u64 = 32 << 20;

/// Reads the arguments of a write. Standard input is read at most once.
pub(super) fn data(args: &[String]) -> Result<Map<String, Value>, Failure> {
    data_from(args, &mut std::io::stdin().lock())
}

fn data_from(args: &[String], stdin: &mut impl std::io::Read) -> Result<Map<String, Value>, Failure> {
    let mut members = Map::new();
    let mut taken = false;
    let mut once = |taken: &mut bool| {
        if std::mem::replace(taken, true) {
            return Err(Failure::local("Failed to parse K=V data: standard input can be read only once"));
        }
        text(stdin, "standard input")
    };
    for arg in args {
        if arg == "-" {
            members.extend(object(&once(&mut taken)?, "standard input")?);
        } else if let Some(path) = arg.strip_prefix('@') {
            members.extend(object(&file(path)?, path)?);
        } else {
            let (key, value) = arg.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                // The argument may be a secret that was put in the wrong place: it is not repeated.
                Failure::local("Failed to parse K=V data: an argument is not of the form key=value")
            })?;
            let value = match value {
                "-" => once(&mut taken)?.to_string(),
                value => match (value.strip_prefix('@'), value.strip_prefix("\\@")) {
                    (Some(path), _) => file(path)?.to_string(),
                    (None, Some(rest)) => format!("@{rest}"),
                    (None, None) => value.to_owned(),
                },
            };
            add(&mut members, key, Value::String(value));
        }
    }
    Ok(members)
}

/// A key that comes twice becomes a list.
fn add(members: &mut Map<String, Value>, key: &str, value: Value) {
    match members.get_mut(key) {
        None => {
            members.insert(key.to_owned(), value);
        }
        Some(Value::Array(all)) => all.push(value),
        Some(first) => *first = Value::Array(vec![first.take(), value]),
    }
}

fn object(text: &str, from: &str) -> Result<Map<String, Value>, Failure> {
    match serde_json::from_str(text) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Failure::local(format!("Failed to parse K=V data: {from} is not a JSON object"))),
        Err(error) => {
            Err(Failure::local(format!("Failed to parse K=V data: {from} is not JSON (line {}, column {})", error.line(), error.column())))
        }
    }
}

/// A file as text.
pub(super) fn file(path: &str) -> Result<Zeroizing<String>, Failure> {
    let mut opened = fs::File::open(path).map_err(|error| Failure::local(format!("Error reading file {path}: {error}")))?;
    text(&mut opened, path)
}

/// Standard input as text.
pub(super) fn stdin() -> Result<Zeroizing<String>, Failure> {
    text(&mut std::io::stdin().lock(), "standard input")
}

fn text(from: &mut impl std::io::Read, name: &str) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = from.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.map_err(|error| Failure::local(format!("Error reading {name}: {error}")))?;
    if read as u64 > INPUT_BYTES_MAX {
        return Err(Failure::local(format!("Error reading {name}: more than {INPUT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(args: &[&str], stdin: &str) -> Result<Value, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        data_from(&args, &mut stdin.as_bytes()).map(Value::Object).map_err(|failure| failure.text)
    }

    #[test]
    fn forms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "{\"f\": 1}\n").unwrap();
        let path = path.to_str().unwrap();
        for (args, stdin, expect) in [
            (vec!["a=1", "b=x=y", "c="], "", json!({"a": "1", "b": "x=y", "c": ""})),
            (vec!["a=1", "a=2", "a=3"], "", json!({"a": ["1", "2", "3"]})),
            (vec!["a=-"], "secret\n", json!({"a": "secret\n"})),
            (vec!["a=\\@x"], "", json!({"a": "@x"})),
            (vec!["-"], r#"{"n": 5, "o": {"p": [true]}}"#, json!({"n": 5, "o": {"p": [true]}})),
            (vec![&format!("@{path}"), "a=1"], "", json!({"f": 1, "a": "1"})),
            (vec![&format!("a=@{path}")], "", json!({"a": "{\"f\": 1}\n"})),
        ] {
            assert_eq!(check(&args, stdin), Ok(expect), "{args:?}");
        }
    }

    #[test]
    fn refusals_never_repeat_the_input() {
        for (args, stdin) in [
            (vec!["hunter2"], ""),
            (vec!["=hunter2"], ""),
            (vec!["-"], "hunter2"),
            (vec!["-"], "[\"hunter2\"]"),
            (vec!["-", "a=-"], "{}"),
            (vec!["a=@/does/not/exist"], ""),
        ] {
            let text = check(&args, stdin).unwrap_err();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
