//! The JSON form: RFC 8259 objects, lists, strings, numbers and booleans; no `null`.

use std::collections::BTreeSet;

use crate::cursor::Cursor;
use crate::{Body, Error, Fault, Item, Limits, Value};

pub(crate) fn parse(text: &str, limits: &Limits) -> Result<Body, Error> {
    let mut cursor = Cursor::new(text, limits);
    skip(&mut cursor);
    let body = object(&mut cursor)?;
    skip(&mut cursor);
    match cursor.peek() {
        None => Ok(body),
        Some(_) => Err(cursor.fault(Fault::Unexpected)),
    }
}

fn object(c: &mut Cursor<'_>) -> Result<Body, Error> {
    c.nested(|c| {
        c.bump();
        let (mut body, mut seen) = (Body::default(), BTreeSet::new());
        skip(c);
        if c.take('}') {
            return Ok(body);
        }
        loop {
            skip(c);
            let position = c.position();
            if c.peek() != Some('"') {
                return Err(c.unexpected(Fault::Key));
            }
            let key = string(c)?;
            if !seen.insert(key.clone()) {
                return Err(Error::new(position, Fault::Duplicate));
            }
            skip(c);
            if !c.take(':') {
                return Err(c.unexpected(Fault::Unexpected));
            }
            body.items.push(Item { key, labels: Vec::new(), value: value(c)?, position });
            skip(c);
            if c.take('}') {
                break;
            }
            if !c.take(',') {
                return Err(c.unexpected(Fault::AfterMember));
            }
        }
        Ok(body)
    })
}

fn value(c: &mut Cursor<'_>) -> Result<Value, Error> {
    skip(c);
    let at = c.position();
    match c.peek() {
        Some('"') => string(c).map(Value::Text),
        Some('{') => object(c).map(Value::Object),
        Some('[') => list(c),
        Some(first) if first == '-' || first.is_ascii_digit() => number(c),
        Some('a'..='z') => match c.take_while(|w| w.is_ascii_alphanumeric()) {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(Error::new(at, Fault::Value)),
        },
        _ => Err(c.unexpected(Fault::Value)),
    }
}

fn list(c: &mut Cursor<'_>) -> Result<Value, Error> {
    c.nested(|c| {
        c.bump();
        let mut values = Vec::new();
        skip(c);
        if c.take(']') {
            return Ok(Value::List(values));
        }
        loop {
            values.push(value(c)?);
            skip(c);
            if c.take(']') {
                return Ok(Value::List(values));
            }
            if !c.take(',') {
                return Err(c.unexpected(Fault::AfterListItem));
            }
        }
    })
}

fn string(c: &mut Cursor<'_>) -> Result<String, Error> {
    let start = c.position();
    c.bump();
    let mut text = String::new();
    loop {
        let at = c.position();
        match c.bump() {
            None => return Err(Error::new(start, Fault::OpenString)),
            Some('"') => return Ok(text),
            Some('\\') => text.push(escape(c)?),
            Some(control) if control < ' ' => return Err(Error::new(at, Fault::Control)),
            Some(plain) => text.push(plain),
        }
    }
}

fn escape(c: &mut Cursor<'_>) -> Result<char, Error> {
    let bad = c.fault(Fault::Escape);
    match c.bump().ok_or(bad)? {
        plain @ ('"' | '\\' | '/') => Ok(plain),
        'b' => Ok('\u{8}'),
        'f' => Ok('\u{c}'),
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        'u' => {
            let mut code = c.hex(4)?;
            if (0xd800..0xdc00).contains(&code) {
                if !(c.take('\\') && c.take('u')) {
                    return Err(bad);
                }
                let low = c.hex(4)?;
                let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(bad)?;
                code = 0x10000 + ((code - 0xd800) << 10) + low;
            }
            char::from_u32(code).filter(|c| *c != '\0').ok_or(bad)
        }
        _ => Err(bad),
    }
}

fn number(c: &mut Cursor<'_>) -> Result<Value, Error> {
    let bad = c.fault(Fault::Number);
    let text = c.take_while(|d| d.is_ascii_alphanumeric() || matches!(d, '.' | '+' | '-'));
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, tail) = match digits.find(|d: char| !d.is_ascii_digit()) {
        Some(end) => digits.split_at_checked(end).ok_or(bad)?,
        None => (digits, ""),
    };
    if whole.is_empty() || (whole.len() > 1 && whole.starts_with('0')) {
        return Err(bad);
    }
    if tail.is_empty() {
        return text.parse().map(Value::Integer).map_err(|_| bad);
    }
    let fraction_end = match tail.strip_prefix('.') {
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|d: char| d.is_ascii_digit());
            if rest.len() == fraction.len() {
                return Err(bad);
            }
            rest
        }
        None => tail,
    };
    if let Some(exponent) = fraction_end.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if exponent.is_empty() || !exponent.chars().all(|d| d.is_ascii_digit()) {
            return Err(bad);
        }
    } else if !fraction_end.is_empty() {
        return Err(bad);
    }
    text.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::Float).ok_or(bad)
}

fn skip(c: &mut Cursor<'_>) {
    c.take_while(|w| matches!(w, ' ' | '\t' | '\r' | '\n'));
}
