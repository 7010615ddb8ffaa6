//! What is stored of an answer, and how it is written into bytes.
//!
//! Why one form for all tiers: memory counts exactly the bytes that it holds, and what comes back from elsewhere (or from
//! an older version of this program) must be checked anyway. A record is one piece of memory; what is decoded from it
//! points into it.
//!
//! The layout, all numbers in little endian:
//!
//! ```text
//! version  u8        another one is not read
//! checksum u64       xxh3 of everything after it
//! proof    32 bytes  [`Proof`] of the request
//! tenant   16 bytes  \
//! route, arm, model  / texts: u32 length, bytes
//! stored   u64       milliseconds of Unix time
//! ttl      u64       milliseconds
//! if_error, revalidate  u64  milliseconds; all ones = nothing was said
//! flags    u8        bit 0: must not be served stale; bit 1: a stream of events
//! status   u16
//! fields   u32 count, then name and value, each u32 length and bytes
//! pieces   u32 count, then for each: u32 microseconds since the one before, u32 length
//! body     the bytes of all pieces
//! ```
//!
//! What it decides: nothing that is read here can panic, or allocate more than a few times what the record is long,
//! whatever its bytes; and nothing is believed of which one bit is wrong.

use std::time::Duration;

use bytes::{Buf, Bytes};
use xxhash_rust::xxh3::xxh3_64;

use super::key::{Proof, Tags};
use crate::{tenant::Tenant, wire::Fields};

/// The layout that is written and read.
const VERSION: u8 = 1;
/// Before the checksummed part.
const PREFIX: usize = 9;
/// Stands for a duration that was not given.
const UNSAID: u64 = u64::MAX;
/// Pieces beyond this number are joined with the one before: a pace that fine is not worth its bytes.
pub const MAX_PIECES: usize = 16 * 1024;

const NEVER_STALE: u8 = 1;
const EVENTS: u8 = 2;

/// A stored answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of the request that it answers.
    pub proof: Proof,
    /// What it can be purged by.
    pub tags: Tags,
    /// When its head came from the endpoint, as Unix time, less the age that it had then.
    pub stored_at: Duration,
    /// How long it may be used.
    pub terms: Terms,
    /// The status.
    pub status: u16,
    /// The chosen fields of its head.
    pub fields: Fields,
    /// It is a stream of events.
    pub events: bool,
    /// The body as it came.
    pub pieces: Vec<Piece>,
}

/// How long an answer may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// It is fresh for so long.
    pub ttl: Duration,
    /// The endpoint allows it for so much longer where there would be an error.
    pub if_error: Option<Duration>,
    /// The endpoint allows it for so much longer while a new one is fetched.
    pub while_revalidate: Option<Duration>,
    /// The endpoint forbids it once it is stale.
    pub never_stale: bool,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How long after the piece before it came; the first one, after the head.
    pub after: Duration,
    /// Its bytes.
    pub data: Bytes,
}

/// Why a record is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It is of another version of this program.
    Version,
    /// Its bytes are not those that were written.
    Checksum,
    /// It does not follow the layout.
    Layout,
}

