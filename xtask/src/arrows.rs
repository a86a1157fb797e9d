//! The arrows between crates: what `ARCHITECTURE.md` allows, what the manifests say, what the code uses.
//!
//! Fails in both directions. An edge in a manifest that the table does not declare is *undeclared*. An edge that the
//! table declares and no manifest has, or that a manifest has and no code uses, is *unused*.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use crate::rust;
use crate::shell;
use crate::workspace::Workspace;

const DOCUMENT: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- arrows: begin -->";
const END: &str = "<!-- arrows: end -->";

/// Crate → crates that it may name outside of tests.
type Table = BTreeMap<String, BTreeSet<String>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// In the workspace, not in the table.
    UnknownCrate(String),
    /// In the table, not in the workspace.
    AbsentCrate(String),
    /// In a manifest, not in the table.
    Undeclared(String, String),
    /// In the table, in no manifest.
    OnlyDeclared(String, String),
    /// In a manifest, named by no code.
    NeverNamed(String, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::UnknownCrate(name) => write!(f, "crate `{name}` has no row in {DOCUMENT}"),
            Fault::AbsentCrate(name) => write!(f, "{DOCUMENT} has a row for `{name}`, which is no crate"),
            Fault::Undeclared(from, to) => write!(f, "undeclared: `{from}` depends on `{to}`, {DOCUMENT} does not allow it"),
            Fault::OnlyDeclared(from, to) => write!(f, "unused: {DOCUMENT} lets `{from}` depend on `{to}`, its manifest does not"),
            Fault::NeverNamed(from, to) => {
                write!(f, "unused: the manifest of `{from}` depends on `{to}`, its code outside of tests never names it")
            }
        }
    }
}

/// Compares the three and prints every difference.
pub(crate) fn check() -> Result<(), String> {
    let path = shell::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).map_err(|error| format!("could not read {DOCUMENT}: {error}"))?;
    let table = parse(&text)?;
    let workspace = Workspace::load()?;
    let mut manifests = Table::new();
    let mut code = Table::new();
    for one in &workspace.crates {
        manifests.insert(one.name.clone(), one.needs.clone());
        code.insert(one.name.clone(), named(&one.directory, &one.needs)?);
    }
    let faults = compare(&table, &manifests, &code);
    if faults.is_empty() {
        let edges: usize = manifests.values().map(BTreeSet::len).sum();
        println!("arrows: {} crates, {edges} edges, all declared and used", manifests.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("arrows: {fault}");
    }
    Err(format!("{} arrows differ from {DOCUMENT}", faults.len()))
}

fn compare(table: &Table, manifests: &Table, code: &Table) -> Vec<Fault> {
    let mut faults = Vec::new();
    for name in table.keys().filter(|name| !manifests.contains_key(*name)) {
        faults.push(Fault::AbsentCrate(name.clone()));
    }
    let nothing = BTreeSet::new();
    for (name, needs) in manifests {
        let Some(allowed) = table.get(name) else {
            faults.push(Fault::UnknownCrate(name.clone()));
            continue;
        };
        let used = code.get(name).unwrap_or(&nothing);
        let pair = |to: &String| (name.clone(), to.clone());
        faults.extend(needs.difference(allowed).map(pair).map(|(a, b)| Fault::Undeclared(a, b)));
        faults.extend(allowed.difference(needs).map(pair).map(|(a, b)| Fault::OnlyDeclared(a, b)));
        faults.extend(needs.difference(used).map(pair).map(|(a, b)| Fault::NeverNamed(a, b)));
    }
    faults.sort();
    faults
}

/// Reads the table: one row for each crate, name in the first cell, edges in the last, both as `code`.
fn parse(text: &str) -> Result<Table, String> {
    let (_, from) = text.split_once(BEGIN).ok_or(format!("{DOCUMENT} has no line `{BEGIN}`"))?;
    let (rows, _) = from.split_once(END).ok_or(format!("{DOCUMENT} has no line `{END}`"))?;
    let mut table = Table::new();
    // The first two rows are the heading and the line below it.
    for row in rows.lines().map(str::trim).filter(|row| row.starts_with('|')).skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [name, _, edges] = cells.as_slice() else {
            return Err(format!("{DOCUMENT}: a row of arrows has three cells: {row}"));
        };
        let names = quoted(name);
        let [name] = names.as_slice() else {
            return Err(format!("{DOCUMENT}: a row of arrows starts with one crate: {row}"));
        };
        let edges = quoted(edges);
        let distinct: BTreeSet<String> = edges.iter().cloned().collect();
        if distinct.len() != edges.len() || table.insert(name.clone(), distinct).is_some() {
            return Err(format!("{DOCUMENT}: `{name}` or one of its arrows is there twice"));
        }
    }
    if table.is_empty() {
        return Err(format!("{DOCUMENT}: the table of arrows is empty"));
    }
    Ok(table)
}

fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Those of the crates that the code in `src` names.
fn named(directory: &Path, candidates: &BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![directory.join("src")];
    while let Some(path) = waiting.pop() {
        let entries = fs::read_dir(&path).map_err(|error| format!("could not read `{}`: {error}", path.display()))?;
        for entry in entries {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let source = fs::read_to_string(&path).map_err(|error| format!("could not read `{}`: {error}", path.display()))?;
                let code = rust::code_of(&source);
                found.extend(candidates.iter().filter(|name| rust::names_crate(&code, name)).cloned());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &[&str])]) -> Table {
        rows.iter().map(|(name, needs)| ((*name).to_owned(), needs.iter().map(|need| (*need).to_owned()).collect())).collect()
    }

    fn faults(declared: &[(&str, &[&str])], manifests: &[(&str, &[&str])], code: &[(&str, &[&str])]) -> Vec<Fault> {
        compare(&table(declared), &table(manifests), &table(code))
    }

    #[test]
    fn agreement_is_no_fault() {
        let all: &[(&str, &[&str])] = &[("base", &[]), ("store", &["base"])];
        assert_eq!(faults(all, all, all), []);
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let pair = ("store".to_owned(), "base".to_owned());
        let with: &[(&str, &[&str])] = &[("base", &[]), ("store", &["base"])];
        let without: &[(&str, &[&str])] = &[("base", &[]), ("store", &[])];
        let alone: &[(&str, &[&str])] = &[("base", &[])];
        assert_eq!(faults(without, with, with), [Fault::Undeclared(pair.0.clone(), pair.1.clone())]);
        assert_eq!(faults(with, without, without), [Fault::OnlyDeclared(pair.0.clone(), pair.1.clone())]);
        assert_eq!(faults(with, with, without), [Fault::NeverNamed(pair.0, pair.1)]);
        assert_eq!(faults(alone, with, with), [Fault::UnknownCrate("store".to_owned())]);
        assert_eq!(faults(with, alone, alone), [Fault::AbsentCrate("store".to_owned())]);
    }

    #[test]
    fn one_undeclared_edge_among_many_is_found_once() {
        let declared: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("c", &["a", "b"])];
        let manifests: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("c", &["a", "b", "d"]), ("d", &[])];
        let found = faults(declared, manifests, manifests);
        assert_eq!(found, [Fault::UnknownCrate("d".to_owned()), Fault::Undeclared("c".to_owned(), "d".to_owned())]);
    }

    #[test]
    fn a_table_is_read_from_between_the_marks() {
        let text = format!(
            "| `no` | x | `x` |\n{BEGIN}\n\n| crate | sentence | may depend on |\n|---|---|---|\n\
             | `base` | words, `Secret<T>` | – |\n| `store` | log | `base`, `crypto` |\n{END}\n| `no` | x | `y` |\n"
        );
        assert_eq!(parse(&text).unwrap(), table(&[("base", &[]), ("store", &["base", "crypto"])]));
    }

    #[test]
    fn a_table_that_cannot_be_read_allows_nothing() {
        let around = |rows: &str| format!("{BEGIN}\n| crate | s | on |\n|---|---|---|\n{rows}\n{END}\n");
        for text in [
            String::new(),
            BEGIN.to_owned(),
            around(""),
            around("| `a` | x |"),
            around("| a | x | `b` |"),
            around("| `a` `b` | x | `c` |"),
            around("| `a` | x | `b` |\n| `a` | x | `c` |"),
            around("| `a` | x | `b`, `b` |"),
        ] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn code_in_nested_modules_counts_and_tests_do_not() {
        let directory = std::env::temp_dir().join(format!("xtask-arrows-{}", std::process::id()));
        fs::create_dir_all(directory.join("src/deep")).unwrap();
        fs::write(directory.join("src/lib.rs"), "//! store::x\n#[cfg(test)]\nmod t { use crypto::x; }\n").unwrap();
        fs::write(directory.join("src/deep/mod.rs"), "use base::Secret;\n").unwrap();
        fs::write(directory.join("src/deep/notes.txt"), "use store::x;\n").unwrap();
        let candidates = ["base", "crypto", "store"].map(str::to_owned).into();
        let found = named(&directory, &candidates);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found.unwrap(), ["base".to_owned()].into());
        assert!(named(&directory, &candidates).is_err());
    }
}
