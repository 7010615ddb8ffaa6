use std::{io::Read, thread};

use ::brotli::{BrotliDecompressStream, BrotliState, enc::StandardAlloc};
use ::zstd::{
    stream::raw::{Decoder as ZstdDecoder, Operation},
    zstd_safe::DParameter,
};
use flate2::{Decompress, FlushDecompress};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::compress::sample;

const BODY: Flow = Flow::Body { length: None };
const FLOWS: [Flow; 3] = [BODY, Flow::Body { length: Some(3000) }, Flow::Events];

fn encode(coding: Coding, flow: Flow, pieces: &[&[u8]], flush: bool) -> Vec<u8> {
    let mut encoder = Encoder::new(coding, flow).unwrap();
    let mut out = Vec::new();
    for piece in pieces {
        encoder.feed(piece, &mut out, flush).unwrap();
    }
    encoder.finish(&mut out).unwrap();
    out
}

/// The whole of it, by a decoder that is not ours; an error for what is not complete.
fn decode(coding: Coding, encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let read = match coding {
        Coding::Gzip => flate2::read::GzDecoder::new(encoded).read_to_end(&mut out),
        Coding::Br => ::brotli::Decompressor::new(encoded, 4096).read_to_end(&mut out),
        Coding::Zstd => ::zstd::stream::copy_decode(encoded, &mut out).map(|()| 0),
    };
    read.unwrap();
    out
}

/// A client that reads along: a decoder that is not ours, given what came so far.
enum Client {
    Gzip(Decompress),
    Br(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(ZstdDecoder<'static>),
}

impl Client {
    fn new(coding: Coding) -> Self {
        let alloc = StandardAlloc::default;
        match coding {
            Coding::Gzip => Self::Gzip(Decompress::new_gzip(15)),
            Coding::Br => Self::Br(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()))),
            Coding::Zstd => Self::Zstd(ZstdDecoder::new().unwrap()),
        }
    }

    /// What can be read of these bytes now.
    fn read(&mut self, mut encoded: &[u8]) -> Vec<u8> {
        let (mut read, mut buffer) = (Vec::new(), vec![0; 4096]);
        loop {
            let (taken, given) = self.step(encoded, &mut buffer);
            encoded = &encoded[taken..];
            read.extend_from_slice(&buffer[..given]);
            if (taken, given) == (0, 0) {
                assert!(encoded.is_empty());
                return read;
            }
        }
    }

    fn step(&mut self, encoded: &[u8], buffer: &mut [u8]) -> (usize, usize) {
        match self {
            Self::Gzip(stream) => {
                let before = (stream.total_in(), stream.total_out());
                stream.decompress(encoded, buffer, FlushDecompress::None).unwrap();
                let (taken, given) = (stream.total_in() - before.0, stream.total_out() - before.1);
                (taken as usize, given as usize)
            }
            Self::Br(state) => {
                let (mut left, mut room) = (encoded.len(), buffer.len());
                let (mut taken, mut given) = (0, 0);
                BrotliDecompressStream(
                    &mut left, &mut taken, encoded, &mut room, &mut given, buffer, &mut 0, state,
                );
                (taken, given)
            }
            Self::Zstd(stream) => {
                let status = stream.run_on_buffers(encoded, buffer).unwrap();
                (status.bytes_read, status.bytes_written)
            }
        }
    }
}

fn body(rng: &mut StdRng) -> Vec<u8> {
    let length = [0, 1, 200, 5_000, 40_000, 300_000][rng.random_range(0..6)];
    let length = rng.random_range(0..=length);
    match rng.random_range(0..3) {
        0 => sample::noise(rng, length),
        1 => sample::events(rng, length / 100).concat(),
        _ => sample::completion(rng, length),
    }
}

#[test]
fn whatever_is_cut_and_flushed_comes_back() {
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let body = body(rng);
        for coding in Coding::ALL {
            let flow = FLOWS[rng.random_range(0..FLOWS.len())];
            let (mut encoder, mut out) = (Encoder::new(coding, flow).unwrap(), Vec::new());
            let longest = [3, 500, 40_000, 400_000]
                [rng.random_range(if body.len() < 9000 { 0 } else { 1 }..4)];
            for piece in sample::cut(rng, &body, longest) {
                encoder.feed(piece, &mut out, rng.random_range(0..8) == 0).unwrap();
            }
            encoder.finish(&mut out).unwrap();
            assert!(decode(coding, &out) == body, "seed {seed}, {coding:?}, {flow:?}");
        }
    }
}

#[test]
fn at_every_flush_the_client_has_all_that_was_fed() {
    for seed in 0..12 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let events = if seed % 2 == 0 {
            sample::events(rng, 400)
        } else {
            let body = sample::completion(rng, 400_000);
            sample::cut(rng, &body, [9_000, 200_000][seed as usize / 2 % 2])
                .into_iter()
                .map(<[u8]>::to_vec)
                .collect()
        };
        for coding in Coding::ALL {
            let flow = FLOWS[rng.random_range(0..FLOWS.len())];
            let (mut encoder, mut client) =
                (Encoder::new(coding, flow).unwrap(), Client::new(coding));
            for (number, event) in events.iter().enumerate() {
                let mut out = Vec::new();
                encoder.feed(event, &mut out, true).unwrap();
                assert!(client.read(&out) == *event, "seed {seed}, {coding:?}, piece {number}");
            }
            let mut end = Vec::new();
            encoder.finish(&mut end).unwrap();
            assert_eq!(client.read(&end), b"", "{coding:?}");
        }
    }
}

