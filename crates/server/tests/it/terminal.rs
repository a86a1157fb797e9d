//! A terminal for programs that draw on one: a pseudo-terminal and what would be seen on it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use tokio::time::Instant;

/// For what the test is not about.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Terminal {
    controller: Arc<OwnedFd>,
    terminal: File,
    seen: Arc<Mutex<Seen>>,
    before: Termios,
}

impl Terminal {
    pub fn open(width: u16, height: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let terminal = File::options().read(true).write(true).custom_flags(flags).open(name.to_str().unwrap()).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let one = Self { controller: Arc::new(controller), terminal, seen: Arc::default(), before };
        one.resize(width, height);
        let (controller, seen) = (Arc::clone(&one.controller), Arc::clone(&one.seen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            let mut rest = Vec::new();
            // Ends with an error when the last program that has the terminal open is gone.
            while let Ok(read) = rustix::io::read(&*controller, &mut bytes) {
                rest.extend_from_slice(&bytes[..read]);
                let whole = std::str::from_utf8(&rest).map_or_else(|e| e.valid_up_to(), str::len);
                let text = String::from_utf8(rest.drain(..whole).collect()).unwrap();
                text.chars().for_each(|c| seen.lock().unwrap().put(c));
            }
        });
        one
    }

    /// Starts a program with this as its terminal.
    pub fn start(&self, program: &mut Command) -> Child {
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args()).env("TERM", "xterm-256color");
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let end = || self.terminal.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    pub fn resize(&self, width: u16, height: u16) {
        tcsetwinsize(&*self.controller, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    pub fn press(&self, keys: &str) {
        assert_eq!(rustix::io::write(&*self.controller, keys.as_bytes()), Ok(keys.len()));
    }

    /// What is on the screen now.
    pub fn screen(&self) -> String {
        self.seen.lock().unwrap().screen()
    }

    /// Waits until the screen is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let since = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(since.elapsed() < PATIENCE, "{what} was never seen:\n{screen}\nbefore and after:\n{}", self.plain());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the end of a program.
    pub async fn end(&self, child: &mut Child) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the program does not end:\n{}", self.screen());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What was written outside of the alternate screen: before it was taken and after it was put back.
    pub fn plain(&self) -> String {
        self.seen.lock().unwrap().plain.clone()
    }

    /// Waits for a text that is written after the screen was put back.
    pub async fn until_plain(&self, wanted: &str) -> String {
        let since = Instant::now();
        while !self.plain().contains(wanted) {
            assert!(since.elapsed() < PATIENCE, "`{wanted}` was never written:\n{}", self.plain());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.plain()
    }

    /// The screen was taken and is put back, the cursor is seen, and lines are read as before.
    pub fn assert_put_back(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.taken > 0, "the screen was never taken: {}", seen.plain);
        assert!(!seen.alternate && !seen.hidden, "the screen is still taken: {} {}", seen.alternate, seen.hidden);
        let after = tcgetattr(&self.terminal).unwrap();
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        assert_eq!(modes(&after), modes(&self.before));
    }
}

/// The little of a terminal that our programs use.
#[derive(Default)]
struct Seen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    alternate: bool,
    taken: usize,
    hidden: bool,
    plain: String,
    /// A sequence that has begun.
    sequence: Option<String>,
}

impl Seen {
    fn put(&mut self, c: char) {
        match self.sequence.take() {
            Some(mut sequence) => {
                sequence.push(c);
                let is_csi = sequence.starts_with('[');
                if is_csi && (sequence.len() == 1 || !c.is_ascii_alphabetic()) {
                    self.sequence = Some(sequence);
                } else if let Some(sequence) = sequence.strip_prefix('[') {
                    self.act(sequence);
                }
            }
            None if c == '\u{1b}' => self.sequence = Some(String::new()),
            None if !self.alternate => self.plain.push(c),
            None => {
                while self.cells.len() <= self.row {
                    self.cells.push(Vec::new());
                }
                let line = &mut self.cells[self.row];
                while line.len() <= self.column {
                    line.push(' ');
                }
                line[self.column] = c;
                self.column += 1;
            }
        }
    }

    fn act(&mut self, sequence: &str) {
        let (of, what) = sequence.split_at(sequence.len() - 1);
        let mut numbers = of.split(';').map(|number| number.parse().unwrap_or(1));
        let mut number = || numbers.next().unwrap_or(1_usize).max(1);
        match (what, of) {
            ("h", "?1049") => (self.alternate, self.taken, self.cells) = (true, self.taken + 1, Vec::new()),
            ("l", "?1049") => self.alternate = false,
            ("h", "?25") => self.hidden = false,
            ("l", "?25") => self.hidden = true,
            ("H", _) => (self.row, self.column) = (number() - 1, number() - 1),
            ("J", _) => self.cells.clear(),
            ("A", _) => self.row = self.row.saturating_sub(number()),
            ("B", _) => self.row += number(),
            ("C", _) => self.column += number(),
            ("D", _) => self.column = self.column.saturating_sub(number()),
            ("m", _) => {}
            other => panic!("this terminal does not know {other:?}"),
        }
    }

    fn screen(&self) -> String {
        let lines = self.cells.iter().map(|line| line.iter().collect::<String>());
        lines.map(|line| format!("{}\n", line.trim_end())).collect()
    }
}
