//! Canonical JSON (RFC 8785), restricted to what a record needs.
//!
//! Numbers are integers of magnitude at most 2^53, for which the canonical form is plain decimal: everything else is
//! refused instead of rounded, so that two implementations can never disagree about a leaf.

use crate::Error;
use serde_json::{Map, Value};

/// Nesting that is still encoded; records are five deep.
pub const DEPTH_MAX: usize = 32;
/// Largest magnitude of a number: beyond it IEEE doubles skip integers.
pub const INTEGER_MAX: u64 = 1 << 53;

/// Encodes `value` canonically.
pub fn to_vec(value: &Value) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(512);
    encode(value, &mut out, DEPTH_MAX)?;
    Ok(out)
}

/// Parses bytes that must be canonical already; refuses any other spelling of the same value (also repeated keys).
pub fn parse(bytes: &[u8]) -> Result<Value, Error> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| Error::Leaf("not json"))?;
    if to_vec(&value)? == bytes { Ok(value) } else { Err(Error::NotCanonical("another spelling of the same value")) }
}

fn encode(value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::NotCanonical("nested too deeply"))?;
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => integer(number, out)?,
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                encode(item, out, depth)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (position, (name, member)) in sorted(members).into_iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                string(name, out);
                out.push(b':');
                encode(member, out, depth)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// Members by UTF-16 code units (RFC 8785 §3.2.3). For ASCII names byte order is the same and cheaper.
fn sorted(members: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut list: Vec<_> = members.iter().collect();
    if list.iter().all(|(name, _)| name.is_ascii()) {
        list.sort_unstable_by_key(|(name, _)| name.as_str());
    } else {
        list.sort_unstable_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    }
    list
}

fn integer(number: &serde_json::Number, out: &mut Vec<u8>) -> Result<(), Error> {
    let magnitude = match (number.as_u64(), number.as_i64()) {
        (Some(n), _) => n,
        (None, Some(n)) => {
            out.push(b'-');
            n.unsigned_abs()
        }
        (None, None) => return Err(Error::NotCanonical("a number is not an integer")),
    };
    if magnitude > INTEGER_MAX {
        return Err(Error::NotCanonical("a number is beyond 2^53"));
    }
    out.extend_from_slice(magnitude.to_string().as_bytes());
    Ok(())
}

/// A string with the shortest escapes (RFC 8785 §3.2.2.2).
fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(to_vec(value).unwrap()).unwrap()
    }

    #[test]
    fn members_are_ordered_by_utf16_units() {
        // U+1F600 is a surrogate pair (D83D…) and sorts before U+FB33, although its UTF-8 sorts after
        assert_eq!(text(&json!({"\u{fb33}": 1, "\u{1f600}": 2, "a": 3})), "{\"a\":3,\"\u{1f600}\":2,\"\u{fb33}\":1}");
    }

    #[test]
    fn hostile_text_stays_inside_its_string() {
        assert_eq!(
            text(&json!("a\n\u{2014} b\0\"\\\u{7f}\u{1f}\r\t\u{8}\u{c}")),
            "\"a\\n\u{2014} b\\u0000\\\"\\\\\u{7f}\\u001f\\r\\t\\b\\f\""
        );
    }

    #[test]
    fn numbers_that_could_be_read_in_two_ways_are_refused() {
        for bad in [json!(1.5), json!(1e3), json!((1_u64 << 53) + 1), json!(-(1_i64 << 53) - 1), json!(u64::MAX)] {
            assert!(matches!(to_vec(&bad), Err(Error::NotCanonical(_))), "{bad}");
        }
        assert_eq!(text(&json!([1_u64 << 53, -(1_i64 << 53), 0])), "[9007199254740992,-9007199254740992,0]");
    }

    #[test]
    fn depth_is_capped() {
        let nest = |n| (0..n).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert!(to_vec(&nest(DEPTH_MAX - 1)).is_ok());
        assert_eq!(to_vec(&nest(DEPTH_MAX)), Err(Error::NotCanonical("nested too deeply")));
    }

    #[test]
    fn parse_accepts_one_spelling_only() {
        assert!(parse(b"{\"a\":1,\"b\":\"x\"}").is_ok());
        for other in [
            &b"{\"b\":\"x\",\"a\":1}"[..],
            b"{\"a\": 1}",
            b"{\"a\":1,\"a\":1}",
            b"{\"a\":1}\n",
            b"{\"a\":\"\\u0041\"}",
            b"{\"a\":1.0}",
            b"{\"a\":-0}",
        ] {
            assert!(parse(other).is_err(), "{}", String::from_utf8_lossy(other));
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(1_i64 << 53)..=(1_i64 << 53)).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_implementation(value in values()) {
            let ours = to_vec(&value).unwrap();
            prop_assert_eq!(&ours, &serde_json_canonicalizer::to_vec(&value).unwrap());
            prop_assert_eq!(parse(&ours).unwrap(), value);
        }
    }
}
