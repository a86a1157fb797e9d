//! What the screen looks like, as texts in `snapshots/`. `BLESS=1 cargo test -p keyward-screen` writes them anew; look at the difference.

use std::fs;
use std::path::PathBuf;

use base::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;
use serde_json::{Value, json};

use super::*;
use crate::state::{Holdings, Key};

const COLOR: Look = Look { color: true };
const PLAIN: Look = Look { color: false };

fn drawn(state: &State, (width, height): (u16, u16), look: Look) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, look)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let lines = buffer.content.chunks(width).map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Compares with the file of this name.
fn snapshot(name: &str, state: &State, size: (u16, u16)) {
    let got = text(&drawn(state, size, COLOR));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("snapshots").join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &got).unwrap();
    }
    let expect = fs::read_to_string(&path).unwrap_or_default();
    assert!(got == expect, "{name} differs; it is now\n{got}\nand was\n{expect}");
    assert_eq!(text(&drawn(state, size, PLAIN)), got, "colours change the text");
}

fn at(ms: u64) -> Timestamp {
    Timestamp(1_767_225_600_000_000 + ms * 1_000)
}

fn run(mut data: Value) -> Run {
    let common = json!({
        "run": "orders-db-4hXq0ZbK2p", "rotation": "orders-db", "opened": at(0).rfc3339(), "entered": at(900).rfc3339(),
        "old": { "generation": 5, "slot": "orders_a" }, "new": { "generation": 7, "slot": "orders_b" },
    });
    for (name, value) in common.as_object().unwrap() {
        data.as_object_mut().unwrap().entry(name).or_insert(value.clone());
    }
    Run::read(&data).unwrap()
}

fn begun(phases: &[&str]) -> Value {
    phases.iter().map(|phase| json!({ "phase": phase, "milliseconds": 120 })).collect()
}

const NAMES: [&str; 6] = ["billing-lib-1", "billing-lib-2", "checkout-file-1", "checkout-file-2", "shipping-env-1", "shipping-env-2"];

/// The demonstration in the middle of a run that waits for a stopped replica.
fn demo() -> State {
    let row = |n: usize, name: &str| {
        let n = u64::try_from(n).unwrap();
        let done = n != 2;
        Row {
            name: name.into(),
            holds: Some(if done { 7 } else { 5 }),
            level: if done { "L2" } else { "stop" }.into(),
            old: Some(if done { n % 2 } else { 8 }),
            new: Some(if done { 8 - n % 2 } else { 0 }),
            rate: Some(if done { 36.6 } else { 0.0 }),
            failed: Some(0),
            about: if done { String::new() } else { "stopped; continues in 24 s".into() },
            mood: if done { Mood::Plain } else { Mood::Waits },
        }
    };
    let usual = |n: usize, name: &str| Row {
        name: name.split('-').map(|part| if part.len() == 1 { part } else { part.split_at(part.len().min(8)).0 }).next().unwrap().into(),
        rate: Some(30.2),
        failed: Some(1_000 * u64::try_from(n).unwrap() + 7),
        ..Row::default()
    };
    let waits = json!([{ "who": "checkout-file-1", "why": { "not_acknowledged": { "generation": 7, "required": "L2" } } }]);
    let note = |at: &str, text: &str, mood| Note { at: at.into(), text: text.into(), mood };
    State {
        title: "Keyward demo".into(),
        facts: "same services, load and PostgreSQL, two ways to rotate".into(),
        shown_for: Duration::from_secs(83),
        now: at(4_300),
        main: Panel {
            title: "Keyward: two users, in turn".into(),
            footer: "3 rotations, 3 old passwords proven dead".into(),
            requests: Some(Requests { sent: 18_203, failed: 0 }),
            columns: vec![Column::Holds, Column::Level, Column::Old, Column::New, Column::Rate, Column::Failed, Column::About],
            rows: NAMES.iter().enumerate().map(|(n, name)| row(n, name)).collect(),
        },
        beside: Some(Panel {
            title: "Usual: changed in place".into(),
            footer: "4 rotations".into(),
            requests: Some(Requests { sent: 18_195, failed: 15_042 }),
            columns: vec![Column::Rate, Column::Failed],
            rows: NAMES.iter().enumerate().map(|(n, name)| usual(n, name)).collect(),
        }),
        run_title: "rotation 4: orders-db-4hXq0ZbK2p".into(),
        run: Some(run(json!({
            "phase": "rollout", "held": true, "waits_for": waits,
            "phases": begun(&["plan", "prepare", "set", "verify", "stage", "canary", "rollout"]),
        }))),
        hint: Note::default(),
        notes: vec![
            note("1:01.2", "rotation 3 is closed: the old password of orders_b is dead", Mood::Good),
            note("1:01.3", "tried it: PostgreSQL says 28P01, password authentication failed", Mood::Good),
            note("1:15.0", "you: stop checkout-file-1", Mood::Plain),
            note("1:18.7", "usual rotation: password 4 set in place", Mood::Plain),
            note("1:18.9", "usual rotation: billing fails: 500: PostgreSQL says 28P01", Mood::Bad),
            note("1:22.9", "held: the soft deadline has passed", Mood::Waits),
        ],
        keys: [
            ("r", "rotate now", false),
            ("k", "kill the server", false),
            ("s", "continue the replica", true),
            ("p", "poison the role", false),
            ("h", "hold delivery", false),
            ("d", "try the dead password", false),
            ("q", "end", false),
        ]
        .map(|(key, does, on)| Key { key, does: does.into(), on })
        .into(),
        selected: Some(2),
    }
}

