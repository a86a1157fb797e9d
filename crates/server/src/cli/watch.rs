//! `lifecycle watch`: a run as it goes, read from the public API alone. A screen for who sits at a terminal, lines for everybody else.

use std::cell::RefCell;
use std::time::Duration;

use base::time::SystemClock;
use base::{Clock as _, Timestamp};
use screen::{Column, Holdings, Input, Key, Look, Mood, Note, Panel, Row, Run, Screen, State, Tale};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::args::Named;
use super::{Api, Failure, Outcome, output};

/// Between two looks at the server.
const LOOK: Duration = Duration::from_millis(500);
/// Between two pictures when nothing has changed but the time.
const PICTURE: Duration = Duration::from_millis(200);
/// How long a server that was there may be away before a script that waits is told.
const AWAY_MAX: Duration = Duration::from_secs(300);
/// Lines of what happened that are kept.
const NOTES_MAX: usize = 500;

pub(super) async fn watch(args: Named) -> Outcome {
    let api = Api::open(&args.remote)?;
    let mut watched = Watched { api: &api, name: args.name, run: None, rotation: None, holdings: true };
    let first = watched.look().await.map_err(Trouble::into_failure)?;
    if !api.json && screen::is_interactive() { live(watched, first).await } else { lines(watched, first).await }
}

/// What is watched: a run, or a rotation until it has one.
struct Watched<'a> {
    api: &'a Api,
    name: String,
    run: Option<String>,
    rotation: Option<String>,
    /// Whether the table of holdings may be read; without it the run's own table of consumers is all there is.
    holdings: bool,
}

/// What was seen in one look.
#[derive(Default)]
struct Seen {
    run: Option<Run>,
    /// The same as it came.
    raw: String,
    holdings: Holdings,
}

/// Why a look failed.
enum Trouble {
    /// The server is not there, or not able to answer: perhaps later.
    Away(Failure),
    /// It answers, and will not say anything else.
    Refused(Failure),
}

impl Trouble {
    fn into_failure(self) -> Failure {
        match self {
            Self::Away(failure) | Self::Refused(failure) => failure,
        }
    }
}

impl Watched<'_> {
    async fn look(&mut self) -> Result<Seen, Trouble> {
        if self.run.is_none() {
            self.find().await?;
        }
        let mut seen = Seen::default();
        if let Some(id) = self.run.clone() {
            let path = format!("sys/lifecycle/runs/{id}");
            let (data, raw) = self.get(&path).await?.ok_or_else(|| Trouble::Refused(Failure::server(format!("No run named: {id}"))))?;
            let run = Run::read(&data).map_err(|error| not_understood(&path, &error))?;
            self.rotation = Some(run.rotation.clone()).filter(|name| !name.is_empty());
            seen = Seen { run: Some(run), raw, ..seen };
        }
        if let Some(rotation) = self.rotation.as_ref().filter(|_| self.holdings) {
            let path = format!("sys/lifecycle/holdings/{rotation}");
            match self.get(&path).await {
                Ok(Some((data, _))) => seen.holdings = Holdings::deserialize(&data).map_err(|error| not_understood(&path, &error))?,
                // The run may be told without it, also when its rotation is gone.
                Ok(None) | Err(Trouble::Refused(_)) => self.holdings = false,
                Err(away) => return Err(away),
            }
        }
        Ok(seen)
    }

    /// Looks whether the name is a run's, else a rotation's and which run that has open.
    async fn find(&mut self) -> Result<(), Trouble> {
        if self.rotation.is_none() && self.get(&format!("sys/lifecycle/runs/{}", self.name)).await?.is_some() {
            self.run = Some(self.name.clone());
            return Ok(());
        }
        let name = &self.name;
        let Some((rotation, _)) = self.get(&format!("sys/lifecycle/rotations/{name}")).await? else {
            return Err(Trouble::Refused(Failure::server(format!(
                "No run and no rotation named: {name}; `keyward lifecycle runs` and `keyward lifecycle rotation list` show those there are"
            ))));
        };
        self.run = rotation.get("open_run").and_then(Value::as_str).map(str::to_owned);
        self.rotation = Some(self.name.clone());
        Ok(())
    }

    /// The data at a path and the whole answer; nothing where there is nothing.
    async fn get(&self, path: &str) -> Result<Option<(Value, String)>, Trouble> {
        let answer = self.api.call("GET", path, &[], None).await.map_err(Trouble::Away)?;
        if answer.status == 404 {
            return Ok(None);
        }
        if !answer.ok() {
            let failure = answer.refused(&format!("reading {path}"));
            return Err(if answer.status >= 500 || answer.status == 429 { Trouble::Away(failure) } else { Trouble::Refused(failure) });
        }
        let mut body = answer.json().map_err(Trouble::Refused)?;
        let raw = answer.text().map_err(Trouble::Refused)?.to_owned();
        Ok(Some((body.get_mut("data").map(Value::take).unwrap_or_default(), raw)))
    }
}

