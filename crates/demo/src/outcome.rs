//! The four lines that the demonstration ends with.

use std::path::{Path, PathBuf};

use crate::load::Tally;
use crate::usual::Shown;

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) usual: Side,
    pub(crate) keyward: Side,
    /// Rotations that went back by themselves.
    pub(crate) rolled_back: u64,
    /// One more had not ended.
    pub(crate) is_open: bool,
    /// Passwords that are proven dead.
    pub(crate) dead: u64,
    pub(crate) proof: Option<Proof>,
}

/// Requests to one side, and how often its password was rotated meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) rotations: u64,
}

/// The exported audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) directory: PathBuf,
    pub(crate) entries: u64,
    pub(crate) verified: bool,
    pub(crate) checker: PathBuf,
}

impl Side {
    pub(crate) fn of(tally: &Tally, rotations: u64) -> Self {
        Self { sent: tally.sent, failed: tally.failed, rotations }
    }

    pub(crate) fn usual(shown: &Shown) -> Self {
        Self::of(&shown.tally, shown.changes)
    }
}

impl Outcome {
    /// The lines.
    pub(crate) fn lines(&self) -> [String; 4] {
        let Self { usual, keyward, rolled_back, is_open, dead, proof } = self;
        let back = if *rolled_back > 0 { format!(" and {rolled_back} rolled back") } else { String::new() };
        let open = if *is_open { "; one more had not ended" } else { "" };
        let proof = match proof {
            None => "none was exported".to_owned(),
            Some(Proof { directory, entries, verified, checker }) => {
                let verified = if *verified { "verified" } else { "NOT intact" };
                format!("{entries} entries, {verified}; check: {} {}", near(checker).display(), directory.display())
            }
        };
        [
            format!("Usual rotation: failed {} of {} requests in {} of one user", usual.failed, usual.sent, times(usual.rotations)),
            format!("Keyward:        failed {} of {} requests in {}{back}{open}", keyward.failed, keyward.sent, times(keyward.rotations)),
            match dead {
                0 => "Proven dead:    no password yet".to_owned(),
                1 => "Proven dead:    1 password, refused as wrong; the demonstration tried it".to_owned(),
                _ => format!("Proven dead:    {dead} passwords, refused as wrong; the demonstration tried them"),
            },
            format!("Proof:          {proof}"),
        ]
    }
}

fn times(number: u64) -> String {
    if number == 1 { "1 rotation".to_owned() } else { format!("{number} rotations") }
}

/// A program as one would type it from here.
fn near(program: &Path) -> &Path {
    let here = std::env::current_dir().ok();
    here.and_then(|here| program.strip_prefix(here).ok()).unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_four_lines() {
        let proof = Proof { directory: "/tmp/p".into(), entries: 77, verified: true, checker: "/opt/keyward-verify".into() };
        let side = |sent, failed, rotations| Side { sent, failed, rotations };
        let good =
            Outcome { usual: side(9_000, 412, 2), keyward: side(9_100, 0, 7), rolled_back: 1, is_open: false, dead: 8, proof: Some(proof) };
        assert_eq!(
            good.lines().join("\n"),
            "Usual rotation: failed 412 of 9000 requests in 2 rotations of one user\n\
             Keyward:        failed 0 of 9100 requests in 7 rotations and 1 rolled back\n\
             Proven dead:    8 passwords, refused as wrong; the demonstration tried them\n\
             Proof:          77 entries, verified; check: /opt/keyward-verify /tmp/p"
        );
        let early = Outcome { dead: 1, is_open: true, keyward: side(3, 1, 1), ..Outcome::default() }.lines();
        assert_eq!(
            early[1..],
            [
                "Keyward:        failed 1 of 3 requests in 1 rotation; one more had not ended",
                "Proven dead:    1 password, refused as wrong; the demonstration tried it",
                "Proof:          none was exported",
            ]
        );
    }
}
