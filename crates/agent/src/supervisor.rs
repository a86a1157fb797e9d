//! What decides about the processes of `keyward run`: one task that owns all of them and reads one queue. Nothing else decides.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use client::ack::Level;
use client::{Apply, Credential, Reason};
use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::{mpsc, oneshot, watch};

use crate::notify::Notice;
use crate::process::{Happened, Plan, Process, Start};
use crate::ready::{How, Miss, Ready};
use crate::run::{Ask, Folder, Options, Swap, Variable};
use crate::{Error, shim};

/// Waits between restarts of a program that crashes with the value in use.
const RESTART_MIN: Duration = Duration::from_millis(200);
/// The longest such wait.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A program that ran this long has not crashed at its start.
const RESTART_FORGET: Duration = Duration::from_secs(60);

/// What the consumer asks of the supervisor.
pub(crate) struct Switch {
    inbox: mpsc::UnboundedSender<Message>,
    rotation: String,
    variables: Vec<Variable>,
    /// Whether anything was taken into use.
    started: bool,
    /// Whether the program in use is known to be ready.
    known: watch::Receiver<bool>,
}

impl Apply for Switch {
    async fn apply(&mut self, candidate: &Arc<Credential>) -> Result<(), Reason> {
        let environment = match environment(&self.variables, candidate) {
            Ok(environment) => environment,
            Err(why) if self.started => return Err(Reason::new(why)),
            Err(why) => {
                // Nothing runs and nothing was said: the run ends, and no other value is refused on this one's account.
                let error = Error::Variables { rotation: self.rotation.clone(), why };
                self.inbox.send(Message::Misfit(error)).unwrap_or_default();
                return std::future::pending().await;
            }
        };
        let value = Value { generation: candidate.generation(), environment, credential: Arc::clone(candidate) };
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Message::Start { value: Arc::new(value), answer }).map_err(|_| Reason::not_yet("the supervisor is gone"))?;
        match answered.await {
            Ok(done) => {
                self.started |= done.is_ok();
                done
            }
            // The supervisor is ending and decides no more: there is nothing to say about the value.
            Err(_) => std::future::pending().await,
        }
    }

    fn proves(&self) -> Level {
        if *self.known.borrow() { Level::L2 } else { Level::L1 }
    }

    async fn improved(&mut self, said: Level) {
        if said != Level::L1 || self.known.wait_for(|known| *known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn settle(&mut self) {
        self.inbox.send(Message::Settle).unwrap_or_default();
    }
}

/// What one generation is to the program.
pub(crate) struct Value {
    generation: u64,
    environment: Environment,
    /// To keep it out of what the program says.
    credential: Arc<Credential>,
}

/// The variables of one generation. Wiped when they go.
struct Environment(Vec<(String, String)>);

impl Drop for Environment {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, value)| drop(base::SecretString::new(value)));
    }
}

/// The variables, or what is wrong with those that were asked for: names only.
fn environment(variables: &[Variable], credential: &Credential) -> Result<Environment, String> {
    let mut set = Environment(Vec::with_capacity(variables.len()));
    for Variable { name, field } in variables {
        let Some(value) = credential.field(field) else {
            let there: Vec<_> = credential.names().map(|name| format!("`{name}`")).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(format!("`-env {name}={field}`: the secret has no field `{field}`; its fields are {there}"));
        };
        if value.contains('\0') {
            return Err(format!("`-env {name}={field}`: the field `{field}` holds a NUL, which no environment variable can"));
        }
        set.0.push((name.clone(), value.to_owned()));
    }
    Ok(set)
}

type Answer = oneshot::Sender<Result<(), Reason>>;

pub(crate) enum Message {
    Start {
        value: Arc<Value>,
        answer: Answer,
    },
    Settle,
    /// The first value does not fit what was asked for.
    Misfit(Error),
    Happened(u64, Happened),
    ReadyOverdue(u64),
    DrainOverdue(u64),
    Restart,
    Stable(u64),
    Asked(Ask),
}

struct Candidate {
    process: Process,
    value: Arc<Value>,
    answer: Answer,
}

/// A value that waits for the old process to end.
struct Waiting {
    old: u64,
    value: Arc<Value>,
    answer: Answer,
}

struct Running {
    process: Process,
    /// Whether it, or one before it with the same value, is known to have been ready.
    known: bool,
}

/// What the run ends with, as far as that is known.
enum End {
    /// Not before everybody has ended; the code of the running process, when it has.
    Code(Option<u8>),
    Failed(Error),
}