fn not_understood(path: &str, error: &serde_json::Error) -> Trouble {
    Trouble::Refused(Failure::server(format!("Error reading {path}: the answer is not understood: {error}")))
}

/// Follows a run to its end and tells what it finds out, one line each. As JSON only the closed run is printed.
async fn lines(mut watched: Watched<'_>, first: Seen) -> Outcome {
    let json = watched.api.json;
    let (mut tale, mut waited, mut away) = (Tale::default(), String::new(), None);
    let mut next = Ok(first);
    if watched.run.is_none() && !json {
        output::note(&format!("no run of `{}` is open: waiting for the next", watched.name));
    }
    loop {
        match next {
            Ok(Seen { run: Some(run), raw, .. }) => {
                away = None;
                if !json {
                    told(&mut tale, &run)?;
                    let waits = if run.stands() { run.waits() } else { String::new() };
                    if !waits.is_empty() && waits != waited {
                        output::note(&format!("waits for {waits}"));
                    }
                    waited = waits;
                }
                if run.is_closed() {
                    let said = if json { output::pretty(&raw) } else { run.standing(SystemClock.now()) };
                    output::line(&said)?;
                    return ended(Some(&run));
                }
            }
            Ok(_) => away = None,
            Err(Trouble::Refused(failure)) => return Err(failure),
            Err(Trouble::Away(failure)) => {
                let since = away.get_or_insert_with(|| {
                    output::note(&format!("{}; trying again", failure.text));
                    Instant::now()
                });
                if since.elapsed() > AWAY_MAX {
                    return Err(failure);
                }
            }
        }
        sleep(LOOK).await;
        next = watched.look().await;
    }
}

fn told(tale: &mut Tale, run: &Run) -> Result<(), Failure> {
    for (ms, evidence) in tale.news(run) {
        let seconds = Duration::from_millis(ms).as_secs_f64();
        output::line(&format!("{seconds:>8.3} s  {:<18}  {}", evidence.phase, evidence.sentence()))?;
    }
    Ok(())
}

/// The exit code, as `rotate -wait` has it: 0 when it rotated, is still open, or never began.
fn ended(run: Option<&Run>) -> Outcome {
    match run.and_then(|run| run.verdict.as_deref()) {
        None | Some("rotated" | "first") => Ok(0),
        Some(_) => Ok(2),
    }
}

/// What the looks have gathered, for the pictures.
#[derive(Default)]
struct Gathered {
    seen: Seen,
    tale: Tale,
    notes: Vec<Note>,
    away: Option<String>,
}

impl Gathered {
    fn take(&mut self, seen: Seen) {
        if let Some(run) = &seen.run {
            self.notes.extend(self.tale.news(run).into_iter().map(|(ms, evidence)| Note::of(ms, evidence)));
            let surplus = self.notes.len().saturating_sub(NOTES_MAX);
            self.notes.drain(..surplus);
        }
        self.seen = seen;
        self.away = None;
    }
}