/// A run on a server of somebody, as `lifecycle watch` shows it.
fn watched() -> State {
    let holdings: Holdings = serde_json::from_value(json!({ "generation": 5, "key_info": {
        "web-1": { "generation": 5, "level": "L2", "presence": "present" },
        "web-2": { "generation": 5, "level": "L2", "presence": "present" },
        "batch": { "generation": 5, "level": null, "presence": "away" },
    } }))
    .unwrap();
    let run = run(json!({
        "phase": "rollback_republish",
        "phases": begun(&["plan", "prepare", "set", "verify", "stage", "canary", "rollback_check", "rollback_republish"]),
        "consumers": {
            "web-1": { "presence": "present", "holds": 5, "refused": { "generation": 7, "reason": "25006: cannot execute INSERT" } },
            "web-2": { "presence": "present", "holds": 5, "canary": true },
            "batch": { "presence": "lapsed", "holds": 5 },
        },
        "waits_for": [{ "who": "batch", "why": "lapsed" }],
        "cause": { "refused": { "instance": "web-1", "reason": "25006: cannot execute INSERT" } },
    }));
    State {
        title: "orders-db".into(),
        facts: "at http://127.0.0.1:8200".into(),
        now: at(2_000),
        main: Panel {
            title: "consumers".into(),
            columns: vec![Column::Holds, Column::Level, Column::About],
            rows: NAMES
                .iter()
                .chain(&["batch", "web-1", "web-2"])
                .map(|name| Row::known(name, holdings.key_info.get(*name), Some(&run)))
                .collect(),
            ..Panel::default()
        },
        run_title: format!("run {}", run.run),
        run: Some(run),
        keys: vec![Key { key: "q", does: "leave; the run goes on".into(), on: false }],
        ..State::default()
    }
}

#[test]
fn the_demonstration_at_80x24_and_120x40() {
    snapshot("demo-80x24", &demo(), (80, 24));
    snapshot("demo-120x40", &demo(), (120, 40));
}

#[test]
fn a_watched_run_at_80x24_and_120x40() {
    snapshot("watch-80x24", &watched(), (80, 24));
    snapshot("watch-120x40", &watched(), (120, 40));
}

#[test]
fn every_size_is_drawn() {
    for state in [demo(), watched(), State::default()] {
        for width in (1..=200).step_by(7).chain([59, 60, 61, 79, 80]) {
            for height in (1..=60).step_by(5).chain([15, 16, 17, 24]) {
                drawn(&state, (width, height), COLOR);
            }
        }
    }
    assert!(text(&drawn(&demo(), (40, 10), COLOR)).contains("needs 60x16"));
    // At the smallest size the verdicts, the bar and the way out are still there.
    let small = text(&drawn(&demo(), (60, 16), COLOR));
    for word in ["0 of 18,203", "15,042 of", "[rollout]", "q end"] {
        assert!(small.contains(word), "{word}:\n{small}");
    }
}

#[test]
fn those_who_are_waited_for_are_seen_first_where_not_all_fit() {
    let mut state = watched();
    let web = |n: usize| Row { name: format!("web-{n:03}"), ..Row::default() };
    state.main.rows = (0..100).map(web).collect();
    state.main.rows.push(Row { name: "zz-last".into(), mood: Mood::Waits, ..Row::default() });
    let shown = text(&drawn(&state, (80, 24), COLOR));
    assert!(shown.contains("zz-last") && shown.contains("web-000") && !shown.contains("web-050"), "{shown}");
    assert!(shown.contains("and 91 more"), "{shown}");
}

