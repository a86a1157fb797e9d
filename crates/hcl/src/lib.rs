//! HCL 1 and its JSON form, as policies and configuration files of this family of servers are written.
//!
//! This crate reads text into a small tree and stops there: it knows no field names and gives no meaning to any key.
//! `${` and `{{` are text. Errors say where, never what: the text may hold a secret.
//!
//! Where readers of HCL differ on odd input, this one refuses: a quote, a backslash or a line break inside an open `${`,
//! octal escapes, `null`, an attribute written twice.

mod cursor;
mod json;
mod native;

use std::fmt;

/// Text larger than this is refused unless the caller chooses another limit.
pub const BYTES_MAX: usize = 1 << 20;
/// Objects and lists nested deeper than this are refused unless the caller chooses another limit.
pub const DEPTH_MAX: usize = 32;

/// Reads a text under the default limits. A text that starts with `{` is JSON.
pub fn parse(text: &str) -> Result<Body, Error> {
    parse_within(text, &Limits::default())
}

/// Reads a text under the given limits.
pub fn parse_within(text: &str, limits: &Limits) -> Result<Body, Error> {
    if text.len() > limits.bytes_max {
        return Err(Error::new(Position::START, Fault::TooLarge));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') { json::parse(text, limits) } else { native::parse(text, limits) }
}

/// What a text may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the whole text.
    pub bytes_max: usize,
    /// Nesting of objects and lists.
    pub depth_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: BYTES_MAX, depth_max: DEPTH_MAX }
    }
}

/// The items of a file, a block or an object, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// Attributes and blocks.
    pub items: Vec<Item>,
}

impl Body {
    /// The value of an attribute (an item without labels), if it is there.
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        self.items.iter().find(|item| item.key == key && item.labels.is_empty()).map(|item| &item.value)
    }

    /// All blocks `key "label" { … }`, whichever way they are written: with a label, as an object of objects
    /// (the JSON form), or as a list of such objects. The same label may come more than once: what that means is for the reader to say.
    pub fn blocks(&self, key: &str) -> Result<Vec<Block<'_>>, Error> {
        let mut blocks = Vec::new();
        for item in self.items.iter().filter(|item| item.key == key) {
            match (item.labels.as_slice(), &item.value) {
                ([label], Value::Object(body)) => blocks.push(Block { label, body, position: item.position }),
                ([], value) => unlabelled(value, item.position, &mut blocks)?,
                _ => return Err(Error::new(item.position, Fault::OneLabel)),
            }
        }
        Ok(blocks)
    }

    /// Refuses an attribute that comes twice, in the native form. Objects may: they are blocks, and a second one is a second block.
    pub(crate) fn check_duplicates(&self) -> Result<(), Error> {
        let mut seen = std::collections::BTreeMap::new();
        for item in self.items.iter().filter(|item| item.labels.is_empty()) {
            let block = matches!(item.value, Value::Object(_));
            if let Some(before) = seen.insert(item.key.as_str(), block)
                && !(before && block)
            {
                return Err(Error::new(item.position, Fault::Duplicate));
            }
        }
        Ok(())
    }
}

fn unlabelled<'a>(value: &'a Value, position: Position, blocks: &mut Vec<Block<'a>>) -> Result<(), Error> {
    match value {
        Value::Object(outer) => {
            for item in &outer.items {
                let label = item.key.as_str();
                let position = item.position;
                let mut push = |value: &'a Value| match value {
                    Value::Object(body) if item.labels.is_empty() => {
                        blocks.push(Block { label, body, position });
                        Ok(())
                    }
                    _ => Err(Error::new(position, Fault::OneLabel)),
                };
                match &item.value {
                    Value::List(values) => values.iter().try_for_each(&mut push)?,
                    value => push(value)?,
                }
            }
            Ok(())
        }
        Value::List(values) => values.iter().try_for_each(|value| match value {
            Value::Object(_) => unlabelled(value, position, blocks),
            _ => Err(Error::new(position, Fault::OneLabel)),
        }),
        _ => Err(Error::new(position, Fault::OneLabel)),
    }
}

/// One attribute `key = value` or one block `key "label" { … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The first name.
    pub key: String,
    /// The names after it; only blocks of the native form have any.
    pub labels: Vec<String>,
    /// What it holds; a block holds an object.
    pub value: Value,
    /// Where the first name starts.
    pub position: Position,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string or a heredoc.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `[…]`.
    List(Vec<Value>),
    /// `{…}`.
    Object(Body),
}

/// One labelled block, see [`Body::blocks`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block<'a> {
    /// Its label.
    pub label: &'a str,
    /// What is between its braces.
    pub body: &'a Body,
    /// Where it starts.
    pub position: Position,
}

/// A place in the text, counted from one, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

impl Position {
    /// Where every text starts.
    pub const START: Position = Position { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text was refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {fault}")]
pub struct Error {
    /// Where.
    pub position: Position,
    /// What.
    pub fault: Fault,
}

impl Error {
    pub(crate) fn new(position: Position, fault: Fault) -> Self {
        Self { position, fault }
    }
}

/// What can be wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text is larger than the limit.
    #[error("the text is too large")]
    TooLarge,
    /// Objects and lists are nested too deep.
    #[error("nested too deep")]
    TooDeep,
    /// The text ended too early.
    #[error("unexpected end of the text")]
    End,
    /// A character that has no place here.
    #[error("unexpected character")]
    Unexpected,
    /// A key was expected.
    #[error("expected a key")]
    Key,
    /// After a key.
    #[error("expected `=` or `{{` after a key")]
    AfterKey,
    /// An attribute has labels.
    #[error("an attribute cannot have labels")]
    LabelledAttribute,
    /// A value was expected.
    #[error("expected a value")]
    Value,
    /// Between list items.
    #[error("expected `,` or `]` after a list item")]
    AfterListItem,
    /// Between object members, in JSON.
    #[error("expected `,` or `}}` after a member")]
    AfterMember,
    /// A string that is not closed on its line.
    #[error("a string is not closed")]
    OpenString,
    /// A `${` that is not closed before its string ends, or holds a quote, a backslash or a line break.
    #[error("`${{` is text here and cannot hold a quote, a backslash or a line break")]
    Interpolation,
    /// A bad escape.
    #[error("unknown escape in a string")]
    Escape,
    /// A control character in a string.
    #[error("a control character in a string")]
    Control,
    /// A comment that is not closed.
    #[error("a comment is not closed")]
    OpenComment,
    /// A heredoc that is not well formed.
    #[error("a heredoc is not well formed or not closed")]
    Heredoc,
    /// A number that is not well formed or out of range.
    #[error("a number is not well formed or out of range")]
    Number,
    /// An attribute, or a member of a JSON object, that comes twice.
    #[error("an attribute is given twice")]
    Duplicate,
    /// A block needs exactly one label and braces.
    #[error("expected a block with exactly one label")]
    OneLabel,
}

#[cfg(test)]
mod tests;
