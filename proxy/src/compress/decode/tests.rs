use std::io::Write;

use flate2::{Compression, write};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{zstd::head_length, *};
use crate::compress::sample;
use http::Method;

const CODINGS: [&str; 5] = ["gzip", "x-gzip", "deflate", "br", "zstd"];
const MIB: u64 = 1 << 20;
const WIDE: Decompress = Decompress { max: 64 * MIB, ratio: 10_000 };

fn request(coding: &str) -> RequestHead {
    let mut fields = Fields::new();
    fields.append("Content-Encoding", coding);
    let mut head = RequestHead::for_target(Method::POST, fields, "/v1/completions", 11);
    head.body = BodyLength::Exact(1000);
    head
}

fn decoder(coding: &str, limits: &Decompress) -> Decoder {
    Decoder::of(&mut request(coding), limits).unwrap().unwrap()
}

/// By encoders that are not ours: one coding, at some level.
fn encode(coding: &str, body: &[u8], level: u32) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "deflate" => {
            let mut encoder = write::ZlibEncoder::new(&mut out, Compression::new(level));
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap();
        }
        "br" => {
            let mut encoder = ::brotli::CompressorWriter::new(&mut out, 4096, level.min(5), 20);
            encoder.write_all(body).unwrap();
        }
        "zstd" => {
            let mut encoder = ::zstd::stream::Encoder::new(&mut out, level as i32).unwrap();
            encoder.include_checksum(level.is_multiple_of(2)).unwrap();
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap();
        }
        _ => {
            let mut encoder = write::GzEncoder::new(&mut out, Compression::new(level));
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap();
        }
    }
    out
}

fn bare_deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = write::DeflateEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// All of a body that comes in these pieces, or why not; and what had come out by then.
fn run(mut decoder: Decoder, pieces: &[&[u8]], room: usize) -> (Vec<u8>, Result<(), Refused>) {
    let mut out = Vec::new();
    let result = feed(&mut decoder, pieces, room, &mut out).and_then(|()| decoder.finish());
    (out, result)
}

fn feed(
    decoder: &mut Decoder,
    pieces: &[&[u8]],
    room: usize,
    out: &mut Vec<u8>,
) -> Result<(), Refused> {
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let (before, came) = (out.len(), rest.len());
            let all = decoder.decode(&mut rest, out, room)?;
            assert!(
                out.len() - before <= room.saturating_add(PIECE),
                "more than there was room for"
            );
            if all {
                assert!(rest.is_empty());
                break;
            }
            assert!(out.len() > before, "stopped without need");
            let full = out.len() >= before.saturating_add(room);
            assert!(full || decoder.outer.is_some() || came - rest.len() >= BITE, "too early");
        }
    }
    Ok(())
}

fn whole(coding: &str, encoded: &[u8], limits: &Decompress) -> (Vec<u8>, Result<(), Refused>) {
    run(decoder(coding, limits), &[encoded], usize::MAX)
}

fn body(rng: &mut StdRng) -> Vec<u8> {
    let length = [0, 1, 300, 20_000, 200_000][rng.random_range(0..5)];
    let length = rng.random_range(0..=length);
    if rng.random_range(0..3) == 0 {
        sample::noise(rng, length)
    } else {
        sample::completion(rng, length)
    }
}

#[test]
fn whatever_is_cut_comes_back() {
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let body = body(rng);
        for coding in CODINGS {
            let encoded = encode(coding, &body, rng.random_range(1..7));
            let longest = [2, 100, 20_000][rng.random_range(usize::from(encoded.len() > 9000)..3)];
            let pieces = sample::cut(rng, &encoded, longest);
            let room = [1, 1000, 100_000][rng.random_range(0..3)];
            let (out, result) = run(decoder(coding, &WIDE), &pieces, room);
            assert_eq!(result, Ok(()), "seed {seed}, {coding}");
            assert!(out == body, "seed {seed}, {coding}");
        }
    }
}

