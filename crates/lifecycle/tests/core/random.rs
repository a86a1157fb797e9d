//! Any events in any order, most of them nonsense: what must hold whatever the world does.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Timestamp;
use lifecycle::core::{
    Act, Alive, Cause, Claim, Code, Consumer, DeathProbe, EVIDENCE_MAX, EVIDENCE_NOISE_MAX, Effect, EffectId, Event, Fact, Found,
    Generation, Instance, Level, Login, Mac, Mark, OnHard, Outcome, Peer, Pending, Phase, Plan, Rules, Run, RunId, Sessions, Slot, Sound,
    Step, Terms, ValueId, Verdict, Version, step, wanted,
};
use proptest::prelude::*;

fn instance() -> impl Strategy<Value = Instance> {
    (0..3_u8).prop_map(|i| Instance(format!("i{i}")))
}

fn generation() -> impl Strategy<Value = Generation> {
    (5..10_u64).prop_map(Generation)
}

fn login() -> impl Strategy<Value = Login> {
    let mac = || prop::sample::select(vec!["m6", "m7"]).prop_map(|mac| Mac(mac.to_owned()));
    prop_oneof![
        4 => mac().prop_map(|mac| Login::Accepted { mac }),
        3 => mac().prop_map(|mac| Login::WrongPassword { mac }),
        1 => Just(Login::Refused { code: "28000".to_owned() }),
        1 => Just(Login::Unfit { reason: "read only".to_owned() }),
        1 => Just(Login::Unreachable),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        1 => Just(Outcome::Done(Fact::Stored)),
        1 => Just(Outcome::Done(Fact::Applied)),
        1 => Just(Outcome::Done(Fact::Published)),
        1 => Just(Outcome::Done(Fact::Killed { terminated: 1 })),
        4 => login().prop_map(|login| Outcome::Done(Fact::Login(login))),
        3 => (0..3_u32).prop_map(|count| {
            let peers = vec![Peer { name: "i0".to_owned(), count }];
            Outcome::Done(Fact::Sessions(Sessions { peers }))
        }),
        3 => (login(), login(), prop::option::of(0..2_u32))
            .prop_map(|(dead, alive, sessions)| Outcome::Done(Fact::Death(DeathProbe { dead, alive, sessions }))),
        1 => Just(Outcome::Refused(Code::Unreachable)),
        1 => Just(Outcome::Refused(Code::Denied { reason: "no".to_owned() })),
        1 => Just(Outcome::Unknown),
    ]
}

/// An event, with the time that passes before it. Outcomes are aimed at the owed act later.
#[derive(Clone, Debug)]
enum Input {
    Event(Event),
    Answer(Outcome),
    /// What the owed act hopes for.
    Fitting,
}

fn input() -> impl Strategy<Value = (Input, u64)> {
    let by = || "op".to_owned();
    let event = prop_oneof![
        1 => Just(Event::Start),
        6 => (instance(), generation(), any::<bool>())
            .prop_map(|(instance, generation, loaded)| Event::Ack { instance, generation, level: if loaded { Claim::L2 } else { Claim::L1 } }),
        1 => (instance(), generation()).prop_map(|(instance, generation)| Event::Nack { instance, generation, reason: "no".to_owned() }),
        3 => (instance(), prop::option::of(generation())).prop_map(|(instance, holds)| Event::Joined { instance, holds }),
        1 => instance().prop_map(|instance| Event::Left { instance }),
        1 => instance().prop_map(|instance| Event::Lapsed { instance }),
        1 => instance().prop_map(|instance| Event::TokenDead { instance }),
        6 => Just(Event::Tick),
        1 => Just(Event::Resume { by: by() }),
        1 => Just(Event::Abort { by: by(), reason: "asked".to_owned() }),
        1 => any::<bool>().prop_map(move |soon| {
            let grace = Duration::from_secs(if soon { 0 } else { 3 });
            Event::Emergency { by: by(), reason: "leaked".to_owned(), declared: Timestamp(1), grace }
        }),
        1 => instance().prop_map(move |instance| Event::Dismissed { instance, by: by(), reason: "gone".to_owned() }),
        1 => prop::bool::weighted(0.2).prop_map(move |close| match close {
            true => Event::Close { by: by(), reason: "asked".to_owned() },
            false => Event::Tick,
        }),
    ];
    let input = prop_oneof![3 => event.prop_map(Input::Event), 2 => outcome().prop_map(Input::Answer), 4 => Just(Input::Fitting)];
    (input, prop::sample::select(vec![0, 1, 1_000_000, 5_000_000, 60_000_000]))
}

