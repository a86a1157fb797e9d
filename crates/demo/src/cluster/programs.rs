//! Finds the server programs of PostgreSQL. A file that is merely called `postgres` is not believed: it is asked.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::{Error, process};

/// Where Debian keeps one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one PostgreSQL installation.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    directory: PathBuf,
    version: String,
}

impl Programs {
    pub(super) fn postgres(&self) -> PathBuf {
        self.directory.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.directory.join("initdb")
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        let beside = self.directory.join(name);
        if beside.is_file() { Some(beside) } else { on_path(name) }
    }
}

/// The first installation on `PATH`, else the newest of Debian's.
pub(super) fn find(account: Option<&Account>) -> Result<Programs, Error> {
    let mut directories: Vec<PathBuf> = search_path();
    directories.extend(newest_first(Path::new(DEBIAN)));
    find_in(&directories, account)
}

/// A program on `PATH`.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).filter(|entry| entry.is_absolute()).collect()).unwrap_or_default()
}

fn find_in(directories: &[PathBuf], account: Option<&Account>) -> Result<Programs, Error> {
    let mut seen = BTreeSet::new();
    for directory in directories {
        // The file on PATH may be a link to the installation, where the other programs are.
        let Ok(real) = fs::canonicalize(directory.join("postgres")) else {
            continue;
        };
        let Some(home) = real.parent() else { continue };
        if !seen.insert(home.to_owned()) {
            continue;
        }
        let server = ask(&home.join("postgres"), "postgres", account);
        let initdb = ask(&home.join("initdb"), "initdb", account);
        if let (Some(server), Some(initdb)) = (server, initdb)
            && server == initdb
        {
            return Ok(Programs { directory: home.to_owned(), version: server });
        }
    }
    Err(Error::NoServer { looked_at: directories.len() })
}

fn ask(program: &Path, name: &str, account: Option<&Account>) -> Option<String> {
    let mut command = process::command(program, account);
    command.arg("--version");
    version_in(&process::first_answer(command)?, name)
}

fn version_in(answer: &str, name: &str) -> Option<String> {
    let rest = answer.strip_prefix(name)?.strip_prefix(" (PostgreSQL) ")?;
    let version = rest.split_whitespace().next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

fn newest_first(parent: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| {
                    let major = entry.file_name().to_str()?.parse().ok()?;
                    Some((major, entry.path().join("bin")))
                })
                .collect()
        })
        .unwrap_or_default();
    found.sort_by(|(one, _), (other, _)| other.cmp(one));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = env::temp_dir().join(format!("keyward-programs-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn program(&self, directory: &str, name: &str, script: &str) -> PathBuf {
            let directory = self.0.join(directory);
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join(name);
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            directory
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn a_stray_program_of_the_same_name_is_passed_over() {
        let scratch = Scratch::new("stray");
        let stray = scratch.program("stray", "postgres", "echo 'postgres the elephant toy 1.0'");
        let lonely = scratch.program("lonely", "postgres", "echo 'postgres (PostgreSQL) 17.1'");
        let silent = scratch.program("silent", "postgres", "exit 1");
        let mixed = scratch.program("mixed", "postgres", "echo 'postgres (PostgreSQL) 17.1'");
        scratch.program("mixed", "initdb", "echo 'initdb (PostgreSQL) 16.9'");
        let strays = [stray, lonely, silent, mixed];
        assert!(matches!(find_in(&strays, None), Err(Error::NoServer { looked_at: 4 })));

        let good = scratch.program("good", "postgres", "echo 'postgres (PostgreSQL) 15.18 (Debian)'");
        scratch.program("good", "initdb", "echo 'initdb (PostgreSQL) 15.18 (Debian)'");
        let all: Vec<PathBuf> = strays.into_iter().chain([good.clone()]).collect();
        let found = find_in(&all, None).unwrap();
        assert_eq!(found.version(), "15.18");
        assert_eq!(found.initdb(), fs::canonicalize(good).unwrap().join("initdb"));
    }

    #[test]
    fn a_link_on_the_path_leads_to_the_installation() {
        let scratch = Scratch::new("link");
        let real = scratch.program("real", "postgres", "echo 'postgres (PostgreSQL) 15.18'");
        scratch.program("real", "initdb", "echo 'initdb (PostgreSQL) 15.18'");
        let links = scratch.0.join("links");
        fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), links.join("postgres")).unwrap();
        let found = find_in(&[links], None).unwrap();
        assert_eq!(found.postgres(), fs::canonicalize(real).unwrap().join("postgres"));
    }

    #[test]
    fn the_newest_major_comes_first_by_number() {
        let scratch = Scratch::new("majors");
        for major in ["9", "15", "100", "readme"] {
            fs::create_dir_all(scratch.0.join(major).join("bin")).unwrap();
        }
        let names: Vec<String> =
            newest_first(&scratch.0).iter().map(|path| path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["100", "15", "9"]);
        assert!(newest_first(&scratch.0.join("absent")).is_empty());
    }

    #[test]
    fn versions_are_read_strictly() {
        for (answer, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some("15.18")),
            ("postgres (PostgreSQL) 18beta1\n", Some("18beta1")),
            ("postgres (PostgreSQL) \n", None),
            ("psql (PostgreSQL) 15.18\n", None),
            ("postgres 15.18\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(answer, "postgres").as_deref(), expected, "{answer}");
        }
    }
}