#[test]
fn two_codings_on_top_of_one_another() {
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let body = body(rng);
        let [first, second] = [0; 2].map(|_| CODINGS[rng.random_range(0..CODINGS.len())]);
        let encoded = encode(second, &encode(first, &body, 4), 2);
        let pieces = sample::cut(rng, &encoded, 3000);
        let room = [1, 1000, 100_000][rng.random_range(0..3)];
        let (out, result) = run(decoder(&format!("{first}, {second}"), &WIDE), &pieces, room);
        assert_eq!(result, Ok(()), "seed {seed}, {first}, {second}");
        assert!(out == body, "seed {seed}, {first}, {second}");
    }
}

#[test]
fn what_our_encoder_writes_is_read() {
    use crate::compress::{Encoder, Flow};
    let rng = &mut StdRng::seed_from_u64(8);
    let mut pieces = sample::events(rng, 300);
    // Far more than one step gives, so that some of it waits inside a coder.
    pieces.extend((0..4).map(|_| sample::completion(rng, 150_000)));
    for coding in outrigger_config::validated::Coding::ALL {
        let (mut encoder, mut out) = (Encoder::new(coding, Flow::Events).unwrap(), Vec::new());
        let mut decoder = decoder(coding.name(), &WIDE);
        for piece in &pieces {
            out.clear();
            encoder.feed(piece, &mut out, true).unwrap();
            let mut read = Vec::new();
            feed(&mut decoder, &[&out], 1000, &mut read).unwrap();
            assert!(read == *piece, "{coding:?}");
        }
    }
}

#[test]
fn deflate_is_read_without_its_frame_too() {
    let rng = &mut StdRng::seed_from_u64(3);
    // Every thirty-first of them starts like a frame at first sight.
    for length in (0..200).chain([50_000]) {
        let text = &sample::completion(rng, length.max(9))[..length];
        for body in [text, &sample::noise(rng, length)[..]] {
            let encoded = bare_deflate(body);
            for longest in [1, 2, 3, 50_000] {
                let pieces = sample::cut(rng, &encoded, longest);
                let (out, result) = run(decoder("deflate", &WIDE), &pieces, 100);
                assert_eq!(result, Ok(()), "{length} in {longest}");
                assert!(out == body, "{length} in {longest}");
            }
        }
    }
}

#[test]
fn a_body_that_ends_early_is_refused_wherever_it_ends() {
    let rng = &mut StdRng::seed_from_u64(4);
    let body = sample::completion(rng, 2000);
    let mut bodies: Vec<(String, Vec<u8>)> =
        CODINGS.iter().map(|c| ((*c).to_owned(), encode(c, &body, 4))).collect();
    bodies.push(("deflate".into(), bare_deflate(&body)));
    bodies.push(("zstd, gzip".into(), encode("gzip", &encode("zstd", &body, 3), 3)));
    bodies.push(("gzip, br".into(), encode("br", &encode("gzip", &body, 3), 3)));
    for (coding, encoded) in bodies {
        for end in 1..encoded.len() {
            let (out, result) = whole(&coding, &encoded[..end], &WIDE);
            assert_eq!(result, Err(Refused::Truncated), "{coding} at {end}");
            assert!(body.starts_with(&out), "{coding} at {end}");
        }
        assert_eq!(whole(&coding, &encoded, &WIDE), (body.clone(), Ok(())), "{coding}");
        assert_eq!(whole(&coding, b"", &WIDE), (Vec::new(), Ok(())), "{coding}");
    }
    let begun = [&encode("zstd", &body, 3)[..], b"\x28\xb5"].concat();
    assert_eq!(whole("zstd", &begun, &WIDE).1, Err(Refused::Truncated));
}

#[test]
fn what_was_not_decoded_is_not_over() {
    // The end of the text is no end while something after it waits between the codings.
    let encoded = encode("gzip", &[&encode("br", b"text", 3)[..], b"more"].concat(), 3);
    let mut decoder = decoder("br, gzip", &WIDE);
    let (mut rest, mut out) = (&encoded[..], Vec::new());
    while out.len() < 4 {
        assert_eq!(decoder.decode(&mut rest, &mut out, 4), Ok(false));
    }
    assert!(decoder.finish().is_err());
    assert_eq!(decoder.decode(&mut rest, &mut out, 4), Err(Refused::Trailing));
}

