//! An answer while it passes: held, so that it can be stored when it is complete.
//!
//! What is held are the pieces that the relay passes on, not copies of them, and only up to a bound. A recording that is
//! not ended by the end of the answer is dropped, and nothing is stored: half an answer is none.
//!
//! What it decides: which fields of a head are stored. What belongs to one message, one hop or one request is not.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    key::{Proof, Tags},
    policy::is_whole,
    record::{Answer, MAX_PIECES, Piece, Terms},
};
use crate::{
    stream::Kind,
    wire::{Fields, hop::strip_hop_by_hop},
};

/// Fields that are not stored: of one message, of one request, or of one endpoint at one moment.
const MOMENTARY: [&str; 17] = [
    "age",
    "alt-svc",
    "authentication-info",
    "cache-status",
    "content-length",
    "date",
    "endpoint-load-metrics",
    "endpoint-load-metrics-bin",
    "openai-processing-ms",
    "retry-after",
    "server-timing",
    "set-cookie",
    "traceparent",
    "tracestate",
    "x-correlation-id",
    "x-envoy-upstream-service-time",
    "x-request-id",
];
/// The same by how a name begins.
const MOMENTARY_PREFIXES: [&str; 3] = ["x-ratelimit-", "ratelimit", "x-outrigger-"];

/// An answer on its way.
#[derive(Debug)]
pub struct Recording {
    status: u16,
    fields: Fields,
    terms: Terms,
    kind: Kind,
    stored_at: Duration,
    pieces: Vec<Piece>,
    bytes: u64,
    limit: u64,
    last: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Ended,
    TooLong,
    /// What came is not only a body.
    Trailers,
}

/// Why a recording is no answer to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Useless {
    /// It broke off, or its body says that it is not all.
    Incomplete,
    /// It is longer than the route allows.
    TooLong,
    /// It ended with trailers, which are not stored.
    Trailers,
}

/// What is known of an answer when its head has come.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// The status.
    pub status: u16,
    /// How long it may be used.
    pub terms: Terms,
    /// What its body is.
    pub kind: Kind,
    /// When the head came, as Unix time.
    pub at: Duration,
}

impl Recording {
    /// Begins with the head of an answer, as the endpoint sent it; at most `limit` bytes of body are held.
    #[must_use]
    pub fn begin(beginning: Beginning, fields: &Fields, limit: u64, now: Instant) -> Self {
        let age = fields.get_str("age").and_then(|age| age.trim().parse().ok()).unwrap_or(0);
        Recording {
            status: beginning.status,
            fields: stored(fields),
            terms: beginning.terms,
            kind: beginning.kind,
            stored_at: beginning.at.saturating_sub(Duration::from_secs(age)),
            pieces: Vec::new(),
            bytes: 0,
            limit,
            last: now,
            state: State::Running,
        }
    }

    /// A piece of the body has come.
    pub fn data(&mut self, data: &Bytes, now: Instant) {
        if self.state != State::Running {
            return;
        }
        self.bytes += data.len() as u64;
        if self.bytes > self.limit {
            self.state = State::TooLong;
            self.pieces = Vec::new();
            return;
        }
        let after = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        self.pieces.push(Piece { after, data: data.clone() });
    }

    /// Trailers have come.
    pub fn trailers(&mut self) {
        self.state = State::Trailers;
        self.pieces = Vec::new();
    }

    /// The body has come to its end.
    pub fn end(&mut self) {
        if self.state == State::Running {
            self.state = State::Ended;
        }
    }

    /// What is to be stored.
    ///
    /// # Errors
    /// Why there is nothing.
    pub fn finish(self, proof: Proof, tags: Tags) -> Result<Answer, Useless> {
        match self.state {
            State::Ended => {}
            State::Running => return Err(Useless::Incomplete),
            State::TooLong => return Err(Useless::TooLong),
            State::Trailers => return Err(Useless::Trailers),
        }
        let body = joined(&self.pieces);
        if !is_whole(self.kind, &body) {
            return Err(Useless::Incomplete);
        }
        Ok(Answer {
            proof,
            tags,
            stored_at: self.stored_at,
            terms: self.terms,
            status: self.status,
            fields: self.fields,
            events: self.kind == Kind::EventStream,
            pieces: few(self.pieces),
        })
    }
}

fn joined(pieces: &[Piece]) -> Cow<'_, [u8]> {
    match pieces {
        [] => Cow::Borrowed(&[]),
        [one] => Cow::Borrowed(&one.data),
        pieces => {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece.data[..]).collect();
            Cow::Owned(pieces.concat())
        }
    }
}

