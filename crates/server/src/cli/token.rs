//! `login` and `token`.

use std::io::{BufRead as _, IsTerminal as _};

use base::SecretString;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::api::store_token;
use super::args::{Login, Token, TokenAt, TokenCreate, TokenRenew, TokenRevoke};
use super::{Api, Failure, Outcome, input, output};

const WELCOME: &str = "Success! You are now authenticated. The token information displayed below\n\
    is already stored in the token helper. You do NOT need to run \"keyward login\"\n\
    again. Future Vault requests will automatically use this token.\n";
const WELCOME_UNSTORED: &str = "Success! You are now authenticated. The token was not stored in the token\n\
    helper. Set the VAULT_TOKEN environment variable or pass the token below with\n\
    each request to Vault.\n";

pub(super) async fn run(command: Token) -> Outcome {
    match command {
        Token::Create(args) => create(*args).await,
        Token::Lookup(args) => lookup(args).await,
        Token::Renew(args) => renew(args).await,
        Token::Revoke(args) => revoke(args).await,
    }
}

pub(super) async fn login(args: Login) -> Outcome {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Failure::local(format!("Error: {error}")))?;
    tokio::select! {
        done = logged_in(args) => done,
        // What was begun is dropped: a terminal that was told to hide what is typed shows it again.
        _ = interrupt.recv() => Err(Failure::local("Interrupted")),
    }
}

async fn logged_in(args: Login) -> Outcome {
    if args.no_store && args.no_print {
        return Err(Failure::local("-no-store and -no-print cannot be used together"));
    }
    let (answer, json, token) = if args.method == "token" { own_token(&args).await? } else { method(&args).await? };
    if !args.no_store && !args.token_only {
        store_token(&token)?;
    }
    if args.no_print {
        return Ok(0);
    }
    if args.token_only {
        output::raw(token.expose())?;
        return Ok(0);
    }
    let data = answer.as_object().cloned().unwrap_or_default();
    match (&args.field, json) {
        (Some(field), false) => output::raw(&output::shown(&output::field(&answer, data.get("data").and_then(Value::as_object), field)?))?,
        (Some(field), true) => output::line(&output::pretty(&output::field(&answer, None, field)?.to_string()))?,
        (None, true) => output::line(&output::pretty(&answer.to_string()))?,
        (None, false) => {
            output::warnings(&answer);
            output::line(if args.no_store { WELCOME_UNSTORED } else { WELCOME })?;
            output::out(&output::table(&output::secret_rows(&answer)))?;
        }
    }
    Ok(0)
}

/// A token that the caller has already: it is looked up, so that a wrong one is told at once.
async fn own_token(args: &Login) -> Result<(Value, bool, SecretString), Failure> {
    let given = match args.data.as_slice() {
        [] => hidden("Token (will be hidden): ").await?,
        [one] if one == "-" => SecretString::new(input::stdin()?.trim().to_owned()),
        [one] => SecretString::new(one.strip_prefix("token=").unwrap_or(one).to_owned()),
        _ => return Err(Failure::local("Too many arguments (expected 0-1)")),
    };
    let api = Api::with_token(&args.remote, Some(given.clone()))?;
    let answer = api.expect("authenticating", "GET", "auth/token/lookup-self", &[], None).await?.json()?;
    let data = answer.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
    let copy = |name: &str| data.get(name).cloned().unwrap_or_default();
    // What a login would have given.
    let auth = json!({
        "client_token": given.expose(), "accessor": copy("accessor"), "policies": copy("policies"), "token_policies": copy("policies"),
        "metadata": copy("meta"), "lease_duration": copy("ttl"), "renewable": data.get("renewable").and_then(Value::as_bool).unwrap_or(false),
    });
    Ok((
        json!({ "request_id": "", "lease_id": "", "lease_duration": 0, "renewable": false, "data": null, "warnings": null, "auth": auth }),
        api.json,
        given,
    ))
}

async fn method(args: &Login) -> Result<(Value, bool, SecretString), Failure> {
    let api = Api::with_token(&args.remote, None)?;
    let mount = args.path.as_deref().unwrap_or(&args.method).trim_matches('/').to_owned();
    let mut data = input::data(&args.data)?;
    // Methods with users have the name in the path.
    let path = match data.get("username").and_then(|name| serde_json::from_str::<String>(name.get()).ok()) {
        Some(user) => {
            data.remove("username");
            if !data.contains_key("password") {
                let password = hidden("Password (will be hidden): ").await?;
                data.insert("password".to_owned(), input::value(password.expose())?);
            }
            format!("auth/{mount}/login/{user}")
        }
        None => format!("auth/{mount}/login"),
    };
    let answer = api.expect("authenticating", "PUT", &path, &[], Some(&data)).await?;
    let body = answer.json()?;
    let token = body.pointer("/auth/client_token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Failure::server("Error authenticating: the server gave no token"))?;
    Ok((body.clone(), api.json, SecretString::new(token.to_owned())))
}

/// Asks at the terminal without showing what is typed; without a terminal it reads one line.
async fn hidden(prompt: &str) -> Result<SecretString, Failure> {
    let failed = |error: std::io::Error| Failure::local(format!("Error reading: {error}"));
    let quiet = Quiet::begin().map_err(failed)?;
    if quiet.is_some() {
        output::note(prompt);
    }
    let (give, given) = oneshot::channel();
    // A thread of its own, for which nobody waits who was interrupted.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let _interrupted = give.send(read.map(|_| line));
    });
    let mut line = given.await.map_err(|_| Failure::local("Error reading: nothing could be read"))?.map_err(failed)?;
    drop(quiet);
    line.truncate(line.trim_end().len());
    if line.is_empty() {
        return Err(Failure::local("Error: nothing was given"));
    }
    Ok(SecretString::new(line))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet(Termios);

