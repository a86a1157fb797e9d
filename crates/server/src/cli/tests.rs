//! Exit codes and texts that need no server; the rest is tried in `tests/it` against one.

use super::*;

fn code(args: &[&str]) -> String {
    let args = std::iter::once("keyward").chain(args.iter().copied()).map(OsString::from);
    format!("{:?}", main(args))
}

#[test]
fn usage_errors_are_1_and_help_is_0() {
    let ok = format!("{:?}", ExitCode::SUCCESS);
    let usage = format!("{:?}", ExitCode::from(1));
    for args in [&["-h"][..], &["kv", "-help"], &["-version"], &["version"]] {
        assert_eq!(code(args), ok, "{args:?}");
    }
    for args in [
        &["no-such-command"][..],
        &["read"],
        &["write", "secret/x"],
        &["kv", "put", "secret/x"],
        &["server", "-config=x"],
        &["read", "-address=https://127.0.0.1:1", "x"],
        &["read", "-address=http://127.0.0.1:1", "a/../b"],
        &["status", "-address=http://127.0.0.1:1"],
        &["token", "revoke", "-address=http://127.0.0.1:1"],
    ] {
        assert_eq!(code(args), usage, "{args:?}");
    }
}
