//! Bodies for tests: text like that of a model server, from a seed.

use rand::{RngExt, rngs::StdRng};

const WORDS: [&str; 24] = [
    "the",
    "model",
    "of",
    "a",
    "request",
    "and",
    "answers",
    "token",
    "in",
    "is",
    "attention",
    "to",
    "which",
    "layers",
    "\\n\\n",
    "cache",
    "every",
    "by",
    "prompt",
    "because",
    "naïve",
    "42",
    "weights",
    "it",
];

/// About `length` bytes of prose.
pub(super) fn prose(rng: &mut StdRng, length: usize) -> String {
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
        // A word that was not there before, now and then.
        if rng.random_range(0..6) == 0 {
            text.push_str(&format!("{:x}", rng.random::<u32>()));
        }
        text.push(' ');
    }
    text
}

/// A chat completion with an answer of about `length` bytes.
pub(super) fn completion(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let (id, content) = (rng.random::<u64>(), prose(rng, length));
    let message = format!(r#"{{"role":"assistant","content":"{content}"}}"#);
    format!(
        r#"{{"id":"chatcmpl-{id:x}","choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}]}}"#
    )
    .into_bytes()
}

/// The events of a streamed answer, one per token.
pub(super) fn events(rng: &mut StdRng, count: usize) -> Vec<Vec<u8>> {
    let id = rng.random::<u64>();
    (0..count)
        .map(|_| {
            let token = prose(rng, 1);
            format!(
                "data: {{\"id\":\"chatcmpl-{id:x}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{token}\"}}}}]}}\n\n"
            )
            .into_bytes()
        })
        .collect()
}

/// Bytes that do not shrink.
pub(super) fn noise(rng: &mut StdRng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.random()).collect()
}

/// `body` cut into pieces of random lengths, some of them empty.
pub(super) fn cut<'a>(rng: &mut StdRng, mut body: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !body.is_empty() {
        let (piece, rest) = body.split_at(rng.random_range(0..=longest.min(body.len())));
        pieces.push(piece);
        body = rest;
    }
    pieces
}
