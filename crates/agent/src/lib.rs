//! Delivery to programs that know nothing of Keyward: into a file with a signal and a health probe ([`deliver`]), or into the
//! environment of a process that is replaced without refusing a connection ([`run`]).
//!
//! Both acknowledge a generation only when the program is proven to work with it, and put things back as they were when it
//! does not. No secret goes to an argument list, a log, an error or the environment of this process.

mod config;
pub mod deliver;
mod diag;
mod file;
mod health;
pub mod notify;
mod proc;
mod process;
pub mod ready;
mod reload;
mod render;
pub mod run;
pub mod shim;
pub mod signals;
mod spawn;
mod supervisor;

pub use config::Config;
pub use file::Destination;
pub use health::Health;
pub use reload::Reload;
pub use render::Format;

/// Why the agent cannot start or go on. Never holds a secret value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("could not read the configuration `{path}`")]
    ReadConfig {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not HCL or JSON.
    #[error("the configuration cannot be read: {0}")]
    Hcl(#[from] hcl::Error),
    /// The configuration says something that cannot be done.
    #[error("configuration: {0}")]
    Config(String),
    /// A socket cannot be opened.
    #[error("could not listen on `{at}`")]
    Listen {
        /// Where.
        at: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A destination is not safe to write to.
    #[error("`{path}` {why}")]
    Unsafe {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A destination lies on a disk.
    #[error("`{}` lies on a disk, whose blocks outlive the file: {}, or allow the disk with `allow_disk = true`", .path.display(), in_memory(.folders))]
    OnDisk {
        /// Which.
        path: std::path::PathBuf,
        /// Folders of this machine that are in memory.
        folders: Vec<std::path::PathBuf>,
    },
    /// A file operation failed.
    #[error("could not {doing} `{path}`")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process could not be started.
    #[error("could not start `{program}`")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server refused to deliver a rotation, and will again.
    #[error("{}", refused(.rotations, .instance, .refusal))]
    Refused {
        /// Which rotations were asked for.
        rotations: Vec<String>,
        /// For which instance.
        instance: String,
        /// The answer.
        refusal: client::Refusal,
    },
    /// The secret does not have what the variables ask for.
    #[error("rotation `{rotation}`: {why}")]
    Variables {
        /// Which rotation.
        rotation: String,
        /// What is missing, and what is there; names only.
        why: String,
    },
    /// The client library failed.
    #[error(transparent)]
    Client(#[from] client::Error),
}

/// How many folders a message names.
const FOLDERS_NAMED_MAX: usize = 3;

/// Where a file can be in memory, as part of a sentence.
fn in_memory(folders: &[std::path::PathBuf]) -> String {
    let named: Vec<_> = folders.iter().take(FOLDERS_NAMED_MAX).map(|folder| format!("`{}`", folder.display())).collect();
    match named.as_slice() {
        [] => "mount a tmpfs and use a folder on it (`findmnt -t tmpfs` shows none that this user may write to)".to_owned(),
        named => format!("use a folder in memory, here for example below {} (`findmnt -t tmpfs` lists all)", named.join(", ")),
    }
}

/// A refusal as a sentence: what was expected, and what the server said.
fn refused(rotations: &[String], instance: &str, refusal: &client::Refusal) -> String {
    let said = format!("the server says: {} (status {})", refusal.errors.join("; "), refusal.status);
    let named: Vec<_> = rotations.iter().map(|name| format!("`{name}`")).collect();
    let named = named.join(", ");
    let shown = "`keyward lifecycle rotation list` shows the names";
    match (refusal.status, rotations) {
        (401 | 403, [_]) => format!(
            "no rotation named {named} or this identity may not read its secret, or the instance `{instance}` belongs to another identity; \
             {said}, and not more; {shown}"
        ),
        (401 | 403, _) => format!(
            "one of {named} is no rotation or this identity may not read its secret, or the instance `{instance}` belongs to another \
             identity; {said}, and not more; {shown}"
        ),
        (_, [_]) => format!("{named} was refused; expected the name of a rotation, not a path; {said}; {shown}"),
        _ => format!("{named} were refused; expected names of rotations, not paths; {said}; {shown}"),
    }
}
