//! A run as the API shows it (`docs/lifecycle.md`). What is absent or unknown is left out, so that an older or newer server can be watched.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::say;

/// More than this who lack the same are counted and not named, where there is little room.
const SHORT: usize = 3;

/// One run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub run: String,
    /// The rotation that it belongs to.
    #[serde(alias = "policy", deserialize_with = "or_default")]
    pub rotation: String,
    /// Where it is.
    #[serde(deserialize_with = "or_default")]
    pub phase: String,
    /// Since when it is there.
    #[serde(deserialize_with = "time")]
    pub entered: Option<Timestamp>,
    /// When it was opened.
    #[serde(deserialize_with = "time")]
    pub opened: Option<Timestamp>,
    /// Why it was opened.
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
    /// When it was closed.
    #[serde(deserialize_with = "time")]
    pub closed: Option<Timestamp>,
    /// How it ended.
    pub verdict: Option<String>,
    /// It has passed the soft deadline of its phase.
    #[serde(deserialize_with = "or_default")]
    pub held: bool,
    /// Whom it waits for, and why.
    #[serde(deserialize_with = "or_default")]
    pub waits_for: Vec<Value>,
    /// It waits for an operator, and why.
    pub parked: Option<String>,
    /// What failed last in this phase.
    pub trouble: Option<String>,
    /// Why it turned back or stopped.
    pub cause: Value,
    /// The death of the value that was to die is proven.
    #[serde(deserialize_with = "or_default")]
    pub death_proven: bool,
    /// The value in force is known to somebody who should not have it.
    pub emergency: Option<Emergency>,
    /// What nobody proved before the run was closed by hand, a sentence each.
    #[serde(deserialize_with = "or_default")]
    pub unproven: Vec<String>,
    /// The value in force before; nothing on a first run.
    pub old: Option<Version>,
    /// The new value.
    pub new: Option<Version>,
    /// What is known of each instance.
    #[serde(deserialize_with = "or_default")]
    pub consumers: BTreeMap<String, Consumer>,
    /// Each phase that began.
    #[serde(deserialize_with = "or_default")]
    pub phases: Vec<Begun>,
    /// What was found out, in order.
    #[serde(deserialize_with = "or_default")]
    pub evidence: Vec<Evidence>,
}

/// An emergency: the old value is revoked as soon as the new one is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Emergency {
    /// When it was declared.
    #[serde(deserialize_with = "time")]
    pub declared: Option<Timestamp>,
    /// Why.
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
    /// From the declaration to the proof of death.
    pub dead_after_milliseconds: Option<u64>,
}

/// A value and where it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Its delivery number.
    pub generation: u64,
    /// The role at the target.
    pub slot: String,
}

/// One instance as a run knows it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Consumer {
    /// `present`, `lapsed`, `left`.
    #[serde(deserialize_with = "or_default")]
    pub presence: String,
    /// The generation that it said it holds, or proved to.
    pub holds: Option<u64>,
    /// The highest generation that it acknowledged for use, and how far.
    pub acknowledged: Option<Acknowledged>,
    /// The generation that it has ready.
    pub standby: Option<u64>,
    /// What it refused.
    pub refused: Option<Refused>,
    /// It goes first.
    #[serde(deserialize_with = "or_default")]
    pub canary: bool,
}

/// How far a consumer has taken a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Acknowledged {
    /// The generation.
    pub generation: u64,
    /// `L1`, `L2`.
    pub level: String,
}

/// A refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// The generation.
    pub generation: u64,
    /// What the consumer said.
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
}

/// A phase that began.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Begun {
    /// Which.
    pub phase: String,
    /// How long it took, once it is over.
    pub milliseconds: Option<u64>,
}

/// What was found out, and when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// When.
    #[serde(deserialize_with = "time")]
    pub at: Option<Timestamp>,
    /// In which phase.
    pub phase: String,
    /// What.
    pub found: Value,
}

