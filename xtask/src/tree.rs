//! What the verifier is made of. An auditor reads it, so it must stay small: no crate of the server, no runtime, no
//! network, no database.

use std::collections::BTreeSet;

use crate::shell;
use crate::workspace::short;

/// The verifier and the crates of ours that it may consist of.
const OURS: [&str; 4] = ["base", "crypto", "tlog", "verify"];
/// Crates of others that would mean that it does more than read files and compute.
const FOREIGN: [&str; 6] = ["hyper", "mio", "redb", "rustls", "tokio", "tokio-postgres"];

/// Fails when the verifier's dependency tree holds more than it may.
pub(crate) fn check() -> Result<(), String> {
    let tree = shell::read(shell::cargo(["tree", "--package=keyward-verify", "--edges=normal", "--prefix=none", "--format={p}"]))?;
    let all = packages(&tree);
    if !all.contains("keyward-verify") || !all.contains("keyward-tlog") {
        return Err("`cargo tree` does not show the verifier".to_owned());
    }
    let strangers = strangers(&all);
    if !strangers.is_empty() {
        return Err(format!("the verifier depends on `{}`", strangers.join("`, `")));
    }
    println!("verifier: {} packages, no crate of the server among them", all.len());
    Ok(())
}

fn packages(tree: &str) -> BTreeSet<&str> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

fn strangers<'a>(all: &BTreeSet<&'a str>) -> Vec<&'a str> {
    all.iter()
        .copied()
        .filter(|package| {
            let name = short(package);
            FOREIGN.contains(package) || (name != *package && !OURS.contains(&name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_the_server_and_runtimes_are_strangers() {
        let tree = "keyward-verify v0.1.0 (/x)\nkeyward-tlog v0.1.0 (/x)\nserde_json v1.0.154\nkeyward-base v0.1.0 (*)\n";
        assert_eq!(strangers(&packages(tree)), Vec::<&str>::new());
        let worse = format!("{tree}keyward-store v0.1.0\ntokio v1.54.1\nkeyward-journal v0.1.0 (*)\n");
        assert_eq!(strangers(&packages(&worse)), ["keyward-journal", "keyward-store", "tokio"]);
    }
}
