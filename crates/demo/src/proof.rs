//! The last step: the audit log is exported, checked by a program that trusts nobody, damaged by one byte, and checked again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::rng::SeededRng;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

/// How long the checker may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries in a full bundle.
const BUNDLE: u64 = 256;

/// What the checker said.
#[derive(Debug, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) exit: i32,
    #[serde(default)]
    pub(crate) tree: Option<String>,
    #[serde(default)]
    pub(crate) index: Option<u64>,
    #[serde(default)]
    pub(crate) message: Option<String>,
    #[serde(default)]
    pub(crate) entries: u64,
}

/// Runs `keyward-verify` on a directory.
pub(crate) async fn verify(program: &Path, directory: &Path) -> Result<Verdict, String> {
    let mut command = Command::new(program);
    command.arg(directory).arg("--json").kill_on_drop(true);
    let run = timeout(PATIENCE, command.output()).await.map_err(|_| format!("`{}` takes too long", program.display()))?;
    let output = run.map_err(|e| format!("could not run `{}`: {e}", program.display()))?;
    let verdict: Verdict =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("`{}` did not answer in JSON: {e}", program.display()))?;
    if output.status.code() != Some(verdict.exit) {
        return Err(format!("`{}` ended with {} and says {}", program.display(), output.status, verdict.exit));
    }
    Ok(verdict)
}

/// Where the checker is: beside this program.
pub(crate) fn checker(program: &Path) -> PathBuf {
    program.with_file_name("keyward-verify")
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Flips one bit of one entry of the change tree and returns the entry's index.
pub(crate) fn damage(directory: &Path, rng: &SeededRng) -> Result<u64, String> {
    let root = directory.join("change").join("tile").join("entries");
    let mut bundles = Vec::new();
    collect(&root, &root, &mut bundles).map_err(|e| format!("could not read `{}`: {e}", root.display()))?;
    bundles.sort();
    let pick = usize::try_from(rng.below(u64::try_from(bundles.len()).unwrap_or(u64::MAX))).unwrap_or(0);
    let (first, path) = bundles.get(pick).ok_or_else(|| format!("`{}` holds no entries", root.display()))?;
    let said = |e: std::io::Error| format!("could not change `{}`: {e}", path.display());
    let mut bytes = fs::read(path).map_err(said)?;
    let entries = entries(&bytes).ok_or_else(|| format!("`{}` is not a bundle of entries", path.display()))?;
    let nth = rng.below(u64::try_from(entries.len()).unwrap_or(u64::MAX));
    let range = entries.get(usize::try_from(nth).unwrap_or(0)).cloned().ok_or_else(|| format!("`{}` is empty", path.display()))?;
    let at = range.start + usize::try_from(rng.below(u64::try_from(range.len()).unwrap_or(u64::MAX))).unwrap_or(0);
    // One bit of a digit or letter, so that the entry stays text.
    *bytes.get_mut(at).ok_or("an entry is empty")? ^= 1;
    fs::write(path, bytes).map_err(said)?;
    Ok(first + nth)
}

/// Where each entry of a bundle stands.
fn entries(bundle: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut all = Vec::new();
    let mut at = 0_usize;
    while at < bundle.len() {
        let length = bundle.get(at..)?.first_chunk::<2>()?;
        let start = at + 2;
        at = start + usize::from(u16::from_be_bytes(*length));
        bundle.get(start..at)?;
        all.push(start..at);
    }
    Some(all)
}

/// The bundles below `folder`, each with the index of its first entry.
fn collect(root: &Path, folder: &Path, into: &mut Vec<(u64, PathBuf)>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, into)?;
        } else if let Some(number) = path.strip_prefix(root).ok().and_then(number) {
            into.push((number * BUNDLE, path));
        }
    }
    Ok(())
}

/// The number of a bundle by its path: `x001/234`, `000.p/17` (partial).
fn number(path: &Path) -> Option<u64> {
    let parts: Vec<OsString> = path.iter().map(ToOwned::to_owned).collect();
    let mut number = 0_u64;
    for part in &parts {
        let text = part.to_str()?;
        if let Some(text) = text.strip_suffix(".p") {
            return Some(number * 1_000 + text.parse::<u64>().ok()?);
        }
        number = number * 1_000 + text.trim_start_matches('x').parse::<u64>().ok()?;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_numbered_by_their_paths() {
        for (path, expect) in [("000", 0), ("017", 17), ("x001/234", 1_234), ("000.p/17", 0), ("x001/x002/003.p/255", 1_002_003)] {
            assert_eq!(number(Path::new(path)), Some(expect), "{path}");
        }
    }

    #[test]
    fn one_byte_of_the_named_entry_changes() {
        let directory = std::env::temp_dir().join(format!("keyward-demo-proof-{}", std::process::id()));
        let folder = directory.join("change/tile/entries/000.p");
        fs::create_dir_all(&folder).unwrap();
        let texts = ["first", "second entry", "third"];
        let bundle: Vec<u8> =
            texts.iter().flat_map(|t| [&u16::try_from(t.len()).unwrap().to_be_bytes()[..], t.as_bytes()].concat()).collect();
        let mut hit = std::collections::BTreeSet::new();
        for seed in 0..30 {
            fs::write(folder.join("3"), &bundle).unwrap();
            let copy_to = directory.join("copy");
            copy(&directory.join("change"), &copy_to.join("change")).unwrap();
            let index = damage(&copy_to, &SeededRng::new(seed)).unwrap();
            let after = fs::read(copy_to.join("change/tile/entries/000.p/3")).unwrap();
            assert_eq!(after.iter().zip(&bundle).filter(|(a, b)| a != b).count(), 1);
            let ranges = entries(&after).unwrap();
            for (n, text) in texts.iter().enumerate() {
                assert_eq!(&after[ranges[n].clone()] != text.as_bytes(), u64::try_from(n).unwrap() == index);
            }
            hit.insert(index);
            assert_eq!(fs::read(folder.join("3")).unwrap(), bundle, "the original was damaged");
        }
        assert_eq!(hit.len(), 3);
        fs::remove_dir_all(&directory).unwrap();
        assert!(entries(b"\0\x05abc").is_none());
    }
}