pub(crate) struct Supervisor {
    plan: Plan,
    /// Where the notification sockets are, and where to make another folder when that one is gone.
    folder: Folder,
    runtime_folder: PathBuf,
    ready: Ready,
    ready_deadline: Duration,
    drain_deadline: Duration,
    swap: Swap,
    restart: bool,
    inbox: mpsc::UnboundedSender<Message>,
    known: watch::Sender<bool>,
    last_number: u64,
    /// Whether the program has ever said anything on its notification socket.
    speaks: bool,
    /// The value in use.
    value: Option<Arc<Value>>,
    running: Option<Running>,
    candidate: Option<Candidate>,
    waiting: Option<Waiting>,
    /// Replaced, still serving what it accepted, until the generation is acknowledged.
    unsettled: Vec<Process>,
    /// Asked to drain.
    retiring: Vec<Process>,
    /// Those among them that are waited for to be idle, and were not asked.
    idling: Vec<u64>,
    restart_wait: Duration,
    ending: Option<End>,
}

impl Supervisor {
    /// A supervisor, what the consumer asks of it, and its queue with both ends.
    pub(crate) fn new(
        options: &Options,
        plan: Plan,
        folder: Folder,
    ) -> (Self, Switch, mpsc::UnboundedSender<Message>, mpsc::UnboundedReceiver<Message>) {
        let (inbox, messages) = mpsc::unbounded_channel();
        let (known, is_known) = watch::channel(false);
        let switch = Switch {
            inbox: inbox.clone(),
            rotation: options.rotation.clone(),
            variables: options.variables.clone(),
            started: false,
            known: is_known,
        };
        let supervisor = Self {
            plan,
            folder,
            runtime_folder: options.runtime_folder.clone(),
            ready: options.ready.clone(),
            ready_deadline: options.ready_deadline,
            drain_deadline: options.drain_deadline,
            swap: options.swap,
            restart: options.restart,
            inbox: inbox.clone(),
            known,
            last_number: 0,
            speaks: false,
            value: None,
            running: None,
            candidate: None,
            waiting: None,
            unsettled: Vec::new(),
            retiring: Vec::new(),
            idling: Vec::new(),
            restart_wait: RESTART_MIN,
            ending: None,
        };
        (supervisor, switch, inbox, messages)
    }

