//! Who runs the server: PostgreSQL refuses to run as root, so root lends it another account.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::programs::on_path;

/// Accounts that may run the server when we are root, the best first.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// An account that is not root, and the tool that becomes it.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) user: u32,
    pub(super) group: u32,
}

/// The account to run as: none when we are not root, because then it is our own.
pub(super) fn unprivileged() -> Result<Option<Account>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if setpriv().is_none() {
        return Err(Error::NoAccount { missing: "`setpriv` of util-linux is not installed".to_owned() });
    }
    let table =
        fs::read_to_string("/etc/passwd").map_err(|source| Error::File { action: "read", path: PathBuf::from("/etc/passwd"), source })?;
    NAMES
        .iter()
        .find_map(|name| look_up(&table, name))
        .map(Some)
        .ok_or_else(|| Error::NoAccount { missing: format!("neither account `{}` exists", NAMES.join("` nor `")) })
}

/// The tool that changes the account and asks the kernel to end the child with its parent.
pub(super) fn setpriv() -> Option<PathBuf> {
    on_path("setpriv").or_else(|| {
        let usual = PathBuf::from("/usr/bin/setpriv");
        usual.is_file().then_some(usual)
    })
}

/// Whether the account may walk to this directory; without an account: whether it is there.
pub(super) fn reaches(account: Option<&Account>, directory: &Path) -> bool {
    let Some(account) = account else {
        return directory.is_dir();
    };
    directory.ancestors().all(|step| {
        fs::metadata(step).is_ok_and(|found| {
            let search = if found.uid() == account.user {
                0o100
            } else if found.gid() == account.group {
                0o010
            } else {
                0o001
            };
            found.is_dir() && found.mode() & search != 0
        })
    })
}

fn look_up(table: &str, name: &str) -> Option<Account> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let user = fields.nth(1)?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        (user != 0).then(|| Account { name: name.to_owned(), user, group })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn finds_an_account_and_never_root() {
        let table =
            "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\ntoor:x:0:0::/:/bin/sh\nbad:x:a:b::/:\n";
        let found = look_up(table, "postgres").unwrap();
        assert_eq!((found.user, found.group), (101, 104));
        for absent in ["root", "toor", "bad", "post", "nobody"] {
            assert!(look_up(table, absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_closed_directory_on_the_way_is_seen() {
        let stranger = Account { name: "stranger".to_owned(), user: 4_000_000_001, group: 4_000_000_002 };
        let outer = std::env::temp_dir().join(format!("keyward-reach-{}", std::process::id()));
        let inner = outer.join("inner");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        for (mode, expected) in [(0o755, true), (0o711, true), (0o700, false), (0o644, false)] {
            fs::set_permissions(&outer, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(reaches(Some(&stranger), &inner), expected, "mode {mode:o}");
        }
        fs::remove_dir_all(&outer).unwrap();
        assert!(!reaches(Some(&stranger), &inner));
        assert!(!reaches(None, &inner));
    }
}
