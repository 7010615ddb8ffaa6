//! Reading JSON without touching it: the members of an object with their values as written.
//!
//! Why: a number that is parsed and printed again may come out with other digits, and a float that
//! a client gets through a batch has to be the one it would have got without. Values are therefore
//! slices of the text they came in; only names, and strings whose length counts, are decoded.
//!
//! Left out: limits on nesting. Slices are found without recursion, however deep a value is.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// One member of an object: its name, decoded, and its value as written.
pub(super) type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// The members of an object, in their order. Names may repeat until [`Members::repeated`] is asked.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(pub(super) Vec<Member<'a>>);

impl<'a> Members<'a> {
    /// The members of `text`, which has to be one object and nothing else, in UTF-8.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The value of a member.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(other, _)| other == name).map(|&(_, value)| value)
    }

    /// Whether two members have the same name, after `fold`.
    pub(super) fn repeated<'b>(&'b self, fold: impl Fn(&'b str) -> Cow<'b, str>) -> bool {
        let mut names: Vec<_> = self.0.iter().map(|(name, _)| fold(name)).collect();
        names.sort_unstable();
        names.windows(2).any(|pair| pair[0] == pair[1])
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            members.push((name, map.next_value()?));
        }
        Ok(Members(members))
    }
}

/// A string, decoded; borrowed when it has no escapes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

/// The length of a string after decoding, in bytes of UTF-8. Decoding it all is the point: a string
/// with half a surrogate pair is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextLength(pub(super) u64);

impl<'de> Deserialize<'de> for TextLength {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextLengthVisitor)
    }
}

struct TextLengthVisitor;

impl Visitor<'_> for TextLengthVisitor {
    type Value = TextLength;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextLength(text.len() as u64))
    }
}

/// The length of a list of token ids, each a whole number that fits in 32 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids(pub(super) u64);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(IdsVisitor)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut count = 0;
        while list.next_element::<u32>()?.is_some() {
            count += 1;
        }
        Ok(Ids(count))
    }
}

/// The text of a value that is a string.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(value.get()).ok().map(|Text(text)| text)
}

/// The length of a value that is a string, decoded.
pub(super) fn text_length(value: &RawValue) -> Option<u64> {
    serde_json::from_str::<TextLength>(value.get()).ok().map(|TextLength(bytes)| bytes)
}

/// How many elements a value that is a list has.
pub(super) fn list_length(value: &RawValue) -> Option<u64> {
    let list: Vec<IgnoredAny> = serde_json::from_str(value.get()).ok()?;
    Some(list.len() as u64)
}

/// A value that is a whole number from 0 to `u64::MAX`, written as one.
pub(super) fn whole(value: &RawValue) -> Option<u64> {
    value.get().parse().ok()
}

/// Whether a member is as good as absent.
pub(super) fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Appends a string with quotes and escapes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is written into memory");
}

/// Appends the name of a member, after a comma unless it is the first.
pub(super) fn put_name(out: &mut Vec<u8>, name: &str, first: bool) {
    if !first {
        out.push(b',');
    }
    put_text(out, name);
    out.push(b':');
}

/// Where `part`, a slice of `whole`, begins in it.
pub(super) fn offset(whole: &[u8], part: &str) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn values_stay_as_written() {
        let text = br#" {"a" : 1.50e+02 ,"\u0062":[ 1 , 2 ] } "#;
        let members = Members::parse(text).unwrap();
        assert_eq!(members.get("a").unwrap().get(), "1.50e+02");
        assert_eq!(members.get("b").unwrap().get(), "[ 1 , 2 ]");
        assert_eq!(offset(text, members.get("a").unwrap().get()), 8);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let wrong: [&[u8]; 7] =
            [b"", b"[]", b"{} {}", b"{\"a\":1,}", b"{\"a\":01}", b"{\"a\":\"\xff\"}", b"{\"a\":1"];
        for text in wrong {
            assert!(Members::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn names_repeat_by_meaning() {
        let members = Members::parse(br#"{"ab":1,"c":2,"\u0061b":3}"#).unwrap();
        assert!(members.repeated(Cow::Borrowed));
        let members = Members::parse(br#"{"ab":1,"c":2,"aB":3}"#).unwrap();
        assert!(!members.repeated(Cow::Borrowed));
        assert!(members.repeated(|name| Cow::Owned(name.to_ascii_lowercase())));
    }

    #[test]
    fn lengths_are_those_of_the_decoded_text() {
        assert_eq!(text_length(raw(r#""\u00e9\n""#)), Some(3));
        assert_eq!(text_length(raw(r#""\ud800""#)), None);
        assert_eq!(text_length(raw("7")), None);
        assert_eq!(list_length(raw("[1, {}, []]")), Some(3));
        assert_eq!(list_length(raw("{}")), None);
    }

    #[test]
    fn only_plain_whole_numbers_count() {
        let values = ["0", "18446744073709551615", "18446744073709551616", "1.0", "-1", "1e2"];
        let read: Vec<_> = values.iter().map(|text| whole(raw(text))).collect();
        assert_eq!(read, [Some(0), Some(u64::MAX), None, None, None, None]);
    }

    #[test]
    fn token_ids_are_whole_and_small() {
        let count = |text| serde_json::from_str::<Ids>(text).ok().map(|ids| ids.0);
        assert_eq!(count("[1, 2, 4294967295]"), Some(3));
        assert_eq!(count("[1, 4294967296]"), None);
        assert_eq!(count("[1, 2.0]"), None);
        assert_eq!(count("[1, \"2\"]"), None);
    }
}
