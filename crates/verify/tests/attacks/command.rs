//! The command as others run it: exit codes and what it prints.

use crate::logs::{Export, Logs, place};
use std::process::Command;
use tlog::export::TreeName;

fn run(export: &Export, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward-verify"));
    command.arg(export.dir.path()).args(more);
    for key in &export.options.keys {
        command.arg("--key").arg(key.to_string());
    }
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_exit_code() {
    let logs = Logs::honest();
    let export = Export::of(&logs, 1);
    assert_eq!(run(&export, &[]).0, 0);
    let (path, start) = place(TreeName::Access, &logs.access, 42);
    export.edit(&path, |bytes| bytes[start + 20] ^= 1);
    let (code, out) = run(&export, &[]);
    assert_eq!(code, 1);
    assert!(out.contains("tampered: access tree, entry 42: "), "{out}");
    let (code, out) = run(&export, &["--json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1);
    assert_eq!((&answer["tree"], &answer["index"], &answer["exit"]), (&"access".into(), &42.into(), &1.into()));
    let export = Export::of(&logs, 1);
    export.remove("access/tile/0/001");
    assert_eq!(run(&export, &[]).0, 2);
    assert_eq!(run(&Export::of(&logs, 3), &[]).0, 3);
    assert_eq!(run(&export, &["another"]).0, 64);
}

#[test]
fn a_path_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let logs = Logs::honest();
    let export = Export::of(&logs, 1);
    let odd = export.dir.path().join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
    std::fs::create_dir(&odd).unwrap();
    for name in ["change", "access", "vkeys"] {
        std::fs::rename(export.dir.path().join(name), odd.join(name)).unwrap();
    }
    let verify = |more: &[&std::ffi::OsStr]| {
        let done = Command::new(env!("CARGO_BIN_EXE_keyward-verify")).arg(&odd).args(more).output().unwrap();
        done.status.code()
    };
    assert_eq!(verify(&[]), Some(0));
    assert_eq!(verify(&["--pin".as_ref(), odd.join("access/checkpoint").as_os_str()]), Some(0));
    assert_eq!(verify(&[std::ffi::OsStr::from_bytes(b"--odd=\xff")]), Some(64));
}
