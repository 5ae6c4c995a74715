//! JSON that others wrote, read leniently: what can be repaired is, and every repair is told.
//!
//! Strict readers give up a whole message for half a surrogate pair in a name, or for a number that no type holds. What
//! somebody said must not be lost for that, and numbers must not be changed on their way.

mod raw;
mod reader;
#[cfg(test)]
mod tests;

use std::ops::Deref;

use serde::{Serialize, Serializer};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

pub use raw::RawObject;
use reader::Node;

/// Bytes of a [`Repair::field`].
const MAX_FIELD: usize = 255;

/// The reason that a text is not JSON, and nothing helps: it ends too early, or says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object")]
pub struct NotJson;

/// Something in an event that had to be repaired. Serialised as one of `data.repairs` of the webhook payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Repair {
    /// Where, a JSON pointer into the event: `/content/…` is below `data.matrix.content`. Long ones are cut short.
    pub field: String,
    /// What was wrong, and so what was done.
    pub reason: RepairReason,
}

/// What was wrong with a part of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RepairReason {
    /// Half of a UTF-16 surrogate pair: U+FFFD stands in its place.
    LoneSurrogate,
    /// Bytes that are not UTF-8: U+FFFD stands in their place.
    NotUtf8,
    /// An escape that JSON does not have: U+FFFD stands in its place.
    InvalidEscape,
    /// A control character that was not escaped: it is now.
    ControlCharacter,
    /// A number that no floating-point type holds. It is written as it was, and nothing is read from it.
    NumberOutOfRange,
    /// `NaN` or `Infinity`, which JSON does not have: null stands in its place.
    NotANumber,
    /// Nested deeper than 120 levels: null stands in its place.
    TooDeep,
    /// Several members of one name: the last one counts.
    DuplicateKey,
    /// Of another type than it must be, and not used.
    WrongType,
    /// Not there. In place of a time, when the event reached coucou is told.
    Missing,
    /// A time before 1970 or after 9999: the nearest time between stands in its place.
    OutOfRange,
    /// A number that must be whole and is not: what follows the point is left out.
    NotAnInteger,
    /// Something in the place of an event's id that is none: the message is told without it.
    BadId,
}

impl Repair {
    /// Notes a repair.
    #[must_use]
    pub fn new(field: impl Into<String>, reason: RepairReason) -> Self {
        let mut field = field.into();
        field.truncate(field.floor_char_boundary(MAX_FIELD));
        Self { field, reason }
    }
}

/// An object that others wrote: its members, and the text where a number in it is not written as a member would be.
#[derive(Clone, Debug, Default)]
pub struct JsonObject {
    members: Map<String, Value>,
    written: Option<Box<RawValue>>,
}

impl JsonObject {
    fn of(members: Vec<(String, Node)>, has_odd_numbers: bool) -> Result<Self, NotJson> {
        if !has_odd_numbers {
            return Ok(Self { members: reader::into_map(members), written: None });
        }
        let node = Node::Object(members);
        let written = to_raw_value(&node).map_err(|_| NotJson)?;
        let Node::Object(members) = node else { return Err(NotJson) };
        Ok(Self { members: reader::into_map(members), written: Some(written) })
    }

    /// Returns the members, computed with as far as that is possible.
    #[must_use]
    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// Returns the same without a member.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.members.remove(key);
        self.written = self.written.and_then(|written| {
            let mut object = RawObject::read(&written)?;
            object.remove(key);
            to_raw_value(&object).ok()
        });
        self
    }

    /// Takes a member of another object, unless there is one of that name; returns whether it did.
    fn adopt(&mut self, key: &str, other: &Self) -> bool {
        let Some(value) = other.members.get(key).filter(|_| !self.members.contains_key(key)) else {
            return false;
        };
        if self.written.is_some() || other.written.is_some() {
            let text = |object: &Self| RawObject::read(&object.to_raw()?);
            self.written = text(self).zip(text(other)).and_then(|(mut whole, other)| {
                whole.0.push((key.to_owned(), other.get(key)?.to_owned()));
                to_raw_value(&whole).ok()
            });
        }
        self.members.insert(key.to_owned(), value.clone());
        true
    }

    fn to_raw(&self) -> Option<Box<RawValue>> {
        self.written.clone().or_else(|| to_raw_value(&self.members).ok())
    }
}