impl Quiet {
    /// Nothing when the standard input is no terminal.
    fn begin() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &quiet)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0) {
            output::note(&format!("The terminal could not be told to show what is typed ({error}); `stty echo` does."));
        }
    }
}

async fn create(args: TokenCreate) -> Outcome {
    let api = Api::open(&args.remote)?;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("type", args.kind.into());
    put("renewable", args.renewable.into());
    put("num_uses", args.use_limit.into());
    for (name, value) in [
        ("id", args.id),
        ("ttl", args.ttl),
        ("explicit_max_ttl", args.explicit_max_ttl),
        ("period", args.period),
        ("display_name", args.display_name),
    ] {
        if let Some(value) = value {
            put(name, value.into());
        }
    }
    if !args.policy.is_empty() {
        put("policies", args.policy.into());
    }
    if args.orphan {
        put("no_parent", true.into());
    }
    if args.no_default_policy {
        put("no_default_policy", true.into());
    }
    if !args.metadata.is_empty() {
        let meta = serde_json::to_value(input::data(&args.metadata)?);
        put("meta", meta.map_err(|error| Failure::local(format!("Failed to parse K=V data: {error}")))?);
    }
    let answer = api.expect("creating token", "POST", "auth/token/create", &[], Some(&Value::Object(body))).await?;
    output::answer(&answer, api.json, args.field.as_deref(), None)?;
    Ok(0)
}

async fn lookup(args: TokenAt) -> Outcome {
    let api = Api::open(&args.remote)?;
    let answer = match (&args.which, args.accessor) {
        (None, false) => api.expect("looking up token", "GET", "auth/token/lookup-self", &[], None).await?,
        (None, true) => return Err(Failure::local("Not enough arguments (expected an accessor)")),
        (Some(which), false) => api.expect("looking up token", "POST", "auth/token/lookup", &[], Some(&json!({ "token": which }))).await?,
        (Some(which), true) => {
            api.expect("looking up token", "POST", "auth/token/lookup-accessor", &[], Some(&json!({ "accessor": which }))).await?
        }
    };
    output::answer(&answer, api.json, None, None)?;
    Ok(0)
}

async fn renew(args: TokenRenew) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let mut body = Map::new();
    if let Some(increment) = args.increment {
        body.insert("increment".to_owned(), increment.into());
    }
    let path = match (args.at.which, args.at.accessor) {
        (None, _) => "auth/token/renew-self",
        (Some(which), false) => {
            body.insert("token".to_owned(), which.into());
            "auth/token/renew"
        }
        (Some(which), true) => {
            body.insert("accessor".to_owned(), which.into());
            "auth/token/renew-accessor"
        }
    };
    let answer = api.expect("renewing token", "POST", path, &[], Some(&Value::Object(body))).await?;
    output::answer(&answer, api.json, None, None)?;
    Ok(0)
}

async fn revoke(args: TokenRevoke) -> Outcome {
    let api = Api::open(&args.at.remote)?;
    let orphan = match args.mode.as_deref() {
        None | Some("") => false,
        Some("orphan") => true,
        Some(_) => return Err(Failure::local("Invalid token revocation mode: only `orphan` can be given")),
    };
    let (path, body) = match (args.at.which, args.own, args.at.accessor) {
        (None, true, false) => ("auth/token/revoke-self", json!({})),
        (Some(_), true, _) | (None, ..) => return Err(Failure::local("Not enough arguments (expected a token, an accessor, or -self)")),
        (Some(which), false, true) => ("auth/token/revoke-accessor", json!({ "accessor": which })),
        (Some(which), false, false) if orphan => ("auth/token/revoke-orphan", json!({ "token": which })),
        (Some(which), false, false) => ("auth/token/revoke", json!({ "token": which })),
    };
    let answer = api.expect("revoking token", "POST", path, &[], Some(&body)).await?;
    output::warnings(&answer.json()?);
    if !api.json {
        output::line("Success! Revoked token (if it existed)")?;
    }
    Ok(0)
}