#[test]
fn a_body_that_goes_on_after_its_end_is_refused() {
    let rng = &mut StdRng::seed_from_u64(5);
    let body = sample::completion(rng, 3000);
    for coding in CODINGS {
        for rest in [&b"\0"[..], b"x", b"GET / HTTP/1.1\r\n\r\n", b"\x25\xb5\x2f\xfd"] {
            let encoded = [&encode(coding, &body, 3)[..], rest].concat();
            for longest in [1, 7, encoded.len()] {
                let pieces = sample::cut(rng, &encoded, longest);
                let (out, result) = run(decoder(coding, &WIDE), &pieces, 1000);
                assert_eq!(result, Err(Refused::Trailing), "{coding} in {longest}");
                // What came before it may have been passed on.
                assert!(body.starts_with(&out), "{coding} in {longest}");
            }
        }
    }
}

#[test]
fn a_body_that_is_something_else_is_refused() {
    let body = sample::completion(&mut StdRng::seed_from_u64(15), 3000);
    for coding in ["gzip", "zstd"] {
        assert_eq!(whole(coding, &body, &WIDE), (Vec::new(), Err(Refused::Corrupt)), "{coding}");
    }
    for coding in ["deflate", "br"] {
        assert!(whole(coding, &body, &WIDE).1.is_err(), "{coding}");
    }
}

#[test]
fn members_and_frames_may_follow_one_another() {
    let rng = &mut StdRng::seed_from_u64(6);
    for coding in ["gzip", "zstd"] {
        let bodies: Vec<Vec<u8>> = (0..5).map(|_| body(rng)).chain([Vec::new()]).collect();
        let encoded: Vec<u8> = bodies.iter().flat_map(|body| encode(coding, body, 2)).collect();
        let pieces = sample::cut(rng, &encoded, 9000);
        let (out, result) = run(decoder(coding, &WIDE), &pieces, 5000);
        assert_eq!(result, Ok(()), "{coding}");
        assert!(out == bodies.concat(), "{coding}");
    }
    for coding in ["deflate", "br"] {
        let twice = encode(coding, b"text", 2).repeat(2);
        assert_eq!(whole(coding, &twice, &WIDE).1, Err(Refused::Trailing), "{coding}");
    }
}