fn fitting(act: &Act) -> Outcome {
    let accepted = |value: &ValueId| Login::Accepted { mac: Mac(format!("m{}", value.0)) };
    Outcome::Done(match act {
        Act::Generate { .. } => Fact::Stored,
        Act::Set { .. } => Fact::Applied,
        Act::Probe { value, .. } => Fact::Login(accepted(value)),
        Act::Publish { .. } => Fact::Published,
        Act::WatchSessions { .. } => Fact::Sessions(Sessions::default()),
        Act::Kill { .. } => Fact::Killed { terminated: 0 },
        Act::ProveDeath { dead, alive, .. } => Fact::Death(DeathProbe {
            dead: Login::WrongPassword { mac: Mac(format!("m{}", dead.0)) },
            alive: accepted(alive),
            sessions: Some(0),
        }),
    })
}

fn opened(predecessor: bool, on_hard: OnHard) -> Run {
    let version = |n: u64, slot: u8| Version { generation: Generation(n), value: ValueId(n), slot: Slot(slot), worked: None };
    let terms = Terms {
        required: Level::L2,
        canaries: 1,
        soak: Duration::from_secs(1),
        quiet: Duration::from_secs(1),
        poll: Duration::from_millis(200),
        soft: Duration::from_secs(10),
        hard: Duration::from_secs(30),
        on_hard,
        verifies: 2,
        attempts: 3,
        backoff: Duration::from_millis(100),
        backoff_max: Duration::from_secs(5),
    };
    let consumers = BTreeMap::from([(Instance("i0".to_owned()), Consumer::joined(predecessor.then_some(Generation(6)), Timestamp(0)))]);
    let old = predecessor.then(|| version(6, 0));
    Run::open(Plan { id: RunId("r".to_owned()), terms, old, new: version(7, 1), consumers }, Timestamp(1))
}

