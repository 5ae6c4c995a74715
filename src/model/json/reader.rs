//! The reader: a tree of bounded depth from whatever bytes, with a note of everything that was repaired.

use std::collections::HashMap;

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Number, Value, value::RawValue};

use super::{NotJson, RepairReason};

/// Levels of nesting in an event. A content begins at the second level and stands in the payload at the fourth, or in a
/// batch at the seventh, and common readers of JSON give up at 128.
pub(super) const MAX_DEPTH: usize = 121;

/// Repairs that are noted of one event.
pub(super) const MAX_REPAIRS: usize = 32;

/// Bytes of a name that a note repeats.
const MAX_STEP: usize = 64;

/// Members of an object that are compared one by one.
const FEW: usize = 8;

/// A value with its numbers as they were written.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(Box<RawValue>),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// Returns the value as far as it can be computed with; a number beyond all bounds is null.
    fn into_value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(written) => number(written.get()).map_or(Value::Null, Value::Number),
            Self::Text(text) => Value::String(text),
            Self::List(items) => items.into_iter().map(Self::into_value).collect(),
            Self::Object(members) => Value::Object(into_map(members)),
        }
    }
}

/// Returns the members of an object as far as they can be computed with, as [`Node::into_value`] does.
pub(super) fn into_map(members: Vec<(String, Node)>) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name, value.into_value())).collect()
}

