//! Bodies made smaller on the way to the client, and unpacked on the way to the endpoint.
//!
//! Why it exists: an answer of a model server is text that shrinks to a third, an event stream to a fifteenth (each
//! event repeats the same frame), and no model server compresses; and few of them take a compressed request,
//! though long prompts are the largest thing clients send.
//!
//! Three parts, none of which knows a socket or a clock:
//! - [`negotiate`] decides from two heads whether and how a response is compressed, and edits its head;
//! - [`encode`] turns the body into the chosen coding, piece by piece, flushed where the caller says so;
//! - [`decode`] unpacks request bodies under bounds that no input can escape.
//!
//! What it leaves out: storing compressed answers; dictionaries; the side channel that compression opens where one
//! response holds both a secret and text of an attacker's choice (BREACH). That is why compression is off
//! unless a route asks for it.

pub mod decode;
pub mod encode;
pub mod negotiate;

#[cfg(test)]
mod sample;

pub use decode::{Decoder, Refused};
pub use encode::{Broken, Encoder, Flow};
pub use negotiate::{Plan, plan};

use crate::wire::Fields;

/// Fields that hold a checksum of the bytes sent, which are others after a change of coding (RFC 9530; RFC 3230 and
/// RFC 1864 before it).
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Removes checksums of a body whose coding changes; to be called for its trailers too.
pub fn drop_digests(fields: &mut Fields) {
    for name in DIGESTS {
        fields.remove(name);
    }
}
