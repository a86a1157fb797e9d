//! Every command and flag. Vault's names, so that fingers and scripts need not learn anything.
//!
//! A switch is read as Go reads it: `-x`, `-x=true`, `-x=false`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps secrets, and rotates them: a rotation ends only when every consumer is proven on the new value and the old one is proven dead.
#[derive(Debug, Parser)]
#[command(version = crate::BUILD, arg_required_else_help = true, max_term_width = 120)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a server
    Server(Server),
    /// Show whether the server is sealed (exit code 0: unsealed, 2: sealed, 1: error)
    Status(Remote),
    /// Check a token, or get one from an auth method, and keep it in ~/.vault-token
    Login(Login),
    /// Read a path
    Read(Read),
    /// Write to a path: K=V, K=@file, `@file` (JSON) or `-` (JSON from standard input)
    Write(Write),
    /// List the keys below a path
    List(At),
    /// Delete what is at a path
    Delete(At),
    /// Secrets with versions
    #[command(subcommand)]
    Kv(Kv),
    /// Tokens
    #[command(subcommand)]
    Token(Token),
    /// Policies
    #[command(subcommand)]
    Policy(Policy),
    /// Auth methods
    #[command(subcommand)]
    Auth(Mounts),
    /// Secrets engines
    #[command(subcommand)]
    Secrets(Mounts),
    /// The audit log
    #[command(subcommand)]
    Audit(Audit),
    /// End all that an identity holds
    #[command(subcommand)]
    Revoke(Revoke),
    /// Rotation: targets, rotations, runs, and who holds what
    #[command(subcommand)]
    Lifecycle(Lifecycle),
    /// Keep secrets in files: written, signalled, probed, acknowledged
    Agent(Agent),
    /// Run a program with secrets in its environment, and replace it when they change without refusing a connection
    Run(Box<Run>),
    /// Say READY=1, STATUS=…, RELOADING=1 or STOPPING=1 to `run`, or to a service manager, for a program that cannot send datagrams
    Notify(Notify),
    #[command(name = super::agents::SHIM, hide = true)]
    ExecShim(ExecShim),
    /// Rotate under load and injuries, on a throw-away PostgreSQL, beside the usual rotation: a live screen, or a script that judges
    Demo(Demo),
    /// Print a script that completes commands and flags in a shell
    Completion(Completion),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell
    pub(super) shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// source <(keyward completion bash)
    Bash,
    /// keyward completion zsh > "${fpath[1]}/_keyward"
    Zsh,
    /// keyward completion fish > ~/.config/fish/completions/keyward.fish
    Fish,
}

#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub(super) struct Demo {
    #[command(subcommand)]
    pub(super) part: Option<DemoPart>,
    /// Play the script and judge it, instead of the live screen
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) script: bool,
    /// Tell every step of every run of the script
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) verbose: bool,
    /// Write the summary of the script to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Varies the arrivals of the load and the choice of victims
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

