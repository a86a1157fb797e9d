//! What the screen shows, as plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Timestamp;
use serde::Deserialize;

use crate::run::{Consumer, Evidence, Refused, Run};
use crate::say;

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What this is.
    pub title: String,
    /// What stands beside the title.
    pub facts: String,
    /// How long it has been shown.
    pub shown_for: Duration,
    /// The time by which the run's times are read.
    pub now: Timestamp,
    /// The consumers of the rotation.
    pub main: Panel,
    /// Those of another way to rotate, beside them.
    pub beside: Option<Panel>,
    /// What the run is called.
    pub run_title: String,
    /// The run that is open, or the one that was open last.
    pub run: Option<Run>,
    /// What is worth a line below the run, when it waits for nobody.
    pub hint: Note,
    /// What happened, the newest last.
    pub notes: Vec<Note>,
    /// Keys and what they do.
    pub keys: Vec<Key>,
    /// The row that keys are about.
    pub selected: Option<usize>,
}

/// A table of replicas.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Its heading.
    pub title: String,
    /// What stands in its lower border.
    pub footer: String,
    /// Requests to all of them, when they are counted.
    pub requests: Option<Requests>,
    /// Which columns it has, beside the name.
    pub columns: Vec<Column>,
    /// One for each replica.
    pub rows: Vec<Row>,
}

/// Requests that were answered or have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Those that were sent.
    pub sent: u64,
    /// Those that failed.
    pub failed: u64,
}

/// A column beside the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The generation of the value that it holds.
    Holds,
    /// How far it is proven to use it.
    Level,
    /// Sessions with the old value.
    Old,
    /// Sessions with the new value.
    New,
    /// Requests answered in a second.
    Rate,
    /// Requests that failed.
    Failed,
    /// What is special about it; takes the room that is left.
    About,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The generation of the value that it holds.
    pub holds: Option<u64>,
    /// How far it is proven to use it, or what stands in the way, in five letters.
    pub level: String,
    /// Sessions with the old value.
    pub old: Option<u64>,
    /// Sessions with the new value.
    pub new: Option<u64>,
    /// Requests answered in a second.
    pub rate: Option<f64>,
    /// Requests that failed.
    pub failed: Option<u64>,
    /// What is special about it.
    pub about: String,
    /// How it is.
    pub mood: Mood,
}

/// How something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// As ever.
    #[default]
    Plain,
    /// Good news.
    Good,
    /// Somebody is waited for.
    Waits,
    /// Bad news.
    Bad,
}

/// A line about something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When.
    pub at: String,
    /// What.
    pub text: String,
    /// What kind of news it is.
    pub mood: Mood,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What is pressed.
    pub key: &'static str,
    /// What it does.
    pub does: String,
    /// What it did is still in force.
    pub on: bool,
}

/// The answer of `holdings/:rotation`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Holdings {
    /// The generation in force.
    pub generation: Option<u64>,
    /// The run that is open.
    pub open_run: Option<String>,
    /// By instance.
    pub key_info: BTreeMap<String, Holding>,
}

/// What one instance is known to have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Holding {
    /// The generation.
    pub generation: Option<u64>,
    /// How far.
    pub level: Option<String>,
    /// `present`, `away`, `lapsed`.
    pub presence: Option<String>,
    /// What it refused.
    pub refused: Option<Refused>,
}

impl Note {
    /// What a run has found out, so many milliseconds after it was opened.
    #[must_use]
    pub fn of(ms: u64, evidence: &Evidence) -> Self {
        let at = format!("{:.2} s", Duration::from_millis(ms).as_secs_f64());
        let mood = match say::kind(&evidence.found).0 {
            "dead" => Mood::Good,
            "refused" | "parked" | "emergency" | "left_behind" => Mood::Bad,
            "held" | "trouble" | "turned_back" | "lapsed" | "dismissed" => Mood::Waits,
            _ => Mood::Plain,
        };
        Self { at, text: evidence.sentence(), mood }
    }
}

