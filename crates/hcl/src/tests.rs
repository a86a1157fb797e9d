use proptest::prelude::*;

use super::*;

/// A tree as one line: `key "label" {…}`, `key=value;`.
fn show(body: &Body) -> String {
    body.items
        .iter()
        .map(|item| {
            let labels: String = item.labels.iter().map(|l| format!(" {l:?}")).collect();
            format!("{}{labels}={};", item.key, show_value(&item.value))
        })
        .collect()
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("{text:?}"),
        Value::Integer(n) => n.to_string(),
        Value::Float(f) => format!("{f:?}f"),
        Value::Bool(b) => b.to_string(),
        Value::List(values) => format!("[{}]", values.iter().map(show_value).collect::<Vec<_>>().join(",")),
        Value::Object(body) => format!("{{{}}}", show(body)),
    }
}

#[track_caller]
fn reads(text: &str, tree: &str) {
    assert_eq!(parse(text).as_ref().map(show), Ok(tree.to_owned()), "{text}");
}

#[track_caller]
fn refuses(text: &str, fault: Fault, line: u32, column: u32) {
    assert_eq!(parse(text), Err(Error::new(Position { line, column }, fault)), "{text}");
}

#[test]
fn attributes() {
    reads("", "");
    reads(" \n\t# nothing\n// here\n/* at\nall */", "");
    reads("a = 1", "a=1;");
    reads("a=1 b = true\nc=\"x\"", "a=1;b=true;c=\"x\";");
    reads("a = 1, b = 2,", "a=1;b=2;");
    reads("\"quoted key\" = false", "quoted key=false;");
    reads("a-b.c_1 = 1", "a-b.c_1=1;");
    reads("a\n=\n1", "a=1;");
    reads("a = 1 # end", "a=1;");
    reads("\u{feff}a = 1", "a=1;");
    reads("a = 1\r\nb = 2\r\n", "a=1;b=2;");
}

#[test]
fn blocks() {
    reads("path \"a/*\" { x = 1 }", "path \"a/*\"={x=1;};");
    reads("\"path\" \"a\" {} path \"b\" {}", "path \"a\"={};path \"b\"={};");
    reads("path \"a\" {}\npath \"a\" {}", "path \"a\"={};path \"a\"={};");
    reads("a \"b\" \"c\" { d \"e\" { f = 1 } }", "a \"b\" \"c\"={d \"e\"={f=1;};};");
    reads("a { b = 1, c = 2 }", "a={b=1;c=2;};");
    reads("a = { b = 1 \"c\" = 2 }", "a={b=1;c=2;};");
    reads("a bare {}", "a \"bare\"={};");
    reads("a {} a {}", "a={};a={};");
}