/// Returns a number, as exact as it can be had; `None` when it is beyond all bounds.
fn number(written: &str) -> Option<Number> {
    let whole =
        written.parse::<u64>().map(Number::from).or_else(|_| written.parse::<i64>().map(Number::from));
    // `-0` has a sign that no integer has.
    whole.ok().filter(|_| written != "-0").or_else(|| Number::from_f64(written.parse().ok()?))
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(written) => written.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

/// A repair, with the way to it from the innermost name outwards.
#[derive(Debug)]
struct Found {
    steps: Vec<String>,
    reason: RepairReason,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    /// The members of the object.
    pub(super) members: Vec<(String, Node)>,
    /// What was repaired, each with a JSON pointer.
    pub(super) repairs: Vec<(String, RepairReason)>,
    /// Set when a number would be written in another way than it was.
    pub(super) has_odd_numbers: bool,
}

/// Reads an object and nothing after it.
pub(super) fn read(text: &[u8]) -> Result<Reading, NotJson> {
    let mut reader = Reader { text, at: 0, repairs: Vec::new(), has_odd_numbers: false };
    let value = reader.value(0)?;
    reader.skip_space();
    let Node::Object(members) = value else { return Err(NotJson) };
    if reader.at != text.len() {
        return Err(NotJson);
    }
    let pointer = |found: Found| {
        let steps = found.steps.iter().rev();
        let steps = steps.map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1")));
        (steps.collect(), found.reason)
    };
    let repairs = reader.repairs.into_iter().map(pointer).collect();
    Ok(Reading { members, repairs, has_odd_numbers: reader.has_odd_numbers })
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    repairs: Vec<Found>,
    has_odd_numbers: bool,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, NotJson> {
        let byte = self.peek().ok_or(NotJson)?;
        self.at += 1;
        Ok(byte)
    }

    /// Steps over a byte if it comes next.
    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str, node: Node) -> Result<Node, NotJson> {
        let is_next = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes()));
        self.at += word.len();
        is_next.then_some(node).ok_or(NotJson)
    }

    fn note(&mut self, reason: RepairReason) {
        if self.repairs.len() < MAX_REPAIRS {
            self.repairs.push(Found { steps: Vec::new(), reason });
        }
    }

    /// Notes that what was repaired since there were so many repairs stands under that name.
    fn under(&mut self, before: usize, name: &str) {
        for found in self.repairs.iter_mut().skip(before) {
            found.steps.push(name.get(..name.floor_char_boundary(MAX_STEP)).unwrap_or_default().to_owned());
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, NotJson> {
        self.skip_space();
        match self.peek().ok_or(NotJson)? {
            b'{' | b'[' if depth >= MAX_DEPTH => {
                self.skip_nested()?;
                self.note(RepairReason::TooDeep);
                Ok(Node::Null)
            }
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => Ok(Node::Text(self.string()?)),
            b't' => self.word("true", Node::Bool(true)),
            b'f' => self.word("false", Node::Bool(false)),
            b'n' => self.word("null", Node::Null),
            // What some writers make of numbers that JSON does not have.
            b'N' => self.no_number("NaN"),
            b'I' => self.no_number("Infinity"),
            b'-' if self.text.get(self.at + 1) == Some(&b'I') => self.no_number("-Infinity"),
            _ => self.number(),
        }
    }

    fn no_number(&mut self, word: &str) -> Result<Node, NotJson> {
        self.note(RepairReason::NotANumber);
        self.word(word, Node::Null)
    }

    fn number(&mut self) -> Result<Node, NotJson> {
        let begin = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
            self.at += 1;
        }
        let written = self.text.get(begin..self.at).and_then(|written| std::str::from_utf8(written).ok());
        // Whoever reads raw values checks the grammar, and nothing but that.
        let written = written.and_then(|written| RawValue::from_string(written.to_owned()).ok());
        let written = written.ok_or(NotJson)?;
        let number = number(written.get());
        self.has_odd_numbers |= number.as_ref().is_none_or(|number| number.to_string() != written.get());
        if number.is_none() {
            self.note(RepairReason::NumberOutOfRange);
        }
        Ok(Node::Number(written))
    }

    fn list(&mut self, depth: usize) -> Result<Node, NotJson> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.takes(b']') {
            return Ok(Node::List(items));
        }
        loop {
            let before = self.repairs.len();
            items.push(self.value(depth + 1)?);
            if self.repairs.len() > before {
                self.under(before, &(items.len() - 1).to_string());
            }
            self.skip_space();
            match self.next()? {
                b',' => {}
                b']' => return Ok(Node::List(items)),
                _ => return Err(NotJson),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Node, NotJson> {
        self.at += 1;
        let mut members = Vec::new();
        self.skip_space();
        if self.takes(b'}') {
            return Ok(Node::Object(members));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(NotJson);
            }
            let before = self.repairs.len();
            let name = self.string()?;
            self.skip_space();
            if !self.takes(b':') {
                return Err(NotJson);
            }
            let value = self.value(depth + 1)?;
            self.under(before, &name);
            members.push((name, value));
            self.skip_space();
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return Err(NotJson),
            }
        }
        let (members, duplicates) = without_duplicates(members);
        for name in duplicates {
            let before = self.repairs.len();
            self.note(RepairReason::DuplicateKey);
            self.under(before, &name);
        }
        Ok(Node::Object(members))
    }

    fn string(&mut self) -> Result<String, NotJson> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.next()? {
                b'"' => break,
                b'\\' => {
                    let character = self.escape()?;
                    bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                byte => {
                    if byte < b' ' {
                        self.note(RepairReason::ControlCharacter);
                    }
                    bytes.push(byte);
                }
            }
        }
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| {
            self.note(RepairReason::NotUtf8);
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }))
    }

    fn escape(&mut self) -> Result<char, NotJson> {
        Ok(match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => match self.hex() {
                Some(unit) => self.character(unit),
                None => self.broken(RepairReason::InvalidEscape),
            },
            _ => self.broken(RepairReason::InvalidEscape),
        })
    }

    fn broken(&mut self, reason: RepairReason) -> char {
        self.note(reason);
        char::REPLACEMENT_CHARACTER
    }

    /// Reads four digits, or nothing.
    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        let unit =
            digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))?;
        self.at += 4;
        Some(unit)
    }

    /// Returns the character of a unit of UTF-16, with the other half of its pair if that follows.
    fn character(&mut self, unit: u32) -> char {
        if let Some(character) = char::from_u32(unit) {
            return character;
        }
        let before = self.at;
        if unit < 0xdc00 && self.takes(b'\\') && self.takes(b'u') {
            let low = self.hex().filter(|low| (0xdc00..0xe000).contains(low));
            let pair =
                low.and_then(|low| char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)));
            if let Some(character) = pair {
                return character;
            }
        }
        self.at = before;
        self.broken(RepairReason::LoneSurrogate)
    }

    /// Steps over an object or an array, however deep it is.
    fn skip_nested(&mut self) -> Result<(), NotJson> {
        let mut depth = 0_usize;
        loop {
            match self.next()? {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b'"' => self.skip_string()?,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Steps over the rest of a text.
    fn skip_string(&mut self) -> Result<(), NotJson> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.at += 1,
                _ => {}
            }
        }
    }
}

/// Keeps of members with one name the last, as most readers do, and returns the names of those that there were several
/// of.
fn without_duplicates(members: Vec<(String, Node)>) -> (Vec<(String, Node)>, Vec<String>) {
    let is_unique =
        |(at, (name, _)): (usize, &(String, Node))| members[..at].iter().all(|(other, _)| other != name);
    if members.len() <= FEW && members.iter().enumerate().all(is_unique) {
        return (members, Vec::new());
    }
    let mut last = HashMap::with_capacity(members.len());
    let mut duplicates = Vec::new();
    for (at, (name, _)) in members.iter().enumerate() {
        if last.insert(name.clone(), at).is_some() {
            duplicates.push(name.clone());
        }
    }
    if duplicates.is_empty() {
        return (members, duplicates);
    }
    let kept = members.into_iter().enumerate().filter(|(at, (name, _))| last.get(name) == Some(at));
    (kept.map(|(_, member)| member).collect(), duplicates)
}