impl Run {
    /// Reads the `data` of `runs/:id`.
    ///
    /// # Errors
    /// It is not a run.
    pub fn read(data: &Value) -> serde_json::Result<Self> {
        Self::deserialize(data)
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == "closed"
    }

    /// Whether somebody has to be waited for longer than usual.
    #[must_use]
    pub fn stands(&self) -> bool {
        !self.is_closed() && (self.held || self.parked.is_some())
    }

    /// Whom it waits for, as a sentence; an operator when it is parked.
    #[must_use]
    pub fn waits(&self) -> String {
        match &self.parked {
            Some(why) => format!("an operator: {}", say::one_line(why)),
            None => say::waits_for(&self.waits_for),
        }
    }

    /// The same in fewer words: those who lack the same are named together.
    #[must_use]
    pub fn waits_in_short(&self) -> String {
        if self.parked.is_some() {
            return self.waits();
        }
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for laggard in &self.waits_for {
            let who = laggard.get("who").and_then(Value::as_str).unwrap_or_default();
            let (said, start) = (say::laggard(laggard), format!("{who}: "));
            let why = said.strip_prefix(&start).unwrap_or(&said).to_owned();
            match groups.iter_mut().find(|(of, _)| *of == why) {
                Some((_, all)) => all.push(who),
                None => groups.push((why, vec![who])),
            }
        }
        let said = groups.iter().map(|(why, all)| {
            if all.len() > SHORT { format!("{} of them: {why}", all.len()) } else { format!("{}: {why}", all.join(", ")) }
        });
        say::one_line(&said.collect::<Vec<_>>().join("; "))
    }

    /// The names of those whom it waits for.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        self.waits_for.iter().filter_map(|one| one.get("who")?.as_str()).collect()
    }

    /// Where it stands, as a sentence.
    #[must_use]
    pub fn standing(&self, now: Timestamp) -> String {
        if !self.is_closed() {
            let how = match (&self.parked, self.held) {
                (Some(_), _) => "PARKED in ",
                (None, true) => "HELD in ",
                (None, false) => "",
            };
            let since = self.emergency.as_ref().and_then(|emergency| emergency.declared);
            let urgent = since.map(|since| format!("EMERGENCY since {:.1} s, ", now.since(since).as_secs_f64())).unwrap_or_default();
            return format!("{urgent}{how}{} for {:.1} s: {}", self.phase, self.in_phase(now).as_secs_f64(), say::phase(&self.phase));
        }
        let verdict = self.verdict.as_deref().unwrap_or("closed");
        let dead = match (verdict, self.death_proven) {
            ("rotated", true) => ": the old value is proven dead",
            ("rolled_back", true) => ": everybody is on the old value, the new one is proven dead",
            _ => "",
        };
        let urgent = self.emergency.as_ref().and_then(|emergency| emergency.dead_after_milliseconds).map(Duration::from_millis);
        let urgent = urgent.map(|span| format!(", {:.1} s after the emergency was declared", span.as_secs_f64())).unwrap_or_default();
        let unproven = self.unproven.iter().map(|one| format!("; {}", say::one_line(one))).collect::<String>();
        let cause = say::cause(&self.cause);
        let why = if cause.is_empty() { String::new() } else { format!(" ({cause})") };
        format!("{} in {:.1} s{dead}{urgent}{why}{unproven}", verdict.replace('_', " "), self.lasted(now).as_secs_f64())
    }

    /// For how long it has been in its phase.
    #[must_use]
    pub fn in_phase(&self, now: Timestamp) -> Duration {
        self.entered.map(|entered| now.since(entered)).unwrap_or_default()
    }

    /// From opening to closing; so far, while it is open.
    #[must_use]
    pub fn lasted(&self, now: Timestamp) -> Duration {
        self.opened.map(|opened| self.closed.unwrap_or(now).since(opened)).unwrap_or_default()
    }
}