impl From<Map<String, Value>> for JsonObject {
    fn from(members: Map<String, Value>) -> Self {
        Self { members, written: None }
    }
}

impl Deref for JsonObject {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.members
    }
}

/// As it was written.
impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.written {
            Some(written) => written.serialize(serializer),
            None => self.members.serialize(serializer),
        }
    }
}

/// What an event says, in the clear: of an encrypted one, the plaintext.
#[derive(Clone, Debug, Default)]
pub struct EventBody {
    /// The type; `None` when it has none.
    pub event_type: Option<String>,
    /// The room that it names; a plaintext must name that of its session.
    pub room_id: Option<String>,
    /// The content; empty when it has none.
    pub content: JsonObject,
    /// What of the type and the content had to be repaired.
    pub repairs: Vec<Repair>,
}

impl EventBody {
    /// Reads an event.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn read(text: &[u8]) -> Result<Self, NotJson> {
        let reader::Reading { members, repairs, has_odd_numbers } = reader::read(text)?;
        let is_said = |field: &str| ["/type", "/content"].iter().any(|part| is_below(field, part));
        let repairs = repairs.into_iter().filter(|(field, _)| is_said(field));
        let mut body = Self {
            repairs: repairs.map(|(field, reason)| Repair::new(field, reason)).collect(),
            ..Self::default()
        };
        let (mut has_type, mut has_content) = (false, false);
        for (name, value) in members {
            match (&*name, value) {
                ("type", value) => {
                    has_type = true;
                    body.event_type = body.text(value, "/type");
                }
                ("room_id", Node::Text(room_id)) => body.room_id = Some(room_id),
                ("content", Node::Object(members)) => {
                    has_content = true;
                    body.content = JsonObject::of(members, has_odd_numbers)?;
                }
                ("content", _) => {
                    has_content = true;
                    body.repairs.push(Repair::new("/content", RepairReason::WrongType));
                }
                _ => {}
            }
        }
        for (is_there, field) in [(has_type, "/type"), (has_content, "/content")] {
            if !is_there {
                body.repairs.push(Repair::new(field, RepairReason::Missing));
            }
        }
        Ok(body)
    }

    fn text(&mut self, value: Node, field: &str) -> Option<String> {
        let Node::Text(text) = value else {
            self.repairs.push(Repair::new(field, RepairReason::WrongType));
            return None;
        };
        Some(text)
    }

    /// Takes what an event refers to from the outside of its encryption, unless it is said inside
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#encryption-and-relationships)).
    pub fn adopt_relation(&mut self, outside: &Self) {
        const RELATION: &str = "m.relates_to";
        if self.content.adopt(RELATION, &outside.content) {
            let of_relation =
                outside.repairs.iter().filter(|repair| is_below(&repair.field, "/content/m.relates_to"));
            self.repairs.extend(of_relation.cloned());
        }
    }
}

/// Returns whether a JSON pointer leads to a place or below it.
fn is_below(field: &str, place: &str) -> bool {
    field.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Reads an object leniently; null when it is none.
#[must_use]
pub fn read_object(text: &RawValue) -> Value {
    let Ok(reading) = reader::read(text.get().as_bytes()) else { return Value::Null };
    Value::Object(reader::into_map(reading.members))
}

/// Returns the text of an object as JSON's grammar has it; `None` when it is none.
#[must_use]
pub fn repaired(text: &RawValue) -> Option<Box<RawValue>> {
    to_raw_value(&Node::Object(reader::read(text.get().as_bytes()).ok()?.members)).ok()
}
