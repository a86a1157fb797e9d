//! Characters with their positions; the floor of both readers.

use crate::{Error, Fault, Limits, Position};

pub(crate) struct Cursor<'a> {
    rest: &'a str,
    position: Position,
    depth: usize,
    depth_max: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str, limits: &Limits) -> Self {
        Self { rest: text, position: Position::START, depth: 0, depth_max: limits.depth_max }
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(crate) fn starts_with(&self, text: &str) -> bool {
        self.rest.starts_with(text)
    }

    /// Takes one character.
    pub(crate) fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        if c == '\n' {
            self.position.line = self.position.line.saturating_add(1);
            self.position.column = 1;
        } else {
            self.position.column = self.position.column.saturating_add(1);
        }
        Some(c)
    }

    /// Takes one character if it is this one.
    pub(crate) fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.bump();
        }
        found
    }

    /// Takes characters as long as they fit.
    pub(crate) fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let start = self.rest;
        while self.peek().is_some_and(&fits) {
            self.bump();
        }
        let length = start.len() - self.rest.len();
        start.get(..length).unwrap_or_default()
    }

    /// Takes the rest of the line and its end; the line comes without `\n` and without one `\r` before it.
    pub(crate) fn take_line(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let line = self.take_while(|c| c != '\n');
        self.bump();
        Some(line.strip_suffix('\r').unwrap_or(line))
    }

    /// A fault here.
    pub(crate) fn fault(&self, fault: Fault) -> Error {
        Error::new(self.position, fault)
    }

    /// `fault` here, or the end of the text if it ended.
    pub(crate) fn unexpected(&self, fault: Fault) -> Error {
        self.fault(if self.rest.is_empty() { Fault::End } else { fault })
    }

    /// One level deeper, for the time of `read`.
    pub(crate) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth >= self.depth_max {
            return Err(self.fault(Fault::TooDeep));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Exactly `count` hexadecimal digits.
    pub(crate) fn hex(&mut self, count: usize) -> Result<u32, Error> {
        (0..count).try_fold(0u32, |value, _| {
            let at = self.position;
            let digit = self.bump().and_then(|c| c.to_digit(16)).ok_or(Error::new(at, Fault::Escape))?;
            value.checked_mul(16).and_then(|v| v.checked_add(digit)).ok_or(Error::new(at, Fault::Escape))
        })
    }
}
