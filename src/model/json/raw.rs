//! An object that is taken apart no further than it must be.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

/// An object whose keys keep their order and whose values stay as they were written: numbers that no type holds, and
/// what others wrote at whichever depth, go through it unchanged.
#[derive(Clone, Debug, Default)]
pub struct RawObject(pub Vec<(String, Box<RawValue>)>);

impl RawObject {
    /// Takes a value apart; `None` when it is no object.
    #[must_use]
    pub fn read(value: &RawValue) -> Option<Self> {
        Self::parse(value.get().as_bytes())
    }

    /// Takes a text apart; `None` when it is no object.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Returns the value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| &**value)
    }

    /// Returns the value under a key, read as a type; `None` when there is none, or it is of another.
    #[must_use]
    pub fn get_as<'a, T: Deserialize<'a>>(&'a self, key: &str) -> Option<T> {
        serde_json::from_str(self.get(key)?.get()).ok()
    }

    /// Changes the object that stands under a key; `None` when there is none, or `change` says so.
    #[must_use = "the change may not have been made"]
    pub fn within(&mut self, key: &str, change: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let (_, value) = self.0.iter_mut().find(|(known, _)| known == key)?;
        let mut inner = Self::read(value)?;
        change(&mut inner)?;
        *value = to_raw_value(&inner).ok()?;
        Some(())
    }

    /// Puts a value in the place of what stood under the key, or behind all else.
    #[must_use = "the change may not have been made"]
    pub fn set(&mut self, key: &str, value: &impl Serialize) -> Option<()> {
        let value = to_raw_value(value).ok()?;
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => self.0.push((key.to_owned(), value)),
        }
        Some(())
    }

    /// Takes out what stands under a key.
    pub fn remove(&mut self, key: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    /// Returns the object as a text.
    #[must_use]
    pub fn to_vec(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = RawObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawObject, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(RawObject(entries))
    }
}

impl Serialize for RawObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}
