//! What is written: `k=v`, `k=@file`, `k=-`, a JSON file, JSON from standard input. Secrets need never be arguments.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;

use serde_json::value::{RawValue, to_raw_value};
use zeroize::Zeroizing;

use super::Failure;

/// Bytes of a file or of standard input at most.
const INPUT_BYTES_MAX: u64 = 32 << 20;

/// What is written: names, and values as they were given. A number is not read, because reading it would round it.
pub(super) type Data = BTreeMap<String, Box<RawValue>>;

/// Reads the arguments of a write. Standard input is read at most once.
pub(super) fn data(args: &[String]) -> Result<Data, Failure> {
    data_from(args, &mut std::io::stdin().lock())
}

fn data_from(args: &[String], stdin: &mut impl std::io::Read) -> Result<Data, Failure> {
    let mut members = Data::new();
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
            add(&mut members, key, self::value(&value)?)?;
        }
    }
    Ok(members)
}

/// Asks at a terminal. Where there is none nobody can answer, and what was asked for by its flag is done.
pub(super) fn agreed(question: &str) -> Result<bool, Failure> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    let failed = |error: std::io::Error| Failure::local(format!("Error asking: {error}"));
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A text as a value.
pub(super) fn value(text: &(impl serde::Serialize + ?Sized)) -> Result<Box<RawValue>, Failure> {
    to_raw_value(text).map_err(|_| Failure::local("Failed to parse K=V data: a value cannot be written as JSON"))
}

/// A key that comes twice becomes a list.
fn add(members: &mut Data, key: &str, value: Box<RawValue>) -> Result<(), Failure> {
    let value = match members.remove(key) {
        None => value,
        Some(before) => {
            let mut all: Vec<Box<RawValue>> = serde_json::from_str(before.get()).unwrap_or_else(|_| vec![before]);
            all.push(value);
            self::value(&all)?
        }
    };
    members.insert(key.to_owned(), value);
    Ok(())
}

fn object(text: &str, from: &str) -> Result<Data, Failure> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| {
        Failure::local(format!("Failed to parse K=V data: {from} is not JSON (line {}, column {})", error.line(), error.column()))
    })?;
    serde_json::from_str(whole.get()).map_err(|_| Failure::local(format!("Failed to parse K=V data: {from} is not a JSON object")))
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
    use serde_json::{Value, json};

    use super::*;

    fn check(args: &[&str], stdin: &str) -> Result<Value, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let text = data_from(&args, &mut stdin.as_bytes()).map(|data| serde_json::to_string(&data).unwrap());
        text.map(|text| serde_json::from_str(&text).unwrap()).map_err(|failure| failure.text)
    }

    #[test]
    fn a_number_stays_as_it_was_given() {
        let text = r#"{"a":12345678901234567890123,"b":[1.10,1e400],"c":{"d":0.1234567890123456789}}"#;
        let data = data_from(&["-".to_owned()], &mut text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&data).unwrap(), text);
        let more = ["-".to_owned(), "a=x".to_owned()];
        let data = data_from(&more, &mut r#"{"a":1.10}"#.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&data).unwrap(), r#"{"a":[1.10,"x"]}"#);
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
