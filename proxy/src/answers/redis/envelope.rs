//! What a value in Redis looks like: a record in an envelope that says whether it may be trusted.
//!
//! A value comes from outside: another version of this program, another program, a disk. So nothing in it is believed
//! before its checksum is right, and the checksum covers the key as well: a value that was copied to another key is
//! another tenant's answer for all we know. What is wrong is told by kind and never served.
//!
//! ```text
//! 0   "ORA" and the version of this layout
//! 4   coding: 0 as it is, 1 zstd
//! 5   three bytes of nothing
//! 8   the epoch of the purges that its writer knew of (see `marks`)
//! 16  the latest of them
//! 24  when the time of the record is over, in milliseconds of Unix time
//! 32  bytes of the record when it is not compressed
//! 40  XXH3-128 of the key, of what stands before, and of what follows
//! 56  the record
//! ```
//!
//! Numbers are little-endian. A layout that old readers would take for another needs a new version here *and* a new
//! prefix of the keys, so that two versions side by side do not delete each other's values.

use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::marks::Seen;
use crate::answers::Key;

const MAGIC: [u8; 4] = *b"ORA\x01";
/// Bytes before the record.
pub(super) const HEAD: usize = 56;
/// What the checksum covers of the head.
const SUMMED: usize = 40;
/// Nearly as good as the levels above for text, in a quarter of their time.
const LEVEL: i32 = 1;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// What is in an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// The record.
    pub(super) record: Bytes,
    /// Up to where the writer knew what was purged.
    pub(super) seen: Seen,
    /// When its time is over, as Unix time.
    pub(super) expires: Duration,
}

/// Why a value is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    /// It has another layout, or none.
    Version,
    /// It is not what was written under this key.
    Checksum,
    /// It is longer than anything that is written here.
    Length,
}

/// Puts a record into an envelope; longer ones than `compress` are compressed if that makes them shorter.
pub(super) fn seal(key: &Key, content: &Content, compress: Option<usize>) -> Vec<u8> {
    let record: &[u8] = &content.record;
    let packed = match compress {
        Some(least) if record.len() > least => zstd::bulk::compress(record, LEVEL).ok(),
        _ => None,
    };
    let packed = packed.filter(|packed| packed.len() < record.len());
    let coding = if packed.is_some() { ZSTD } else { PLAIN };
    let body = packed.as_deref().unwrap_or(record);
    let expires = u64::try_from(content.expires.as_millis()).unwrap_or(u64::MAX);
    let mut value = Vec::with_capacity(HEAD + body.len());
    value.extend_from_slice(&MAGIC);
    value.extend_from_slice(&[coding, 0, 0, 0]);
    let Seen { epoch, latest } = content.seen;
    for number in [epoch, latest, expires, record.len() as u64] {
        value.extend_from_slice(&number.to_le_bytes());
    }
    let sum = checksum(key, &value, body);
    value.extend_from_slice(&sum.to_le_bytes());
    value.extend_from_slice(body);
    value
}

/// Takes the record out, if all is right. `max` is how long a record may be.
pub(super) fn open(key: &Key, value: &[u8], max: usize) -> Result<Content, Distrust> {
    let (head, body) = value.split_at_checked(HEAD).ok_or(Distrust::Version)?;
    if head[..4] != MAGIC {
        return Err(Distrust::Version);
    }
    if checksum(key, &head[..SUMMED], body).to_le_bytes() != head[SUMMED..] {
        return Err(Distrust::Checksum);
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| head[at + index]));
    let length = usize::try_from(number(32)).unwrap_or(usize::MAX);
    if length > max {
        return Err(Distrust::Length);
    }
    let record = match head[4] {
        PLAIN => body.to_vec(),
        // Not more than it says: no value makes us take memory without end.
        ZSTD => zstd::bulk::decompress(body, length).map_err(|_| Distrust::Checksum)?,
        _ => return Err(Distrust::Version),
    };
    if record.len() != length {
        return Err(Distrust::Length);
    }
    let expires = Duration::from_millis(number(24));
    let seen = Seen { epoch: number(8), latest: number(16) };
    Ok(Content { record: record.into(), seen, expires })
}

fn checksum(key: &Key, head: &[u8], body: &[u8]) -> u128 {
    let mut sum = Xxh3::new();
    sum.update(key.bytes());
    sum.update(head);
    sum.update(body);
    sum.digest128()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const MAX: usize = 1 << 20;

    fn key() -> Key {
        Key::of(7)
    }

    fn content(record: &[u8]) -> Content {
        let record = Bytes::copy_from_slice(record);
        let seen = Seen { epoch: 1, latest: 3 };
        Content { record, seen, expires: Duration::from_millis(1_795_000_000_000) }
    }

    /// Bytes that compress well, or not at all.
    fn random_content(rng: &mut SmallRng) -> Content {
        let length = rng.random_range(0..3000);
        let most = if rng.random_bool(0.5) { 4 } else { 255 };
        let record: Bytes = (0..length).map(|_| rng.random_range(0..=most)).collect();
        let expires = Duration::from_millis(rng.random());
        let seen = Seen { epoch: rng.random(), latest: rng.random() };
        Content { record, seen, expires }
    }

    #[test]
    fn what_was_sealed_is_opened_as_it_was() {
        for seed in 0..2000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let content = random_content(&mut rng);
            let compress = rng.random_bool(0.8).then(|| rng.random_range(0..2000));
            let value = seal(&key(), &content, compress);
            assert!(value.len() <= HEAD + content.record.len(), "seed {seed}");
            assert_eq!(open(&key(), &value, MAX), Ok(content), "seed {seed}");
        }
    }

    #[test]
    fn text_gets_shorter_and_short_text_is_left_alone() {
        let text = content("the same again, ".repeat(100).as_bytes());
        let (length, sealed) = (text.record.len(), |compress| seal(&key(), &text, compress).len());
        assert!(sealed(Some(100)) < length / 4);
        assert_eq!((sealed(Some(length)), sealed(None)), (HEAD + length, HEAD + length));
    }

    #[test]
    fn no_flipped_bit_no_cut_and_no_addition_is_believed() {
        for seed in 0..2000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut value = seal(&key(), &random_content(&mut rng), Some(100));
            let at = rng.random_range(0..value.len());
            match rng.random_range(0..3) {
                0 => value[at] ^= 1 << rng.random_range(0..8),
                1 => value.truncate(at),
                _ => value.push(rng.random()),
            }
            assert!(open(&key(), &value, MAX).is_err(), "seed {seed}");
        }
    }

    #[test]
    fn rubbish_is_not_believed() {
        for seed in 0..2000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut rubbish = random_content(&mut rng).record.to_vec();
            assert!(open(&key(), &rubbish, MAX).is_err(), "seed {seed}");
            rubbish.splice(..0, MAGIC);
            assert!(open(&key(), &rubbish, MAX).is_err(), "seed {seed}");
        }
    }

    #[test]
    fn each_flaw_has_its_name() {
        let good = seal(&key(), &content(b"record"), None);
        let mut other = good.clone();
        other[3] = 2;
        assert_eq!(open(&key(), &other, MAX), Err(Distrust::Version));
        assert_eq!(open(&Key::of(8), &good, MAX), Err(Distrust::Checksum), "another key");
        assert_eq!(open(&key(), &good, 5), Err(Distrust::Length));
        assert_eq!(open(&key(), b"", MAX), Err(Distrust::Version));
    }
}
