//! Runs and holdings as people read them; everything is in `-format=json`.

use std::fmt::Write as _;

use screen::{laggard, one_line};
use serde_json::{Map, Value};

use super::output;
pub(super) use screen::cause;

/// Characters of a cell with a sentence at most.
const CELL_MAX: usize = 80;

/// A run: what is simple in two columns, then a line for each phase, consumer, laggard and fact.
pub(super) fn run(data: &Map<String, Value>) -> String {
    let mut simple = data.clone();
    let mut take = |name: &str| simple.remove(name).unwrap_or_default();
    let (waits, consumers, phases, evidence) = (take("waits_for"), take("consumers"), take("phases"), take("evidence"));
    let (cause, death) = (take("cause"), take("death"));
    simple.retain(|_, value| !value.is_null());
    for version in ["old", "new"] {
        if let Some(value) = simple.get_mut(version) {
            *value = format!("generation {} in slot {}", part(value, "generation"), part(value, "slot")).into();
        }
    }
    if !cause.is_null() {
        simple.insert("cause".to_owned(), self::cause(&cause).into());
    }
    let rows: Vec<_> = output::rows(&simple).into_iter().map(|(name, value)| (name, one_line(&value))).collect();
    let mut shown = output::table(&rows);
    let section = |shown: &mut String, title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _infallible = write!(shown, "\n{title}\n");
            lines.iter().for_each(|line| {
                let _infallible = writeln!(shown, "  {}", one_line(line));
            });
        }
    };
    let each = |all: &Value, line: &dyn Fn(&Value) -> String| all.as_array().into_iter().flatten().map(line).collect::<Vec<_>>();
    section(&mut shown, "Waits for", each(&waits, &laggard));
    let phase = |phase: &Value| {
        let took = phase.get("milliseconds").and_then(Value::as_u64).map(|ms| format!(" ({ms} ms)")).unwrap_or_default();
        format!("{}  {}{took}", text(phase, "at"), text(phase, "phase"))
    };
    section(&mut shown, "Phases", each(&phases, &phase));
    let consumers = consumers.as_object().into_iter().flatten().map(|(name, about)| format!("{name}: {}", members(about)));
    section(&mut shown, "Consumers", consumers.collect());
    section(&mut shown, "Death of the old value", if death.is_null() { Vec::new() } else { vec![members(&death)] });
    let fact = |fact: &Value| {
        let (kind, about) = kind(fact.get("found").unwrap_or(&Value::Null));
        let about = match kind {
            "turned_back" => self::cause(about.get("cause").unwrap_or(&Value::Null)),
            _ => members(about),
        };
        let colon = if about.is_empty() { "" } else { ": " };
        format!("{}  {}  {}{colon}{about}", text(fact, "at"), text(fact, "phase"), kind.replace('_', " "))
    };
    section(&mut shown, "Evidence", each(&evidence, &fact));
    shown
}

/// What an emergency would do, as it is shown before it begins.
pub(super) fn emergency(data: &Value) -> String {
    let mut shown = format!(
        "This revokes generation {} in slot {} at {} and ends every session on it.",
        part(data.get("dies").unwrap_or(&Value::Null), "generation"),
        part(data.get("dies").unwrap_or(&Value::Null), "slot"),
        text(data, "target"),
    );
    if let Some(run) = data.get("open_run").and_then(Value::as_str) {
        let _infallible = write!(shown, "\nRun {} is open and is taken over.", one_line(run));
    }
    let list = |name: &str| data.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let _infallible = write!(shown, "\n{} consumers get the new value first.", list("ready").len());
    for risk in list("at_risk") {
        let _infallible = write!(shown, "\n  {} may break: {}", one_line(text(risk, "instance")), one_line(text(risk, "reason")));
    }
    let _infallible = write!(shown, "\nBeside them: {}.", one_line(text(data, "not_known")));
    shown
}

