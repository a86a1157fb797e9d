use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use base::path::CanonPath;

use crate::twin::{Clause, Line, Twin, Want};
use crate::{
    Ask, Capability, Cause, DEFAULT_TEXT, Denied, Op, Permit, Policy, PolicyError, PolicyName, Refused, Rules, capabilities, decide,
};

fn path(text: &str) -> CanonPath {
    CanonPath::from_plain(text).unwrap()
}

fn policy(name: &str, text: &str) -> Policy {
    Policy::parse(PolicyName::parse(name).unwrap(), text).unwrap()
}

fn rules(texts: &[&str]) -> Rules {
    Rules::compile(texts.iter().enumerate().map(|(i, text)| policy(&format!("p{i}"), text)))
}

fn ask(rules: &Rules, op: Op, at: &str, exists: bool) -> Result<Permit, Denied> {
    decide(rules, &[Ask::new(op, &path(at))], &mut || Ok::<_, Infallible>(exists)).map_err(|refused| match refused {
        Refused::Denied(denied) => denied,
        Refused::Exists(never) => match never {},
    })
}

/// Rows of `path → capabilities` under one set of policies.
#[track_caller]
fn says(texts: &[&str], rows: &[(&str, &str)]) {
    let rules = rules(texts);
    for (at, expected) in rows {
        let found: Vec<_> = capabilities(&rules, &path(at)).into_iter().map(Capability::as_str).collect();
        assert_eq!(found.join(" "), *expected, "{at} under {texts:?}");
    }
}