#[test]
fn frames_that_hold_nothing_are_skipped() {
    let skipped = |length: u32| {
        let head = [&[0x5a, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes()].concat();
        [head, vec![0xee; length as usize]].concat()
    };
    let frame = encode("zstd", b"text", 3);
    let encoded = [&skipped(0)[..], &skipped(70_000), &frame, &skipped(3), &frame].concat();
    for longest in [1, 100, 100_000] {
        let pieces = sample::cut(&mut StdRng::seed_from_u64(7), &encoded, longest);
        assert_eq!(run(decoder("zstd", &WIDE), &pieces, 5), (b"texttext".to_vec(), Ok(())));
    }
}

#[test]
fn bombs_stop_at_the_ratio_and_at_the_most() {
    let zeros = vec![0; 8 * MIB as usize];
    for coding in CODINGS {
        let encoded = encode(coding, &zeros, 6);
        let strict = Decompress { max: 64 * MIB, ratio: 100 };
        for longest in [encoded.len(), 1 + encoded.len() / 50] {
            let pieces = sample::cut(&mut StdRng::seed_from_u64(9), &encoded, longest);
            let (out, result) = run(decoder(coding, &strict), &pieces, usize::MAX);
            assert_eq!(result, Err(Refused::Bomb), "{coding}");
            let most = FREE.max(100 * encoded.len() as u64);
            assert!(out.len() as u64 <= most, "{coding}: {} of {}", out.len(), encoded.len());
        }
        let small = Decompress { max: MIB, ratio: 1_000_000 };
        let (out, result) = whole(coding, &encoded, &small);
        assert_eq!(result, Err(Refused::TooLarge), "{coding}");
        assert!(out.len() as u64 <= small.max, "{coding}: {}", out.len());
    }
}

#[test]
fn a_bomb_within_a_bomb_is_counted_from_what_came_in() {
    let zeros = vec![0; 8 * MIB as usize];
    for (first, second) in [("gzip", "gzip"), ("zstd", "br"), ("br", "zstd"), ("deflate", "zstd")] {
        let encoded = encode(second, &encode(first, &zeros, 6), 6);
        let strict = Decompress { max: 64 * MIB, ratio: 100 };
        let (out, result) = whole(&format!("{first}, {second}"), &encoded, &strict);
        assert_eq!(result, Err(Refused::Bomb), "{first}, {second}");
        assert!(out.len() as u64 <= FREE.max(100 * encoded.len() as u64), "{first}, {second}");
    }
}

#[test]
fn what_lies_between_two_codings_is_bounded_though_nothing_comes_of_it() {
    let rng = &mut StdRng::seed_from_u64(14);
    let skipped = |content: Vec<u8>| {
        let length = (content.len() as u32).to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18][..], &length, &content, &encode("zstd", b"short", 3)].concat()
    };
    let wide = Decompress { max: MIB, ratio: 1_000_000 };
    let cases = [
        (skipped(vec![0; 60_000]), Ok(())),
        (skipped(vec![0; 70_000]), Err(Refused::Bomb)),
        (skipped(sample::noise(rng, 1_000_000)), Ok(())),
        (skipped(sample::noise(rng, 1_100_000)), Err(Refused::TooLarge)),
    ];
    for (between, result) in cases {
        let encoded = encode("gzip", &between, 6);
        assert_eq!(whole("zstd, gzip", &encoded, &wide).1, result, "{}", between.len());
    }
}

#[test]
fn bounds_are_exact() {
    let body = sample::noise(&mut StdRng::seed_from_u64(10), 100_000);
    for coding in CODINGS {
        let encoded = encode(coding, &body, 3);
        let exact = Decompress { max: 100_000, ratio: 2 };
        assert_eq!(whole(coding, &encoded, &exact).1, Ok(()), "{coding}");
        let less = Decompress { max: 99_999, ratio: 2 };
        assert_eq!(whole(coding, &encoded, &less).1, Err(Refused::TooLarge), "{coding}");
        // Short bodies are free, however they shrink.
        let zeros = vec![0; FREE as usize];
        let encoded = encode(coding, &zeros, 6);
        let strict = Decompress { max: MIB, ratio: 2 };
        assert_eq!(whole(coding, &encoded, &strict).1, Ok(()), "{coding}");
        let encoded = encode(coding, &[&zeros[..], b"0"].concat(), 6);
        assert_eq!(whole(coding, &encoded, &strict).1, Err(Refused::Bomb), "{coding}");
    }
}

#[test]
fn one_call_takes_a_few_kib() {
    let body = sample::completion(&mut StdRng::seed_from_u64(16), 200_000);
    for coding in ["gzip", "deflate", "gzip, deflate", "br"] {
        let encoded =
            coding.split(", ").fold(body.clone(), |body, coding| encode(coding, &body, 3));
        let (mut decoder, mut rest, mut out) = (decoder(coding, &WIDE), &encoded[..], Vec::new());
        let mut calls = 0;
        while !decoder.decode(&mut rest, &mut out, usize::MAX).unwrap() {
            calls += 1;
        }
        // Brotli may take some more before it gives its first bytes.
        let fewest = encoded.len() / (2 * BITE);
        assert!(calls >= fewest, "{coding}: {calls} calls for {} bytes", encoded.len());
        assert!(out == body, "{coding}");
    }
}

#[test]
fn a_checksum_that_does_not_fit_is_seen() {
    let body = sample::completion(&mut StdRng::seed_from_u64(11), 5000);
    // Where the checksum lies, counted from the end.
    for (coding, at) in [("gzip", 8), ("gzip", 1), ("deflate", 1), ("zstd", 1)] {
        let mut encoded = encode(coding, &body, 4);
        let at = encoded.len() - at;
        encoded[at] ^= 1;
        assert_eq!(whole(coding, &encoded, &WIDE).1, Err(Refused::Corrupt), "{coding}");
    }
}

