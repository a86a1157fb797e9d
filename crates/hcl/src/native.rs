//! The native form.

use crate::cursor::Cursor;
use crate::{Body, Error, Fault, Item, Limits, Value};

pub(crate) fn parse(text: &str, limits: &Limits) -> Result<Body, Error> {
    let mut cursor = Cursor::new(text, limits);
    let body = items(&mut cursor, false)?;
    Ok(body)
}

/// Items up to the end of the text, or up to and with the closing brace.
fn items(c: &mut Cursor<'_>, braced: bool) -> Result<Body, Error> {
    let mut body = Body::default();
    loop {
        skip(c)?;
        match c.peek() {
            None if braced => return Err(c.fault(Fault::End)),
            None => break,
            Some('}') if braced => {
                c.bump();
                break;
            }
            Some(_) => body.items.push(item(c)?),
        }
        skip(c)?;
        c.take(',');
    }
    body.check_duplicates()?;
    Ok(body)
}

fn item(c: &mut Cursor<'_>) -> Result<Item, Error> {
    let position = c.position();
    let key = name(c)?;
    let mut labels = Vec::new();
    loop {
        skip(c)?;
        let value = match c.peek() {
            Some('=') if labels.is_empty() => {
                c.bump();
                skip(c)?;
                value(c)?
            }
            Some('=') => return Err(c.fault(Fault::LabelledAttribute)),
            Some('{') => object(c)?,
            Some(first) if first == '"' || starts_name(first) => {
                labels.push(name(c)?);
                continue;
            }
            _ => return Err(c.unexpected(Fault::AfterKey)),
        };
        return Ok(Item { key, labels, value, position });
    }
}

fn name(c: &mut Cursor<'_>) -> Result<String, Error> {
    match c.peek() {
        Some('"') => string(c),
        Some(first) if starts_name(first) => Ok(c.take_while(continues_name).to_owned()),
        _ => Err(c.unexpected(Fault::Key)),
    }
}

fn value(c: &mut Cursor<'_>) -> Result<Value, Error> {
    match c.peek() {
        Some('"') => string(c).map(Value::Text),
        Some('{') => object(c),
        Some('[') => list(c),
        Some('<') => heredoc(c).map(Value::Text),
        Some(first) if first == '-' || first.is_ascii_digit() => number(c),
        Some(first) if starts_name(first) => {
            let at = c.position();
            match c.take_while(continues_name) {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(Error::new(at, Fault::Value)),
            }
        }
        _ => Err(c.unexpected(Fault::Value)),
    }
}

fn object(c: &mut Cursor<'_>) -> Result<Value, Error> {
    c.nested(|c| {
        c.bump();
        items(c, true).map(Value::Object)
    })
}

fn list(c: &mut Cursor<'_>) -> Result<Value, Error> {
    c.nested(|c| {
        c.bump();
        let mut values = Vec::new();
        loop {
            skip(c)?;
            if c.take(']') {
                return Ok(Value::List(values));
            }
            values.push(value(c)?);
            skip(c)?;
            if c.peek() != Some(']') && !c.take(',') {
                return Err(c.unexpected(Fault::AfterListItem));
            }
        }
    })
}

/// A quoted string. Text within `${…}` stays as it is.
fn string(c: &mut Cursor<'_>) -> Result<String, Error> {
    let start = c.position();
    c.bump();
    let mut text = String::new();
    let mut braces = 0usize;
    loop {
        let at = c.position();
        let interpolates = braces > 0 || c.starts_with("${");
        let next = c.bump();
        match next {
            None => return Err(Error::new(start, Fault::OpenString)),
            Some('"' | '\\' | '\n') if interpolates => {
                return Err(Error::new(at, Fault::Interpolation));
            }
            Some('"') => return Ok(text),
            Some('\n') => return Err(Error::new(start, Fault::OpenString)),
            Some('\\') => text.push(escape(c)?),
            Some('\0') => return Err(Error::new(at, Fault::Control)),
            Some(plain) => {
                if interpolates && plain == '{' {
                    braces = braces.saturating_add(1);
                } else if braces > 0 && plain == '}' {
                    braces -= 1;
                } else if braces == 0 && interpolates {
                    // the `$` of `${`: its brace opens the count
                    text.push(plain);
                    c.bump();
                    text.push('{');
                    braces = 1;
                    continue;
                }
                text.push(plain);
            }
        }
    }
}