#[test]
fn a_flush_with_nothing_new_costs_nothing() {
    for coding in Coding::ALL {
        let mut encoder = Encoder::new(coding, Flow::Events).unwrap();
        let mut out = Vec::new();
        encoder.feed(b"data: 1\n\n", &mut out, true).unwrap();
        let flushed = out.len();
        for _ in 0..100 {
            encoder.feed(b"", &mut out, true).unwrap();
        }
        assert_eq!(out.len(), flushed, "{coding:?}");
        encoder.feed(b"data: 2\n\n", &mut out, true).unwrap();
        encoder.finish(&mut out).unwrap();
        assert_eq!(decode(coding, &out), b"data: 1\n\ndata: 2\n\n");
    }
}

#[test]
fn an_empty_body_is_a_complete_one() {
    for coding in Coding::ALL {
        for flow in FLOWS {
            assert_eq!(decode(coding, &encode(coding, flow, &[], false)), b"");
            assert_eq!(decode(coding, &encode(coding, flow, &[b"", b""], true)), b"");
        }
    }
}

#[test]
fn text_shrinks_and_noise_hardly_grows() {
    let rng = &mut StdRng::seed_from_u64(1);
    let (text, noise) = (sample::completion(rng, 150_000), sample::noise(rng, 150_000));
    let events = sample::events(rng, 1000);
    let pieces: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
    let length = events.concat().len();
    for coding in Coding::ALL {
        let out = encode(coding, BODY, &text.chunks(16_384).collect::<Vec<_>>(), false);
        assert!(out.len() * 2 < text.len(), "{coding:?}: {} of {}", out.len(), text.len());
        let out = encode(coding, BODY, &[&noise], false);
        assert!(out.len() < noise.len() + noise.len() / 500, "{coding:?}: {}", out.len());
        let out = encode(coding, Flow::Events, &pieces, true);
        assert!(out.len() * 3 < length, "{coding:?}: {} of {length}", out.len());
    }
}

#[test]
fn a_wrong_length_does_no_harm() {
    let body = sample::completion(&mut StdRng::seed_from_u64(2), 100_000);
    for coding in Coding::ALL {
        for length in [0, 1, 1024, 100_001, u64::MAX] {
            let flow = Flow::Body { length: Some(length) };
            assert!(decode(coding, &encode(coding, flow, &[&body], false)) == body, "{coding:?}");
        }
    }
}

#[test]
fn the_window_is_no_longer_than_the_body() {
    let cases = [(0, 10), (1024, 10), (1025, 11), (65_536, 16), (131_072, 17), (u64::MAX, 17)];
    for (length, bits) in cases {
        assert_eq!(Flow::Body { length: Some(length) }.window(), bits, "{length}");
    }
    let body = sample::completion(&mut StdRng::seed_from_u64(3), 400_000);
    for (flow, window) in [(BODY, BODY_WINDOW), (Flow::Events, EVENT_WINDOW)] {
        let encoded = encode(Coding::Zstd, flow, &body.chunks(10_000).collect::<Vec<_>>(), false);
        // A client that has room for no more can read it, one with less can not.
        for (room, enough) in [(window, true), (window - 1, false)] {
            let mut client = ZstdDecoder::new().unwrap();
            client.set_parameter(DParameter::WindowLogMax(room)).unwrap();
            let read = client.run_on_buffers(&encoded, &mut vec![0; 1 << 20]);
            assert_eq!(read.is_ok(), enough, "{room}");
        }
    }
}

#[test]
fn memory_is_bounded() {
    let rng = &mut StdRng::seed_from_u64(4);
    let body = [sample::completion(rng, 500_000), sample::noise(rng, 500_000)].concat();
    for (flow, most) in [(BODY, 5 << 18), (Flow::Events, 640 << 10)] {
        let mut out = Vec::with_capacity(2 * body.len());
        for coding in [Coding::Br, Coding::Gzip] {
            let counted = allocation_counter::measure(|| {
                let mut encoder = Encoder::new(coding, flow).unwrap();
                for piece in body.chunks(16_384) {
                    encoder.feed(piece, &mut out, flow == Flow::Events).unwrap();
                }
                encoder.finish(&mut out).unwrap();
            });
            assert!(counted.bytes_max < most, "{coding:?}, {flow:?}: {}", counted.bytes_max);
        }
        let mut frame = zstd::Frame::new(flow).unwrap();
        frame.feed(&body, &mut out, true).unwrap();
        let used = frame.memory();
        assert!(used < most as usize, "{flow:?}: {used}");
    }
}

#[test]
fn a_context_that_was_used_before_is_as_good_as_new() {
    let body = sample::completion(&mut StdRng::seed_from_u64(5), 50_000);
    let fresh = || encode(Coding::Zstd, BODY, &[&body], false);
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(fresh);
        let second = scope.spawn(|| {
            // One is left in the middle of a frame, with other settings.
            let mut broken_off =
                Encoder::new(Coding::Zstd, Flow::Body { length: Some(2000) }).unwrap();
            broken_off.feed(&body[7..], &mut Vec::new(), false).unwrap();
            drop(broken_off);
            fresh()
        });
        (first.join().unwrap(), second.join().unwrap())
    });
    assert!(first == second);
    assert!(decode(Coding::Zstd, &first) == body);
}

#[test]
fn an_encoder_may_change_threads() {
    fn check<T: Send>() {}
    check::<Encoder>();
}