/// Shows the run until somebody leaves. The terminal is put back whatever happens.
async fn live(watched: Watched<'_>, first: Seen) -> Outcome {
    let title = State { title: watched.name.clone(), facts: format!("at {}", watched.api.address()), ..State::default() };
    let mut gathered = Gathered::default();
    gathered.take(first);
    let gathered = RefCell::new(gathered);
    let stop = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(int), Ok(term), Ok(hup)] = stop else { return Err(Failure::local("Error: could not listen for signals")) };
    let failed = |error| Failure::local(format!("Error using the terminal: {error}"));
    let mut screen = Screen::open(Look::of(std::env::var_os("NO_COLOR").as_deref())).map_err(failed)?;
    let left = tokio::select! {
        failure = gather(watched, &gathered) => Err(failure),
        left = show(&mut screen, title, &gathered) => left.map_err(failed),
        name = signalled([("INT", int), ("TERM", term), ("HUP", hup)]) => Err(Failure::local(format!("ended by SIG{name}"))),
    };
    drop(screen);
    let gathered = gathered.into_inner();
    if let Some(run) = &gathered.seen.run {
        output::line(&format!("{}: {}", run.run, run.standing(SystemClock.now())))?;
    }
    left.and_then(|()| ended(gathered.seen.run.as_ref()))
}

/// Looks again and again; ends only when the server refuses.
async fn gather(mut watched: Watched<'_>, gathered: &RefCell<Gathered>) -> Failure {
    loop {
        sleep(LOOK).await;
        match watched.look().await {
            Ok(seen) => gathered.borrow_mut().take(seen),
            Err(Trouble::Away(failure)) => gathered.borrow_mut().away = Some(screen::one_line(&failure.text)),
            Err(Trouble::Refused(failure)) => return failure,
        }
    }
}

/// Draws until somebody leaves.
async fn show(screen: &mut Screen, title: State, gathered: &RefCell<Gathered>) -> std::io::Result<()> {
    let since = Instant::now();
    let mut pictures = interval(PICTURE);
    pictures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = State { shown_for: since.elapsed(), ..state(&title, &gathered.borrow(), SystemClock.now()) };
        screen.draw(&state)?;
        tokio::select! {
            input = screen.input() => if matches!(input, Input::Key('q' | 'Q') | Input::Interrupt) { return Ok(()) },
            _ = pictures.tick() => {}
        }
    }
}

/// The picture of what was seen. Pure.
fn state(title: &State, gathered: &Gathered, now: Timestamp) -> State {
    let Gathered { seen: Seen { run, holdings, .. }, notes, away, .. } = gathered;
    let known = run.iter().flat_map(|run| run.consumers.keys()).chain(holdings.key_info.keys());
    let names: std::collections::BTreeSet<&String> = known.collect();
    let rows = names.into_iter().map(|name| Row::known(name, holdings.key_info.get(name), run.as_ref())).collect();
    let hint = match (away, run) {
        (Some(why), _) => Note { text: format!("{why}; trying again"), mood: Mood::Bad, ..Note::default() },
        (None, None) => Note { text: "no run is open: waiting for the next".to_owned(), ..Note::default() },
        (None, Some(_)) => Note::default(),
    };
    State {
        now,
        main: Panel {
            title: "consumers".to_owned(),
            columns: vec![Column::Holds, Column::Level, Column::About],
            rows,
            footer: holdings.generation.map(|generation| format!("in force: generation {generation}")).unwrap_or_default(),
            ..Panel::default()
        },
        run_title: run.as_ref().map_or_else(|| "run".to_owned(), |run| format!("run {}", run.run)),
        run: run.clone(),
        hint,
        notes: notes.clone(),
        keys: vec![Key {
            key: "q",
            does: if run.as_ref().is_some_and(Run::is_closed) { "leave" } else { "leave; the run goes on without you" }.to_owned(),
            on: false,
        }],
        ..title.clone()
    }
}

async fn signalled(mut signals: [(&'static str, Signal); 3]) -> &'static str {
    let [(a, int), (b, term), (c, hup)] = &mut signals;
    tokio::select! {
        _ = int.recv() => a,
        _ = term.recv() => b,
        _ = hup.recv() => c,
    }
}