impl Answer {
    /// Bytes of the body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.data.len()).sum()
    }

    /// The record of this answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(512 + self.fields.wire_len() + self.body_bytes());
        out.push(VERSION);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(self.proof.bytes());
        out.extend_from_slice(self.tags.tenant.as_bytes());
        for text in [&*self.tags.route, &*self.tags.arm, &*self.tags.model] {
            put(&mut out, text.as_bytes());
        }
        let said = |time: Option<Duration>| time.map_or(UNSAID, millis);
        let terms = &self.terms;
        for number in [
            millis(self.stored_at),
            millis(terms.ttl),
            said(terms.if_error),
            said(terms.while_revalidate),
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(NEVER_STALE * u8::from(terms.never_stale) + EVENTS * u8::from(self.events));
        out.extend_from_slice(&self.status.to_le_bytes());
        self.put_fields(&mut out);
        self.put_pieces(&mut out);
        let checksum = xxh3_64(&out[PREFIX..]).to_le_bytes();
        out[1..PREFIX].copy_from_slice(&checksum);
        out.into()
    }

    fn put_fields(&self, out: &mut Vec<u8>) {
        put_len(out, self.fields.len());
        for (name, value) in self.fields.iter() {
            put(out, name);
            put(out, value);
        }
    }

    fn put_pieces(&self, out: &mut Vec<u8>) {
        put_len(out, self.pieces.len());
        for piece in &self.pieces {
            let micros = u32::try_from(piece.after.as_micros()).unwrap_or(u32::MAX);
            out.extend_from_slice(&micros.to_le_bytes());
            put_len(out, piece.data.len());
        }
        self.pieces.iter().for_each(|piece| out.extend_from_slice(&piece.data));
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Distrust`]: it is as good as not there.
    pub fn decode(record: &Bytes) -> Result<Self, Distrust> {
        let (version, rest) = record.split_first().ok_or(Distrust::Layout)?;
        if *version != VERSION {
            return Err(Distrust::Version);
        }
        let (checksum, rest) = rest.split_first_chunk::<8>().ok_or(Distrust::Layout)?;
        if u64::from_le_bytes(*checksum) != xxh3_64(rest) {
            return Err(Distrust::Checksum);
        }
        Reader(record.slice(PREFIX..)).answer().ok_or(Distrust::Layout)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(UNSAID - 1)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Answers are bounded far below 4 GiB by the configuration; a longer one would not be read again.
fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

/// What is left of a record.
struct Reader(Bytes);

impl Reader {
    fn answer(mut self) -> Option<Answer> {
        let proof = Proof::from_bytes(self.array()?);
        let tenant = Tenant::from_bytes(self.array()?);
        let (route, arm, model) = (self.text()?, self.text()?, self.text()?);
        let tags = Tags { tenant, route: route.into(), arm: arm.into(), model: model.into() };
        let [stored_at, ttl, if_error, while_revalidate] =
            [self.u64()?, self.u64()?, self.u64()?, self.u64()?];
        let [flags] = self.array()?;
        let said = |number| (number != UNSAID).then_some(Duration::from_millis(number));
        let terms = Terms {
            ttl: Duration::from_millis(ttl),
            if_error: said(if_error),
            while_revalidate: said(while_revalidate),
            never_stale: flags & NEVER_STALE != 0,
        };
        let status = u16::from_le_bytes(self.array()?);
        let fields = self.fields()?;
        let pieces = self.pieces()?;
        let (stored_at, events) = (Duration::from_millis(stored_at), flags & EVENTS != 0);
        Some(Answer { proof, tags, stored_at, terms, status, fields, events, pieces })
    }

    fn fields(&mut self) -> Option<Fields> {
        let mut fields = Fields::new();
        for _ in 0..self.u32()? {
            let (name, value) = (self.text()?, self.bytes()?);
            fields.append(&name, value);
        }
        Some(fields)
    }

    fn pieces(&mut self) -> Option<Vec<Piece>> {
        let count = self.u32()? as usize;
        let mut lengths = self.take(count.checked_mul(8)?)?;
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            let after = Duration::from_micros(lengths.get_u32_le().into());
            let data = self.take(lengths.get_u32_le() as usize)?;
            pieces.push(Piece { after, data });
        }
        self.0.is_empty().then_some(pieces)
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.as_ref().try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.into()).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::answers::key::{Body, Identity, tests::tenant as tenant_of};

    pub(in crate::answers) fn tags(tenant: &str, route: &str, model: &str) -> Tags {
        let tenant = tenant_of(tenant);
        Tags { tenant, route: route.into(), arm: "stable".into(), model: model.into() }
    }

    fn answer(rng: &mut SmallRng) -> Answer {
        let tenant = tenant_of("t");
        let body = Body::Bytes(b"x");
        let identity = Identity {
            tenant,
            route: "r",
            arm: None,
            model: "",
            method: "POST",
            target: "/",
            fields: vec![],
            body,
        };
        let (_, proof) = identity.digest().unwrap();
        let mut fields = Fields::new();
        for index in 0..rng.random_range(0..5) {
            fields.append(&format!("x-{index}"), vec![rng.random(); rng.random_range(0..9)]);
        }
        let mut piece = |_| {
            let mut data = vec![0; rng.random_range(0..200)];
            rng.fill_bytes(&mut data);
            let after = Duration::from_micros(rng.random_range(0..5_000_000));
            Piece { after, data: data.into() }
        };
        let pieces = (0..8).map(&mut piece).collect();
        let said = |said: bool| said.then_some(Duration::from_secs(60));
        let terms = Terms {
            ttl: Duration::from_secs(rng.random_range(0..1000)),
            if_error: said(rng.random()),
            while_revalidate: said(rng.random()),
            never_stale: rng.random(),
        };
        let stored_at = Duration::from_millis(rng.random_range(0..1 << 41));
        let tags = tags("t", "chat", "llama");
        let (status, events) = (200, rng.random());
        Answer { proof, tags, stored_at, terms, status, fields, events, pieces }
    }

    fn same(one: &Answer, other: &Answer) -> bool {
        let fields = |answer: &Answer| {
            answer.fields.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>()
        };
        (one.proof, &one.tags, one.stored_at, one.terms, one.status, one.events)
            == (other.proof, &other.tags, other.stored_at, other.terms, other.status, other.events)
            && fields(one) == fields(other)
            && one.pieces == other.pieces
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for seed in 0..500 {
            let written = answer(&mut SmallRng::seed_from_u64(seed));
            let read = Answer::decode(&written.encode()).unwrap();
            assert!(same(&written, &read), "seed {seed}: {written:?} {read:?}");
        }
    }

    #[test]
    fn no_changed_byte_is_believed() {
        for seed in 0..2_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut bytes = answer(&mut rng).encode().to_vec();
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
            let expected = if at == 0 { Distrust::Version } else { Distrust::Checksum };
            assert_eq!(Answer::decode(&bytes.into()).err(), Some(expected), "seed {seed}, {at}");
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic() {
        for seed in 0..5_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut bytes = answer(&mut rng).encode().to_vec();
            for _ in 0..rng.random_range(1..6) {
                match rng.random_range(0..3) {
                    0 => bytes.truncate(rng.random_range(0..=bytes.len())),
                    1 => bytes.extend((0..rng.random_range(0..9)).map(|_| rng.random::<u8>())),
                    _ if bytes.is_empty() => {}
                    _ => {
                        let at = rng.random_range(0..bytes.len());
                        bytes[at] = [0, 1, 0x7f, 0xff][rng.random_range(0..4)];
                    }
                }
            }
            // Past the checksum, so that the layout itself is tried.
            if bytes.len() > PREFIX {
                bytes[0] = VERSION;
                let checksum = xxh3_64(&bytes[PREFIX..]).to_le_bytes();
                bytes[1..PREFIX].copy_from_slice(&checksum);
            }
            // Whatever comes of it is an answer or a distrust.
            let _ = Answer::decode(&bytes.into());
        }
    }

    #[test]
    fn a_record_of_another_version_is_told_apart() {
        let mut bytes = answer(&mut SmallRng::seed_from_u64(1)).encode().to_vec();
        bytes[0] = VERSION + 1;
        assert_eq!(Answer::decode(&bytes.into()).err(), Some(Distrust::Version));
        assert_eq!(Answer::decode(&Bytes::new()).err(), Some(Distrust::Layout));
    }
}
