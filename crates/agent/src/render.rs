//! A credential as the text of a file.

use std::collections::BTreeMap;

use base::SecretBytes;
use client::Credential;

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    #[default]
    Json,
    /// `NAME='value'` lines, as shells and systemd's `EnvironmentFile` read them.
    Env,
    /// `name=value` lines, as Java's `Properties` reads them.
    Properties,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "env" => Ok(Self::Env),
            "properties" => Ok(Self::Properties),
            _ => Err("expected `json`, `env` or `properties`".to_owned()),
        }
    }
}

/// The text of a credential.
///
/// # Errors
/// What cannot be written, naming the field only.
pub(crate) fn render(credential: &Credential, format: Format) -> Result<SecretBytes, String> {
    let line: fn(&str, &str, &mut Vec<u8>) -> Result<(), String> = match format {
        Format::Json => return Ok(credential.json()),
        Format::Env => {
            distinct(credential)?;
            env_line
        }
        Format::Properties => properties_line,
    };
    // Every character becomes at most six bytes (`\uXXXX`) or twelve for a pair; no buffer grows and leaves a copy.
    let fields = || credential.names().filter_map(|name| Some((name, credential.field(name)?)));
    let room = fields().map(|(name, value)| 12 * (name.len() + value.len()) + 8).sum();
    let mut text = Vec::with_capacity(room);
    for (name, value) in fields() {
        if let Err(why) = line(name, value, &mut text) {
            drop(SecretBytes::new(text));
            return Err(why);
        }
    }
    Ok(SecretBytes::new(text))
}

/// Two fields must not become one variable: whoever reads the file would get one of them and nobody would know which.
fn distinct(credential: &Credential) -> Result<(), String> {
    let mut taken = BTreeMap::new();
    for name in credential.names() {
        if let Some(other) = taken.insert(variable(name), name) {
            return Err(format!("the fields `{other}` and `{name}` would be the same variable"));
        }
    }
    Ok(())
}

/// A field's name as that of a variable: capitals, digits and `_`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn env_line(name: &str, value: &str, into: &mut Vec<u8>) -> Result<(), String> {
    if value.contains('\0') {
        return Err(format!("the field `{name}` has a NUL and cannot stand in an `env` file"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("the field `{name}` cannot be the name of a variable"));
    }
    into.extend(variable(name).bytes());
    into.extend_from_slice(b"='");
    for byte in value.bytes() {
        match byte {
            // Between double quotes, not behind a backslash: after one systemd takes the next quote for a letter.
            b'\'' => into.extend_from_slice(br#"'"'"'"#),
            byte => into.push(byte),
        }
    }
    into.extend_from_slice(b"'\n");
    Ok(())
}

fn properties_line(name: &str, value: &str, into: &mut Vec<u8>) -> Result<(), String> {
    escaped(name, true, into);
    into.push(b'=');
    escaped(value, false, into);
    into.push(b'\n');
    Ok(())
}

/// Java's escapes: separators and comment signs, control characters, everything outside ASCII as UTF-16 units.
fn escaped(text: &str, is_name: bool, into: &mut Vec<u8>) {
    for (at, c) in text.chars().enumerate() {
        match c {
            '\\' | '=' | ':' | '#' | '!' => into.extend([b'\\', c as u8]),
            ' ' if is_name || at == 0 => into.extend_from_slice(b"\\ "),
            '\n' => into.extend_from_slice(b"\\n"),
            '\r' => into.extend_from_slice(b"\\r"),
            '\t' => into.extend_from_slice(b"\\t"),
            ' '..='~' => into.push(c as u8),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    into.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: &[(&str, &str)], format: Format) -> String {
        String::from_utf8(render(&Credential::from_fields(1, fields), format).unwrap().expose().clone()).unwrap()
    }

    #[test]
    fn each_format() {
        let fields = [("password", "a'b\\c=d\n é😀"), ("user-name", " x y")];
        for (format, expected) in [
            (Format::Json, "{\"password\":\"a'b\\\\c=d\\n é😀\",\"user-name\":\" x y\"}"),
            (Format::Env, "PASSWORD='a'\"'\"'b\\c=d\n é😀'\nUSER_NAME=' x y'\n"),
            (Format::Properties, "password=a'b\\\\c\\=d\\n \\u00e9\\ud83d\\ude00\nuser-name=\\ x y\n"),
        ] {
            assert_eq!(text(&fields, format), expected, "{format:?}");
        }
    }

    /// What a real shell, and systemd's rules for an `EnvironmentFile`, make of the `env` format.
    #[test]
    fn a_shell_and_systemd_read_back_what_was_written() {
        for value in ["it's $HOME `id` \"x\" \\ \n end", "'", "''a''", "a\\'b\\", " # x ", ""] {
            let file = text(&[("password", value)], Format::Env);
            assert_eq!(systemd(&file), ("PASSWORD".to_owned(), value.to_owned()), "{file}");
            let script = file + "printf %s \"$PASSWORD\"";
            let told = std::process::Command::new("/bin/sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(told.stdout).unwrap(), value);
        }
    }

    /// How systemd reads one assignment: quotes count only at the beginning of a value and right after a closed quote; a
    /// backslash outside of quotes takes the next character as it is, and everything that follows is bare.
    fn systemd(file: &str) -> (String, String) {
        let (name, rest) = file.strip_suffix('\n').unwrap().split_once('=').unwrap();
        let (mut value, mut quote, mut bare) = (String::new(), None, false);
        let mut rest = rest.chars();
        while let Some(c) = rest.next() {
            match (quote, c) {
                (Some(open), _) if open == c => quote = None,
                (Some('"'), '\\') | (None, '\\') => {
                    value.extend(rest.next());
                    bare |= quote.is_none();
                }
                (None, '\'' | '"') if !bare => quote = Some(c),
                (Some(_), _) => value.push(c),
                (None, _) => {
                    value.push(c);
                    bare = true;
                }
            }
        }
        (name.to_owned(), value)
    }

    #[test]
    fn what_cannot_be_written_is_refused_without_the_value() {
        for (name, value) in [("password", "hunter\0two"), ("1st", "hunter"), ("", "hunter")] {
            let error = render(&Credential::from_fields(1, &[(name, value)]), Format::Env).err().unwrap();
            assert!(!error.contains("hunter"), "{error}");
        }
        let twins = [("user-name", "hunter"), ("user_name", "hunter")];
        let error = render(&Credential::from_fields(1, &twins), Format::Env).err().unwrap();
        assert_eq!(error, "the fields `user-name` and `user_name` would be the same variable");
        assert!(render(&Credential::from_fields(1, &twins), Format::Json).is_ok());
    }
}
