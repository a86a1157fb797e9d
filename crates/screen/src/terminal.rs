//! The terminal: taken over as a whole, and put back whatever happens.
//!
//! Raw mode and the alternate screen are undone when a [`Screen`] is dropped and before a panic is told. A signal that ends the program is
//! for the caller to turn into a return; only SIGKILL leaves the terminal as it is.

use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::{cursor, execute, terminal};
use tokio::sync::mpsc;

use crate::state::State;
use crate::view::{Look, draw};

/// How long the reader of keys may take to see that it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Keys that wait to be taken; more are dropped.
const KEYS_MAX: usize = 64;

/// Whether a terminal is in our hands.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// What somebody at the terminal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Pressed a key with a character.
    Key(char),
    /// Pressed the arrow upwards.
    Up,
    /// Pressed the arrow downwards.
    Down,
    /// Pressed Ctrl-C.
    Interrupt,
    /// Changed the size of the window.
    Resize,
}

/// Whether somebody sits at a terminal that can be drawn on: both ends are one, and it is not a dumb one.
#[must_use]
pub fn is_interactive() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    !dumb && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal. Dropped, it is as it was before.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    look: Look,
    keys: mpsc::Receiver<Input>,
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// It cannot be set or written to.
    pub fn open(look: Look) -> io::Result<Self> {
        HOOK.call_once(|| {
            let former = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                put_back();
                former(panic);
            }));
        });
        terminal::enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        let opened = execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        let terminal = opened.inspect_err(|_| put_back())?;
        let over = Arc::new(AtomicBool::new(false));
        let (tell, keys) = mpsc::channel(KEYS_MAX);
        let reader = std::thread::Builder::new().name("keys".to_owned()).spawn({
            let over = Arc::clone(&over);
            move || read(&over, &tell)
        });
        let reader = reader.inspect_err(|_| put_back())?;
        Ok(Self { terminal, look, keys, over, reader: Some(reader) })
    }

    /// Draws the state.
    ///
    /// # Errors
    /// The terminal is gone, or a panic somewhere in the program has put it back.
    pub fn draw(&mut self, state: &State) -> io::Result<()> {
        if !TAKEN.load(Ordering::SeqCst) {
            return Err(io::Error::other("a part of the program has panicked"));
        }
        self.terminal.draw(|frame| draw(frame, state, self.look)).map(drop)
    }

    /// The next input. Waits for ever when nobody can press a key any more.
    pub async fn input(&mut self) -> Input {
        match self.keys.recv().await {
            Some(input) => input,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Whoever reads keys must have ended, or it would take those that are meant for the shell.
        self.reader.take().map(JoinHandle::join).transpose().unwrap_or_default();
        put_back();
    }
}

/// Undoes what was done to the terminal, once.
fn put_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        // Each is tried whatever became of the others: there is nobody to complain to.
        execute!(out, terminal::LeaveAlternateScreen, cursor::Show).unwrap_or_default();
        out.flush().unwrap_or_default();
        terminal::disable_raw_mode().unwrap_or_default();
    }
}

fn read(over: &AtomicBool, tell: &mpsc::Sender<Input>) {
    while !over.load(Ordering::SeqCst) {
        let input = match event::poll(LOOK) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            // The terminal is gone; a signal says so to the program.
            Err(_) => return,
        };
        let Ok(event) = input else { return };
        if let Some(input) = meaning(&event) {
            // Whoever does not look at the keys loses some.
            tell.try_send(input).unwrap_or_default();
        }
    }
}

fn meaning(event: &Event) -> Option<Input> {
    match event {
        Event::Resize(..) => Some(Input::Resize),
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Input::Interrupt),
            KeyCode::Char(_) if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => None,
            KeyCode::Char(letter) => Some(Input::Key(letter)),
            KeyCode::Up => Some(Input::Up),
            KeyCode::Down => Some(Input::Down),
            KeyCode::Esc => Some(Input::Key('q')),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_have_a_meaning() {
        let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        for (code, modifiers, expect) in [
            (KeyCode::Char('k'), KeyModifiers::NONE, Some(Input::Key('k'))),
            (KeyCode::Char('K'), KeyModifiers::SHIFT, Some(Input::Key('K'))),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Input::Interrupt)),
            (KeyCode::Char('k'), KeyModifiers::CONTROL, None),
            (KeyCode::Char('k'), KeyModifiers::ALT, None),
            (KeyCode::Up, KeyModifiers::NONE, Some(Input::Up)),
            (KeyCode::Esc, KeyModifiers::NONE, Some(Input::Key('q'))),
            (KeyCode::F(5), KeyModifiers::NONE, None),
        ] {
            assert_eq!(key(code, modifiers), expect, "{code:?}");
        }
        assert_eq!(meaning(&Event::Resize(1, 1)), Some(Input::Resize));
        assert_eq!(meaning(&Event::FocusLost), None);
    }
}
