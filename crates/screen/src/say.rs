//! Sentences for what a run says about itself.

use serde_json::Value;

use crate::run::Evidence;

/// A text without line ends and other control characters: what a consumer says must not look like a line of ours.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Those a run waits for, and why; nothing when it waits for nobody.
#[must_use]
pub fn waits_for(all: &[Value]) -> String {
    all.iter().map(laggard).collect::<Vec<_>>().join("; ")
}

/// One that a run waits for, and why. What is not known is shown as it came.
#[must_use]
pub fn laggard(laggard: &Value) -> String {
    let why = laggard.get("why").unwrap_or(&Value::Null);
    let (kind, about) = kind(why);
    let why = match kind {
        "lapsed" => "its stream is gone, and it is not proven to be gone itself".to_owned(),
        "not_acknowledged" => {
            format!("has not acknowledged generation {} at {}", shown(about, "generation"), shown(about, "required"))
        }
        "refused" => format!("refused: {}", shown(about, "reason")),
        "sessions" => {
            let count = shown(about, "count");
            format!("{count} session{} on slot {}", if count == "1" { "" } else { "s" }, shown(about, "slot"))
        }
        "target" => shown(about, "reason"),
        _ => plain(why),
    };
    one_line(&format!("{}: {why}", shown(laggard, "who")))
}

/// Why a run turned back or stopped; nothing when it did not.
#[must_use]
pub fn cause(cause: &Value) -> String {
    let (kind, about) = kind(cause);
    let (by, reason) = (shown(about, "by"), shown(about, "reason"));
    let said = match kind {
        "refused" => format!("{} refused: {reason}", shown(about, "instance")),
        "deadline" => format!("the hard deadline of `{}` passed", shown(about, "phase")),
        "operator" if reason.is_empty() => format!("{by} asked"),
        "operator" => format!("{by} asked: {reason}"),
        "target" => format!("target: {reason}"),
        _ if cause.is_null() => String::new(),
        _ => plain(cause),
    };
    one_line(&said)
}

/// What a phase is for.
#[must_use]
pub(crate) fn phase(name: &str) -> &str {
    match name {
        "plan" => "is the idle role nobody's, does the value in force work?",
        "prepare" => "a new value is made and stored before the database hears of it",
        "set" => "the idle role gets the new value",
        "verify" => "fresh logins with the new value",
        "stage" => "everybody gets the new value as a standby",
        "canary" => "one replica goes first",
        "rollout" => "everybody uses the new value",
        "drain" => "wait until nobody is logged in with the old value",
        "revoke" => "the old value is made invalid",
        "prove" => "the old value must be refused as a wrong password, the new one must work",
        "rollback_check" => "does the old value still work?",
        "rollback_republish" => "everybody gets the old value back",
        "rollback_drain" => "wait until nobody is logged in with the new value",
        "rollback_revoke" => "the new value is made invalid",
        "rollback_prove" => "the new value must be refused, the old one must work",
        "undo" => "the new value was given to nobody: it is made invalid",
        "closed" => "the run is closed",
        other => other,
    }
}

impl Evidence {
    /// A sentence for a newcomer.
    #[must_use]
    pub fn sentence(&self) -> String {
        let (name, of) = kind(&self.found);
        let text = |field: &str| shown(of, field);
        let said = match name {
            "entered" => phase(&self.phase).to_owned(),
            "stored" => "the new value is stored".to_owned(),
            "applied" => format!("the database has the new value for {}", text("slot")),
            "login_worked" => "a fresh login works".to_owned(),
            "published" => format!("`current` moves to generation {}", text("generation")),
            "acknowledged" => match text("level").as_str() {
                "L1" => format!("{} has generation {} ready", text("instance"), text("generation")),
                _ => format!("{} uses generation {}, proven", text("instance"), text("generation")),
            },
            "refused" => format!("{} refuses generation {}: {}", text("instance"), text("generation"), text("reason")),
            "joined" => format!("{} follows", text("instance")),
            "left" => format!("{} says goodbye", text("instance")),
            "lapsed" => format!("{} is silent", text("instance")),
            "token_ended" => format!("the token of {} has ended", text("instance")),
            "sessions" if self.phase == "plan" => format!("{} sessions on the idle role", text("count")),
            "sessions" => format!("sessions left on {}: {}", text("slot"), text("count")),
            "killed" => format!("{} takes no password any more; sessions ended: {}", text("slot"), text("terminated")),
            "dead" => "dead: it worked before, is a wrong password now, and no session is left".to_owned(),
            "trouble" => format!("tried again: {}", text("reason")),
            "held" => "held: the soft deadline has passed".to_owned(),
            "parked" => format!("waits for an operator: {}", text("reason")),
            "turned_back" => format!("turns back: {}", cause(of.get("cause").unwrap_or(&Value::Null))),
            "operator" => format!("{}: {}", text("by"), text("said")),
            "emergency" => format!("{} declares an emergency: {}", text("by"), text("reason")),
            "left_behind" => {
                let who: Vec<_> = of.get("who").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
                format!("{} left behind with the old value: {}", text("count"), who.join(", "))
            }
            "dismissed" => format!("{} takes {} out of the set: {}", text("by"), text("instance"), text("reason")),
            _ => plain(&self.found),
        };
        one_line(&said)
    }

