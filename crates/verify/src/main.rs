//! `keyward-verify`: checks an exported audit log without the server, and says what it found by its exit code.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tlog::Vkey;
use verify::{Options, verify};

const USAGE: &str = "\
usage: keyward-verify DIR [--key VKEY]... [--pin CHECKPOINT]... [--json]

  DIR               a directory written by `keyward audit export`
  --key VKEY        believe this key (`name+id+base64`, one for each tree); without it the keys inside DIR are used
  --pin CHECKPOINT  the logs must continue this earlier checkpoint (a file)
  --json            answer as JSON

exit code: 0 intact, 1 tampered, 2 incomplete, 3 not trusted, 64 wrong usage
";

/// Exit code for a command line that cannot be understood (EX_USAGE of sysexits).
const WRONG_USAGE: u8 = 64;

fn main() -> ExitCode {
    let (code, out, err) = run(std::env::args_os().skip(1));
    // a reader that closed the pipe has seen enough; the exit code still tells
    let said = std::io::stdout().write_all(out.as_bytes()).and_then(|()| std::io::stderr().write_all(err.as_bytes()));
    drop(said);
    ExitCode::from(code)
}

fn run(args: impl Iterator<Item = OsString>) -> (u8, String, String) {
    match parse(args) {
        Ok(Some((options, json))) => {
            let report = verify(&options);
            let out = if json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
            (report.verdict.exit_code(), out, String::new())
        }
        Ok(None) => (0, USAGE.to_owned(), String::new()),
        Err(message) => (WRONG_USAGE, String::new(), format!("keyward-verify: {message}\n\n{USAGE}")),
    }
}

/// The options and whether to answer as JSON; nothing when help was asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<(Options, bool)>, String> {
    let (mut dir, mut options, mut json) = (None, Options::default(), false);
    while let Some(arg) = args.next() {
        // a path need not be text; what is no text is no option either
        let text = arg.to_string_lossy().into_owned();
        let (name, mut inline) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") && arg.to_str().is_some() => (name, Some(OsString::from(value))),
            _ => (text.as_str(), None),
        };
        let mut value = || inline.take().or_else(|| args.next()).ok_or(format!("`{name}` needs a value"));
        match name {
            "--key" => {
                let key = value()?.to_string_lossy().into_owned();
                options.keys.push(Vkey::parse(&key).map_err(|error| format!("`--key {key}`: {error}"))?);
            }
            "--pin" => options.pins.push(PathBuf::from(value()?)),
            "--json" => json = true,
            "-h" | "--help" => return Ok(None),
            other if other.starts_with('-') => return Err(format!("unknown option `{other}`")),
            _ if dir.is_some() => return Err("more than one directory".to_owned()),
            _ => dir = Some(PathBuf::from(&arg)),
        }
    }
    options.dir = dir.ok_or("no directory given")?;
    Ok(Some((options, json)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Option<(Options, bool)>, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_read() {
        let key = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";
        let (options, json) = parsed(&["--key", key, "dir", "--pin=a", "--pin", "b", "--json"]).unwrap().unwrap();
        assert_eq!((options.dir, options.pins, json), ("dir".into(), vec!["a".into(), "b".into()], true));
        // the key itself holds no `=`, but its base64 may end in one
        assert_eq!(options.keys[0].to_string(), key);
        assert!(parsed(&["--help"]).unwrap().is_none());
        for bad in [&[][..], &["a", "b"], &["a", "--pin"], &["a", "--key", "x"], &["a", "--nonsense"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_directory_is_incomplete_and_not_trusted() {
        let (code, out, _) = run(["/nonexistent"].map(OsString::from).into_iter());
        assert_eq!(code, 3, "{out}");
        let key = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx".to_owned();
        let (code, out, _) = run(["/nonexistent", "--key", &key].map(OsString::from).into_iter());
        assert_eq!(code, 2, "{out}");
        let (code, out, err) = run(std::iter::empty());
        assert_eq!((code, out.as_str()), (WRONG_USAGE, ""));
        assert!(err.contains("usage:"));
    }
}