/// The end of an emergency.
pub(super) fn dead(run: &Value, milliseconds: u64) -> String {
    let seconds = std::time::Duration::from_millis(milliseconds).as_secs_f64();
    let mut shown = format!("The old value is proven dead {seconds:.1} s after the declaration.");
    let behind = run.pointer("/emergency/behind").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for laggard in behind {
        let _infallible = write!(shown, "\n  left behind: {}", one_line(&self::laggard(laggard)));
    }
    shown
}

/// Holdings: the rotation in two columns, then a line for each instance.
pub(super) fn holdings(data: &Map<String, Value>) -> String {
    let mut simple = data.clone();
    simple.remove("keys");
    let info = simple.remove("key_info").unwrap_or_default();
    simple.retain(|_, value| !value.is_null());
    let mut shown = output::table(&output::rows(&simple));
    shown.push_str("\nInstances\n");
    for (name, about) in info.as_object().into_iter().flatten() {
        let _infallible = writeln!(shown, "  {}", one_line(&format!("{name}: {}", members(about))));
    }
    if info.as_object().is_none_or(Map::is_empty) {
        shown.push_str("  none\n");
    }
    shown
}

/// The members that say something, in one line: `presence present, generation 3`.
fn members(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Object(all) => {
            let says =
                |value: &Value| !value.is_null() && *value != Value::Bool(false) && value.as_array().is_none_or(|all| !all.is_empty());
            let mut lines: Vec<_> = all.iter().filter(|(_, value)| says(value)).map(|(name, value)| member(name, value)).collect();
            lines.sort();
            lines.join(", ")
        }
        Value::Array(all) => all.iter().map(members).collect::<Vec<_>>().join(" and "),
        simple => output::shown(simple),
    }
}

fn member(name: &str, value: &Value) -> String {
    let name = name.replace('_', " ");
    match value {
        Value::Bool(_) => name,
        Value::Object(_) => format!("{name} ({})", members(value)),
        _ => format!("{name} {}", members(value)),
    }
}

fn part(value: &Value, name: &str) -> String {
    value.get(name).map(output::shown).unwrap_or_default()
}

/// A cell of the list of runs.
pub(super) fn cell(column: &str, run: &Value) -> String {
    let value = run.get(column).unwrap_or(&Value::Null);
    let text = match column {
        "waits_for" => waiting(run),
        "cause" => cause(value),
        _ if value.is_null() => return String::new(),
        _ => return output::shown(value),
    };
    if text.chars().nth(CELL_MAX).is_some() { text.chars().take(CELL_MAX - 1).chain(['…']).collect() } else { text }
}

/// A text member; empty when there is none.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// What a run waits for: an operator when it is parked, otherwise those who keep it.
pub(super) fn waiting(run: &Value) -> String {
    match run.get("parked").and_then(Value::as_str) {
        Some(why) => format!("an operator: {}", one_line(why)),
        None => run.get("waits_for").map(waits_for).unwrap_or_default(),
    }
}

/// Those a run waits for, and why, as a sentence; nothing when it waits for nobody. What is not known is shown as it came.
pub(super) fn waits_for(all: &Value) -> String {
    all.as_array().map(|all| screen::waits_for(all)).unwrap_or_default()
}