fn escape(c: &mut Cursor<'_>) -> Result<char, Error> {
    let at = c.position();
    let bad = Error::new(at, Fault::Escape);
    Ok(match c.bump().ok_or(bad)? {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' => '\\',
        '"' => '"',
        'x' => char::from_u32(c.hex(2)?).filter(char::is_ascii).ok_or(bad)?,
        'u' => char::from_u32(c.hex(4)?).ok_or(bad)?,
        'U' => char::from_u32(c.hex(8)?).ok_or(bad)?,
        _ => return Err(bad),
    })
    .and_then(|escaped: char| if escaped == '\0' { Err(bad) } else { Ok(escaped) })
}

/// `<<MARK` or `<<-MARK`, lines, and a line that holds only the mark. With `-`, the indentation of the closing mark
/// is taken from every line if every line has it.
fn heredoc(c: &mut Cursor<'_>) -> Result<String, Error> {
    let bad = c.fault(Fault::Heredoc);
    c.bump();
    if !c.take('<') {
        return Err(bad);
    }
    let indented = c.take('-');
    let mark = c.take_line().ok_or(bad)?;
    if !mark.starts_with(starts_name) || !mark.chars().all(continues_name) {
        return Err(bad);
    }
    let mut lines = Vec::new();
    let indentation = loop {
        let line = c.take_line().ok_or(bad)?;
        if line.contains('\0') {
            return Err(bad);
        }
        match line.strip_suffix(mark) {
            Some(before) if before.trim().is_empty() => break before,
            _ => lines.push(line),
        }
    };
    let strip = indented && lines.iter().all(|line| line.starts_with(indentation));
    let mut text = String::new();
    for line in lines {
        let line = if strip { line.strip_prefix(indentation).unwrap_or(line) } else { line };
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

fn number(c: &mut Cursor<'_>) -> Result<Value, Error> {
    let bad = c.fault(Fault::Number);
    let mut text = String::new();
    if c.take('-') {
        text.push('-');
    }
    let word = c.take_while(|d| d.is_ascii_alphanumeric() || d == '.' || d == '_');
    text.push_str(word);
    let hexadecimal = word.starts_with("0x") || word.starts_with("0X");
    if !hexadecimal && word.ends_with(['e', 'E']) {
        // an exponent with a sign
        match c.peek() {
            Some(sign @ ('+' | '-')) => {
                c.bump();
                text.push(sign);
                text.push_str(c.take_while(|d| d.is_ascii_digit()));
            }
            _ => return Err(bad),
        }
    }
    if c.peek().is_some_and(continues_name) {
        return Err(bad);
    }
    read_number(&text).ok_or(bad)
}

fn read_number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let octal = digits.strip_prefix('0').filter(|rest| !rest.is_empty());
    let whole = |digits: &str, radix: u32| {
        // a sign would be read as well: only digits may come
        if digits.is_empty() || !digits.chars().all(|d| d.is_digit(radix)) {
            return None;
        }
        let magnitude = i128::from_str_radix(digits, radix).ok()?;
        i64::try_from(if negative { -magnitude } else { magnitude }).ok()
    };
    if let Some(digits) = hexadecimal {
        return whole(digits, 16).map(Value::Integer);
    }
    if digits.chars().all(|d| d.is_ascii_digit()) {
        return match octal {
            Some(digits) => whole(digits, 8),
            None => whole(digits, 10),
        }
        .map(Value::Integer);
    }
    let plain = digits.chars().all(|d| d.is_ascii_digit() || matches!(d, '.' | 'e' | 'E' | '+' | '-'));
    if !plain || !digits.starts_with(|d: char| d.is_ascii_digit()) || digits.ends_with('.') {
        return None;
    }
    text.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::Float)
}

/// White space and comments.
fn skip(c: &mut Cursor<'_>) -> Result<(), Error> {
    loop {
        match c.peek() {
            Some(' ' | '\t' | '\r' | '\n') => {
                c.bump();
            }
            Some('#') => {
                c.take_line();
            }
            Some('/') if c.starts_with("//") => {
                c.take_line();
            }
            Some('/') if c.starts_with("/*") => {
                let open = c.fault(Fault::OpenComment);
                c.bump();
                c.bump();
                while !c.starts_with("*/") {
                    c.bump().ok_or(open)?;
                }
                c.bump();
                c.bump();
            }
            _ => return Ok(()),
        }
    }
}

fn starts_name(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn continues_name(c: char) -> bool {
    starts_name(c) || c.is_numeric() || c == '-' || c == '.'
}
