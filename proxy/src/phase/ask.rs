//! What is known of a request before an endpoint is chosen for it: what it will cost, whose it is, how its prompt begins.
//!
//! The head of a JSON body is read ahead for that, as far as the backend compares prompts and never further; what was
//! read goes on to the endpoint as it came. Other bodies are not waited for: a stream of messages may want an answer to
//! the first before it sends the second.

use std::{borrow::Cow, sync::LazyLock};

use bytes::Bytes;
use memchr::memmem::Finder;
use outrigger_config::validated::Key;
use xxhash_rust::xxh3::xxh3_64;

use super::route::{body_key, cookie, read_body_while};
use crate::{
    balance::{Ask, Cost, Prefix},
    deadline::Watchdog,
    request::{Failure, Request},
    upstream::Backend,
    wire::{BodyLength, Downstream},
};

/// How far from the start of a body the prompt is looked for, in bytes; what comes before it is a few short fields.
const PREAMBLE: usize = 4 * 1024;
/// The members that hold a prompt.
static PROMPTS: LazyLock<[Finder<'static>; 3]> =
    LazyLock::new(|| ["\"messages\"", "\"prompt\"", "\"input\""].map(Finder::new));

/// Looks as far into the request as the backend's balancing wants.
///
/// # Errors
/// What went wrong with the client's body.
pub async fn ask(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    backend: &Backend,
) -> Result<Ask, Failure> {
    let balance = &backend.settings.balance;
    let mut prefix = Prefix::default();
    let compared = balance.prefix.filter(|_| may_be_long(request) && is_json(request));
    if let Some(bytes) = compared {
        let far = bytes + PREAMBLE;
        read_body_while(request, client, watchdog, |upload| upload.kept_bytes() < far as u64)
            .await?;
        prefix = prefix_of(request.upload.kept(), bytes);
    }
    Ok(Ask { cost: cost(request), key: key(request, backend), prefix })
}

/// What ties the request to an endpoint, where the backend looks at such a thing.
pub fn key(request: &Request, backend: &Backend) -> Option<u64> {
    backend.settings.balance.key.as_ref().and_then(|key| key_of(request, key))
}

/// Whether there is anything to compare: shorter prompts are not.
fn may_be_long(request: &Request) -> bool {
    match request.head.body {
        BodyLength::Empty => false,
        BodyLength::Exact(bytes) => bytes >= Prefix::SHORTEST,
        BodyLength::Unknown => true,
    }
}

/// Whether the body is said to be JSON.
pub fn is_json(request: &Request) -> bool {
    let kind = request.head.fields.get("content-type");
    kind.is_some_and(|kind| kind.starts_with(b"application/json"))
}

fn cost(request: &Request) -> Cost {
    Cost::of_prompt(match request.head.body {
        BodyLength::Exact(bytes) => bytes,
        BodyLength::Empty | BodyLength::Unknown => request.upload.received(),
    })
}

fn key_of(request: &Request, key: &Key) -> Option<u64> {
    let fields = &request.head.fields;
    match key {
        Key::Header(name) => fields.get(name).map(xxh3_64),
        Key::Cookie(name) => cookie(&request.head, name).map(xxh3_64),
        Key::Body(field) => body_key(request, field).map(xxh3_64),
        Key::Client => request.client_ip().map(|ip| xxh3_64(ip.to_string().as_bytes())),
    }
}

/// Of the prompt's first `most` bytes, from the name of the member that holds it.
fn prefix_of(pieces: &[Bytes], most: usize) -> Prefix {
    let (mut skip, mut left) = (prompt_start(&beginning(pieces)), most);
    let mut builder = Prefix::builder();
    for piece in pieces {
        let skipped = skip.min(piece.len());
        skip -= skipped;
        let piece = &piece[skipped..];
        builder.feed(&piece[..left.min(piece.len())]);
        left -= left.min(piece.len());
    }
    builder.finish()
}

/// Where the prompt is looked for, in one piece.
fn beginning(pieces: &[Bytes]) -> Cow<'_, [u8]> {
    match pieces {
        [] => Cow::Borrowed(&[]),
        [first, ..] if first.len() >= PREAMBLE || pieces.len() == 1 => {
            Cow::Borrowed(&first[..first.len().min(PREAMBLE)])
        }
        pieces => {
            let mut start = Vec::with_capacity(PREAMBLE);
            for piece in pieces {
                start.extend_from_slice(&piece[..piece.len().min(PREAMBLE - start.len())]);
            }
            Cow::Owned(start)
        }
    }
}

fn prompt_start(beginning: &[u8]) -> usize {
    PROMPTS.iter().filter_map(|name| name.find(beginning)).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(pieces: &[&str]) -> Prefix {
        let pieces: Vec<Bytes> =
            pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
        prefix_of(&pieces, 32 * 1024)
    }

    #[test]
    fn what_stands_before_the_prompt_does_not_matter() {
        let prompt = format!("\"messages\":[\"{}", "word ".repeat(1_000));
        let one = prefix(&[&format!("{{\"model\":\"m\",{prompt}")]);
        let other = prefix(&[&format!("{{\"user\":\"somebody\",\"stream\":true,{prompt}")]);
        assert_eq!(one, other);
        assert_ne!(one, Prefix::default());
    }

    #[test]
    fn where_the_pieces_are_cut_does_not_matter() {
        let body = format!("{{\"prompt\":\"{}", "another word ".repeat(500));
        let whole = prefix(&[&body]);
        assert_eq!(whole, prefix(&[&body[..700], &body[700..701], &body[701..]]));
        assert_eq!(whole, prefix(&[&body[..1], &body[1..5], &body[5..6], &body[6..]]));
        let late = format!("{{\"metadata\":\"{}\",{}", "x".repeat(900), &body[1..]);
        assert_eq!(whole, prefix(&[&late[..300], &late[300..800], &late[800..]]));
    }
}