    /// Whether it is what a run is remembered for, and not one of its many steps.
    #[must_use]
    pub fn is_milestone(&self) -> bool {
        MILESTONES.contains(&kind(&self.found).0)
    }
}

const MILESTONES: [&str; 12] = [
    "published",
    "refused",
    "killed",
    "dead",
    "trouble",
    "held",
    "parked",
    "turned_back",
    "operator",
    "emergency",
    "left_behind",
    "dismissed",
];

/// The name of a variant and what it holds.
pub(crate) fn kind(value: &Value) -> (&str, &Value) {
    let only = value.as_object().and_then(|members| members.iter().next());
    only.map_or((value.as_str().unwrap_or_default(), &Value::Null), |(name, about)| (name.as_str(), about))
}

fn shown(of: &Value, field: &str) -> String {
    of.get(field).map(scalar).unwrap_or_default()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Something whose meaning is not known here: its name and members.
fn plain(value: &Value) -> String {
    let (name, about) = kind(value);
    let members = about.as_object().into_iter().flatten().map(|(name, value)| format!("{} {}", name.replace('_', " "), scalar(value)));
    let members: Vec<_> = members.collect();
    let name = if name.is_empty() { scalar(value) } else { name.replace('_', " ") };
    if members.is_empty() { name } else { format!("{name}: {}", members.join(", ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_who_are_waited_for_and_causes_are_sentences() {
        let all = [
            json!({"who": "oldprog", "why": {"sessions": {"slot": "orders_a", "count": 1}}}),
            json!({"who": "web-1", "why": {"not_acknowledged": {"generation": 3, "required": "L2"}}}),
            json!({"who": "web-2", "why": "lapsed"}),
            json!({"who": "web-3", "why": {"refused": {"reason": "no\nlogin"}}}),
            json!({"who": "target", "why": {"target": {"reason": "unreachable"}}}),
            json!({"who": "web-4", "why": {"on_leave": {"since_day": 3}}}),
        ];
        assert_eq!(
            waits_for(&all),
            "oldprog: 1 session on slot orders_a; web-1: has not acknowledged generation 3 at L2; web-2: its stream is gone, and it is not \
             proven to be gone itself; web-3: refused: no login; target: unreachable; web-4: on leave: since day 3"
        );
        assert_eq!(waits_for(&[]), "");
        for (value, said) in [
            (json!({"refused": {"instance": "web-1", "reason": "no\nlogin\u{1b}"}}), "web-1 refused: no login "),
            (json!({"deadline": {"phase": "drain"}}), "the hard deadline of `drain` passed"),
            (json!({"operator": {"by": "root", "reason": ""}}), "root asked"),
            (json!({"operator": {"by": "root", "reason": "wrong"}}), "root asked: wrong"),
            (json!({"target": {"reason": "unreachable"}}), "target: unreachable"),
            (json!("something_new"), "something new"),
            (Value::Null, ""),
        ] {
            assert_eq!(cause(&value), said);
        }
    }

    #[test]
    fn evidence_reads_like_sentences() {
        let say = |phase: &str, found: Value| Evidence { at: None, phase: phase.into(), found }.sentence();
        assert_eq!(say("set", json!("entered")), "the idle role gets the new value");
        let refused = json!({ "refused": { "instance": "file-1", "generation": 9, "reason": "read-only\u{1b}[2J" } });
        assert_eq!(say("canary", refused), "file-1 refuses generation 9: read-only [2J");
        let back = json!({ "turned_back": { "cause": { "deadline": { "phase": "drain" } } } });
        assert_eq!(say("drain", back), "turns back: the hard deadline of `drain` passed");
        let behind = json!({ "left_behind": { "who": ["web-1", "web-2"], "count": 2 } });
        assert_eq!(say("revoke", behind), "2 left behind with the old value: web-1, web-2");
        let urgent = json!({ "emergency": { "by": "root", "reason": "leaked" } });
        assert_eq!(say("plan", urgent), "root declares an emergency: leaked");
        // A newer server says more; it is shown and not hidden.
        assert_eq!(say("x", json!({ "something_new": { "in_role": "a", "count": 2 } })), "something new: count 2, in role a");
        assert_eq!(say("fast_revoke", json!("entered")), "fast_revoke");
    }
}