/// At most [`MAX_PIECES`]: those beyond are joined into one.
fn few(mut pieces: Vec<Piece>) -> Vec<Piece> {
    if pieces.len() > MAX_PIECES {
        let mut rest = BytesMut::new();
        pieces[MAX_PIECES - 1..].iter().for_each(|piece| rest.extend_from_slice(&piece.data));
        pieces.truncate(MAX_PIECES);
        pieces[MAX_PIECES - 1].data = rest.freeze();
    }
    pieces
}

/// The fields that are stored.
fn stored(fields: &Fields) -> Fields {
    let mut kept = fields.clone();
    strip_hop_by_hop(&mut kept);
    kept.retain(|name, _| !is_momentary(name));
    kept
}

fn is_momentary(name: &[u8]) -> bool {
    let begins = |prefix: &&str| {
        name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    MOMENTARY.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        || MOMENTARY_PREFIXES.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::{
        key::{Body, Identity, tests::tenant},
        record::tests::tags,
    };

    fn proof() -> Proof {
        let tenant = tenant("t");
        let (route, model, method, target) = ("r", "m", "POST", "/");
        let (arm, fields, body) = (None, vec![], Body::Bytes(b""));
        Identity { tenant, route, arm, model, method, target, fields, body }.digest().unwrap().1
    }

    fn recording(kind: Kind, limit: u64) -> Recording {
        let mut fields = Fields::new();
        for (name, value) in [
            ("Content-Type", "text/event-stream"),
            ("Date", "now"),
            ("Set-Cookie", "a=b"),
            ("X-Request-Id", "7"),
            ("Connection", "x-mine"),
            ("x-mine", "1"),
            ("X-RateLimit-Remaining", "9"),
            ("age", "10"),
            ("x-kept", "yes"),
        ] {
            fields.append(name, value);
        }
        let terms = Terms {
            ttl: Duration::from_secs(5),
            if_error: None,
            while_revalidate: None,
            never_stale: false,
        };
        let beginning = Beginning { status: 200, terms, kind, at: Duration::from_secs(1_000) };
        Recording::begin(beginning, &fields, limit, Instant::now())
    }

    fn finish(recording: Recording) -> Result<Answer, Useless> {
        recording.finish(proof(), tags("t", "r", "m"))
    }

    #[test]
    fn an_answer_is_held_piece_by_piece_with_its_pace() {
        let mut recording = recording(Kind::EventStream, 1_000);
        let start = recording.last;
        let pieces = ["data: \u{e4}", "\n\ndata: [DO", "NE]\n\n"];
        // The second byte of the letter is in the next piece.
        let bytes = pieces.concat().into_bytes();
        let cuts = [0, 7, 15, bytes.len()];
        for (index, cut) in cuts.windows(2).enumerate() {
            let at = start + Duration::from_millis(10 * (index as u64 + 1));
            recording.data(&Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]), at);
        }
        recording.end();
        let answer = finish(recording).unwrap();
        let answer = Answer::decode(&answer.encode()).unwrap();
        assert_eq!(joined(&answer.pieces), bytes);
        assert!(answer.events && answer.pieces.len() == 3);
        assert!(answer.pieces.iter().all(|piece| piece.after == Duration::from_millis(10)));
        assert_eq!(answer.stored_at, Duration::from_secs(990), "less the age that it came with");
        let names: Vec<_> =
            answer.fields.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(names, ["Content-Type", "x-kept"]);
    }

    #[test]
    fn what_is_not_whole_is_nothing() {
        let data = Bytes::from_static(b"data: [DONE]\n\n");
        let mut running = recording(Kind::EventStream, 1_000);
        running.data(&data, Instant::now());
        assert_eq!(finish(running).err(), Some(Useless::Incomplete), "without its end");
        let mut cut = recording(Kind::EventStream, 1_000);
        cut.data(&data.slice(..9), Instant::now());
        cut.end();
        assert_eq!(finish(cut).err(), Some(Useless::Incomplete), "without its last event");
        let mut long = recording(Kind::EventStream, 10);
        long.data(&data, Instant::now());
        long.end();
        assert_eq!(finish(long).err(), Some(Useless::TooLong));
        let mut trailed = recording(Kind::EventStream, 1_000);
        trailed.data(&data, Instant::now());
        trailed.trailers();
        trailed.end();
        assert_eq!(finish(trailed).err(), Some(Useless::Trailers));
    }

    #[test]
    fn a_body_of_very_many_pieces_keeps_all_its_bytes() {
        let mut recording = recording(Kind::Other, 1 << 20);
        for index in 0..MAX_PIECES + 100 {
            recording.data(&Bytes::from(vec![index as u8]), Instant::now());
        }
        recording.end();
        let answer = finish(recording).unwrap();
        assert_eq!((answer.pieces.len(), answer.body_bytes()), (MAX_PIECES, MAX_PIECES + 100));
        assert_eq!(joined(&answer.pieces)[MAX_PIECES + 99], (MAX_PIECES + 99) as u8);
    }
}