/// The name of a variant and what it holds.
fn kind(value: &Value) -> (&str, &Value) {
    let only = value.as_object().and_then(|members| members.iter().next());
    only.map_or((value.as_str().unwrap_or_default(), &Value::Null), |(name, about)| (name.as_str(), about))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_who_are_waited_for_and_causes_are_sentences() {
        let all = json!([
            {"who": "oldprog", "why": {"sessions": {"slot": "orders_a", "count": 1}}},
            {"who": "web-1", "why": {"not_acknowledged": {"generation": 3, "required": "L2"}}},
            {"who": "web-2", "why": "lapsed"},
            {"who": "web-3", "why": {"refused": {"reason": "no\nlogin"}}},
            {"who": "target", "why": {"target": {"reason": "unreachable"}}},
        ]);
        assert_eq!(
            waits_for(&all),
            "oldprog: 1 session on slot orders_a; web-1: has not acknowledged generation 3 at L2; web-2: its stream is gone, and it is not \
             proven to be gone itself; web-3: refused: no login; target: unreachable"
        );
        assert_eq!(waits_for(&json!([])), "");
        for (value, said) in [
            (json!({"refused": {"instance": "web-1", "reason": "no\nlogin\u{1b}"}}), "web-1 refused: no login "),
            (json!({"deadline": {"phase": "drain"}}), "the hard deadline of `drain` passed"),
            (json!({"operator": {"by": "root", "reason": ""}}), "root asked"),
            (json!({"operator": {"by": "root", "reason": "wrong"}}), "root asked: wrong"),
            (json!({"target": {"reason": "unreachable"}}), "target: unreachable"),
            (Value::Null, ""),
        ] {
            assert_eq!(cause(&value), said);
        }
        let row = json!({
            "cause": {"target": {"reason": "x".repeat(500)}}, "verdict": null, "phase": "drain", "waits_for": all, "parked": "still\nworks",
        });
        assert_eq!(cell("cause", &row).chars().count(), CELL_MAX);
        assert_eq!([cell("verdict", &row), cell("phase", &row), cell("owner", &row)], ["", "drain", ""]);
        assert_eq!(cell("waits_for", &row), "an operator: still works", "others do not help it");
        assert_eq!(
            cell("waits_for", &json!({"waits_for": [{"who": "web-2", "why": "lapsed"}], "parked": null})).split(':').next(),
            Some("web-2")
        );
    }

    #[test]
    fn a_run_is_lines() {
        let Value::Object(data) = json!({
            "run": "p-1", "old": null, "new": {"generation": 2, "slot": "orders_b"}, "verdict": null, "cause": null, "death": null,
            "waits_for": [{"who": "oldprog", "why": {"sessions": {"slot": "orders_a", "count": 2}}}],
            "phases": [{"phase": "plan", "at": "T1", "milliseconds": 7}, {"phase": "drain", "at": "T2", "milliseconds": null}],
            "consumers": {"web-1": {"presence": "present", "acknowledged": {"generation": 2, "level": "L2"}, "canary": true, "refused": null}},
            "evidence": [
                {"at": "T1", "phase": "plan", "found": "entered"},
                {"at": "T2", "phase": "drain", "found": {"sessions": {"slot": "orders_a", "count": 2}}},
                {"at": "T3", "phase": "drain", "found": {"turned_back": {"cause": {"deadline": {"phase": "drain"}}}}},
            ],
        }) else {
            panic!("not an object")
        };
        assert_eq!(
            run(&data),
            "Key    Value\n---    -----\nnew    generation 2 in slot orders_b\nrun    p-1\n\
             \nWaits for\n  oldprog: 2 sessions on slot orders_a\n\
             \nPhases\n  T1  plan (7 ms)\n  T2  drain\n\
             \nConsumers\n  web-1: acknowledged (generation 2, level L2), canary, presence present\n\
             \nEvidence\n  T1  plan  entered\n  T2  drain  sessions: count 2, slot orders_a\n\
             \x20 T3  drain  turned back: the hard deadline of `drain` passed\n"
        );
    }

    #[test]
    fn holdings_are_lines() {
        let Value::Object(data) = json!({
            "keys": ["web-1"], "generation": 2, "open_run": null,
            "key_info": {"web-1": {"presence": "present", "generation": 2, "offered": [], "refused": {"generation": 3, "reason": "no\nlogin"}}},
        }) else {
            panic!("not an object")
        };
        assert_eq!(
            holdings(&data),
            "Key           Value\n---           -----\ngeneration    2\n\
             \nInstances\n  web-1: generation 2, presence present, refused (generation 3, reason no login)\n"
        );
    }
}
