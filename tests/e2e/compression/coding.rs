//! The codings as others implement them: what the proxy is held against.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Compression;

/// What the proxy offers, best first.
pub(crate) const ALL: [&str; 3] = ["zstd", "br", "gzip"];

/// What it reads: names of codings as requests write them. `deflate` alone is with the zlib frame.
pub(crate) const READ: [&str; 6] =
    ["zstd", "br", "gzip", "x-gzip", "deflate", "deflate without a frame"];

/// The name on the wire.
pub(crate) fn name(coding: &str) -> &str {
    coding.split(' ').next().expect("a name")
}

/// Encodes a whole body.
pub(crate) fn encode(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let copied = match coding {
        "zstd" => return zstd::encode_all(body, 1).expect("memory is there"),
        "br" => brotli::CompressorReader::new(body, 4096, 4, 22).read_to_end(&mut out),
        "gzip" | "x-gzip" => {
            flate2::read::GzEncoder::new(body, Compression::fast()).read_to_end(&mut out)
        }
        "deflate" => {
            flate2::read::ZlibEncoder::new(body, Compression::fast()).read_to_end(&mut out)
        }
        _ => flate2::read::DeflateEncoder::new(body, Compression::fast()).read_to_end(&mut out),
    };
    copied.expect("reading from memory");
    out
}

/// Decodes a whole body.
///
/// # Errors
/// When it is not whole, or goes on after its end.
pub(crate) fn decode(coding: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match coding {
        "zstd" => return zstd::decode_all(body),
        "br" => _ = brotli::Decompressor::new(body, 4096).read_to_end(&mut out)?,
        _ => {
            let mut gzip = flate2::bufread::GzDecoder::new(body);
            gzip.read_to_end(&mut out)?;
            if !gzip.into_inner().is_empty() {
                return Err(io::Error::other("it goes on after its end"));
            }
        }
    }
    Ok(out)
}

/// Decodes a body as it comes.
pub(crate) struct Incremental {
    decoder: Box<dyn Write>,
    out: Sink,
}

impl Incremental {
    pub(crate) fn new(coding: &str) -> Self {
        let out = Sink::default();
        let decoder: Box<dyn Write> = match coding {
            "zstd" => Box::new(zstd::stream::write::Decoder::new(out.clone()).expect("memory")),
            "br" => Box::new(brotli::DecompressorWriter::new(out.clone(), 4096)),
            _ => Box::new(flate2::write::GzDecoder::new(out.clone())),
        };
        Self { decoder, out }
    }

    /// Takes what has come.
    pub(crate) fn feed(&mut self, part: &[u8]) {
        self.decoder.write_all(part).expect("what comes can be decoded");
        self.decoder.flush().expect("what comes can be decoded");
    }

    /// All that can be decoded so far.
    pub(crate) fn text(&self) -> String {
        let out = self.out.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&out).into_owned()
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_cut_is_not_taken_for_whole() {
    let body = b"how deep is the lagoon? ".repeat(100);
    for coding in ALL {
        let packed = encode(coding, &body);
        assert_eq!(decode(coding, &packed).expect("a whole body"), body, "{coding}");
        assert!(decode(coding, &packed[..packed.len() - 5]).is_err(), "{coding}");
    }
}
