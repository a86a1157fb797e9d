//! Signals to this process: which end it, which reach the program, and which are only noted.
//!
//! SIGKILL and SIGSTOP cannot be caught. SIGTTIN and SIGTTOU stay with the terminal: a process that catches the second and goes
//! on writing gets it without end. Faults (SEGV, BUS, ILL, FPE, TRAP, ABRT, SYS) are this process's own. SIGCHLD and SIGPIPE are
//! spent on children and pipes. Realtime signals are noted: they cannot be sent on.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::proc;
use crate::run::Ask;

/// What reaches a program, each time, with the names that messages use.
const PASSED_ON: [(Signal, &str); 13] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::WINCH, "SIGWINCH"),
    (Signal::CONT, "SIGCONT"),
    (Signal::TSTP, "SIGTSTP"),
    (Signal::ALARM, "SIGALRM"),
    (Signal::VTALARM, "SIGVTALRM"),
    (Signal::PROF, "SIGPROF"),
    (Signal::URG, "SIGURG"),
    (Signal::IO, "SIGIO"),
    (Signal::POWER, "SIGPWR"),
];
/// What would end an agent by default and means nothing to it.
const NOTED: [Signal; 8] =
    [Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO, Signal::POWER];
/// The realtime signals of Linux that are not the C library's own.
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The name of a signal.
pub(crate) fn name(signal: Signal) -> &'static str {
    match signal {
        Signal::INT => "SIGINT",
        Signal::TERM => "SIGTERM",
        signal => PASSED_ON.iter().find(|(known, _)| *known == signal).map_or("a signal", |(_, name)| name),
    }
}

/// What signals ask of a supervisor. Must be called inside a runtime.
///
/// SIGTERM and SIGINT ask for the end, and so does SIGHUP when the terminal of this process has gone; without that it is the
/// program's. What was ignored when this process started (`nohup`) stays ignored.
///
/// # Errors
/// When signals cannot be listened for.
pub fn of_supervisor() -> std::io::Result<mpsc::UnboundedReceiver<Ask>> {
    let (put, asks) = mpsc::unbounded_channel();
    let had_terminal = has_terminal();
    for ending in [Signal::TERM, Signal::INT] {
        each(ending, &put, move || Some(Ask::End(ending)))?;
    }
    for (passed, _) in PASSED_ON {
        each(passed, &put, move || {
            let hung_up = passed == Signal::HUP && had_terminal && !has_terminal();
            Some(if hung_up { Ask::End(Signal::TERM) } else { Ask::PassOn(passed) })
        })?;
    }
    realtime(&put)?;
    Ok(asks)
}

/// What signals ask of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again.
    Reload,
    /// End.
    End,
}

/// What signals ask of an agent. Must be called inside a runtime.
///
/// SIGTERM and SIGINT ask for the end, SIGHUP for the configuration to be read again, or for the end when the terminal of this
/// process has gone. Others are noted.
///
/// # Errors
/// When signals cannot be listened for.
pub fn of_agent() -> std::io::Result<mpsc::UnboundedReceiver<Order>> {
    let (put, orders) = mpsc::unbounded_channel();
    let had_terminal = has_terminal();
    for ending in [Signal::TERM, Signal::INT] {
        each(ending, &put, || Some(Order::End))?;
    }
    each(Signal::HUP, &put, move || Some(if had_terminal && !has_terminal() { Order::End } else { Order::Reload }))?;
    for noted in NOTED {
        each(noted, &put, move || {
            tracing::info!(signal = name(noted), "ignored: SIGHUP reads the configuration again, SIGTERM ends the agent");
            None
        })?;
    }
    realtime(&put)?;
    Ok(orders)
}

/// Hears a signal, each time, unless it was ignored from the start; SIGTERM is always heard.
fn each<T: Send + 'static>(
    which: Signal,
    put: &mpsc::UnboundedSender<T>,
    means: impl Fn() -> Option<T> + Send + 'static,
) -> std::io::Result<()> {
    if which != Signal::TERM && proc::ignores(which) {
        return Ok(());
    }
    hear(SignalKind::from_raw(which.as_raw()), put, means)
}

fn hear<T: Send + 'static>(
    kind: SignalKind,
    put: &mpsc::UnboundedSender<T>,
    means: impl Fn() -> Option<T> + Send + 'static,
) -> std::io::Result<()> {
    let (mut signals, put) = (signal(kind)?, put.clone());
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if let Some(meaning) = means()
                && put.send(meaning).is_err()
            {
                // Nobody is asked any more. The signal stays without effect.
                return;
            }
        }
    });
    Ok(())
}

fn realtime<T: Send + 'static>(put: &mpsc::UnboundedSender<T>) -> std::io::Result<()> {
    REALTIME.into_iter().try_for_each(|number| {
        hear(SignalKind::from_raw(number), put, move || {
            tracing::warn!(signal = number, "realtime signals are not passed on");
            None
        })
    })
}

/// Whether this process has a controlling terminal.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

#[cfg(test)]
mod tests {
    use rustix::process::{getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn signals_mean_what_the_document_says() {
        let mut orders = of_agent().unwrap();
        for noted in [Signal::QUIT, Signal::USR1, Signal::USR2] {
            kill_process(getpid(), noted).unwrap();
        }
        kill_process(getpid(), Signal::HUP).unwrap();
        if !proc::ignores(Signal::HUP) {
            assert_eq!(orders.recv().await, Some(Order::Reload));
        }
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(orders.recv().await, Some(Order::End));
    }
}
