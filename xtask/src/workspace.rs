//! What cargo says about the workspace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::shell;

/// Every package of this workspace but `xtask` is called so, followed by the short name that code and documents use.
const PREFIX: &str = "keyward-";

/// A crate of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    /// The short name, for example `journal`.
    pub(crate) name: String,
    /// The directory of its manifest.
    pub(crate) directory: PathBuf,
    /// Short names of the workspace crates that it needs outside of tests.
    pub(crate) needs: BTreeSet<String>,
}

/// The workspace as `cargo metadata` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    pub(crate) crates: Vec<Crate>,
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn load() -> Result<Workspace, String> {
        let text = shell::read(shell::cargo(["metadata", "--format-version", "1", "--no-deps"]))?;
        Workspace::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Workspace, String> {
        let metadata: Value = serde_json::from_str(text).map_err(|error| format!("`cargo metadata` wrote no JSON: {error}"))?;
        let packages = metadata.get("packages").and_then(Value::as_array).ok_or("`cargo metadata` names no packages")?;
        let mut crates = Vec::new();
        for package in packages {
            crates.push(read_crate(package).ok_or("`cargo metadata` describes a package in an unknown way")?);
        }
        crates.sort_by(|one: &Crate, other| one.name.cmp(&other.name));
        let target = metadata.get("target_directory").and_then(Value::as_str).ok_or("`cargo metadata` names no target directory")?;
        Ok(Workspace { crates, target: PathBuf::from(target) })
    }
}

/// The name without the prefix that all packages share.
pub(crate) fn short(package: &str) -> &str {
    package.strip_prefix(PREFIX).unwrap_or(package)
}

fn read_crate(package: &Value) -> Option<Crate> {
    let name = package.get("name")?.as_str()?;
    let manifest = Path::new(package.get("manifest_path")?.as_str()?);
    let mut needs = BTreeSet::new();
    for dependency in package.get("dependencies")?.as_array()? {
        // A normal dependency has no kind; one of the workspace has a path.
        let normal = dependency.get("kind").is_some_and(Value::is_null);
        let ours = dependency.get("path").is_some_and(Value::is_string);
        if normal && ours {
            needs.insert(short(dependency.get("name")?.as_str()?).to_owned());
        }
    }
    Some(Crate { name: short(name).to_owned(), directory: manifest.parent()?.to_owned(), needs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_normal_edges_between_our_crates_count() {
        let text = r#"{"target_directory":"/t","packages":[
            {"name":"keyward-b","manifest_path":"/w/crates/b/Cargo.toml","dependencies":[
                {"name":"keyward-a","kind":null,"path":"/w/crates/a"},
                {"name":"keyward-c","kind":"dev","path":"/w/crates/c"},
                {"name":"keyward-d","kind":"build","path":"/w/crates/d"},
                {"name":"serde","kind":null}]},
            {"name":"keyward-a","manifest_path":"/w/crates/a/Cargo.toml","dependencies":[]}]}"#;
        let workspace = Workspace::parse(text).unwrap();
        let shown: Vec<(&str, Vec<&str>)> =
            workspace.crates.iter().map(|one| (one.name.as_str(), one.needs.iter().map(String::as_str).collect())).collect();
        assert_eq!(shown, [("a", vec![]), ("b", vec!["a"])]);
        assert_eq!(workspace.crates[1].directory, Path::new("/w/crates/b"));
    }

    #[test]
    fn a_description_in_an_unknown_form_is_no_empty_workspace() {
        for text in ["", "{}", r#"{"packages":[{}],"target_directory":"/t"}"#, r#"{"packages":[]}"#] {
            assert!(Workspace::parse(text).is_err(), "{text}");
        }
    }
}