    pub(crate) async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) -> Result<u8, Error> {
        while let Some(message) = messages.recv().await {
            self.hear(message);
            if self.is_over() {
                return match self.ending {
                    Some(End::Failed(error)) => Err(error),
                    Some(End::Code(code)) => Ok(code.unwrap_or(0)),
                    None => Ok(0),
                };
            }
        }
        // Unreachable while `self` holds a sender; ending is the only sane answer.
        Ok(0)
    }

    /// Whether the run is ending and every process has ended.
    fn is_over(&self) -> bool {
        let empty = self.running.is_none() && self.candidate.is_none() && self.unsettled.is_empty() && self.retiring.is_empty();
        self.ending.is_some() && empty
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Start { .. } | Message::Restart if self.ending.is_some() => {}
            Message::Start { value, answer } => self.begin(value, answer),
            Message::Settle => self.settle(),
            Message::Misfit(error) => {
                self.ending.get_or_insert(End::Failed(error));
                self.stop_all();
            }
            Message::Happened(number, Happened::Ready(how)) => self.is_ready(number, &how),
            Message::Happened(number, Happened::Said(notice)) => self.said(number, &notice),
            Message::Happened(number, Happened::Ended(status)) => self.ended(number, status),
            Message::ReadyOverdue(number) => self.ready_overdue(number),
            Message::DrainOverdue(number) => self.drain_overdue(number),
            Message::Restart => self.start_again(),
            Message::Stable(number) => {
                if self.running.as_ref().is_some_and(|running| running.process.number == number) {
                    self.restart_wait = RESTART_MIN;
                }
            }
            Message::Asked(ask) => self.asked(ask),
        }
    }

    /// A new value is to be taken into use.
    fn begin(&mut self, value: Arc<Value>, answer: Answer) {
        match self.running.take_if(|_| self.swap == Swap::StopThenStart) {
            Some(running) => {
                let generation = value.generation;
                tracing::info!(generation, process = running.process.number, "stopping the old process before the new one starts");
                self.waiting = Some(Waiting { old: running.process.number, value, answer });
                self.retire(running.process);
            }
            None => self.start(value, answer),
        }
    }

    fn start(&mut self, value: Arc<Value>, answer: Answer) {
        // One that was stopped before is gone; what drains from an earlier swap may still take a connection.
        let rival = self.running.is_some() || !self.unsettled.is_empty() || !self.retiring.is_empty();
        match self.spawn(&value, rival) {
            Ok(process) => {
                let (generation, ready) = (value.generation, self.way());
                tracing::info!(generation, process = process.number, ?ready, "starting a process with the new value");
                self.later(self.ready_deadline, Message::ReadyOverdue(process.number));
                self.candidate = Some(Candidate { process, value, answer });
            }
            Err(error) => {
                say(answer, Err(Reason::new(client::explain(&error))));
                self.go_back();
            }
        }
    }

    /// How readiness is looked for: a program that has once spoken on its notification socket is waited for to speak.
    fn way(&self) -> Ready {
        match &self.ready {
            Ready::Auto if self.speaks => Ready::Notify,
            ready => ready.clone(),
        }
    }

    fn said(&mut self, number: u64, notice: &Notice) {
        self.speaks = true;
        let credential = self.process_value(number).map(|value| Arc::clone(&value.credential));
        if let Some(status) = &notice.status {
            let status = credential.map_or_else(String::new, |credential| credential.scrub(status));
            tracing::info!(process = number, status, "the program says");
        }
        if notice.reloading {
            tracing::info!(process = number, "the program is reloading");
        }
        if notice.stopping {
            tracing::info!(process = number, "the program is stopping by itself");
        }
        if notice.ready {
            match self.ready {
                Ready::Auto | Ready::Notify => self.is_ready(number, &How::Notified),
                _ => tracing::debug!(process = number, "READY=1 does not count: -ready says what does"),
            }
        }
    }

    fn process_value(&self, number: u64) -> Option<&Arc<Value>> {
        let candidate = self.candidate.as_ref().filter(|candidate| candidate.process.number == number);
        candidate.map(|candidate| &candidate.value).or(self.value.as_ref())
    }

    fn is_ready(&mut self, number: u64, how: &How) {
        if let Some(running) = self.running.as_mut().filter(|running| running.process.number == number && !running.known) {
            running.known = true;
            let generation = self.value.as_ref().map_or(0, |value| value.generation);
            tracing::info!(generation, process = number, %how, "ready");
            self.known.send_replace(true);
            return;
        }
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number) else { return };
        tracing::info!(generation = candidate.value.generation, process = number, %how, "ready");
        self.take(candidate, true);
    }

    /// The candidate takes the place of the running process.
    fn take(&mut self, candidate: Candidate, known: bool) {
        let before = self.running.replace(Running { process: candidate.process, known });
        self.unsettled.extend(before.map(|running| running.process));
        self.value = Some(candidate.value);
        self.restart_wait = RESTART_MIN;
        self.known.send_replace(known);
        say(candidate.answer, Ok(()));
    }

    fn settle(&mut self) {
        for process in std::mem::take(&mut self.unsettled) {
            self.retire(process);
        }
    }

    /// Asks a process to drain. While its sockets stay open here, it is asked at a moment at which it holds no connection from
    /// them, if there is one: what would end in the middle of something then does no harm.
    fn retire(&mut self, process: Process) {
        let number = process.number;
        if self.ending.is_none() && !self.plan.handed.is_empty() {
            let handles = process.handles(Signal::TERM);
            tracing::info!(process = number, handles_sigterm = handles, "waiting until the old process holds no connection");
            self.idling.push(number);
            process.end_when_idle(Arc::clone(&self.plan.handed), handles);
        } else {
            tracing::info!(process = number, "asking the old process to drain");
            process.signal(Signal::TERM);
        }
        self.later(self.drain_deadline, Message::DrainOverdue(number));
        self.retiring.push(process);
    }

    fn ready_overdue(&mut self, number: u64) {
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number) else { return };
        let missing = format!("{}{}", self.way().missing(&self.plan.handed), candidate.process.miss.shown());
        let within = self.ready_deadline;
        // Nothing is gained by killing the only process there is, nor one that is as silent as the one that runs well.
        let first = self.value.is_none();
        let silent_as_ever = matches!(self.way(), Ready::Auto) && self.running.as_ref().is_some_and(|running| !running.known);
        if first || silent_as_ever {
            tracing::warn!(
                generation = candidate.value.generation,
                process = number,
                "running, but not known to be ready: within {within:?} {missing}. Acknowledged as delivered (L1); a rotation that requires \
                 L2 waits for this instance. Let the program do that, or say with -ready what counts"
            );
            return self.take(candidate, false);
        }
        // Killed now, gone when its end is heard.
        candidate.process.signal(Signal::KILL);
        self.retiring.push(candidate.process);
        say(candidate.answer, Err(Reason::new(format!("the new process was not ready within {within:?}: {missing}"))));
        self.go_back();
    }

    fn drain_overdue(&self, number: u64) {
        let running = self.running.as_ref().map(|running| &running.process);
        if let Some(process) = self.retiring.iter().chain(running).find(|process| process.number == number) {
            tracing::warn!(process = number, "the process did not drain in time: killing it");
            process.signal(Signal::KILL);
        }
    }

    fn ended(&mut self, number: u64, status: ExitStatus) {
        self.unsettled.retain(|process| process.number != number);
        self.retiring.retain(|process| process.number != number);
        self.idling.retain(|idling| *idling != number);
        if let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number) {
            self.candidate_ended(candidate, status);
        }
        if let Some(running) = self.running.take_if(|running| running.process.number == number) {
            self.running_ended(&running, status);
        }
        if let Some(Waiting { value, answer, .. }) = self.waiting.take_if(|waiting| waiting.old == number)
            && self.ending.is_none()
        {
            self.start(value, answer);
        }
    }

    fn candidate_ended(&mut self, candidate: Candidate, status: ExitStatus) {
        let number = candidate.process.number;
        if self.ending.is_some() {
            return;
        }
        if self.value.is_some() {
            let hint = self.port_hint();
            say(candidate.answer, Err(Reason::new(format!("the new process ended with {status} before it was ready{hint}"))));
            return self.go_back();
        }
        // A value that a typing mistake kept from being tried is not refused, nor one of a program that never ran here.
        if shim::is_no_program(status) || !self.restart || status.success() {
            tracing::warn!(process = number, %status, "the program ended before it was ever ready: ending with its code (-restart starts it again)");
            self.ending = Some(End::Code(Some(code(status))));
        } else {
            tracing::warn!(process = number, %status, "the program ended before it was ever ready: starting it again");
            say(candidate.answer, Err(Reason::not_yet(format!("the program ended with {status} before it was ready"))));
        }
    }

    /// A program that opens its port itself cannot run twice.
    fn port_hint(&self) -> &'static str {
        if self.swap == Swap::Overlap && self.plan.handed.is_empty() && self.running.is_some() {
            "; if it opens a port itself, which the old one still has: hand it the socket with -listen, or use -swap=stop-then-start"
        } else {
            ""
        }
    }

    fn running_ended(&mut self, running: &Running, status: ExitStatus) {
        let number = running.process.number;
        match &mut self.ending {
            Some(End::Code(end)) => *end = Some(code(status)),
            Some(End::Failed(_)) => {}
            None if status.success() && self.candidate.is_none() => {
                tracing::info!(process = number, "the program ended by itself");
                self.ending = Some(End::Code(Some(0)));
                self.stop_all();
            }
            None if !running.known && !self.restart && self.candidate.is_none() => {
                tracing::warn!(process = number, %status, "the program ended and was never known to be ready: ending with its code (-restart starts it again)");
                self.ending = Some(End::Code(Some(code(status))));
                self.stop_all();
            }
            None => {
                let wait = self.restart_wait;
                self.restart_wait = (wait * 2).min(RESTART_MAX);
                let restart_ms = wait.as_millis();
                if status.success() {
                    tracing::warn!(process = number, %status, restart_ms, "the program ended before the next one was ready");
                } else {
                    tracing::warn!(process = number, %status, restart_ms, "the program crashed");
                }
                self.later(wait, Message::Restart);
            }
        }
    }

    /// After a new process that failed: the old value runs again, unless it still does.
    fn go_back(&mut self) {
        if self.running.is_none() && self.value.is_some() {
            tracing::info!("starting the old value again");
            self.start_again();
        }
    }

    fn start_again(&mut self) {
        let swapping = self.swap == Swap::StopThenStart && (self.waiting.is_some() || self.candidate.is_some());
        if self.running.is_some() || swapping {
            return;
        }
        let Some(value) = self.value.clone() else { return };
        match self.spawn(&value, false) {
            Ok(process) => {
                let generation = value.generation;
                tracing::info!(generation, process = process.number, "started again with the value in use");
                self.later(RESTART_FORGET, Message::Stable(process.number));
                let known = *self.known.borrow();
                self.running = Some(Running { process, known });
            }
            Err(error) => {
                let wait = self.restart_wait;
                self.restart_wait = (wait * 2).min(RESTART_MAX);
                tracing::warn!(error = client::explain(&error), restart_ms = wait.as_millis(), "could not start the program again");
                self.later(wait, Message::Restart);
            }
        }
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::End(signal) if self.ending.is_some() => self.pass_on(signal),
            Ask::End(_) => {
                self.ending = Some(End::Code(None));
                self.stop_all();
            }
            Ask::PassOn(signal) => {
                self.pass_on(signal);
                if signal == Signal::TSTP {
                    // As a shell expects of a job that is stopped from the terminal. SIGCONT wakes both.
                    tracing::info!("stopped with the program until SIGCONT");
                    if let Err(error) = kill_process(getpid(), Signal::STOP) {
                        tracing::warn!(%error, "could not stop");
                    }
                }
            }
        }
    }

    /// The running process gets every signal. One that starts or drains beside it could not know what to do with one that it
    /// does not handle, and would end.
    fn pass_on(&self, signal: Signal) {
        let running = self.running.as_ref().map(|running| &running.process);
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.process);
        let alone = running.is_none();
        let mut reached = Vec::new();
        if let Some(process) = running {
            process.signal(signal);
            reached.push(process.number);
        }
        for process in candidate.into_iter().chain(&self.unsettled).chain(&self.retiring) {
            if alone || [Signal::TSTP, Signal::CONT].contains(&signal) || process.handles(signal) {
                process.signal(signal);
                reached.push(process.number);
            }
        }
        let signal = crate::signals::name(signal);
        if reached.is_empty() {
            tracing::info!(signal, "no process is there to get this signal");
        } else {
            tracing::info!(signal, processes = ?reached, "passed on");
        }
    }

    fn stop_all(&mut self) {
        self.settle();
        self.waiting = None;
        if let Some(candidate) = self.candidate.take() {
            self.retire(candidate.process);
        }
        // What waits for an idle moment of an old process waits no longer.
        let idling = std::mem::take(&mut self.idling);
        self.retiring.iter().filter(|process| idling.contains(&process.number)).for_each(|process| process.signal(Signal::TERM));
        // The running process stays in its place: its code is the one to end with.
        if let Some(running) = &self.running {
            running.process.signal(Signal::TERM);
            self.later(self.drain_deadline, Message::DrainOverdue(running.process.number));
        }
    }

    fn spawn(&mut self, value: &Arc<Value>, rival: bool) -> Result<Process, Error> {
        if !self.folder.is_ours() {
            // Somebody tidied up. The program must be started all the same.
            self.folder = Folder::make(&self.runtime_folder)?;
            self.plan.folder.clone_from(&self.folder.0);
        }
        self.last_number += 1;
        let inbox = self.inbox.clone();
        let miss = Miss::new(Arc::clone(&value.credential));
        let start = Start { number: self.last_number, environment: &value.environment.0, ready: self.way(), rival, miss };
        self.plan.start(start, move |number, happened| {
            inbox.send(Message::Happened(number, happened)).unwrap_or_default();
        })
    }

    fn later(&self, after: Duration, message: Message) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            inbox.send(message).unwrap_or_default();
        });
    }
}

/// Answers a candidate; a consumer that was closed meanwhile does not want to know.
fn say(answer: Answer, done: Result<(), Reason>) {
    answer.send(done).unwrap_or_default();
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_impossible_field_is_named_with_those_that_are_there_and_without_a_value() {
        let credential = Credential::from_fields(1, &[("username", "u"), ("password", "hunter\0two")]);
        let variables = |text: &str| vec![text.parse::<Variable>().unwrap()];
        assert_eq!(environment(&variables("A=username"), &credential).unwrap().0, [("A".to_owned(), "u".to_owned())]);
        for (text, expected) in [
            ("A=nope", "`-env A=nope`: the secret has no field `nope`; its fields are `password`, `username`"),
            ("A=password", "`-env A=password`: the field `password` holds a NUL, which no environment variable can"),
        ] {
            assert_eq!(environment(&variables(text), &credential).err().unwrap(), expected);
        }
    }
}
