//! How purges are written in the hash: an operator may want to read it.
//!
//! A field is JSON that says what was purged; what stands in it is the mark and what identifies the purge. Two fields hold
//! the epoch and the latest mark. What is none of these is passed over: it is not ours.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Hash, Mark, NONE, Seen, Written};
use crate::{
    answers::{Key, Purge},
    tenant::Tenant,
};

/// The field of the hash that holds the epoch; those of purges begin with a brace.
pub(in super::super) const EPOCH: &str = "epoch";
/// The field of the hash that holds the latest mark.
pub(in super::super) const LATEST: &str = "latest";

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Field {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

/// The field of a purge, and its identity as it is written there.
pub(in super::super) fn texts(purge: &Purge, id: u64) -> (String, String) {
    let tenant = purge.tenant.map(|tenant| u128::from_be_bytes(*tenant.as_bytes()));
    let field = Field {
        key: purge.key.map(|key| key.to_string()),
        route: purge.route.clone(),
        model: purge.model.clone(),
        tenant: tenant.map(|tenant| format!("{tenant:032x}")),
    };
    (serde_json::to_string(&field).expect("texts make JSON"), numbers(id))
}

/// An epoch or an identity as it is written: as many digits for all.
pub(in super::super) fn numbers(id: u64) -> String {
    format!("{id:016x}")
}

/// The hash that has these fields.
pub(in super::super) fn hash(fields: &HashMap<Vec<u8>, Vec<u8>>) -> Hash {
    let texts = fields.iter().filter_map(|(field, value)| {
        Some((std::str::from_utf8(field).ok()?, std::str::from_utf8(value).ok()?))
    });
    let mut hash = Hash { seen: Seen { epoch: NONE, latest: 0 }, marks: HashMap::new() };
    for (field, value) in texts {
        match field {
            EPOCH => hash.seen.epoch = read_id(value).unwrap_or(NONE),
            LATEST => hash.seen.latest = value.parse().unwrap_or(0),
            _ => hash.marks.extend(read(field).zip(read_mark(value))),
        }
    }
    hash
}

/// The mark and the identities that purges were written with; none where it is something else.
pub(in super::super) fn read_written(texts: &[String]) -> Option<Written> {
    let (number, ids) = texts.split_first()?;
    let ids = ids.iter().map(|id| read_id(id)).collect::<Option<_>>()?;
    Some(Written { number: number.parse().ok()?, ids })
}

fn read_id(text: &str) -> Option<u64> {
    let is_one =
        text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(text, 16).ok().filter(|_| is_one)
}

fn read_mark(text: &str) -> Option<Mark> {
    let (number, id) = text.split_once(' ')?;
    Some(Mark { number: number.parse().ok()?, id: read_id(id)? })
}

fn read(text: &str) -> Option<Purge> {
    // A list would do as well for serde.
    let text = Some(text).filter(|text| text.starts_with('{'))?;
    let Field { key, route, model, tenant } = serde_json::from_str(text).ok()?;
    let key = match key {
        Some(text) => Some(Key::parse(&text)?),
        None => None,
    };
    let tenant = match tenant {
        Some(text) => {
            let number = u128::from_str_radix(&text, 16).ok()?;
            Some(Tenant::from_bytes(number.to_be_bytes()))
        }
        None => None,
    };
    Some(Purge { key, route, model, tenant })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::Tags;

    fn hash_of<const N: usize>(fields: [(&str, &str); N]) -> Hash {
        let bytes = |text: &str| text.as_bytes().to_vec();
        hash(&fields.map(|(field, value)| (bytes(field), bytes(value))).into())
    }

    #[test]
    fn purges_are_read_as_they_are_written() {
        let tags = Tags {
            tenant: Tenant::from_bytes([9; 16]),
            route: "a route".into(),
            arm: "a".into(),
            model: "model: \"x\" 模".into(),
        };
        for shape in super::super::shapes() {
            let purge = super::super::purge_of(shape, &Key::of(5), &tags);
            let (field, id) = texts(&purge, 0xab);
            let read = hash_of([(&field, &format!("12 {id}"))]).marks;
            assert_eq!(read, HashMap::from([(purge, Mark { number: 12, id: 0xab })]));
        }
    }

    #[test]
    fn epoch_and_latest_mark_are_read_and_nonsense_is_none() {
        let seen = |epoch: &str, latest| hash_of([(EPOCH, epoch), (LATEST, latest)]).seen;
        assert_eq!(seen(&numbers(77), "5"), Seen { epoch: 77, latest: 5 });
        for nonsense in ["", "77", "+00000000000004d", "000000000000004D", "000000000000000000"] {
            assert_eq!(seen(nonsense, "-5"), Seen { epoch: NONE, latest: 0 }, "{nonsense}");
        }
    }

    #[test]
    fn what_is_no_purge_is_passed_over() {
        let good = "1 0000000000000001";
        for field in ["", "[]", "what", r#"{"key":"12"}"#, r#"{"tenant":"x"}"#, r#"{"arm":"a"}"#] {
            assert_eq!(hash_of([(field, good)]).marks, HashMap::new(), "{field}");
        }
        for value in ["", "1", "1 1", "x 0000000000000001"] {
            assert_eq!(hash_of([("{}", value)]).marks, HashMap::new(), "{value}");
        }
        assert_eq!(hash_of([("{}", good)]).marks.len(), 1);
    }
}