/// Null is as good as absent.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let text: Option<String> = Option::deserialize(from)?;
    text.map(|text| Timestamp::parse_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("not a time"))).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_and_strange_members_are_no_obstacle() {
        let run = Run::read(&json!({
            "run": "a-1", "rotation": "a", "phase": "drain", "entered": "2026-01-01T00:00:02Z", "opened": "2026-01-01T00:00:00Z",
            "verdict": null, "held": null, "waits_for": null, "cause": null, "old": null, "consumers": null, "reason": null, "new_member": 7,
            "evidence": [{ "at": "2026-01-01T00:00:00Z", "phase": "plan", "found": "entered" }],
        }))
        .unwrap();
        assert_eq!((run.run.as_str(), run.held, run.waits().as_str()), ("a-1", false, ""));
        let now = Timestamp::parse_rfc3339("2026-01-01T00:00:05Z").unwrap();
        assert_eq!((run.in_phase(now).as_secs(), run.lasted(now).as_secs()), (3, 5));
        // The clock of whoever looks may be behind.
        assert_eq!(run.in_phase(Timestamp::ZERO), Duration::ZERO);
        assert!(Run::read(&json!({ "entered": "noon" })).is_err());
        assert_eq!(Run::read(&json!({ "policy": "older" })).unwrap().rotation, "older");
    }

    #[test]
    fn an_emergency_has_a_clock_and_what_is_unproven_is_said() {
        let now = Timestamp::parse_rfc3339("2026-01-01T00:00:05Z").unwrap();
        let data = json!({
            "phase": "revoke", "entered": "2026-01-01T00:00:04Z", "opened": "2026-01-01T00:00:00Z",
            "emergency": { "declared": "2026-01-01T00:00:02Z", "reason": "leaked", "dead_after_milliseconds": null, "behind": [] },
        });
        assert_eq!(Run::read(&data).unwrap().standing(now), "EMERGENCY since 3.0 s, revoke for 1.0 s: the old value is made invalid");
        let mut closed = data.clone();
        closed["emergency"]["dead_after_milliseconds"] = 2_140.into();
        for (name, value) in [("phase", json!("closed")), ("closed", json!("2026-01-01T00:00:04Z")), ("verdict", json!("rotated"))] {
            closed[name] = value;
        }
        closed["death_proven"] = true.into();
        let said = "rotated in 4.0 s: the old value is proven dead, 2.1 s after the emergency was declared";
        assert_eq!(Run::read(&closed).unwrap().standing(now), said);
        let by_hand = json!({ "phase": "closed", "verdict": "abandoned", "unproven": ["the old value may still open `a`"] });
        assert_eq!(Run::read(&by_hand).unwrap().standing(now), "abandoned in 0.0 s; the old value may still open `a`");
    }

    #[test]
    fn who_stands_says_for_whom() {
        let waits = json!([{ "who": "web-1", "why": "lapsed" }, { "who": "web-2", "why": "lapsed" }]);
        let run = Run::read(&json!({ "phase": "rollout", "held": true, "waits_for": waits })).unwrap();
        assert!(run.stands());
        assert_eq!(run.missing(), ["web-1", "web-2"]);
        let lapsed = "its stream is gone, and it is not proven to be gone itself";
        assert_eq!(run.waits_in_short(), format!("web-1, web-2: {lapsed}"));
        let mut all: Vec<_> = (0..5).map(|n| json!({ "who": format!("web-{n}"), "why": "lapsed" })).collect();
        all.push(json!({ "who": "target", "why": { "target": { "reason": "gone" } } }));
        let many = Run::read(&json!({ "phase": "rollout", "waits_for": all })).unwrap();
        assert_eq!(many.waits_in_short(), format!("5 of them: {lapsed}; target: gone"));
        let parked = Run::read(&json!({ "phase": "rollout", "parked": "8 attempts\nfailed" })).unwrap();
        assert!(parked.stands());
        assert_eq!(parked.waits(), "an operator: 8 attempts failed");
        assert!(!Run::read(&json!({ "phase": "closed", "held": true })).unwrap().stands());
    }
}