/// Inputs that were valid once, mangled.
#[test]
fn no_input_breaks_it() {
    let limits = Decompress { max: MIB, ratio: 50 };
    let mut verdicts = [0; 5];
    for seed in 0..1500 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let coding = CODINGS[rng.random_range(0..CODINGS.len())];
        let length = [40, 400, 4000][rng.random_range(0..3)];
        let mut encoded = encode(coding, &sample::completion(rng, length), rng.random_range(1..7));
        if rng.random_range(0..4) == 0 {
            let more = encode(coding, &vec![0; 1 << 18], 3);
            encoded.extend_from_slice(&more);
        }
        mangle(rng, &mut encoded);
        let longest = [1 + encoded.len() / 9, 20][rng.random_range(0..2)];
        let pieces = sample::cut(rng, &encoded, longest);
        let named =
            if rng.random_range(0..5) == 0 { format!("gzip, {coding}") } else { coding.into() };
        let (out, result) = run(decoder(&named, &limits), &pieces, 10_000);
        assert!(out.len() as u64 <= limits.max);
        verdicts[match result {
            Ok(()) => 0,
            Err(Refused::Corrupt) => 1,
            Err(Refused::Truncated) => 2,
            Err(Refused::Trailing) => 3,
            Err(_) => 4,
        }] += 1;
    }
    // Every way out was taken, or else the inputs were poor.
    assert!(verdicts.iter().all(|&count| count > 10), "{verdicts:?}");
}

fn mangle(rng: &mut StdRng, encoded: &mut Vec<u8>) {
    for _ in 0..rng.random_range(0..4) {
        // Heads decide more than what follows them.
        let end = if rng.random() { encoded.len() } else { encoded.len().min(24) };
        let at = rng.random_range(0..=end);
        match rng.random_range(0..5) {
            0 => encoded.truncate(at),
            1 => encoded.insert(at, rng.random()),
            2 => drop(encoded.drain(at..end.min(at + rng.random_range(0..9)))),
            3 => encoded.extend_from_within(at..end),
            _ => encoded
                .get_mut(at)
                .into_iter()
                .for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
        }
    }
}

#[test]
fn zstd_windows_are_bounded() {
    // No content, but a window of so many bits: one empty last block.
    let frame = |bits: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (bits - 10) << 3, 1, 0, 0];
    assert_eq!(whole("zstd", &frame(23), &WIDE).1, Ok(()));
    assert_eq!(whole("zstd", &frame(24), &WIDE).1, Err(Refused::Corrupt));
    assert_eq!(whole("zstd", &frame(31), &WIDE).1, Err(Refused::Corrupt));
}

#[test]
fn zstd_from_before_its_standard_is_not_read() {
    // A frame of version 0.5 that holds "abc".
    let old = [0x25, 0xb5, 0x2f, 0xfd, 0, 0x40, 0, 3, 0x61, 0x62, 0x63, 0xc0, 0, 0];
    let now = encode("zstd", b"text", 3);
    let rng = &mut StdRng::seed_from_u64(12);
    // Alone; after a frame of today; as what follows the first bytes of one.
    let cases = [
        (old.to_vec(), Refused::Corrupt),
        ([&now[..], &old].concat(), Refused::Trailing),
        ([&now[..4], &old].concat(), Refused::Corrupt),
    ];
    for (encoded, refused) in cases {
        for cut in 0..encoded.len() {
            let (a, b) = encoded.split_at(cut);
            let (out, result) = run(decoder("zstd", &WIDE), &[a, b], 100);
            assert_eq!(result, Err(refused), "cut at {cut}");
            assert!(b"text".starts_with(&out[..]), "{out:?}");
        }
        let pieces = sample::cut(rng, &encoded, 2);
        assert_eq!(run(decoder("zstd", &WIDE), &pieces, 100).1, Err(refused));
    }
}

