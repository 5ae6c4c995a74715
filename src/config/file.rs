//! The YAML file, read into a tree that remembers lines and the text of every value.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A value and the line it is in.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

impl Node {
    /// What stands under a key, if this is a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(map) => map.get(key),
            Value::Null | Value::Text(_) | Value::List(_) => None,
        }
    }
}

/// A value as it was written: text stays text, and so do numbers and booleans.
#[derive(Default)]
pub(super) enum Value {
    /// Nothing: `key:`, `~` or `null`.
    #[default]
    Null,
    /// Text, number or boolean.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping.
    Map(BTreeMap<String, Node>),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            // It may be a token.
            Self::Text(_) => f.write_str("Text"),
            Self::List(list) => f.debug_list().entries(list).finish(),
            Self::Map(map) => f.debug_map().entries(map).finish(),
        }
    }
}

/// Parses a file.
///
/// # Errors
/// What is wrong with it, in one line with the place.
pub(super) fn parse(text: &str) -> Result<Node, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node::default());
    }
    let raw: Spanned<Raw> = serde_saphyr::from_str(text).map_err(|error| describe(&error))?;
    Ok(raw_node(raw, text))
}

/// An error of the YAML parser in one line, without a copy of the text around it.
pub(super) fn describe(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    match error.location() {
        Some(place) if !line.contains("line ") => {
            format!("{line} (line {}, column {})", place.line(), place.column())
        }
        _ => line,
    }
}

/// What the parser gives. A number or boolean has lost its text; [`raw_node`] reads it from the source.
enum Raw {
    Null,
    Text(String),
    Scalar(String),
    List(Vec<Spanned<Raw>>),
    Map(BTreeMap<String, Spanned<Raw>>),
}

fn raw_node(raw: Spanned<Raw>, source: &str) -> Node {
    let line = raw.referenced.line();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Scalar(parsed) => {
            let span = raw.defined.span();
            let written = source.chars().skip(usize::try_from(span.offset()).unwrap_or(usize::MAX));
            let written: String = written.take(usize::try_from(span.len()).unwrap_or(0)).collect();
            let written = written.trim();
            // A token such as 0123 is no number to us: what counts is what was written.
            Value::Text(if written.is_empty() { parsed } else { written.to_owned() })
        }
        Raw::List(list) => Value::List(list.into_iter().map(|node| raw_node(node, source)).collect()),
        Raw::Map(map) => {
            Value::Map(map.into_iter().map(|(key, node)| (key, raw_node(node, source))).collect())
        }
    };
    Node { line, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key} is there twice")));
            }
            map.insert(key, access.next_value()?);
        }
        Ok(Raw::Map(map))
    }
}
