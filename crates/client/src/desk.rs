//! What to do about a wanted state. Pure: the rules of acceptance in one place.
//!
//! INVARIANT: the accepted generation never decreases. A generation that failed here is not tried again while another one is
//! in use. An identical value is never applied twice, however often it is delivered.

use std::sync::Arc;

use crate::Credential;
use crate::ack::Level;
use crate::frame::State;

/// What one consumer knows about one rotation.
pub(crate) struct Desk {
    /// What being in use means here.
    level: Level,
    accepted: Option<Arc<Credential>>,
    refused: Option<(u64, String)>,
    /// Acknowledgements that the server confirmed; the newest of each level.
    confirmed: Vec<(Level, u64, String)>,
}

/// The answer to a wanted generation.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing to do: older than what is in use, or acknowledged already.
    Rest,
    /// In use already, or the same value: say so.
    Adopt,
    /// Refused before: say so again.
    Refuse(String),
    /// Try it.
    Try,
}

impl Desk {
    pub(crate) fn new(level: Level) -> Self {
        Self { level, accepted: None, refused: None, confirmed: Vec::new() }
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Being in use means this from now on.
    pub(crate) fn prove(&mut self, level: Level) {
        self.level = level;
    }

    /// Whether the standby value of a state still has to be acknowledged.
    pub(crate) fn owes_delivery(&self, state: &State) -> bool {
        state.standby.as_ref().is_some_and(|offer| {
            let generation = offer.credential.generation();
            self.accepted_generation() < Some(generation) && !self.is_confirmed(Level::L1, generation, &offer.nonce)
        })
    }

    /// What to do about the value to use.
    pub(crate) fn step(&self, state: &State) -> Step {
        let Some(offer) = &state.wanted else { return Step::Rest };
        let generation = offer.credential.generation();
        if let Some(accepted) = &self.accepted {
            if generation < accepted.generation() {
                return Step::Rest;
            }
            if generation == accepted.generation() || accepted.same_value(&offer.credential) {
                let said = self.is_confirmed(self.level, generation, &offer.nonce);
                return if said { Step::Rest } else { Step::Adopt };
            }
            if let Some((refused, reason)) = &self.refused
                && *refused == generation
            {
                let said = self.is_confirmed(Level::Nack, generation, &offer.nonce);
                return if said { Step::Rest } else { Step::Refuse(reason.clone()) };
            }
        }
        Step::Try
    }

    /// The candidate is in use. A generation that is in use already keeps its value.
    pub(crate) fn accept(&mut self, candidate: &Arc<Credential>) {
        if self.accepted_generation() < Some(candidate.generation()) {
            self.accepted = Some(Arc::clone(candidate));
            self.refused = None;
        }
    }

    /// The candidate failed.
    pub(crate) fn refuse(&mut self, generation: u64, reason: String) {
        self.refused = Some((generation, reason));
    }

    /// The server took an acknowledgement.
    pub(crate) fn confirm(&mut self, level: Level, generation: u64, nonce: &str) {
        self.confirmed.retain(|(other, _, _)| *other != level);
        self.confirmed.push((level, generation, nonce.to_owned()));
    }

    pub(crate) fn accepted_generation(&self) -> Option<u64> {
        self.accepted.as_ref().map(|credential| credential.generation())
    }

    fn is_confirmed(&self, level: Level, generation: u64, nonce: &str) -> bool {
        self.confirmed.iter().any(|(l, g, n)| *l == level && *g == generation && n == nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Offer;

    fn offer(generation: u64, password: &str, nonce: &str) -> Offer {
        let credential = Arc::new(Credential::from_fields(generation, &[("password", password)]));
        Offer { credential, ack_key: crypto::mac::Key::new(b"k"), nonce: nonce.to_owned() }
    }

    fn wants(generation: u64, password: &str, nonce: &str) -> State {
        State { rotation: "p".into(), wanted: Some(offer(generation, password, nonce)), standby: None }
    }

    fn using(generation: u64, password: &str) -> Desk {
        let mut desk = Desk::new(Level::L2);
        desk.accept(&offer(generation, password, "").credential);
        desk
    }

    #[test]
    fn the_rules() {
        let refused = || {
            let mut desk = using(5, "old");
            desk.refuse(6, "why".into());
            desk
        };
        for (what, desk, state, expected) in [
            ("nothing is wanted", Desk::new(Level::L2), State { wanted: None, ..wants(1, "x", "n") }, Step::Rest),
            ("the first value", Desk::new(Level::L2), wants(1, "x", "n"), Step::Try),
            ("a newer value", using(5, "old"), wants(6, "new", "n"), Step::Try),
            ("an older generation, newer value", using(5, "old"), wants(4, "new", "n"), Step::Rest),
            ("an older generation, same value", using(5, "old"), wants(4, "old", "n"), Step::Rest),
            ("the same delivery again", using(5, "old"), wants(5, "old", "n"), Step::Adopt),
            ("the same generation with another value", using(5, "old"), wants(5, "forged", "n"), Step::Adopt),
            ("the same value under a new generation (rollback)", using(5, "old"), wants(7, "old", "n"), Step::Adopt),
            ("what failed here before", refused(), wants(6, "bad", "n"), Step::Refuse("why".into())),
            ("the next after what failed", refused(), wants(7, "better", "n"), Step::Try),
            ("back to what is in use, after what failed", refused(), wants(7, "old", "n"), Step::Adopt),
        ] {
            assert_eq!(desk.step(&state), expected, "{what}");
        }
    }

    #[test]
    fn without_anything_in_use_a_failed_value_is_tried_again() {
        let mut desk = Desk::new(Level::L2);
        desk.refuse(1, "database down".into());
        assert_eq!(desk.step(&wants(1, "x", "n")), Step::Try);
    }

    #[test]
    fn what_was_confirmed_is_not_said_again_until_it_is_asked_again() {
        let mut desk = using(5, "old");
        desk.confirm(Level::L2, 5, "n1");
        assert_eq!(desk.step(&wants(5, "old", "n1")), Step::Rest);
        assert_eq!(desk.step(&wants(5, "old", "n2")), Step::Adopt, "a new nonce is a new question");
        desk.refuse(6, "why".into());
        desk.confirm(Level::Nack, 6, "n3");
        assert_eq!(desk.step(&wants(6, "bad", "n3")), Step::Rest);
        assert_eq!(desk.step(&wants(6, "bad", "n4")), Step::Refuse("why".into()));
    }

    #[test]
    fn a_standby_value_is_acknowledged_once_and_never_below_what_is_in_use() {
        let standing = |generation, nonce: &str| State { standby: Some(offer(generation, "next", nonce)), ..wants(5, "old", "n") };
        let mut desk = using(5, "old");
        assert!(desk.owes_delivery(&standing(6, "a")));
        desk.confirm(Level::L1, 6, "a");
        assert!(!desk.owes_delivery(&standing(6, "a")));
        assert!(desk.owes_delivery(&standing(6, "b")));
        assert!(!desk.owes_delivery(&standing(5, "c")) && !desk.owes_delivery(&standing(4, "c")));
        assert!(!desk.owes_delivery(&wants(6, "new", "n")));
    }

    #[test]
    fn acceptance_never_goes_back() {
        let mut desk = using(5, "old");
        desk.accept(&offer(4, "older", "").credential);
        desk.accept(&offer(5, "forged", "").credential);
        assert_eq!(desk.accepted.as_ref().unwrap().field("password"), Some("old"));
        desk.accept(&offer(6, "new", "").credential);
        assert_eq!(desk.accepted_generation(), Some(6));
    }
}