#[test]
fn pieces_of_nothing_do_no_harm() {
    let body = sample::completion(&mut StdRng::seed_from_u64(13), 3000);
    for coding in CODINGS {
        let encoded = encode(coding, &body, 3);
        let nothing = [&b""[..]; 40];
        let pieces: Vec<&[u8]> =
            encoded.chunks(100).flat_map(|piece| [&[piece][..], &nothing].concat()).collect();
        assert_eq!(run(decoder(coding, &WIDE), &pieces, 7), (body.clone(), Ok(())), "{coding}");
    }
}

#[test]
fn the_head_of_a_zstd_frame_has_the_length_it_says() {
    for descriptor in 0..=255_u8 {
        let start = [0x28, 0xb5, 0x2f, 0xfd, descriptor];
        let dictionary = [0, 1, 2, 4][usize::from(descriptor % 4)];
        let single = usize::from(descriptor >> 5 & 1);
        let content = [single, 2, 4, 8][usize::from(descriptor >> 6)];
        assert_eq!(head_length(&start), Some(5 + 1 - single + dictionary + content));
    }
    assert_eq!(head_length(&[0x5f, 0x2a, 0x4d, 0x18, 9]), Some(8));
    for stranger in [&[0x28, 0xb5, 0x2f, 0xfe][..], &[0x28, 0xb4], &[0x60], &[0x50, 0x2b], &[0]] {
        assert_eq!(head_length(stranger), None, "{stranger:x?}");
    }
}

#[test]
fn brotli_of_large_windows_is_not_read() {
    // The head that only the variant knows, for a window of 30 bits, and an empty last block.
    assert_eq!(whole("br", &[0x11, 0x1e, 0x03, 0, 0], &WIDE).1, Err(Refused::Corrupt));
    // The largest window of the standard is.
    let mut encoder = ::brotli::CompressorWriter::new(Vec::new(), 4096, 2, 24);
    encoder.write_all(b"text").unwrap();
    assert_eq!(whole("br", &encoder.into_inner(), &WIDE), (b"text".to_vec(), Ok(())));
}

#[test]
fn the_head_is_edited_to_what_comes_out() {
    let mut head = request("gzip");
    for (name, value) in
        [("Content-Length", "1000"), ("Content-Digest", "sha-256=:AA==:"), ("X-Kept", "1")]
    {
        head.fields.append(name, value);
    }
    let decoder = Decoder::of(&mut head, &WIDE).unwrap();
    assert!(decoder.is_some());
    assert_eq!(head.body, BodyLength::Unknown);
    let left: Vec<_> = head.fields.iter().collect();
    assert_eq!(left, [(&b"X-Kept"[..], &b"1"[..])]);
}

#[test]
fn codings_are_named_without_case_and_two_of_them_are_the_most() {
    let of = |coding: &str| Decoder::of(&mut request(coding), &WIDE).map(|found| found.is_some());
    for known in ["gzip", "X-GZIP", "Deflate", "br", "zstd", "gzip, br", "identity, zstd"] {
        assert_eq!(of(known), Ok(true), "{known}");
    }
    for plain in ["", "identity", ",", "identity, Identity"] {
        assert_eq!(of(plain), Ok(false), "{plain:?}");
    }
    for unknown in ["compress", "lzma", "gzip, lzma", "gzip, gzip, gzip", "dcz", "gzip;q=1"] {
        assert_eq!(of(unknown), Err(Refused::Unsupported), "{unknown}");
    }
    let mut empty = request("gzip");
    empty.body = BodyLength::Empty;
    assert!(Decoder::of(&mut empty, &WIDE).unwrap().is_none());
    assert!(empty.fields.contains("content-encoding"), "a head that is left alone");
    for name in ACCEPTED.split(", ") {
        assert_eq!(of(name), Ok(true), "{name}");
    }
}

#[test]
fn a_decoder_may_change_threads() {
    fn check<T: Send>() {}
    check::<Decoder>();
}
