//! The policy of `deny.toml`: which packages may be there, who may name them, under which licences.
//!
//! `cargo deny` is asked when it is installed. It takes minutes to build, so the two rules that matter most, bans with
//! their wrappers and licences, are checked here in any case, from the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::shell;

const POLICY: &str = "deny.toml";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Policy {
    /// Licences that are allowed.
    licences: BTreeSet<String>,
    /// Banned packages and those that may depend on them all the same.
    bans: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    /// An SPDX expression.
    licence: Option<String>,
    ours: bool,
    /// Names of the packages that depend on it directly.
    wanted_by: BTreeSet<String>,
}

/// Checks bans and licences, then asks `cargo deny` or says that it is absent.
pub(crate) fn check() -> Result<(), String> {
    let text = fs::read_to_string(shell::root().join(POLICY)).map_err(|error| format!("could not read {POLICY}: {error}"))?;
    let policy = parse(&text)?;
    let metadata = shell::read(shell::cargo(["metadata", "--format-version", "1", "--locked"]))?;
    let packages = packages(&metadata)?;
    let faults = compare(&policy, &packages);
    for fault in &faults {
        eprintln!("supply: {fault}");
    }
    if !faults.is_empty() {
        return Err(format!("{} packages break {POLICY}", faults.len()));
    }
    println!("supply: {} packages, {} bans and {} licences of {POLICY} hold", packages.len(), policy.bans.len(), policy.licences.len());
    if shell::succeeds(shell::cargo(["deny", "--version"])) {
        // The database of advisories cannot be reached from everywhere.
        return shell::run(shell::cargo(["deny", "--locked", "check", "bans", "licenses", "sources"]));
    }
    println!("supply: cargo-deny is not installed: duplicates and sources are not checked");
    Ok(())
}

fn compare(policy: &Policy, packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        if let Some(wrappers) = policy.bans.get(&package.name) {
            for user in package.wanted_by.difference(wrappers) {
                faults.push(format!("`{user}` depends on `{}`, which only {} may", package.name, list(wrappers)));
            }
        }
        let licence = package.licence.as_deref().unwrap_or("none");
        if !package.ours && !is_allowed(licence, &policy.licences) {
            faults.push(format!("`{}` has licence `{licence}`, which is not allowed", package.name));
        }
    }
    faults
}

fn list(wrappers: &BTreeSet<String>) -> String {
    if wrappers.is_empty() {
        return "nobody".to_owned();
    }
    let names: Vec<&str> = wrappers.iter().map(String::as_str).collect();
    format!("`{}`", names.join("`, `"))
}

/// Reads the little that is needed: `allow` of `[licenses]`, and `deny` of `[bans]` with one entry on each line.
fn parse(text: &str) -> Result<Policy, String> {
    let mut policy = Policy::default();
    let (mut section, mut list) = (String::new(), String::new());
    for line in text.lines().map(|line| without_comment(line).trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
            && list.is_empty()
        {
            section = name.to_owned();
            continue;
        }
        if list.is_empty() {
            let Some((key, value)) = line.split_once('=') else { continue };
            if value.trim_start().starts_with('[') {
                list = key.trim().to_owned();
            }
        }
        match (section.as_str(), list.as_str()) {
            ("licenses", "allow") => policy.licences.extend(strings(line)),
            ("bans", "deny") => {
                if let Some(name) = after(line, "crate = ").and_then(|rest| strings(rest).into_iter().next()) {
                    let wrappers = after(line, "wrappers = [").and_then(|rest| rest.split(']').next());
                    let wrappers = wrappers.map(strings).unwrap_or_default();
                    policy.bans.insert(name, wrappers.into_iter().collect());
                } else if line.contains('{') {
                    return Err(format!("{POLICY}: a ban stands on one line and starts with `crate`: {line}"));
                }
            }
            _ => {}
        }
        if line.ends_with(']') {
            list.clear();
        }
    }
    if policy.licences.is_empty() || policy.bans.is_empty() {
        return Err(format!("{POLICY} allows no licence or bans no package"));
    }
    Ok(policy)
}

fn without_comment(line: &str) -> &str {
    let quoted = |at: usize| line.get(..at).unwrap_or_default().matches('"').count() % 2 == 1;
    let start = line.match_indices('#').map(|(at, _)| at).find(|at| !quoted(*at));
    start.and_then(|at| line.get(..at)).unwrap_or(line)
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

fn strings(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be satisfied with these licences. `AND` binds more tightly than `OR`; the old `/`
/// of cargo means `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let answer = either(&mut words, allowed);
    answer && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut answer = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        answer |= both(words, allowed);
    }
    answer
}

fn both(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut answer = single(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        answer &= single(words, allowed);
    }
    answer
}

fn single(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => either(words, allowed) & (words.next() == Some(")")),
        Some(name) => match words.next_if_eq(&"WITH") {
            None => allowed.contains(name),
            Some(_) => words.next().is_some_and(|exception| allowed.contains(&format!("{name} WITH {exception}"))),
        },
        None => false,
    }
}