#[test]
fn colours_tell_who_fails_and_can_be_left_out() {
    let colours = |look| -> Vec<(Color, Color)> {
        drawn(&demo(), (80, 24), look)
            .content
            .iter()
            .map(|cell| (cell.fg, cell.bg))
            .filter(|c| *c != (Color::Reset, Color::Reset))
            .collect()
    };
    let seen = colours(COLOR);
    assert!(seen.iter().any(|(_, bg)| *bg == Color::Red) && seen.iter().any(|(_, bg)| *bg == Color::Green));
    assert_eq!(colours(PLAIN), []);
    let look = |no_color: Option<&str>| Look::of(no_color.map(std::ffi::OsStr::new)).color;
    assert_eq!([look(None), look(Some("")), look(Some("1")), look(Some("0"))], [true, true, false, false]);
}

#[test]
fn the_bar_tells_the_way() {
    let shown = |data: Value| bar(&run(data), COLOR).spans.iter().map(|span| span.content.as_ref()).collect::<String>();
    for (phase, phases, old, expect) in [
        ("plan", &["plan"][..], true, " [plan]-prepare-set-verify-stage-canary-rollout-drain-revoke-prove"),
        ("plan", &[], true, " [plan]-prepare-set-verify-stage-canary-rollout-drain-revoke-prove"),
        ("drain", &["plan", "rollout", "drain"], true, " plan=rollout=[drain]-revoke-prove"),
        ("verify", &["plan", "verify"], false, " plan=[verify]-rollout"),
        ("closed", &["plan", "prove", "closed"], true, " plan=prove"),
        ("rollback_drain", &["canary", "rollback_check", "rollback_drain"], true, " canary<<check=[drain]-revoke-prove"),
        ("undo", &["set", "undo"], true, " set<<[undo]"),
        ("new_phase", &["set", "new_phase"], true, " set=[new_phase]"),
    ] {
        let old = if old { json!({ "generation": 5, "slot": "a" }) } else { Value::Null };
        assert_eq!(shown(json!({ "phase": phase, "phases": begun(phases), "old": old })), expect);
    }
}

#[test]
fn a_long_note_goes_on_in_the_next_line_where_there_is_room() {
    let note = Note { at: "1:00.0".into(), text: "the reason stands at the end of what was said".into(), mood: Mood::Bad };
    let lines = |width, most| -> Vec<String> {
        told(&note, width, most, COLOR).iter().map(|line| line.spans.iter().map(|span| span.content.as_ref()).collect()).collect()
    };
    assert_eq!(lines(80, 2), ["  1:00.0  the reason stands at the end of what was said"]);
    assert_eq!(lines(40, 2), ["  1:00.0  the reason stands at the end", "          of what was said"]);
    assert_eq!(lines(40, 1), ["  1:00.0  the reason stands at the end of what was said"]);
    let odd = Note { text: "ü".repeat(50), ..note.clone() };
    assert_eq!(told(&odd, 40, 2, COLOR).len(), 2, "a word without an end");
    let mut state = demo();
    state.notes.push(Note { text: "word ".repeat(40), ..note });
    let shown = text(&drawn(&state, (120, 40), COLOR));
    assert!(shown.contains("\n          word word"), "{shown}");
}

#[test]
fn an_emergency_is_seen() {
    let mut state = watched();
    let urgent = json!({ "declared": at(0).rfc3339(), "reason": "leaked in a log" });
    state.run = Some(run(json!({ "phase": "rollout", "phases": begun(&["plan", "verify", "rollout"]), "emergency": urgent })));
    let shown = text(&drawn(&state, (80, 24), COLOR));
    for part in ["  EMERGENCY: leaked in a log ", " plan=verify=[rollout]-revoke-prove\n", " EMERGENCY since 2.0 s, rollout for 1.1 s: "] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
}

#[test]
fn numbers_are_read_at_a_glance() {
    for (number, expect) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), expect);
    }
    assert_eq!(clock(Duration::from_secs(3_723)), "62:03");
    assert_eq!([clipped("abc", 3), clipped("abcd", 3)], ["abc", "ab~"]);
}