#[test]
fn exact_prefix_segment() {
    says(
        &[r#"path "secret/data/app" { capabilities = ["read"] }
             path "/secret/data/team/*" { capabilities = ["list", "read"] }
             path "secret/data/fo*" { capabilities = ["update"] }
             path "kv/+/config" { capabilities = ["delete"] }
             path "kv/+/deep/*" { capabilities = ["create"] }
             path "a+b/*/c" { capabilities = ["read"] }"#],
        &[
            ("secret/data/app", "read"),
            ("secret/data/app/x", "deny"),
            ("secret/data/ap", "deny"),
            ("secret/data/team/x/y", "list read"),
            // a folder can only be listed
            ("secret/data/team/", "list"),
            // listing names the folder, so its prefix rule speaks; reading does not
            ("secret/data/team", "list"),
            ("secret/data/fox/y", "update"),
            ("secret/data/fo", "update"),
            ("kv/x/config", "delete"),
            ("kv/x/y/config", "deny"),
            ("kv/config", "deny"),
            ("kv/x/deep/y/z", "create"),
            ("kv/x/deep", "deny"),
            // only a whole segment `+` and a last `*` are wildcards
            ("a+b/*/c", "read"),
            ("axb/y/c", "deny"),
        ],
    );
}

#[test]
fn the_most_specific_wins_over_all_policies() {
    says(
        &[
            r#"path "s/*" { capabilities = ["read", "list"] } path "s/a/*" { capabilities = ["deny"] }"#,
            r#"path "s/a/b" { capabilities = ["read"] } path "s/+/c" { capabilities = ["update"] } path "s/+/c*" { capabilities = ["delete"] }"#,
        ],
        &[
            ("s/x", "list read"),
            ("s/a/x", "deny"),
            ("s/a/b", "read"),
            // `s/a/*` has its wildcard later than `s/+/c`
            ("s/a/c", "deny"),
            ("s/x/c", "list update"),
            // both end in `*` and begin at the same place: fewer `+` is closer, so `s/*` speaks
            ("s/x/cd", "list read"),
            // `s/+/c` and `s/*` start their wildcard at the same place; the one without `*` is closer
            ("s/y/c", "list update"),
        ],
    );
    says(
        &[
            r#"path "a/+/+/d" { capabilities = ["read"] } path "a/+/c/+" { capabilities = ["update"] } path "a/+/+/+" { capabilities = ["delete"] }"#,
        ],
        // as many wildcards, as long: the greater text
        &[("a/b/c/d", "update"), ("a/b/x/d", "read"), ("a/b/x/y", "delete")],
    );
}

#[test]
fn same_path_adds_up_and_deny_beats_all() {
    let (read, update, deny) = (
        r#"path "x/*" { capabilities = ["read"] }"#,
        r#"path "x/*" { capabilities = ["update"] }"#,
        r#"path "x/*" { capabilities = ["deny"] }"#,
    );
    says(&[read, update], &[("x/1", "read update")]);
    says(&[read, update, deny], &[("x/1", "deny")]);
    says(&[deny, read], &[("x/1", "deny")]);
    says(&[r#"path "x/*" { capabilities = ["read", "deny"] }"#], &[("x/1", "deny")]);
    says(&[r#"path "x/1" { capabilities = [] } path "x/*" { capabilities = ["read"] }"#], &[("x/1", "deny"), ("x/2", "read")]);
    says(&[], &[("x/1", "deny")]);
}

#[test]
fn list_with_and_without_the_slash() {
    let list_prefix = r#"path "m/*" { capabilities = ["list"] }"#;
    says(&[r#"path "m/a" { capabilities = ["list"] }"#], &[("m/a", "list"), ("m/a/", "list")]);
    says(&[r#"path "m/a/" { capabilities = ["list"] }"#], &[("m/a", "list"), ("m/a/", "list")]);
    says(&[list_prefix, r#"path "m/a" { capabilities = ["deny"] }"#], &[("m/a/", "deny"), ("m/a", "deny"), ("m/b/", "list")]);
    says(&[list_prefix, r#"path "m/a/" { capabilities = ["deny"] }"#], &[("m/a/", "deny"), ("m/a", "deny"), ("m/b/", "list")]);
    // even an exact allow for one spelling does not outvote the deny of the other
    says(&[r#"path "m/a/" { capabilities = ["list"] } path "m/a" { capabilities = ["deny"] }"#], &[("m/a/", "deny")]);
    // an exact rule for the folder speaks before an exact rule for the name
    says(&[r#"path "m/a/" { capabilities = ["read"] } path "m/a" { capabilities = ["list"] }"#], &[("m/a/", "deny")]);
    // a pattern speaks about the folder, not about the name
    says(&[r#"path "m/+/" { capabilities = ["list"] }"#], &[("m/a/", "list"), ("m/a/b/", "deny")]);
    says(&[r#"path "m/+" { capabilities = ["list"] }"#], &[("m/", "list"), ("m/a/", "deny")]);
    // deny of the folder says nothing about reading the name
    says(&[r#"path "m/a/" { capabilities = ["deny"] } path "m/a" { capabilities = ["read"] }"#], &[("m/a", "read")]);
}

#[test]
fn deny_ignores_case_and_allow_does_not() {
    says(
        &[
            r#"path "s/*" { capabilities = ["read"] } path "s/Prod/*" { capabilities = ["deny"] } path "s/Pub/é" { capabilities = ["update"] }
             path "s/pub/x" { capabilities = ["deny"] } path "s/Pub/X" { capabilities = ["update"] } path "s/PROD/ok" { capabilities = ["delete"] }
             path "s/+/Key" { capabilities = ["deny"] }"#,
        ],
        &[
            ("s/prod/a", "deny"),
            ("s/PROD/a", "deny"),
            ("s/dev/a", "read"),
            ("s/Pub/é", "update"),
            ("s/Pub/É", "read"),
            // as specific: the deny is preferred
            ("s/Pub/X", "deny"),
            ("s/PUB/x", "deny"),
            // a more specific allow, exactly as spelled, still wins
            ("s/PROD/ok", "delete"),
            ("s/prod/ok", "deny"),
            ("s/dev/KEY", "deny"),
        ],
    );
    // an allow that does not speak about this spelling does not shield it
    says(
        &[r#"path "b/foo*" { capabilities = ["deny"] } path "b/*" { capabilities = ["read"] } path "b/FOO/*" { capabilities = ["read"] }"#],
        &[("b/Foo/1", "deny"), ("b/FOO/1", "read"), ("b/foo/1", "deny"), ("b/FOOx", "deny"), ("b/bar", "read")],
    );
    says(
        &[r#"path "a/ſtraße" { capabilities = ["deny"] } path "a/*" { capabilities = ["read"] }"#],
        &[("a/STRAßE", "deny"), ("a/x", "read")],
    );
}

#[test]
fn existence_is_asked_only_where_it_decides() {
    let create = rules(&[r#"path "x" { capabilities = ["create"] }"#]);
    let update = rules(&[r#"path "x" { capabilities = ["update"] }"#]);
    let both = rules(&[r#"path "x" { capabilities = ["create", "update"] }"#]);
    let neither = rules(&[r#"path "x" { capabilities = ["read"] }"#]);
    let x = path("x");
    for (rules, existing, new, asked) in [
        (&create, false, true, 1),
        (&update, true, false, 1),
        (&both, true, true, 0),
        (&neither, false, false, 0),
        (&Rules::root(), true, true, 0),
    ] {
        for (exists, expected) in [(true, existing), (false, new)] {
            let mut count = 0;
            let answer = decide(rules, &[Ask::new(Op::Write, &x)], &mut || {
                count += 1;
                Ok::<_, Infallible>(exists)
            });
            assert_eq!((answer.is_ok(), count), (expected, asked));
        }
    }
    // a failure to tell is neither yes nor no
    let answer = decide(&create, &[Ask::new(Op::Write, &x)], &mut || Err("disk"));
    assert_eq!(answer.unwrap_err(), Refused::Exists("disk"));
    // nobody learns of existence on the way to a refusal
    let y = path("y");
    let answer = decide(&create, &[Ask::new(Op::Write, &x), Ask::new(Op::Read, &y)], &mut || Err("asked"));
    assert!(matches!(answer, Err(Refused::Denied(_))));
    // an update that has no existence needs `update`
    assert!(ask(&create, Op::Update, "x", false).is_err() && ask(&update, Op::Update, "x", false).is_ok());
}

#[test]
fn all_asks_must_be_permitted() {
    let rules = rules(&[r#"path "a" { capabilities = ["read"] } path "b" { capabilities = ["update", "sudo"] }"#]);
    let (a, b, c) = (path("a"), path("b"), path("c"));
    let may = |asks: &[Ask<'_>]| decide(&rules, asks, &mut || Ok::<_, Infallible>(true)).is_ok();
    assert!(may(&[Ask::new(Op::Read, &a), Ask::new(Op::Update, &b)]));
    assert!(!may(&[Ask::new(Op::Read, &a), Ask::new(Op::Read, &c)]));
    assert!(!may(&[Ask::new(Op::Read, &c), Ask::new(Op::Read, &a)]));
    assert!(may(&[Ask::new(Op::Update, &b).protected()]));
    assert!(!may(&[Ask::new(Op::Read, &a).protected()]));
    // nothing asked is nothing decided
    assert!(!may(&[]));
}

#[test]
fn a_permit_and_a_refusal_carry_their_reasons() {
    let rules = rules(&[
        r#"path "s/*" { capabilities = ["read", "list"] } path "s/x" { capabilities = ["deny"] }"#,
        r#"path "s/*" { capabilities = ["read", "update"] }"#,
    ]);
    let show = |permit: Permit| {
        permit
            .reasons()
            .iter()
            .map(|r| format!("{} {} {:?}", r.capability(), r.rule(), r.policies().iter().map(PolicyName::as_str).collect::<Vec<_>>()))
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert_eq!(show(ask(&rules, Op::Read, "s/a", true).unwrap()), r#"read s/* ["p0", "p1"]"#);
    assert_eq!(show(ask(&rules, Op::Write, "s/a", true).unwrap()), r#"update s/* ["p1"]"#);
    assert_eq!(show(ask(&Rules::root(), Op::Delete, "s/a", true).unwrap()), r#"delete * ["root"]"#);

    let denied = ask(&rules, Op::Read, "s/X", true).unwrap_err();
    assert_eq!((denied.cause(), denied.rule(), denied.capability()), (Cause::Deny, Some("s/x"), Capability::Read));
    assert_eq!(denied.policies().iter().map(PolicyName::as_str).collect::<Vec<_>>(), ["p0"]);
    let denied = ask(&rules, Op::Delete, "s/a", true).unwrap_err();
    assert_eq!((denied.cause(), denied.rule(), denied.capability()), (Cause::Lacks, Some("s/*"), Capability::Delete));
    let denied = ask(&rules, Op::Delete, "t", true).unwrap_err();
    assert_eq!((denied.cause(), denied.rule()), (Cause::NoRule, None));
    assert_eq!(denied.to_string(), "permission denied");
    assert!(base::refusal::Refusal::from(denied).errors[0].contains("* permission denied"));
}

#[test]
fn root_may_everything() {
    assert_eq!(capabilities(&Rules::root(), &path("x")), [Capability::Root]);
    let x = path("sys/seal");
    assert!(decide(&Rules::root(), &[Ask::new(Op::Update, &x).protected()], &mut || Ok::<_, Infallible>(true)).is_ok());
    // no text makes a root
    assert!(Policy::parse(PolicyName::parse("a").unwrap(), r#"path "*" { capabilities = ["root"] }"#).is_err());
}

#[test]
fn legacy_words() {
    for (word, expected) in [
        ("deny", "deny"),
        ("read", "list read"),
        ("write", "create delete list read update"),
        ("sudo", "create delete list read sudo update"),
    ] {
        says(&[&format!("path \"a/*\" {{ policy = \"{word}\" }}")], &[("a/b", expected)]);
    }
    says(&[r#"path "a/*" { policy = "write" capabilities = ["deny"] }"#], &[("a/b", "deny")]);
}

#[test]
fn the_default_policy_reads() {
    let rules = Rules::compile([policy("default", DEFAULT_TEXT)]);
    assert_eq!(rules.len(), 7);
    for at in ["sys/lifecycle/ack", "sys/lifecycle/goodbye", "sys/capabilities-self", "auth/token/renew-self"] {
        assert!(ask(&rules, Op::Update, at, true).is_ok(), "{at}");
    }
    assert!(ask(&rules, Op::Read, "auth/token/lookup-self", true).is_ok());
    assert!(ask(&rules, Op::Update, "auth/token/revoke-self", true).is_ok());
    for at in ["auth/token/create", "secret/data/x", "sys/policies/acl/x", "sys/mounts"] {
        assert!(ask(&rules, Op::Read, at, true).is_err() && ask(&rules, Op::Update, at, true).is_err(), "{at}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let fails = |text: &str| Policy::parse(PolicyName::parse("a").unwrap(), text).unwrap_err();
    let block = |inner: &str| fails(&format!("path \"a\" {{\n{inner}\n}}"));
    for field in [
        "allowed_parameters = { \"*\" = [] }",
        "allowed_parameters { x = [] }",
        "denied_parameters = {}",
        "required_parameters = [\"x\"]",
        "min_wrapping_ttl = \"1s\"",
        "max_wrapping_ttl = 5",
        "mfa_methods = [\"x\"]",
        "control_group = {}",
        "expiration = \"x\"",
    ] {
        let error = block(field);
        assert!(matches!(error, PolicyError::Later { .. }), "{field}");
        let name = field.split([' ', '=']).next().unwrap();
        assert_eq!(error.to_string(), format!("failed to parse policy: line 2, column 1: `{name}` is not supported yet"));
    }
    let json = fails(r#"{"path": {"a": {"allowed_parameters": {"x": []}}}}"#);
    assert!(matches!(json, PolicyError::Later { field: "allowed_parameters", .. }));
    assert!(matches!(block("capabilties = [\"read\"]"), PolicyError::Key { .. }));
    assert!(matches!(block("capabilities \"x\" {}"), PolicyError::Key { .. }));
    assert!(matches!(block("capabilities = \"read\""), PolicyError::Type { .. }));
    assert!(matches!(block("capabilities = [1]"), PolicyError::Type { .. }));
    assert!(matches!(block("comment = 1"), PolicyError::Type { .. }));
    assert!(matches!(block("policy = [\"read\"]"), PolicyError::Type { .. }));
    for word in ["READ", "read ", "root", "write", ""] {
        assert!(matches!(block(&format!("capabilities = [\"{word}\"]")), PolicyError::Capability { .. }), "{word}");
    }
    assert!(matches!(block("policy = \"root\""), PolicyError::Legacy { .. }));
    assert!(matches!(block("capabilities = [\"read\"] capabilities = [\"deny\"]"), PolicyError::Text(_)));
    for text in ["pth \"a\" {}", "x = 1", "{\"x\": 1}", "path \"a\" {} other {}"] {
        assert!(matches!(fails(text), PolicyError::Key { .. }), "{text}");
    }
    for text in ["path { a = 1 }", "path = 1", "path \"a\" \"b\" {}", "path \"a\"", "path \"a\" {"] {
        assert!(matches!(fails(text), PolicyError::Text(_)), "{text}");
    }
    for at in [
        "",
        "/",
        "//",
        "a//b",
        "a/../b",
        "./a",
        "a/..",
        "a/./*",
        "a\\\\b",
        "+*",
        "a/+*",
        "a/{{identity.entity.id}}/*",
        "a/}}",
        "a\\nb",
        "e\u{301}",
    ] {
        assert!(matches!(fails(&format!("path \"{at}\" {{}}")), PolicyError::Path { .. }), "{at}");
    }
    for at in ["*", "+", "+/*", "a/.*", "a/*", "a/", "/a", "a/${x}", "a b"] {
        policy("a", &format!("path \"{at}\" {{}}"));
    }
    // the text may hold a secret; only the place is told
    assert!(!block("s3cret = 1").to_string().contains("s3cret"));
    let error = block("\n  capabilities = [\"read\", \"s3cret\"]").to_string();
    assert!(error.starts_with("failed to parse policy: line 3, column 3: invalid capability (word 2 of the list); known: "), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
    // Two blocks about one path: whoever reads the first does not look for a second.
    for (twice, line, column) in [
        ("path \"a\" { capabilities = [\"read\"] }\npath \"a\" { capabilities = [\"deny\"] }", 2, 1),
        ("path \"a/*\" {}\n path \"/a/*\" {}", 2, 2),
        ("path = { \"a\" = {}, \"a\" = {} }", 1, 20),
        (r#"{"path": [{"a": {}}, {"a": {}}]}"#, 1, 23),
        (r#"{"path": {"a": [{}, {}]}}"#, 1, 11),
    ] {
        assert_eq!(fails(twice), PolicyError::Duplicate { position: hcl::Position { line, column } }, "{twice}");
    }
    for twice in [r#"{"path": {"a": {}, "a": {}}}"#, r#"{"path": {"a": {}}, "path": {"b": {}}}"#] {
        assert!(matches!(fails(twice), PolicyError::Text(hcl::Error { fault: hcl::Fault::Duplicate, .. })), "{twice}");
    }
    policy("a", "name = \"x\"\npath \"a\" { comment = \"why\" capabilities = [\"read\",] }");
}

#[test]
fn a_folder_is_touched_where_something_in_it_is_allowed() {
    let read = |path: &str| format!("path \"{path}\" {{ capabilities = [\"read\"] }} ");
    let deny = |path: &str| format!("path \"{path}\" {{ capabilities = [\"deny\"] }} ");
    for (text, expected) in [
        (read("secret/data/a"), true),
        (read("s*"), true),
        (read("+/data/*"), true),
        (read("secret/+/x/*"), true),
        (read("secret/"), true),
        (read("secret"), false),
        (read("secrets/*"), false),
        (read("+"), false),
        (read("+/+"), true),
        (read("other/+/*"), false),
        (deny("secret/*"), false),
        ("path \"secret/*\" { capabilities = [] }".to_owned(), false),
        // a closer rule that denies leaves nothing
        (read("s*") + &deny("secret/*"), false),
        (read("s*") + &deny("SECRET/*"), false),
        (read("*") + &deny("s*"), false),
        (read("+/data/*") + &deny("secret/*"), false),
        (read("+/+/x/*") + &deny("+/*"), false),
        // ... or leaves something
        (read("s*") + &deny("secret/*") + &read("secret/data/a"), true),
        (read("s*") + &deny("secret/data/*"), true),
        (read("s*") + &deny("secret/+"), true),
        (read("secret/*") + &deny("s*"), true),
        (read("secret/a/*") + &deny("secret/a/+/+"), true),
    ] {
        assert_eq!(rules(&[&text]).touches(&path("secret")), expected, "{text}");
    }
    // what is allowed somewhere in a folder touches it, whatever else is said
    for set in 0..5_000 {
        let mut dice = Dice(set);
        let case = Case::roll(&mut dice);
        for _ in 0..ASKS_PER_SET {
            let at = case.ask(&mut dice).0;
            let Some((folder, _)) = at.split_once('/') else { continue };
            let may = Twin::default().permits(&case.lines, &at, Want::Word("read"), false);
            assert!(!may || case.rules.touches(&path(folder)), "set {set}: {at}\n{}", hcl_text(&case.lines));
        }
    }
}

// --- the two evaluators -------------------------------------------------------------------------------------------------

/// SplitMix64: cases come from a number, so a failure can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    fn segment(&mut self) -> String {
        // few and alike, so that rules meet; `+x` and `x*` inside are plain text
        self.pick(&["a", "b", "A", "ab", "aB", "é", "É", "+a", "a+"]).to_owned()
    }

    fn path(&mut self) -> String {
        let count = 1 + self.roll(4);
        let mut path = (0..count).map(|_| self.segment()).collect::<Vec<_>>().join("/");
        if self.roll(4) == 0 {
            path.push('/');
        }
        path
    }

    fn pattern(&mut self) -> String {
        let count = 1 + self.roll(4);
        let mut segments: Vec<_> = (0..count).map(|_| if self.roll(3) == 0 { "+".to_owned() } else { self.segment() }).collect();
        match self.roll(5) {
            0 => segments.push(String::new()),
            1 => segments.push("*".to_owned()),
            2 if segments.last().is_some_and(|s| s != "+" && !s.ends_with('+')) => segments.last_mut().unwrap().push('*'),
            _ => {}
        }
        segments.join("/")
    }

    fn words(&mut self) -> BTreeSet<&'static str> {
        if self.roll(4) == 0 {
            return if self.roll(2) == 0 { BTreeSet::from(["deny"]) } else { BTreeSet::from(["deny", "read", "list"]) };
        }
        ["create", "read", "update", "delete", "list", "patch", "sudo"].into_iter().filter(|_| self.roll(2) == 0).collect()
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.roll(i + 1));
        }
    }
}

fn hcl_text(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("path \"{}\" {{ capabilities = {:?} }}\n", line.path, line.words.iter().collect::<Vec<_>>())).collect()
}

fn json_text(lines: &[Line]) -> String {
    let blocks: Vec<_> = lines
        .iter()
        .map(|line| format!("{{\"{}\": {{\"capabilities\": {:?}}}}}", line.path, line.words.iter().collect::<Vec<_>>()))
        .collect();
    format!("{{\"path\": [{}]}}", blocks.join(", "))
}

/// One random set of policies with a random ask, and what the compiled evaluator said.
struct Case {
    lines: Vec<Line>,
    rules: Rules,
    /// The same set in another order, from the JSON form.
    shuffled: Rules,
}

impl Case {
    fn roll(dice: &mut Dice) -> Self {
        let mut set: Vec<Vec<Line>> = (0..1 + dice.roll(3))
            .map(|_| {
                // one policy says all about a path in one block
                let lines = (0..1 + dice.roll(4)).map(|_| Line { path: dice.pattern(), words: dice.words() });
                lines.map(|line| (line.path.clone(), line)).collect::<BTreeMap<_, _>>().into_values().collect()
            })
            .collect();
        if dice.roll(3) == 0 {
            // two policies about the same path
            let line = Line { path: set[0][0].path.clone(), words: dice.words() };
            set.push(vec![line]);
        }
        let lines = set.concat();
        let parse = |i: usize, text: String| policy(&format!("p{i}"), &text);
        let rules = Rules::compile(set.iter().enumerate().map(|(i, lines)| parse(i, hcl_text(lines))));
        for (i, lines) in set.iter().enumerate() {
            assert_eq!(parse(i, hcl_text(lines)).rules(), parse(i, json_text(lines)).rules());
        }
        dice.shuffle(&mut set);
        set.iter_mut().for_each(|lines| dice.shuffle(lines));
        let shuffled = Rules::compile(set.iter().enumerate().map(|(i, lines)| parse(i, json_text(lines))));
        Self { lines, rules, shuffled }
    }

    /// An ask that has a chance to meet a rule.
    fn ask(&self, dice: &mut Dice) -> (String, Want, bool) {
        let mut at = if dice.roll(3) > 0 {
            let pattern = dice.pick(&self.lines).path;
            let filled: Vec<_> =
                pattern.split('/').map(|s| if s == "+" || s == "*" { dice.segment() } else { s.replace('*', "b") }).collect();
            filled.join("/")
        } else {
            dice.path()
        };
        match dice.roll(6) {
            0 => at = at.to_uppercase(),
            1 => at = at.to_lowercase(),
            _ => {}
        }
        let want = dice.pick(&[
            Want::Word("read"),
            Want::Word("list"),
            Want::Word("list"),
            Want::Word("delete"),
            Want::Word("patch"),
            Want::Word("update"),
            Want::WriteExisting,
            Want::WriteNew,
        ]);
        (at, want, dice.roll(4) == 0)
    }
}

fn compiled(rules: &Rules, at: &str, want: Want, sudo: bool) -> bool {
    let op = match want {
        Want::Word("read") => Op::Read,
        Want::Word("list") => Op::List,
        Want::Word("delete") => Op::Delete,
        Want::Word("patch") => Op::Patch,
        Want::Word(_) => Op::Update,
        Want::WriteExisting | Want::WriteNew => Op::Write,
    };
    let at = path(at);
    let ask = Ask { path: &at, op, sudo };
    decide(rules, &[ask], &mut || Ok::<_, Infallible>(want == Want::WriteExisting)).is_ok()
}

/// `KEYWARD_CASES` sets how many; `PROPTEST_RNG_SEED` where they start.
fn setting(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().map_or(or, |text| text.parse().unwrap())
}

const ASKS_PER_SET: u64 = 8;

#[test]
fn the_compiled_evaluator_is_the_twin() {
    let (cases, seed) = (setting("KEYWARD_CASES", 120_000), setting("PROPTEST_RNG_SEED", 1));
    let mut permitted = 0u64;
    for set in 0..cases.div_ceil(ASKS_PER_SET) {
        let mut dice = Dice(seed.wrapping_mul(1 << 32).wrapping_add(set));
        let case = Case::roll(&mut dice);
        for _ in 0..ASKS_PER_SET {
            let (at, want, sudo) = case.ask(&mut dice);
            let twin = Twin::default().permits(&case.lines, &at, want, sudo);
            let told = || format!("seed {seed}, set {set}: {want:?} {at} sudo={sudo}\n{}", hcl_text(&case.lines));
            assert_eq!(compiled(&case.rules, &at, want, sudo), twin, "{}", told());
            assert_eq!(compiled(&case.shuffled, &at, want, sudo), twin, "in another order: {}", told());
            if let (Want::Word(word), false) = (want, sudo) {
                let listed = capabilities(&case.rules, &path(&at)).iter().any(|c| c.as_str() == word);
                assert_eq!(listed, twin, "capabilities: {}", told());
            }
            permitted += u64::from(twin);
        }
    }
    // neither always yes nor always no
    assert!(permitted * 20 > cases && permitted * 20 < cases * 19, "{permitted} of {cases} permitted");
}

#[test]
fn a_twin_without_one_clause_is_noticed() {
    for clause in Clause::ALL {
        let noticed = (0..20_000u64).any(|set| {
            let mut dice = Dice(set);
            let case = Case::roll(&mut dice);
            (0..ASKS_PER_SET).any(|_| {
                let (at, want, sudo) = case.ask(&mut dice);
                compiled(&case.rules, &at, want, sudo) != Twin { without: Some(clause) }.permits(&case.lines, &at, want, sudo)
            })
        });
        assert!(noticed, "nobody notices that {clause:?} is left out");
    }
}
