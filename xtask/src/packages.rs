//! Debian packages that the tests and the demonstration need, installed when they are missing and we may.
//!
//! Silent when everything is there. PostgreSQL is wanted for its programs only: no cluster is made, nothing is started.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell;

/// What is needed, and the Debian package that brings it.
struct Need {
    package: &'static str,
    what: &'static str,
    is_there: fn() -> bool,
}

const DEMO_NEEDS: [Need; 2] = [
    Need { package: "build-essential", what: "a C compiler", is_there: c_compiler },
    Need { package: "postgresql", what: "the server programs of PostgreSQL", is_there: postgresql },
];

/// What the tests need besides: README is carried out with these.
const TEST_NEEDS: [Need; 2] = [
    Need { package: "curl", what: "curl", is_there: curl },
    Need { package: "python3-psycopg-pool", what: "psycopg for Debian's Python", is_there: psycopg },
];

/// Debian's scripts read this directory before they make a first cluster; the file is there only while we install.
const CLUSTER_RULES: &str = "/etc/postgresql-common/createcluster.d";

/// Run by root with the packages as arguments. `CLUSTER_RULES` and `PATH` come from the environment.
const INSTALL: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
install() { apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"; }
tidy() { rm -f "$CLUSTER_RULES/keyward.conf"; rmdir "$CLUSTER_RULES" 2>/dev/null || true; }
trap tidy EXIT
mkdir -p "$CLUSTER_RULES"
echo "create_main_cluster = false" >"$CLUSTER_RULES/keyward.conf"
install "$@" || { apt-get -qq update; install "$@"; }
"#;

/// Installs what the demonstration needs and is missing, or says what to type.
pub(crate) fn ensure_for_demo() -> Result<(), String> {
    ensure(&DEMO_NEEDS.iter().collect::<Vec<_>>())
}

/// The same for the tests.
pub(crate) fn ensure_for_tests() -> Result<(), String> {
    ensure(&DEMO_NEEDS.iter().chain(&TEST_NEEDS).collect::<Vec<_>>())
}

fn ensure(needs: &[&Need]) -> Result<(), String> {
    let missing: Vec<&Need> = needs.iter().copied().filter(|need| !(need.is_there)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !is_file_on_path("apt-get") {
        return Err(format!("missing: {}; this is no Debian: install what `{by_hand}` would", list(&missing)));
    }
    let Some(mut command) = as_root() else {
        return Err(format!("missing: {}; installing it is not allowed here: run `sudo {by_hand}`", list(&missing)));
    };
    println!("set-up: missing: {}; {by_hand}", list(&missing));
    command.arg("env").arg(format!("CLUSTER_RULES={CLUSTER_RULES}")).args(["sh", "-c", INSTALL, "install"]).args(&packages);
    shell::read(command).map_err(|error| format!("{error}\n\nrun `{by_hand}` by hand"))?;
    match missing.iter().find(|need| !(need.is_there)()) {
        None => Ok(()),
        Some(need) => Err(format!("installed `{}`, but {} is still missing", need.package, need.what)),
    }
}

/// The beginning of a command that root runs: nothing, `sudo -n`, or none at all.
fn as_root() -> Option<Command> {
    let mut id = Command::new("id");
    id.arg("-u");
    if shell::read(id).is_ok_and(|user| user.trim() == "0") {
        return Some(Command::new("/usr/bin/env"));
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"]);
    shell::succeeds(sudo).then(|| {
        let mut command = Command::new("sudo");
        command.arg("-n");
        command
    })
}

fn list(missing: &[&Need]) -> String {
    let whats: Vec<&str> = missing.iter().map(|need| need.what).collect();
    whats.join(" and ")
}

fn c_compiler() -> bool {
    is_file_on_path("cc")
}

fn curl() -> bool {
    is_file_on_path("curl")
}

fn postgresql() -> bool {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect::<Vec<_>>())
        .unwrap_or_default();
    search_path().into_iter().chain(debian).any(|directory| is_postgresql(&directory))
}

/// Debian's packages are seen by Debian's Python alone.
fn psycopg() -> bool {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", "import psycopg, psycopg_pool"]);
    shell::succeeds(python)
}

/// A file of this name may be anything; PostgreSQL says its name.
fn is_postgresql(directory: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|name| {
        let file = directory.join(name);
        let mut command = Command::new(&file);
        command.arg("--version");
        file.is_file() && shell::read(command).is_ok_and(|answer| answer.starts_with(&format!("{name} (PostgreSQL) ")))
    })
}

fn is_file_on_path(name: &str) -> bool {
    search_path().iter().any(|directory| directory.join(name).is_file())
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    struct Machine(PathBuf);

    impl Machine {
        /// A directory with an `apt-get` that notes its arguments and whether a cluster would be made.
        fn new(name: &str, apt: &str) -> Machine {
            let home = env::temp_dir().join(format!("xtask-packages-{name}-{}", std::process::id()));
            fs::create_dir_all(home.join("bin")).unwrap();
            let machine = Machine(home);
            let log = machine.0.join("log");
            machine.program(
                "apt-get",
                &format!("rules=$(cat \"$CLUSTER_RULES/keyward.conf\")\necho \"$* [$rules]\" >>{}\n{apt}", log.display()),
            );
            machine
        }

        fn program(&self, name: &str, script: &str) {
            let file = self.0.join("bin").join(name);
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn install(&self) -> bool {
            let mut command = Command::new("sh");
            command.env("PATH", format!("{}:/usr/bin:/bin", self.0.join("bin").display())).env("CLUSTER_RULES", self.rules()).args([
                "-c",
                INSTALL,
                "install",
                "postgresql",
            ]);
            shell::read(command).is_ok()
        }

        fn rules(&self) -> PathBuf {
            self.0.join("etc/createcluster.d")
        }

        fn log(&self) -> Vec<String> {
            let text = fs::read_to_string(self.0.join("log")).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    const INSTALLED: &str = "-qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends postgresql [create_main_cluster = false]";

    #[test]
    fn no_cluster_is_made_and_the_rule_does_not_stay() {
        let machine = Machine::new("plain", "exit 0");
        assert!(machine.install());
        assert_eq!(machine.log(), [INSTALLED]);
        assert!(!machine.rules().exists());
    }

    #[test]
    fn rules_of_others_stay() {
        let machine = Machine::new("others", "exit 0");
        fs::create_dir_all(machine.rules()).unwrap();
        fs::write(machine.rules().join("site.conf"), "ssl = off\n").unwrap();
        assert!(machine.install());
        assert!(machine.rules().join("site.conf").exists());
        assert!(!machine.rules().join("keyward.conf").exists());
    }

    #[test]
    fn a_stale_list_of_packages_is_refreshed_once() {
        let machine = Machine::new("stale", "test $(wc -l <\"${0%/bin/*}/log\") -ne 1");
        assert!(machine.install());
        assert_eq!(machine.log(), [INSTALLED, "-qq update [create_main_cluster = false]", INSTALLED]);
    }

    #[test]
    fn a_failure_is_a_failure_and_cleans_up() {
        let machine = Machine::new("failing", "exit 100");
        assert!(!machine.install());
        assert_eq!(machine.log().len(), 2);
        assert!(!machine.rules().exists());
    }

    #[test]
    fn a_stray_program_is_not_postgresql() {
        let machine = Machine::new("stray", "exit 0");
        let bin = machine.0.join("bin");
        assert!(!is_postgresql(&bin));
        machine.program("postgres", "echo 'postgres (PostgreSQL) 15.18'");
        assert!(!is_postgresql(&bin));
        machine.program("initdb", "echo 'some tool 1.0'");
        assert!(!is_postgresql(&bin));
        machine.program("initdb", "echo 'initdb (PostgreSQL) 15.18'");
        assert!(is_postgresql(&bin));
    }
}