/// Acts that may be asked for in a phase.
fn belongs(act: &Act, phase: Phase, run: &Run) -> bool {
    let old = run.old.as_ref().map(|old| old.slot);
    match act {
        Act::Generate { .. } => phase == Phase::Prepare,
        Act::Set { slot, .. } => phase == Phase::Set && *slot == run.new.slot,
        Act::Kill { slot } => match phase {
            Phase::Revoke => Some(*slot) == old,
            Phase::RollbackRevoke | Phase::Undo => *slot == run.new.slot,
            Phase::Plan => run.emergency.is_some() && *slot == run.new.slot,
            _ => false,
        },
        Act::Publish { generation, value } => match phase {
            Phase::Rollout => (*generation, *value) == (run.new.generation, run.new.value),
            Phase::RollbackRepublish => *generation == run.back && run.old.as_ref().is_some_and(|old| old.value == *value),
            _ => false,
        },
        Act::Probe { .. } | Act::WatchSessions { .. } | Act::ProveDeath { .. } => phase != Phase::Closed,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens(
        predecessor in any::<bool>(),
        rollback in any::<bool>(),
        inputs in prop::collection::vec(input(), 1..120),
    ) {
        let mut run = opened(predecessor, if rollback { OnHard::Rollback } else { OnHard::Hold });
        let mut now = Timestamp(1);
        let mut told: BTreeMap<Instance, Generation> = BTreeMap::new();
        let mut values = std::collections::BTreeSet::new();
        let mut ids = std::collections::BTreeSet::new();
        run = step(&run, &Event::Start, now).run;
        for (input, micros) in inputs {
            now = Timestamp(now.0 + micros);
            let owed = match &run.pending {
                Pending::Owed { id, act, .. } => Some((id.clone(), act.clone())),
                _ => None,
            };
            let event = match (input, owed) {
                (Input::Event(event), _) => event,
                (Input::Answer(outcome), Some((id, _))) => Event::Outcome { id, outcome },
                (Input::Fitting, Some((id, act))) => Event::Outcome { id, outcome: fitting(&act) },
                (Input::Answer(outcome), None) => {
                    Event::Outcome { id: EffectId { run: run.id.clone(), phase: run.phase, n: run.acts }, outcome }
                }
                (Input::Fitting, None) => Event::Tick,
            };
            let before = run.clone();
            let Step { run: after, effects } = step(&before, &event, now);
            prop_assert_eq!(&step(&before, &event, now).run, &after, "not a function");
            for effect in &effects {
                if let Effect::Act { id, act } = effect {
                    prop_assert!(belongs(act, id.phase, &after), "{:?} in {:?}", act, id.phase);
                    prop_assert!(ids.insert(id.clone()), "{:?} names two acts", id);
                    if let Act::Generate { value } | Act::Set { value, .. } = act {
                        values.insert(*value);
                    }
                }
            }
            if before.closed.is_some() {
                prop_assert_eq!(&before.closed, &after.closed);
                let idle = effects.iter().all(|effect| !matches!(effect, Effect::Act { .. } | Effect::Timer { .. }));
                prop_assert!(idle, "a closed run acts");
            }
            if let Event::Outcome { id, .. } = &event {
                let echo = step(&after, &event, now);
                prop_assert_eq!(&echo.run, &after, "an echo of {:?} moved the run", id);
                prop_assert!(echo.effects.is_empty());
            }
            for name in after.consumers.keys() {
                if let Some((generation, _)) = wanted(&after, name).using {
                    let last = told.insert(name.clone(), generation);
                    prop_assert!(last.is_none_or(|last| last <= generation), "{} fell from {:?} to {}", name, last, generation);
                }
            }
            prop_assert!(values.len() <= 1, "one run, one value");
            prop_assert!(after.evidence.len() <= EVIDENCE_MAX);
            let written = serde_json::to_string(&after).unwrap();
            prop_assert_eq!(serde_json::from_str::<Run>(&written).unwrap(), after.clone());
            run = after;
        }
    }
}

/// The four facts, one missing at a time.
#[test]
fn a_death_has_four_facts() {
    let mac = |text: &str| Mac(text.to_owned());
    let worked = Mark { mac: mac("old"), at: Timestamp(1) };
    let good = DeathProbe { dead: Login::WrongPassword { mac: mac("old") }, alive: Login::Accepted { mac: mac("new") }, sessions: Some(0) };
    let dead = |worked: Option<&Mark>, probe: DeathProbe| Sound.dead(worked, &probe);
    assert_eq!(dead(Some(&worked), good.clone()), Ok(mac("old")));
    let nothing = |outcome: Result<Mac, Alive>| assert!(matches!(outcome, Err(Alive::ProvesNothing(_))), "{outcome:?}");
    nothing(dead(None, good.clone()));
    nothing(dead(Some(&worked), DeathProbe { dead: Login::WrongPassword { mac: mac("other") }, ..good.clone() }));
    nothing(dead(Some(&worked), DeathProbe { dead: Login::Unreachable, ..good.clone() }));
    nothing(dead(Some(&worked), DeathProbe { dead: Login::Refused { code: "28000".to_owned() }, ..good.clone() }));
    for alive in [Login::Unreachable, Login::WrongPassword { mac: mac("new") }, Login::Refused { code: "28000".to_owned() }] {
        nothing(dead(Some(&worked), DeathProbe { alive, ..good.clone() }));
    }
    nothing(dead(Some(&worked), DeathProbe { sessions: None, ..good.clone() }));
    assert_eq!(dead(Some(&worked), DeathProbe { sessions: Some(1), ..good.clone() }), Err(Alive::Sessions(1)));
    for dead_login in [Login::Accepted { mac: mac("old") }, Login::Unfit { reason: "read only".to_owned() }] {
        assert_eq!(dead(Some(&worked), DeathProbe { dead: dead_login, ..good.clone() }), Err(Alive::StillAccepted));
    }
}

/// Answers what the run owes and lets its time pass until it is in `phase`; every instance acknowledges at once what it should use.
fn go(mut run: Run, phase: Phase, now: &mut Timestamp) -> Run {
    for _ in 0..200 {
        if run.phase == phase {
            return run;
        }
        now.0 += 1_000_000;
        let event = match &run.pending {
            Pending::Owed { id, act, .. } => Event::Outcome { id: id.clone(), outcome: fitting(act) },
            _ => Event::Tick,
        };
        run = step(&run, &event, *now).run;
        for instance in run.consumers.keys().cloned().collect::<Vec<_>>() {
            let wanted = wanted(&run, &instance);
            for (generation, _) in wanted.using.into_iter().chain(wanted.standby) {
                run = step(&run, &Event::Ack { instance: instance.clone(), generation, level: Claim::L2 }, *now).run;
            }
        }
    }
    assert_eq!(run.phase, phase, "{:?}", run.pending);
    run
}

fn answer(run: &Run, outcome: Outcome, now: Timestamp) -> Run {
    assert!(matches!(run.pending, Pending::Owed { .. }), "nothing is owed: {:?}", run.pending);
    let id = EffectId { run: run.id.clone(), phase: run.phase, n: run.acts };
    step(run, &Event::Outcome { id, outcome }, now).run
}

/// Sessions that came and went filled the evidence of a run that was held, and what it did later was not told.
#[test]
fn noise_leaves_room_for_what_a_run_does() {
    let mut now = Timestamp(1);
    let started = step(&opened(true, OnHard::Hold), &Event::Start, now).run;
    let mut run = go(started, Phase::Drain, &mut now);
    for n in 0..3 * EVIDENCE_MAX {
        now.0 += 300_000;
        run = match &run.pending {
            Pending::Owed { .. } => {
                let peers = vec![Peer { name: "who".to_owned(), count: u32::from(n % 4 < 2) }];
                answer(&run, Outcome::Done(Fact::Sessions(Sessions { peers })), now)
            }
            _ => step(&run, &Event::Tick, now).run,
        };
    }
    assert_eq!((run.phase, run.evidence.len()), (Phase::Drain, EVIDENCE_NOISE_MAX));
    run = step(&run, &Event::Resume { by: "op".to_owned() }, now).run;
    run = go(run, Phase::Closed, &mut now);
    let late: Vec<&Found> = run.evidence.iter().skip(EVIDENCE_NOISE_MAX).map(|entry| &entry.found).collect();
    let said = |wanted: fn(&Found) -> bool| late.iter().filter(|found| wanted(found)).count();
    assert_eq!(said(|found| matches!(found, Found::Operator { .. })), 1, "{late:?}");
    assert_eq!(said(|found| matches!(found, Found::Killed { .. })), 1, "{late:?}");
    assert_eq!(said(|found| matches!(found, Found::Dead { .. })), 1, "{late:?}");
    assert_eq!(said(|found| *found == Found::Entered), 3, "revoke, prove, closed: {late:?}");
    assert!(run.evidence_dropped > 0);
}

/// A run that was parked in the rollout and then turned back waited for an operator for ever, for what was behind it.
#[test]
fn a_parked_run_that_turns_back_goes_on() {
    for refused in [false, true] {
        let mut now = Timestamp(1);
        let mut run = go(step(&opened(true, OnHard::Hold), &Event::Start, now).run, Phase::Rollout, &mut now);
        run = answer(&run, Outcome::Refused(Code::Denied { reason: "no mount".to_owned() }), now);
        assert!(run.parked.is_some() && run.pending == Pending::Nothing, "{run:?}");
        let event = if refused {
            Event::Nack { instance: Instance("i0".to_owned()), generation: Generation(7), reason: "unfit".to_owned() }
        } else {
            Event::Abort { by: "op".to_owned(), reason: "asked".to_owned() }
        };
        run = step(&run, &event, now).run;
        assert_eq!((run.phase, &run.parked), (Phase::RollbackCheck, &None));
        run = go(run, Phase::Closed, &mut now);
        assert_eq!(run.closed.map(|closed| closed.verdict), Some(Verdict::RolledBack));
        assert!(matches!(run.cause, Some(Cause::Refused { .. })) == refused);
    }
}

/// Too many connections were taken for the end of the way back.
#[test]
fn only_a_wrong_password_ends_the_way_back() {
    let mut now = Timestamp(1);
    let drain = go(step(&opened(true, OnHard::Hold), &Event::Start, now).run, Phase::Drain, &mut now);
    let check = step(&drain, &Event::Abort { by: "op".to_owned(), reason: "asked".to_owned() }, now).run;
    let says = |login: Login| Outcome::Done(Fact::Login(login));
    for login in [Login::Refused { code: "53300".to_owned() }, Login::Unfit { reason: "not as the owner".to_owned() }, Login::Unreachable] {
        let mut run = check.clone();
        for _ in 0..10 {
            run = answer(&run, says(login.clone()), now);
            let Pending::Later { at, act: Act::Probe { .. } } = run.pending else { panic!("{login:?}: {:?}", run.pending) };
            assert_eq!(run.parked, None, "{login:?}");
            now = at;
            run = step(&run, &Event::Tick, now).run;
        }
        assert_eq!(go(run, Phase::Closed, &mut now).closed.map(|closed| closed.verdict), Some(Verdict::RolledBack));
    }
    let run = answer(&check, says(Login::WrongPassword { mac: Mac("m6".to_owned()) }), now);
    assert!(run.parked.is_some());
}

/// A kill whose answer was lost was believed when the next login was refused for any reason, and never sent again.
#[test]
fn a_lost_kill_is_repeated_unless_the_password_is_wrong() {
    let mut now = Timestamp(1);
    let revoke = go(step(&opened(true, OnHard::Hold), &Event::Start, now).run, Phase::Revoke, &mut now);
    let says = |login: Login| Outcome::Done(Fact::Login(login));
    for login in [
        Login::Accepted { mac: Mac("m6".to_owned()) },
        Login::Refused { code: "28000".to_owned() },
        Login::Unfit { reason: "not as the owner".to_owned() },
    ] {
        let run = answer(&answer(&revoke, Outcome::Unknown, now), says(login.clone()), now);
        assert!(matches!(run.pending, Pending::Later { act: Act::Kill { .. }, .. }), "{login:?}: {:?}", run.pending);
        assert_eq!(run.phase, Phase::Revoke);
    }
    let run = answer(&answer(&revoke, Outcome::Unknown, now), says(Login::WrongPassword { mac: Mac("m6".to_owned()) }), now);
    assert_eq!(run.phase, Phase::Prove);
}
