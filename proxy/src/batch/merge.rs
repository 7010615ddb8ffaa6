//! Several requests into one body.
//!
//! What it decides: the merged body is the first request's, byte for byte, with the prompts of all
//! in place of its own. The other fields have the same values in every request of a batch, so
//! whose are taken does not matter, and prompts are copied as they are written.
//!
//! What it leaves out: how many fit ([`Window`](super::Window)), and the headers. A merged request
//! should be sent without `accept-encoding`, because [`split()`](super::split()) reads plain JSON.

use std::ops::Range;

use bytes::Bytes;

use super::compatible::{Ask, Terms};

/// One call for several requests.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The body to send.
    pub body: Bytes,
    /// Whose outputs are which.
    pub plan: Plan,
}

/// Which outputs of a merged call belong to which request. Requests are numbered from zero in the
/// order in which they were merged.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) terms: Terms,
    pub(super) shares: Vec<Share>,
}

/// What one request has in a merged call.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// The number of its first prompt.
    pub(super) first: usize,
    /// The size of each prompt: bytes of decoded text, or token ids.
    pub(super) sizes: Vec<u64>,
}

impl Plan {
    /// How many requests were merged.
    #[must_use]
    pub const fn requests(&self) -> usize {
        self.shares.len()
    }

    /// How many outputs all requests expect together.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.shares.last().map_or(0, |share| self.range(share).end)
    }

    /// The indices of the outputs that belong to one request.
    ///
    /// # Panics
    ///
    /// When there is no such request.
    #[must_use]
    pub fn outputs_of(&self, request: usize) -> Range<usize> {
        self.range(&self.shares[request])
    }

    /// Output `k` of prompt `p` has the index `p * n + k`.
    pub(super) const fn range(&self, share: &Share) -> Range<usize> {
        let choices = self.terms.choices;
        share.first * choices..(share.first + share.sizes.len()) * choices
    }
}

/// Makes one call of the requests of a batch, in their order. A single request stays as it is.
///
/// `None` when there is none, or when two of them may not meet: their [`Ask::key`]s differ.
pub fn merge<'a>(asks: impl IntoIterator<Item = &'a Ask>) -> Option<Merged> {
    let asks: Vec<&Ask> = asks.into_iter().collect();
    let (first, others) = asks.split_first()?;
    if others.iter().any(|ask| ask.key() != first.key()) {
        return None;
    }
    let body = if others.is_empty() { first.body().clone() } else { body(first, &asks) };
    Some(Merged { body, plan: Plan { terms: first.terms(), shares: shares(&asks) } })
}

fn body(first: &Ask, asks: &[&Ask]) -> Bytes {
    let (before, after) = first.around();
    let prompts: usize = asks.iter().map(|ask| ask.prompts().len() + 1).sum();
    let mut body = Vec::with_capacity(before.len() + prompts + 1 + after.len());
    body.extend_from_slice(before);
    for (i, ask) in asks.iter().enumerate() {
        body.push(if i == 0 { b'[' } else { b',' });
        body.extend_from_slice(ask.prompts());
    }
    body.push(b']');
    body.extend_from_slice(after);
    body.into()
}

fn shares(asks: &[&Ask]) -> Vec<Share> {
    let mut next = 0;
    let share = |ask: &&Ask| {
        let first = next;
        next += ask.sizes().len();
        Share { first, sizes: ask.sizes().to_vec() }
    };
    asks.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(path: &str, bodies: &[&str]) -> Vec<Ask> {
        let parse =
            |body: &&str| Ask::parse(path, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        bodies.iter().map(parse).collect()
    }

    fn merged(path: &str, bodies: &[&str]) -> (String, Vec<Range<usize>>) {
        let merged = merge(&asks(path, bodies)).unwrap();
        let plan = &merged.plan;
        let ranges = (0..plan.requests()).map(|request| plan.outputs_of(request)).collect();
        (String::from_utf8(merged.body.to_vec()).unwrap(), ranges)
    }

    #[test]
    fn texts_are_joined_in_order() {
        let (body, ranges) = merged(
            "/v1/embeddings",
            &[
                r#"{"model": "m", "input" : "a\u0062" ,"dimensions":64.0}"#,
                r#"{"input":[ "c", "d" ],"dimensions":64.0,"model":"m"}"#,
                r#"{"dimensions":64.0,"model":"m","input":["e"]}"#,
            ],
        );
        let expected = r#"{"model": "m", "input" : ["a\u0062","c", "d","e"] ,"dimensions":64.0}"#;
        assert_eq!(body, expected);
        assert_eq!(ranges, [0..1, 1..3, 3..4]);
    }

    #[test]
    fn token_lists_are_joined_and_choices_counted() {
        let (body, ranges) = merged(
            "/v1/completions",
            &[r#"{"prompt":[[1, 2],[3]],"n":3}"#, r#"{"n":3,"prompt":[4,5]}"#],
        );
        assert_eq!(body, r#"{"prompt":[[1, 2],[3],[4,5]],"n":3}"#);
        assert_eq!(ranges, [0..6, 6..9]);
    }

    #[test]
    fn one_request_stays_as_it_is() {
        let body = r#"{ "input":"a" }"#;
        let (same, ranges) = merged("/v1/embeddings", &[body]);
        assert_eq!(same, body);
        assert_eq!(ranges.as_slice(), std::slice::from_ref(&(0..1)));
    }

    #[test]
    fn strangers_are_not_merged() {
        let bodies = [r#"{"input":"a","user":"x"}"#, r#"{"input":"a","user":"y"}"#];
        assert!(merge(&asks("/v1/embeddings", &bodies)).is_none());
        assert!(merge([]).is_none());
    }

    #[test]
    fn a_merged_body_is_batchable_itself() {
        let bodies = [r#"{"input":["a","bc"],"x":1}"#, r#"{"x":1,"input":"def"}"#];
        let body = merge(&asks("/v1/embeddings", &bodies)).unwrap().body;
        let again = Ask::parse("/v1/embeddings", body).unwrap();
        assert_eq!(again.sizes(), [1, 2, 3]);
    }
}