#[test]
fn strings_are_text() {
    reads(r#"a = "${x}""#, r#"a="${x}";"#);
    reads(r#"a = "%{x} {{identity.entity.id}} $x $${y}""#, r#"a="%{x} {{identity.entity.id}} $x $${y}";"#);
    reads(r#"a = "${ {x} } {y""#, r#"a="${ {x} } {y";"#);
    reads(r#"a = "\"\\\n\t\x41\u00e9\U0001f600""#, "a=\"\\\"\\\\\\n\\tA\u{e9}\u{1f600}\";");
    reads(r#"a = "\x24{\n\"""#, r#"a="${\n\"";"#);
    refuses(r#"a = "${"b"}""#, Fault::Interpolation, 1, 8);
    refuses(r#"a = "${" b = "}""#, Fault::Interpolation, 1, 8);
    refuses(r#"a = "${\n}""#, Fault::Interpolation, 1, 8);
    refuses("a = \"x\ny\"", Fault::OpenString, 1, 5);
    refuses("a = \"x", Fault::OpenString, 1, 5);
    refuses("a = \"x\0\"", Fault::Control, 1, 7);
    for bad in [r"\q", r"\101", r"\x80", r"\xg0", r"\ud800", r"\U00110000", r"\u12", r"\u0000"] {
        let error = parse(&format!("a = \"{bad}\"")).unwrap_err();
        assert_eq!(error.fault, Fault::Escape, "{bad}");
    }
}

#[test]
fn heredocs() {
    reads("a = <<EOF\none\n two \"${\nEOF\nb = 1", "a=\"one\\n two \\\"${\\n\";b=1;");
    reads("a = <<EOF\nEOF", "a=\"\";");
    reads("a = <<EOF\r\none\r\nEOF\r\n", "a=\"one\\n\";");
    reads("a = <<-EOF\n  one\n    two\n  EOF\n", "a=\"one\\n  two\\n\";");
    reads("a = <<-EOF\n  one\ntwo\n  EOF\n", "a=\"  one\\ntwo\\n\";");
    reads("a = <<EOF\nnot EOF\nEOF x\nEOF", "a=\"not EOF\\nEOF x\\n\";");
    refuses("a = <<EOF\nEOF2", Fault::Heredoc, 1, 5);
    refuses("a = <<EOF\none\n", Fault::Heredoc, 1, 5);
    refuses("a = <EOF", Fault::Heredoc, 1, 5);
    refuses("a = <<\nEOF", Fault::Heredoc, 1, 5);
    refuses("a = << EOF\nEOF", Fault::Heredoc, 1, 5);
    refuses("a = <<E F\nE F", Fault::Heredoc, 1, 5);
}

#[test]
fn numbers() {
    reads("a = -7 b = 0 c = 0x1F d = 010 e = -0x10", "a=-7;b=0;c=31;d=8;e=-16;");
    reads("a = 1.5 b = -2e3 c = 1E+2 d = 2.5e-1", "a=1.5f;b=-2000.0f;c=100.0f;d=0.25f;");
    reads("a = 9223372036854775807 b = -9223372036854775808", "a=9223372036854775807;b=-9223372036854775808;");
    reads("a = [1,2]", "a=[1,2];");
    for bad in ["9223372036854775808", "0x", "08", "1e", "1.", "1..2", "-", "--1", "1x", "1_000", "0x1g", "1e999", "-é", "1-2x", "0x1-2"] {
        let error = parse(&format!("a = {bad}")).map(|b| show(&b)).unwrap_err();
        assert!(matches!(error.fault, Fault::Number | Fault::Key), "{bad}: {error}");
    }
}

#[test]
fn lists() {
    reads("a = []", "a=[];");
    reads("a = [\"x\", 1, true, [2], {b = 1},]", "a=[\"x\",1,true,[2],{b=1;}];");
    reads("a = [ # one\n 1, // two\n 2 /* three */ ]", "a=[1,2];");
    refuses("a = [1 2]", Fault::AfterListItem, 1, 8);
    refuses("a = [,]", Fault::Value, 1, 6);
    refuses("a = [1,,2]", Fault::Value, 1, 8);
    refuses("a = [1", Fault::End, 1, 7);
}

#[test]
fn what_is_refused_says_where() {
    refuses("a", Fault::End, 1, 2);
    refuses("a 1", Fault::AfterKey, 1, 3);
    refuses("= 1", Fault::Key, 1, 1);
    refuses("a = 1\n  }", Fault::Key, 2, 3);
    refuses("a {", Fault::End, 1, 4);
    refuses("a =", Fault::End, 1, 4);
    refuses("a = b", Fault::Value, 1, 5);
    refuses("a = null", Fault::Value, 1, 5);
    refuses("a \"b\" = 1", Fault::LabelledAttribute, 1, 7);
    refuses("a = 1,, b = 2", Fault::Key, 1, 7);
    refuses(", a = 1", Fault::Key, 1, 1);
    refuses("/* open", Fault::OpenComment, 1, 1);
    refuses("a = 1 /", Fault::Key, 1, 7);
    refuses("a = 1\na = 2", Fault::Duplicate, 2, 1);
    refuses("a {}\na = 2", Fault::Duplicate, 2, 1);
    refuses("p \"x\" {\n a = 1\n a = 1 }", Fault::Duplicate, 3, 2);
    assert_eq!(parse("a = 1\nb = s3cret").unwrap_err().to_string(), "line 2, column 5: expected a value");
}

#[test]
fn json() {
    reads("{}", "");
    reads(" \n{\"a\": 1, \"b\": [true, \"x\"], \"c\": {\"d\": -1.5}}\n", "a=1;b=[true,\"x\"];c={d=-1.5f;};");
    reads(r#"{"a": "\u00e9\ud83d\ude00\/\"${x}"}"#, "a=\"\u{e9}\u{1f600}/\\\"${x}\";");
    refuses(r#"{"p": {"x": {}}, "p": {"y": {}}}"#, Fault::Duplicate, 1, 18);
    refuses(r#"{"p": {"x": {}, "x": {}}}"#, Fault::Duplicate, 1, 17);
    refuses(r#"{"a": 1, "a": 2}"#, Fault::Duplicate, 1, 10);
    refuses(r#"{"a": {}, "a": 2}"#, Fault::Duplicate, 1, 11);
    refuses(r#"{"a": null}"#, Fault::Value, 1, 7);
    refuses(r#"{"a": 1,}"#, Fault::Key, 1, 9);
    refuses(r#"{"a": [1,]}"#, Fault::Value, 1, 10);
    refuses(r#"{"a" 1}"#, Fault::Unexpected, 1, 6);
    refuses(r#"{"a": 1 "b": 2}"#, Fault::AfterMember, 1, 9);
    refuses(r#"{"a": 1"#, Fault::End, 1, 8);
    refuses("{} x", Fault::Unexpected, 1, 4);
    refuses("{} {}", Fault::Unexpected, 1, 4);
    refuses("{# no\n}", Fault::Key, 1, 2);
    refuses(r#"{"a": "x"#, Fault::OpenString, 1, 7);
    refuses("{\"a\": \"x\ny\"}", Fault::Control, 1, 9);
    refuses(r#"{"a": "\ud800"}"#, Fault::Escape, 1, 9);
    refuses(r#"{"a": "\ud800\u0041"}"#, Fault::Escape, 1, 9);
    refuses(r#"{"a": "\u0000"}"#, Fault::Escape, 1, 9);
    for bad in ["01", "1.", ".5", "+1", "1e", "1e+", "0x1", "-", "1.e1", "9223372036854775808", "1e999", "1.5.5", "NaN"] {
        let error = parse(&format!("{{\"a\": {bad}}}")).unwrap_err();
        assert!(matches!(error.fault, Fault::Number | Fault::Value), "{bad}: {error}");
    }
}

#[test]
fn depth_and_size_have_limits() {
    for (open, close) in [("[", "]"), ("{ a = ", "}")] {
        let nest = |n: usize| format!("a = {}1{}", open.repeat(n), close.repeat(n));
        assert!(parse(&nest(DEPTH_MAX)).is_ok());
        assert_eq!(parse(&nest(DEPTH_MAX + 1)).unwrap_err().fault, Fault::TooDeep);
        assert_eq!(parse(&nest(100_000)).unwrap_err().fault, Fault::TooDeep);
    }
    let nest = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
    assert!(parse(&nest(DEPTH_MAX)).is_ok());
    assert_eq!(parse(&nest(DEPTH_MAX + 1)).unwrap_err().fault, Fault::TooDeep);
    assert_eq!(parse(&nest(100_000)).unwrap_err().fault, Fault::TooDeep);
    assert_eq!(parse(&"#".repeat(BYTES_MAX + 1)).unwrap_err().fault, Fault::TooLarge);
    assert!(parse(&"#".repeat(BYTES_MAX)).is_ok());
}

#[test]
fn blocks_of_all_forms_are_the_same() {
    let labels = |text: &str| {
        let body = parse(text).unwrap();
        body.blocks("path").map(|blocks| blocks.iter().map(|b| format!("{}:{}", b.label, show(b.body))).collect::<Vec<_>>().join(" "))
    };
    let same = Ok("a:x=1; b:x=2;".to_owned());
    assert_eq!(labels("path \"a\" { x = 1 } other = 1 path \"b\" { x = 2 }"), same);
    assert_eq!(labels(r#"{"path": {"a": {"x": 1}, "b": {"x": 2}}, "other": 1}"#), same);
    assert_eq!(labels(r#"{"path": [{"a": {"x": 1}}, {"b": {"x": 2}}]}"#), same);
    assert_eq!(labels(r#"{"path": {"a": [{"x": 1}, {"x": 2}]}}"#), Ok("a:x=1; a:x=2;".to_owned()));
    // one that holds an object itself is not mistaken for a label
    assert_eq!(labels(r#"{"path": {"a": {"y": {"z": 1}}}}"#), Ok("a:y={z=1;};".to_owned()));
    for bad in
        ["path { x = 1 }", "path = 1", "path \"a\" \"b\" {}", r#"{"path": {"a": 1}}"#, r#"{"path": ["a"]}"#, r#"{"path": {"a": [1]}}"#]
    {
        assert_eq!(labels(bad).unwrap_err().fault, Fault::OneLabel, "{bad}");
    }
}

/// Any text without NUL, often one of those characters that mean something within quotes.
fn text() -> impl Strategy<Value = String> {
    "([^\0]|[${}\"\\\\\n]|[$][{]){0,8}"
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![text().prop_map(Value::Text), any::<i64>().prop_map(Value::Integer), any::<bool>().prop_map(Value::Bool),];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map(text(), inner, 0..4).prop_map(|members| Value::Object(Body {
                items: members.into_iter().map(|(key, value)| Item { key, labels: Vec::new(), value, position: Position::START }).collect()
            })),
        ]
    })
}

/// A text within quotes. What follows a plain `${` cannot be escaped in the native form, so its `$` is.
fn quote(text: &str, json: bool) -> String {
    let mut quoted = String::from("\"");
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '$' if !json && rest.as_str().starts_with('{') => quoted.push_str("\\x24"),
            c if json && c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn write(value: &Value, json: bool) -> String {
    let quoted = |text: &str| quote(text, json);
    match value {
        Value::Text(text) => quoted(text),
        Value::Integer(n) => n.to_string(),
        Value::Float(f) => format!("{f:?}"),
        Value::Bool(b) => b.to_string(),
        Value::List(values) => format!("[{}]", values.iter().map(|v| write(v, json)).collect::<Vec<_>>().join(", ")),
        Value::Object(body) => {
            let (is, between) = if json { (":", ",") } else { (" = ", "\n") };
            let members: Vec<_> = body
                .items
                .iter()
                .map(|item| match item.labels.as_slice() {
                    [] => format!("{}{is}{}", quoted(&item.key), write(&item.value, json)),
                    labels => {
                        let labels: Vec<_> = labels.iter().map(|l| quoted(l)).collect();
                        format!("{} {} {}", quoted(&item.key), labels.join(" "), write(&item.value, json))
                    }
                })
                .collect();
            format!("{{{}}}", members.join(between))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn both_forms_give_the_tree_that_was_written(tree in value()) {
        let expected = format!("a={};", show_value(&tree));
        prop_assert_eq!(parse(&format!("a = {}", write(&tree, false))).map(|b| show(&b)), Ok(expected.clone()));
        prop_assert_eq!(parse(&format!("{{\"a\": {}}}", write(&tree, true))).map(|b| show(&b)), Ok(expected));
    }

    #[test]
    fn no_text_is_too_odd(text in "[ -~\n\u{e9}]{0,60}") {
        // whatever comes, it ends, and a fault lies within the text
        if let Err(error) = parse(&text) {
            prop_assert!(error.position.line as usize <= text.lines().count() + 1);
        }
    }

    #[test]
    fn mutated_policies_end(cut in 0usize..120, at in 0usize..120, with in "[{}\"=,$<*\\[\\]a1 \n]{0,3}") {
        let policy = "path \"secret/*\" { capabilities = [\"read\", \"list\"] }\npath \"a/+\" { policy = <<E\nread\nE\n }";
        let cut = cut.min(policy.len());
        let at = at.min(cut);
        let mutated: String = policy.chars().take(at).chain(with.chars()).chain(policy.chars().skip(cut)).collect();
        if let Ok(body) = parse(&mutated) {
            // what was understood can be written down and is understood the same again
            let written = write(&Value::Object(body.clone()), false);
            let inner = written.strip_prefix('{').and_then(|w| w.strip_suffix('}')).unwrap();
            prop_assert_eq!(parse(inner).map(|again| show(&again)), Ok(show(&body)));
        }
    }
}
