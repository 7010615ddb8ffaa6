//! HTTP/2 streams, in both roles, in the vocabulary of the relay.
//!
//! The connection itself (frames, flow control, HPACK) is the `h2` crate's; [`server`] and [`client`] are one stream
//! each. A stream gives flow-control credit back as soon as the relay takes a chunk, and the relay takes none while
//! the other side is behind, so a slow reader slows its writer and fills no memory.

pub mod client;
mod sending;
pub mod server;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Fields, Frame, WireError};

pub use client::ClientStream;
pub use server::ServerStream;

fn error(error: h2::Error) -> WireError {
    if error.is_remote() && (refused(&error) || error.is_go_away()) {
        return WireError::Refused;
    }
    WireError::Closed(error.into_io().unwrap_or_else(|| std::io::ErrorKind::ConnectionReset.into()))
}

fn refused(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

fn fields_of(map: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in map {
        fields.append(name.as_str(), value.as_bytes());
    }
    fields
}

/// Fields that HTTP/2 forbids are left out (RFC 9113, 8.2.2); names become lower case.
fn map_of(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        if !matches!(name.as_str(), "connection" | "upgrade" | "transfer-encoding" | "keep-alive") {
            map.append(name, value);
        }
    }
    map
}

/// The receiving half, the same in both roles.
fn poll_receive(
    stream: &mut h2::RecvStream,
    cx: &mut std::task::Context<'_>,
) -> std::task::Poll<Result<Frame, WireError>> {
    use std::task::{Poll, ready};
    while let Some(data) = ready!(stream.poll_data(cx)).transpose().map_err(error)? {
        // Credit for what was just handed over; it can only fail when too much is given back.
        let _ = stream.flow_control().release_capacity(data.len());
        if !data.is_empty() {
            return Poll::Ready(Ok(Frame::Data(data)));
        }
    }
    let trailers = ready!(stream.poll_trailers(cx)).map_err(error)?;
    Poll::Ready(Ok(trailers.map_or(Frame::End, |map| Frame::Trailers(fields_of(&map)))))
}