fn packages(metadata: &str) -> Result<Vec<Package>, String> {
    let metadata: Value = serde_json::from_str(metadata).map_err(|error| format!("`cargo metadata` wrote no JSON: {error}"))?;
    read_packages(&metadata).ok_or("`cargo metadata` describes packages in an unknown way".to_owned())
}

fn read_packages(metadata: &Value) -> Option<Vec<Package>> {
    let mut all = BTreeMap::new();
    for package in metadata.get("packages")?.as_array()? {
        let read = Package {
            name: package.get("name")?.as_str()?.to_owned(),
            licence: package.get("license")?.as_str().map(str::to_owned),
            ours: package.get("source")?.is_null(),
            wanted_by: BTreeSet::new(),
        };
        all.insert(package.get("id")?.as_str()?, read);
    }
    for node in metadata.pointer("/resolve/nodes")?.as_array()? {
        let user = all.get(node.get("id")?.as_str()?)?.name.clone();
        for needed in node.get("dependencies")?.as_array()? {
            all.get_mut(needed.as_str()?)?.wanted_by.insert(user.clone());
        }
    }
    Some(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[licenses]
allow = [
    "MIT", # a comment "GPL-3.0"
    "Apache-2.0",
    "Unicode-3.0",
]
confidence-threshold = 0.9

[bans]
multiple-versions = "warn"
skip = [{ crate = "syn" }]
deny = [
    { crate = "ring", reason = "a second # crypto library" },
    { crate = "redb", wrappers = ["keyward-store", "other"], reason = "fenced" },
]
"#;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn package(name: &str, licence: Option<&str>, wanted_by: &[&str]) -> Package {
        Package { name: name.to_owned(), licence: licence.map(str::to_owned), ours: false, wanted_by: set(wanted_by) }
    }

    #[test]
    fn the_policy_is_read() {
        let policy = parse(TEXT).unwrap();
        assert_eq!(policy.licences, set(&["MIT", "Apache-2.0", "Unicode-3.0"]));
        let bans: Vec<_> = policy.bans.into_iter().collect();
        assert_eq!(bans, [("redb".to_owned(), set(&["keyward-store", "other"])), ("ring".to_owned(), set(&[]))]);
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_refused() {
        for text in ["", "[licenses]\nallow = [\"MIT\"]\n", "[licenses]\nallow = [\"MIT\"]\n[bans]\ndeny = [\n{ name = \"ring\" },\n]\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn this_policy_is_read_whole() {
        let text = fs::read_to_string(shell::root().join(POLICY)).unwrap();
        let policy = parse(&text).unwrap();
        let (_, list) = text.split_once("\ndeny = [").unwrap();
        let bans = list.lines().filter(|line| without_comment(line).contains("{ crate = ")).count();
        assert_eq!(policy.bans.len(), bans);
        assert!(policy.bans.contains_key("ring") && policy.licences.contains("Apache-2.0"));
    }

    #[test]
    fn each_breach_is_found() {
        let policy = parse(TEXT).unwrap();
        let good = [package("a", Some("MIT OR GPL-3.0"), &["b"]), package("redb", Some("MIT"), &["keyward-store"])];
        assert_eq!(compare(&policy, &good), Vec::<String>::new());
        for (bad, expected) in [
            (package("ring", Some("MIT"), &["rustls"]), "which only nobody may"),
            (package("redb", Some("MIT"), &["keyward-kernel", "keyward-store"]), "`keyward-kernel` depends on `redb`"),
            (package("a", Some("GPL-3.0"), &[]), "licence `GPL-3.0`"),
            (package("a", None, &[]), "licence `none`"),
        ] {
            let faults = compare(&policy, &[bad]);
            assert!(faults.len() == 1 && faults[0].contains(expected), "{faults:?}");
        }
    }

    #[test]
    fn licences_are_expressions() {
        let allowed = set(&["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"]);
        for (expression, expected) in [
            ("MIT", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC OR GPL-3.0", true),
            ("GPL-3.0 OR MIT AND BSD", false),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("(MIT OR GPL-3.0) AND BSD", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("(MIT", false),
            ("MIT ISC", false),
            ("", false),
            ("GPL-3.0 OR (", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
        }
    }

    #[test]
    fn users_of_a_package_are_found() {
        let metadata = r#"{"packages":[
            {"id":"1","name":"app","license":"Apache-2.0","source":null},
            {"id":"2","name":"lib","license":null,"source":"registry"}],
            "resolve":{"nodes":[{"id":"1","dependencies":["2"]},{"id":"2","dependencies":[]}]}}"#;
        let found = packages(metadata).unwrap();
        assert_eq!(found[1], package("lib", None, &["app"]));
        assert!(found[0].ours);
        assert!(packages("{}").is_err());
        assert!(packages("x").is_err());
    }
}