impl Row {
    /// What the server knows of one instance: by the table of holdings, and by the open run.
    #[must_use]
    pub fn known(name: &str, holding: Option<&Holding>, run: Option<&Run>) -> Self {
        let run = run.filter(|run| !run.is_closed());
        let consumer = run.and_then(|run| run.consumers.get(name));
        let acknowledged = consumer.and_then(|c| c.acknowledged.as_ref());
        let holds = acknowledged.map(|a| a.generation).or(holding.and_then(|h| h.generation)).or(consumer.and_then(|c| c.holds));
        let level = match acknowledged {
            Some(acknowledged) => Some(acknowledged.level.clone()),
            None => holding.and_then(|h| h.level.clone()),
        };
        let new = run.and_then(|run| run.new.as_ref()).map(|new| new.generation);
        let refused = consumer.and_then(|c| c.refused.as_ref()).filter(|refused| Some(refused.generation) == new);
        let presence = match consumer {
            Some(consumer) => consumer.presence.as_str(),
            None => holding.and_then(|h| h.presence.as_deref()).unwrap_or_default(),
        };
        let ready = holds != new && consumer.is_some_and(|c| c.standby.is_some() && c.standby == new);
        let level = match presence {
            _ if refused.is_some() => "NACK".to_owned(),
            "lapsed" => "gone?".to_owned(),
            "left" => "left".to_owned(),
            _ if ready => "ready".to_owned(),
            _ => level.unwrap_or_else(|| "-".to_owned()),
        };
        let (about, mood) = about(name, consumer, presence, run);
        Self { name: name.to_owned(), holds, level, about, mood, ..Self::default() }
    }
}

fn about(name: &str, consumer: Option<&Consumer>, presence: &str, run: Option<&Run>) -> (String, Mood) {
    let laggard = run.and_then(|run| run.waits_for.iter().find(|one| one.get("who").is_some_and(|who| who == name)));
    if let Some(laggard) = laggard {
        let said = say::laggard(laggard);
        let said = said.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&said).to_owned();
        let refused = laggard.pointer("/why/refused").is_some();
        return (said, if refused { Mood::Bad } else { Mood::Waits });
    }
    match consumer.and_then(|c| c.refused.as_ref()) {
        Some(refused) => (format!("refused generation {}: {}", refused.generation, say::one_line(&refused.reason)), Mood::Bad),
        None if consumer.is_some_and(|c| c.canary) => ("goes first".to_owned(), Mood::Plain),
        None if presence == "present" => (String::new(), Mood::Plain),
        None => (presence.to_owned(), Mood::Plain),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_what_the_server_knows() {
        let holdings: Holdings = serde_json::from_value(json!({
            "generation": 3, "open_run": "r-1", "keys": ["a", "b"],
            "key_info": {
                "a": { "principal": "approle/a", "generation": 3, "level": "L2", "presence": "present", "offered": [], "refused": null },
                "b": { "generation": null, "level": null, "presence": "away" },
            },
        }))
        .unwrap();
        let row = |name: &str, run: Option<&Run>| {
            let row = Row::known(name, holdings.key_info.get(name), run);
            (row.holds, row.level, row.about, row.mood)
        };
        assert_eq!(row("a", None), (Some(3), "L2".into(), String::new(), Mood::Plain));
        assert_eq!(row("b", None), (None, "-".into(), "away".into(), Mood::Plain));
        assert_eq!(row("c", None), (None, "-".into(), String::new(), Mood::Plain));

        let run = |phase: &str, consumer: serde_json::Value, waits: serde_json::Value| {
            let data =
                json!({ "phase": phase, "new": { "generation": 5, "slot": "x" }, "consumers": { "a": consumer }, "waits_for": waits });
            Run::read(&data).unwrap()
        };
        let staged = run("stage", json!({ "presence": "present", "holds": 3, "standby": 5 }), json!([]));
        assert_eq!(row("a", Some(&staged)), (Some(3), "ready".into(), String::new(), Mood::Plain));
        let using =
            json!({ "presence": "present", "holds": 5, "standby": 5, "acknowledged": { "generation": 5, "level": "L2" }, "canary": true });
        assert_eq!(row("a", Some(&run("canary", using, json!([])))), (Some(5), "L2".into(), "goes first".into(), Mood::Plain));
        let missing = json!([{ "who": "a", "why": { "not_acknowledged": { "generation": 5, "required": "L2" } } }]);
        let behind = run("rollout", json!({ "presence": "present", "holds": 3 }), missing);
        assert_eq!(row("a", Some(&behind)), (Some(3), "L2".into(), "has not acknowledged generation 5 at L2".into(), Mood::Waits));
        let refusing = json!({ "presence": "present", "holds": 3, "refused": { "generation": 5, "reason": "read-only" } });
        let refused = run("rollback_check", refusing.clone(), json!([]));
        assert_eq!(row("a", Some(&refused)), (Some(3), "NACK".into(), "refused generation 5: read-only".into(), Mood::Bad));
        // A run that is over says nothing about now.
        assert_eq!(row("a", Some(&run("closed", refusing, json!([])))).1, "L2");
        let lapsed = run("rollout", json!({ "presence": "lapsed" }), json!([{ "who": "a", "why": "lapsed" }]));
        assert_eq!(row("a", Some(&lapsed)).1, "gone?");
    }
}