/// Parts that the demonstration starts as processes of their own.
#[derive(Debug, Subcommand)]
pub(super) enum DemoPart {
    #[command(hide = true)]
    Service { config: PathBuf },
    #[command(hide = true)]
    Child {
        parent: i32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

impl From<Demo> for demo::Args {
    fn from(args: Demo) -> Self {
        match args.part {
            None => Self::Play { script: args.script, verbose: args.verbose, json: args.json, seed: args.seed },
            Some(DemoPart::Service { config }) => Self::Service { config },
            Some(DemoPart::Child { parent, command }) => Self::Child { parent, command },
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Agent {
    /// What to keep where, in HCL or JSON: docs/agent.md. SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Ask again when the server refuses a rotation or the login at the start, instead of ending
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) wait: bool,
    /// Log lines at least this severe, or a filter [env: KEYWARD_LOG]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log lines as `standard` text or as `json`
    #[arg(long, value_name = "FORMAT", default_value = "standard")]
    pub(super) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The rotation of the secret
    #[arg(long, visible_alias = "policy")]
    pub(super) rotation: String,
    /// The name of this running copy, different for each replica and the same after a restart
    #[arg(long)]
    pub(super) instance: String,
    /// A file with the role id of the AppRole to log in with; without it the token of the other commands is used
    #[arg(long, value_name = "FILE")]
    pub(super) role_id_file: Option<PathBuf>,
    /// A file with its secret id
    #[arg(long, value_name = "FILE")]
    pub(super) secret_id_file: Option<PathBuf>,
    /// Where the AppRole is mounted
    #[arg(long, value_name = "PATH", default_value = "approle")]
    pub(super) auth_path: String,
    /// A variable of the program and the field of the secret that it holds; may be repeated
    #[arg(long, value_name = "NAME=FIELD")]
    pub(super) env: Vec<agent::run::Variable>,
    /// A socket to own and hand on as descriptor 3 and up (LISTEN_FDS): `HOST:PORT` or `unix:/path`; may be repeated
    #[arg(long, value_name = "SOCKET")]
    pub(super) listen: Vec<agent::run::Listen>,
    /// Hand the first socket on as standard input too
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) socket_as_stdin: bool,
    /// How a new process shows that it is ready: `notify` (it says READY=1), `tcp:PORT`, `http://HOST:PORT/PATH`, `started`, or `auto`: notify
    /// if it says anything on NOTIFY_SOCKET, else it accepts from the socket of -listen, else it opens a port itself
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub(super) ready: agent::ready::Ready,
    /// `overlap`: the new process starts beside the old one; `stop-then-start`: for programs that open their port themselves
    #[arg(long, value_name = "HOW", default_value = "overlap")]
    pub(super) swap: agent::run::Swap,
    /// Start a program again that ends before it was ever ready, instead of ending with its code
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) restart: bool,
    /// What becomes of the program when this supervisor is killed: `end` or `leave`
    #[arg(long, value_name = "WHAT", default_value = "end")]
    pub(super) on_supervisor_death: agent::run::OnDeath,
    /// Ask again when the server refuses the rotation or the login at the start, instead of ending
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) wait: bool,
    /// Time for a new process to be ready [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub(super) ready_deadline: Option<Duration>,
    /// Time for an old process to drain after SIGTERM, before it is killed [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub(super) drain_deadline: Option<Duration>,
    /// Log lines at least this severe, or a filter [env: KEYWARD_LOG]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log lines as `standard` text or as `json`
    #[arg(long, value_name = "FORMAT", default_value = "standard")]
    pub(super) log_format: LogFormat,
    /// The program and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub(super) command: Vec<OsString>,
}

fn span(text: &str) -> Result<Duration, String> {
    base::ttl::parse(text).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(super) struct Notify {
    /// What to say, each as an argument of its own
    #[arg(value_name = "NAME=VALUE", required = true)]
    pub(super) lines: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct ExecShim {
    #[arg(last = true, required = true)]
    pub(super) command: Vec<OsString>,
}

/// Where the server is and who asks.
#[derive(Clone, Debug, Args)]
pub(super) struct Remote {
    /// Address of the server [env: BAO_ADDR, VAULT_ADDR] [default: http://127.0.0.1:8200]
    #[arg(long, value_name = "URL")]
    pub(super) address: Option<String>,
    /// Token; better: BAO_TOKEN, VAULT_TOKEN or ~/.vault-token, since arguments are seen by everybody on this machine
    #[arg(long, hide_short_help = true)]
    pub(super) token: Option<String>,
    /// Namespace [env: BAO_NAMESPACE, VAULT_NAMESPACE]
    #[arg(long, visible_alias = "ns")]
    pub(super) namespace: Option<String>,
    /// Output format [env: BAO_FORMAT, VAULT_FORMAT] [default: table]
    #[arg(long)]
    pub(super) format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// What the server answered
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Server {
    /// In memory, unsealed, on loopback, with a root token that is printed. Everything is gone at the end
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) dev: bool,
    /// The root token of -dev [env: BAO_DEV_ROOT_TOKEN_ID, VAULT_DEV_ROOT_TOKEN_ID]
    #[arg(long, value_name = "TOKEN")]
    pub(super) dev_root_token_id: Option<String>,
    /// The address of -dev [env: BAO_DEV_LISTEN_ADDRESS, VAULT_DEV_LISTEN_ADDRESS] [default: 127.0.0.1:8200]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) dev_listen_address: Option<SocketAddr>,
    /// Where the data is; made when missing
    #[arg(long, value_name = "DIR", default_value = "keyward-data")]
    pub(super) data: PathBuf,
    /// The key file that opens the seal [default: DIR/keyward.key]
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
    /// Where to listen. Loopback only: TLS is not built yet
    #[arg(long, visible_alias = "address", value_name = "HOST:PORT", default_value = "127.0.0.1:8200")]
    pub(super) listen_address: SocketAddr,
    /// Not supported yet
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Log lines at least this severe, a filter like `info,kernel=debug`, or `@FILE` with one, read again on SIGHUP [env: KEYWARD_LOG]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log lines as `standard` text or as `json`
    #[arg(long, value_name = "FORMAT", default_value = "standard")]
    pub(super) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Standard,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Login {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// `token`, `approle`, or any auth method with `login`
    #[arg(long, default_value = "token")]
    pub(super) method: String,
    /// Where the auth method is mounted, when not at its usual place
    #[arg(long)]
    pub(super) path: Option<String>,
    /// Do not keep the token
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) no_store: bool,
    /// Print the token and nothing else, and do not keep it
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) token_only: bool,
    /// Keep the token and print nothing
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) no_print: bool,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// The token (or `-`: from standard input), or K=V for the auth method
    pub(super) data: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Read {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// The path
    pub(super) path: String,
    /// K=V of the query
    pub(super) data: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Write {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// Write without data
    #[arg(long, short = 'f', action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) force: bool,
    /// The path
    pub(super) path: String,
    /// K=V, K=@file, K=- (standard input), `@file` (JSON) or `-` (JSON)
    pub(super) data: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct At {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The path
    pub(super) path: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Kv {
    /// Read a secret
    Get(KvGet),
    /// Write a new version of a secret
    Put(KvPut),
    /// Delete the newest version, or those named; they can be undeleted
    Delete(KvDelete),
    /// List the secrets below a path
    List(KvAt),
    /// Versions and settings of a secret
    #[command(subcommand)]
    Metadata(KvMetadata),
}

#[derive(Debug, Args)]
pub(super) struct KvAt {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The mount; the path is then below it
    #[arg(long)]
    pub(super) mount: Option<String>,
    /// The path
    pub(super) path: String,
}

#[derive(Debug, Args)]
pub(super) struct KvDelete {
    #[command(flatten)]
    pub(super) at: KvAt,
    /// The versions, separated by commas; the newest without it
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(super) versions: Vec<u64>,
}

#[derive(Debug, Args)]
pub(super) struct KvGet {
    #[command(flatten)]
    pub(super) at: KvAt,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// The version; the newest without it
    #[arg(long)]
    pub(super) version: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct KvPut {
    #[command(flatten)]
    pub(super) at: KvAt,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// Only when the newest version has this number; 0: only when there is nothing
    #[arg(long)]
    pub(super) cas: Option<u64>,
    /// K=V, K=@file, K=- (standard input), `@file` (JSON) or `-` (JSON)
    pub(super) data: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum KvMetadata {
    /// Show versions and settings
    Get(KvAt),
    /// Delete the secret with all its versions
    Delete(KvAt),
}

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token
    Create(Box<TokenCreate>),
    /// Show a token, by default one's own
    Lookup(TokenAt),
    /// Extend the life of a token, by default one's own
    Renew(TokenRenew),
    /// Revoke a token with all its children
    Revoke(TokenRevoke),
}

#[derive(Debug, Args)]
pub(super) struct TokenCreate {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// Print one field only
    #[arg(long)]
    pub(super) field: Option<String>,
    /// The token itself, instead of a random one
    #[arg(long)]
    pub(super) id: Option<String>,
    /// A policy; may be repeated
    #[arg(long)]
    pub(super) policy: Vec<String>,
    /// Life at first
    #[arg(long)]
    pub(super) ttl: Option<String>,
    /// Life at most, whatever is renewed
    #[arg(long)]
    pub(super) explicit_max_ttl: Option<String>,
    /// Life after each renewal, without end
    #[arg(long)]
    pub(super) period: Option<String>,
    /// Whether it can be renewed
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(super) renewable: bool,
    /// Without a parent
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) orphan: bool,
    /// Without the policy `default`
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) no_default_policy: bool,
    /// Times it can be used; 0: without limit
    #[arg(long, default_value_t = 0)]
    pub(super) use_limit: u64,
    /// A name for people
    #[arg(long)]
    pub(super) display_name: Option<String>,
    /// K=V for the records; may be repeated
    #[arg(long)]
    pub(super) metadata: Vec<String>,
    /// `service`
    #[arg(long = "type", default_value = "service")]
    pub(super) kind: String,
}

#[derive(Debug, Args)]
pub(super) struct TokenAt {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// What is named is an accessor
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) accessor: bool,
    /// The token, or its accessor
    pub(super) which: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct TokenRenew {
    #[command(flatten)]
    pub(super) at: TokenAt,
    /// By how much
    #[arg(long)]
    pub(super) increment: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct TokenRevoke {
    #[command(flatten)]
    pub(super) at: TokenAt,
    /// One's own
    #[arg(long = "self", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) own: bool,
    /// `orphan`: leave the children alone
    #[arg(long)]
    pub(super) mode: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Print a policy
    Read(Named),
    /// List the policies
    List(Remote),
    /// Write a policy from a file, or `-` for standard input
    Write(PolicyWrite),
    /// Delete a policy
    Delete(Named),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The name
    pub(super) name: String,
}

#[derive(Debug, Args)]
pub(super) struct PolicyWrite {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The name
    pub(super) name: String,
    /// The file, or `-`
    pub(super) file: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Mounts {
    /// Mount one
    Enable(Enable),
    /// Unmount one, with everything in it
    Disable(At),
    /// Show what is mounted where
    List(Remote),
}

#[derive(Debug, Args)]
pub(super) struct Enable {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// Where; its type without it
    #[arg(long)]
    pub(super) path: Option<String>,
    /// For people
    #[arg(long, default_value = "")]
    pub(super) description: String,
    /// The version of a kv engine
    #[arg(long)]
    pub(super) version: Option<u8>,
    /// `kv`, `approle`, …
    pub(super) kind: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Write the audit log to a directory that `keyward-verify` checks
    Export(AuditExport),
    /// Show who saw a secret: every read, write and push of it, with its entry in the log
    Who(AuditWho),
}

#[derive(Debug, Args)]
pub(super) struct AuditWho {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The secret, such as `secret/orders/db`; with a slash at its end all below
    pub(super) path: String,
    /// Not before: a time such as 2026-01-31T12:00:00Z, or a span back such as 24h
    #[arg(long, value_name = "TIME")]
    pub(super) from: Option<String>,
    /// Not after, likewise
    #[arg(long, value_name = "TIME")]
    pub(super) to: Option<String>,
    /// Ask no server but this exported log, which is checked first
    #[arg(long, value_name = "DIR")]
    pub(super) export: Option<PathBuf>,
    /// With -export: believe this key (one for each tree); without it the keys in DIR are used, and it is said so
    #[arg(long, value_name = "VKEY", requires = "export")]
    pub(super) key: Vec<String>,
    /// With -export: the log must continue this earlier checkpoint (a file)
    #[arg(long, value_name = "FILE", requires = "export")]
    pub(super) pin: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct AuditExport {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The directory
    pub(super) directory: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Revoke {
    /// End its tokens, with all that they made, its streams and secret ids; say what it could read and did read
    Identity(RevokeIdentity),
}

#[derive(Debug, Args)]
pub(super) struct RevokeIdentity {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// `approle/ROLE`, or `token/` and the accessor of a token
    pub(super) identity: String,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// How far back to look for what it read: a span, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub(super) since: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Lifecycle {
    /// Rotate now what a rotation manages
    Rotate(Rotate),
    /// Let a run try again what it waits for
    Resume(Named),
    /// Stop a run, going back where it must: the old value stays or comes back in force
    Abort(Abort),
    /// End a run where it is, giving up what is not proven: the last way out
    Close(Close),
    /// Take a consumer out of the set that rotations wait for
    Dismiss(Dismiss),
    /// List the runs
    Runs(Remote),
    /// Show a run
    Show(Named),
    /// Watch a run as it goes, or the open or next run of a rotation: a screen at a terminal, lines elsewhere
    Watch(Named),
    /// Show who holds which generation of what a rotation manages
    Holdings(Named),
    /// Outside systems whose credentials are rotated
    #[command(subcommand)]
    Target(Stored),
    /// Rotations: which secret is rotated at which target, and how
    #[command(subcommand, visible_alias = "policy")]
    Rotation(Stored),
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    pub(super) at: Named,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Follow the run until it is closed: its phases as they begin; exit code 0 when it rotated, 2 otherwise
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) wait: bool,
    /// The value in force has leaked: replace it, revoke it and end its sessions now. Takes over a run that is open, and follows it to its end
    #[arg(long, requires = "reason", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) emergency: bool,
    /// In an emergency: revoke the old value at the latest this long after the declaration, whoever is behind [default: 3s]
    #[arg(long, value_name = "DURATION", requires = "emergency")]
    pub(super) deadline: Option<String>,
    /// In an emergency: do not ask before it begins
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Abort {
    #[command(flatten)]
    pub(super) at: Named,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// In an emergency: the old value, which has leaked, is to stay in force
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Close {
    #[command(flatten)]
    pub(super) at: Named,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// The run is to end where it is
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) yes: bool,
    /// What is not proven is given up
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(super) accept_unproven: bool,
}

#[derive(Debug, Args)]
pub(super) struct Dismiss {
    /// The instance, and where the server is
    #[command(flatten)]
    pub(super) at: Named,
    /// Why, for the records
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// One rotation; without it all that know the instance
    #[arg(long, value_name = "NAME")]
    pub(super) rotation: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Stored {
    /// Write one: K=V, K=@file, `@file` (JSON) or `-` (JSON from standard input)
    Write(StoredWrite),
    /// Show one
    Read(Named),
    /// List them
    List(Remote),
    /// Delete one
    Delete(Named),
}

#[derive(Debug, Args)]
pub(super) struct StoredWrite {
    #[command(flatten)]
    pub(super) remote: Remote,
    /// The name
    pub(super) name: String,
    /// K=V, K=@file, K=- (standard input), `@file` (JSON) or `-` (JSON)
    pub(super) data: Vec<String>,
}

/// Go's flags for ours: `-name` and `-name=value` become `--name` and `--name=value`. What follows `--`, a lone `-`, one-letter flags
/// and negative numbers stay.
pub(super) fn rewrite(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = false;
    let mut out: Vec<OsString> = Vec::new();
    for (at, arg) in args.into_iter().enumerate() {
        plain |= arg == "--" || (at == 3 && out.iter().skip(1).eq(["demo", "child"]));
        let go = arg.to_str().and_then(|text| text.strip_prefix('-')).is_some_and(|name| {
            let mut letters = name.split('=').next().unwrap_or_default().chars();
            letters.next().is_some_and(|c| c.is_ascii_alphabetic()) && letters.next().is_some()
        });
        if at > 0 && !plain && go {
            let mut long = OsString::from("-");
            long.push(&arg);
            out.push(long);
        } else {
            out.push(arg);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn go_flags() {
        let rewrite = |text: &str| {
            let args = rewrite(text.split(' ').map(OsString::from));
            args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        for (from, to) in [
            ("x server -dev -dev-root-token-id=root", "x server --dev --dev-root-token-id=root"),
            ("x read -field value --format=json a", "x read --field value --format=json a"),
            ("x write -f a k=-v -", "x write -f a k=-v -"),
            ("x write a k=v -h -1 -10", "x write a k=v -h -1 -10"),
            ("x run -policy a -- cmd -flag", "x run --policy a -- cmd -flag"),
            ("x demo child 7 prog server -data d", "x demo child 7 prog server -data d"),
            ("-odd status", "-odd status"),
        ] {
            assert_eq!(rewrite(from), to);
        }
    }

    #[test]
    fn switches_are_read_as_go_reads_them() {
        let dev = |text: &str| match Cli::try_parse_from(rewrite(text.split(' ').map(OsString::from))).unwrap().command {
            Command::Server(server) => server.dev,
            _ => panic!("not the server"),
        };
        assert!(dev("x server -dev") && dev("x server -dev=true") && dev("x server --dev"));
        assert!(!dev("x server") && !dev("x server -dev=false"));
    }

    #[test]
    fn the_demonstration_starts_parts_of_itself() {
        let Command::Demo(demo) =
            Cli::try_parse_from(rewrite("x demo child 7 prog server -data d".split(' ').map(OsString::from))).unwrap().command
        else {
            panic!("not the demonstration")
        };
        let demo::Args::Child { parent, command } = demo.into() else { panic!("not a child") };
        assert_eq!((parent, command), (7, ["prog", "server", "-data", "d"].map(OsString::from).to_vec()));
    }

    #[test]
    fn remote_flags_stand_before_and_after_the_path() {
        for text in ["x kv get -address=http://a:1 -format=json secret/x", "x kv get secret/x -format=json -address http://a:1"] {
            let Command::Kv(Kv::Get(get)) = Cli::try_parse_from(rewrite(text.split(' ').map(OsString::from))).unwrap().command else {
                panic!("not kv get")
            };
            assert_eq!(get.at.remote.address.as_deref(), Some("http://a:1"));
            assert_eq!((get.at.remote.format, get.at.path.as_str()), (Some(Format::Json), "secret/x"));
        }
    }
}
