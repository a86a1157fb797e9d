//! The terminal after a panic: as it was before, with the panic's words on it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use screen::{Look, Screen, State};

/// Set where this test is the program at the terminal.
const CHILD: &str = "SCREEN_TEST_CHILD";

#[test]
fn a_panic_puts_the_terminal_back_before_it_speaks() {
    if let Ok(where_to) = std::env::var(CHILD) {
        let mut screen = Screen::open(Look { color: true }).unwrap();
        screen.draw(&State::default()).unwrap();
        let fails = || panic!("this is the panic");
        if where_to == "elsewhere" {
            // A panic that is caught has put the terminal back as well: nothing is drawn over its words.
            std::thread::spawn(fails).join().unwrap_err();
            assert!(screen.draw(&State::default()).is_err());
            return;
        }
        fails();
    }
    for where_to in ["here", "elsewhere"] {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let terminal = File::options().read(true).write(true).custom_flags(flags).open(name.to_str().unwrap()).unwrap();
        tcsetwinsize(&controller, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        let before = modes(&tcgetattr(&terminal).unwrap());
        let end = || terminal.try_clone().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_panic_puts_the_terminal_back_before_it_speaks", "--nocapture"]).env(CHILD, where_to);
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop(command);
        let reading = std::thread::spawn(move || {
            let mut controller = File::from(controller);
            let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
            // Ends when the last one that has the terminal open is gone.
            while let Ok(read) = controller.read(&mut bytes) {
                seen.extend_from_slice(bytes.get(..read).unwrap());
            }
            String::from_utf8(seen).unwrap()
        });
        let status = child.wait().unwrap();
        let after = modes(&tcgetattr(&terminal).unwrap());
        drop(terminal);
        let seen = reading.join().unwrap();
        let at = |what: &str| seen.find(what).unwrap_or_else(|| panic!("no {what:?} in {seen:?}"));
        assert_eq!(status.success(), where_to == "elsewhere", "{seen}");
        assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l") && at("\u{1b}[?1049l") < at("this is the panic"), "{seen:?}");
        assert!(seen.rfind("\u{1b}[?25h") > seen.rfind("\u{1b}[?25l"), "{seen:?}");
        assert_eq!(after, before);
    }
}
