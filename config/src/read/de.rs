//! A tree as a serde data format whose errors know the node they are about.
//!
//! Decides that an error belongs to the innermost node being read when it was raised, and its
//! words.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::{Kind, Node};
use crate::schema::values::OR_OFF;

/// A mistake, and the node it is about.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) at: Option<usize>,
    pub(super) mistake: Mistake,
    /// Whether the word `off` would have been right.
    or_off: bool,
}

/// What is wrong with a node.
#[derive(Debug)]
pub(super) enum Mistake {
    /// The key of the node is not one of these.
    UnknownField(String, &'static [&'static str]),
    /// The text of the node is not one of these.
    UnknownWord(String, &'static [&'static str]),
    /// The mapping lacks this key.
    Missing(&'static str),
    /// The node is not of this kind.
    WrongType(String),
    /// As the value type put it: message, and help after a line break.
    Other(String),
}

impl Error {
    /// The message and the help.
    pub(super) fn words(&self, node: &Node) -> (String, Option<String>) {
        match &self.mistake {
            Mistake::UnknownField(name, known) => {
                ("unknown field".to_owned(), nearest(name, known))
            }
            Mistake::UnknownWord(word, known) => {
                let known: Vec<_> =
                    known.iter().copied().chain(self.or_off.then_some("off")).collect();
                (format!("unknown value {word:?}"), one_of(word, &known))
            }
            Mistake::Missing(name) => (format!("missing field \"{name}\""), None),
            Mistake::WrongType(expected) => {
                let or_off = if self.or_off { " or off" } else { "" };
                let message = format!("expected {expected}{or_off}, found {}", node.describe());
                (message, quoted(expected, node))
            }
            Mistake::Other(text) => match text.rsplit_once('\n') {
                Some((message, help)) => (message.to_owned(), Some(help.to_owned())),
                None => (text.clone(), None),
            },
        }
    }

    /// Belongs to `node` unless it already belongs to one within.
    fn within(self, node: &Node) -> Self {
        Self { at: self.at.or(Some(node.id)), ..self }
    }
}

/// A short list of words says more than a guess: `http2` is nearer to `http1` than to `h2c`.
fn one_of(word: &str, known: &[&str]) -> Option<String> {
    match known.len() <= 8 {
        true => Some(format!("one of {}", known.join(", "))),
        false => nearest(word, known),
    }
}

/// `did you mean "x"?`, or everything there is when nothing is near.
pub(crate) fn nearest<S: AsRef<str>>(name: &str, known: &[S]) -> Option<String> {
    let distance = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), known);
    let known = || known.iter().map(AsRef::as_ref);
    let best = known().map(|known| (distance(known), known)).min();
    match best {
        Some((far, word)) if far <= 2.max(word.len() / 3) && far < word.len() => {
            Some(format!("did you mean \"{word}\"?"))
        }
        Some(_) => Some(format!("known: {}", known().collect::<Vec<_>>().join(", "))),
        None => None,
    }
}

/// What to do about a number that was meant as text.
fn quoted(expected: &str, node: &Node) -> Option<String> {
    let text = match &node.kind {
        Kind::Int(_, text) | Kind::Float(_, text) => text.clone(),
        Kind::Bool(value) => value.to_string(),
        _ => return None,
    };
    (expected == "a string").then(|| format!("write it in quotes: \"{text}\""))
}

impl From<Mistake> for Error {
    fn from(mistake: Mistake) -> Self {
        Self { at: None, mistake, or_off: false }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.mistake)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Mistake::Other(message.to_string()).into()
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        // What serde says when a type does not say it better.
        let words = match expected.as_str() {
            "a map" => "a mapping".to_owned(),
            "a sequence" => "a list".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "path string" => "a string".to_owned(),
            words if words.starts_with("struct ") => "a mapping".to_owned(),
            _ => expected,
        };
        Mistake::WrongType(words).into()
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Mistake::UnknownWord(word.to_owned(), known).into()
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Mistake::UnknownField(name.to_owned(), known).into()
    }

    fn missing_field(name: &'static str) -> Self {
        Mistake::Missing(name).into()
    }
}

/// Reads a node, passing over those that were set aside.
#[derive(Clone, Copy)]
pub(super) struct Deserializer<'t> {
    node: &'t Node,
    aside: &'t HashSet<usize>,
}

impl<'t> Deserializer<'t> {
    pub(super) fn new(node: &'t Node, aside: &'t HashSet<usize>) -> Self {
        Self { node, aside }
    }

    fn wrong(self, expected: String) -> Error {
        Error::from(Mistake::WrongType(expected)).within(self.node)
    }
}

impl<'de> de::Deserializer<'de> for Deserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let read = match &self.node.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Int(value, _) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i64(*value),
            },
            Kind::Float(value, _) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_borrowed_str(text),
            Kind::List(items) => {
                visitor.visit_seq(Items { items: items.iter(), aside: self.aside })
            }
            Kind::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
                aside: self.aside,
            }),
        };
        read.map_err(|error| error.within(self.node))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self).map_err(|error| error.within(self.node))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let read = visitor.visit_newtype_struct(self).map_err(|error| error.within(self.node));
        read.map_err(|error| Error {
            or_off: error.or_off || (name == OR_OFF && error.at == Some(self.node.id)),
            ..error
        })
    }

    /// A mapping only: serde would take a list of the values as well.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.kind {
            Kind::List(_) => Err(self.wrong("a mapping".to_owned())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Kind::Text(text) = &self.node.kind else {
            return Err(self.wrong(format!("one of {}", known.join(", "))));
        };
        let word: de::value::StrDeserializer<'_, Error> = text.as_str().into_deserializer();
        visitor.visit_enum(word).map_err(|error| error.within(self.node))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'t> {
    items: std::slice::Iter<'t, Node>,
    aside: &'t HashSet<usize>,
}

impl<'t> SeqAccess<'t> for Items<'t> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let aside = self.aside;
        let Some(node) = self.items.find(|node| !aside.contains(&node.id)) else { return Ok(None) };
        let read = seed.deserialize(Deserializer::new(node, aside));
        read.map(Some).map_err(|error| error.within(node))
    }
}

struct Entries<'t> {
    entries: std::slice::Iter<'t, (String, Node)>,
    value: Option<&'t Node>,
    aside: &'t HashSet<usize>,
}

impl<'t> MapAccess<'t> for Entries<'t> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let aside = self.aside;
        let next = self.entries.find(|(_, node)| !aside.contains(&node.id));
        let Some((key, node)) = next else { return Ok(None) };
        self.value = Some(node);
        let key: de::value::StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.within(node))
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Some(node) = self.value.take() else {
            return Err(Mistake::Other("a value without a key".to_owned()).into());
        };
        let read = seed.deserialize(Deserializer::new(node, self.aside));
        read.map_err(|error| error.within(node))
    }
}
