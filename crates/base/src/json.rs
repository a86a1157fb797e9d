//! One pass over a JSON body before anything is built from it: depth, duplicate members, lengths, lone surrogates.
//!
//! `serde_json` accepts 200,000 nested arrays in a `RawValue`, keeps the last of two equal members and reads lone surrogates into
//! a `RawValue`; a store of secrets accepts none of that. The guard allocates only the names of open objects.

use std::collections::BTreeSet;

use crate::limits::Limits;

/// What is wrong with a body. Carries a byte position, never the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonFault {
    /// Not JSON (RFC 8259) at this byte.
    Syntax(usize),
    /// Nested deeper than `json_depth_max`.
    Depth(usize),
    /// More strings than `json_strings_max`.
    Strings(usize),
    /// A member name longer than `json_key_bytes_max`.
    Key(usize),
    /// A number longer than `json_number_bytes_max`.
    Number(usize),
    /// Two members of one object have the same name.
    Duplicate(usize),
}

impl std::fmt::Display for JsonFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, at) = match self {
            Self::Syntax(at) => ("syntax error", at),
            Self::Depth(at) => ("nested too deep", at),
            Self::Strings(at) => ("too many strings", at),
            Self::Key(at) => ("a member name is too long", at),
            Self::Number(at) => ("a number is too long", at),
            Self::Duplicate(at) => ("a member is given twice", at),
        };
        write!(f, "failed to parse JSON input: {what} at byte {at}")
    }
}

impl std::error::Error for JsonFault {}

/// Accepts exactly one JSON value that stays within `limits`.
///
/// # Errors
/// [`JsonFault`] with the byte where it shows.
pub fn guard(bytes: &[u8], limits: &Limits) -> Result<(), JsonFault> {
    if let Err(e) = std::str::from_utf8(bytes) {
        return Err(JsonFault::Syntax(e.valid_up_to()));
    }
    let mut walk = Walk { bytes, at: 0, strings: 0, limits };
    walk.value()?;
    walk.space();
    if walk.at == bytes.len() { Ok(()) } else { Err(JsonFault::Syntax(walk.at)) }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    strings: usize,
    limits: &'a Limits,
}

/// An open array, or an open object with the names it has so far.
enum Open {
    Array,
    Object(BTreeSet<String>),
}

impl Walk<'_> {
    /// Iterative: the stack is the list of open containers, bounded by `json_depth_max`.
    fn value(&mut self) -> Result<(), JsonFault> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            self.space();
            let opened = match self.peek() {
                Some(b'[') => Some(Open::Array),
                Some(b'{') => Some(Open::Object(BTreeSet::new())),
                _ => {
                    self.scalar()?;
                    None
                }
            };
            if let Some(mut container) = opened {
                if open.len() >= self.limits.json_depth_max {
                    return Err(JsonFault::Depth(self.at));
                }
                self.at += 1;
                self.space();
                let close = match container {
                    Open::Array => b']',
                    Open::Object(_) => b'}',
                };
                if self.peek() == Some(close) {
                    self.at += 1;
                } else {
                    if let Open::Object(names) = &mut container {
                        self.name(names)?;
                    }
                    open.push(container);
                    continue;
                }
            }
            // A value has ended: close what ends with it, or go on to the next.
            loop {
                self.space();
                let Some(top) = open.last_mut() else {
                    return Ok(());
                };
                match (self.peek(), top) {
                    (Some(b','), Open::Array) => {
                        self.at += 1;
                        break;
                    }
                    (Some(b','), Open::Object(names)) => {
                        self.at += 1;
                        self.space();
                        self.name(names)?;
                        break;
                    }
                    (Some(b']'), Open::Array) | (Some(b'}'), Open::Object(_)) => {
                        self.at += 1;
                        open.pop();
                    }
                    _ => return Err(JsonFault::Syntax(self.at)),
                }
            }
        }
    }

    fn name(&mut self, names: &mut BTreeSet<String>) -> Result<(), JsonFault> {
        let start = self.at;
        let name = self.string()?;
        if name.len() > self.limits.json_key_bytes_max {
            return Err(JsonFault::Key(start));
        }
        if !names.insert(name) {
            return Err(JsonFault::Duplicate(start));
        }
        self.space();
        self.expect(b':')
    }

    fn scalar(&mut self) -> Result<(), JsonFault> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(JsonFault::Syntax(self.at)),
        }
    }

    /// Reads one string with the library, so that equal names in different spellings (`"a"`, `"\u0061"`) are seen as equal.
    fn string(&mut self) -> Result<String, JsonFault> {
        let start = self.at;
        self.strings += 1;
        if self.strings > self.limits.json_strings_max {
            return Err(JsonFault::Strings(start));
        }
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(JsonFault::Syntax(self.at)),
            }
        }
        self.at += 1;
        let text = self.bytes.get(start..self.at).ok_or(JsonFault::Syntax(start))?;
        serde_json::from_slice(text).map_err(|_| JsonFault::Syntax(start))
    }

    fn number(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at - start > self.limits.json_number_bytes_max {
            return Err(JsonFault::Number(start));
        }
        let text = self.bytes.get(start..self.at).unwrap_or_default();
        serde_json::from_slice::<&serde_json::value::RawValue>(text).map(drop).map_err(|_| JsonFault::Syntax(start))
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonFault> {
        if self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            Ok(())
        } else {
            Err(JsonFault::Syntax(self.at))
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonFault> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(JsonFault::Syntax(self.at))
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str) -> Result<(), JsonFault> {
        guard(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn accepts_json() {
        for text in ["{}", "[]", " {\"a\":[1,-2.5e3,\"x\\n\\u0041\",null,true,false,{}]} ", "0", "\"é😀\""] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_what_serde_lets_through() {
        assert_eq!(check(r#"{"a":1,"a":2}"#), Err(JsonFault::Duplicate(7)));
        assert_eq!(check(r#"{"a":1,"\u0061":2}"#), Err(JsonFault::Duplicate(7)));
        assert_eq!(check(r#"{"x":{"a":1,"a":2}}"#), Err(JsonFault::Duplicate(12)));
        assert_eq!(check(r#""\ud800""#), Err(JsonFault::Syntax(0)));
        assert!(matches!(check(&"[".repeat(200_000)), Err(JsonFault::Depth(32))));
        assert!(matches!(check(&format!("[{}\"\"]", "\"\",".repeat(1_000))), Err(JsonFault::Strings(_))));
        assert!(matches!(check(&"9".repeat(65)), Err(JsonFault::Number(0))));
        assert!(matches!(check(&format!("{{\"{}\":1}}", "k".repeat(513))), Err(JsonFault::Key(1))));
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in
            ["", "{", "[1,]", "{\"a\":}", "{\"a\" 1}", "{a:1}", "[1 2]", "nul", "01", "1.", "\"\t\"", "\"\\x\"", "\"", "\"\\", "{}x", "+1"]
        {
            assert!(matches!(check(text), Err(JsonFault::Syntax(_))), "{text}");
        }
        assert!(guard(b"\"\xff\"", &Limits::default()).is_err());
    }

    proptest! {
        /// The naive twin is the library: what the guard accepts, it accepts; what only the guard refuses has a named reason.
        #[test]
        fn agrees_with_the_library(text in "[\\[\\]{},:\"a0.1e\\\\u\\- ntrue]{0,24}") {
            let library = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            match check(&text) {
                Ok(()) => prop_assert!(library),
                Err(JsonFault::Syntax(_)) => prop_assert!(!library, "{}", text),
                Err(_) => {}
            }
        }
    }
}
