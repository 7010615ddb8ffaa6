//! What the programs in the kernel say, in our log.
//!
//! They say it at the debug level, of what is rare. Where the log does not have that level the verifier is told so when it loads
//! them, and takes out what can never be said: it costs nothing.

use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Error, LEVEL, Level};
use log::{Log, Metadata, Record};

/// No level at all.
const SILENT: u8 = 0;
const DEBUG: u8 = Level::Debug as u8;

/// The room for what was said and not heard yet, in bytes, when nothing is: the least that the kernel has.
const NO_ROOM: u32 = 4096;

/// Whether the programs have a voice.
#[derive(Clone, Copy)]
pub(super) struct Wanted(bool);

impl Wanted {
    /// By the level of our log, as it is now.
    pub(super) fn now() -> Self {
        Wanted(tracing::enabled!(tracing::Level::DEBUG))
    }

    /// Tells programs that are about to be loaded.
    pub(super) fn tell(self, loader: &mut EbpfLoader<'_>) {
        if self.0 {
            loader.override_global(LEVEL, &DEBUG, true);
        } else {
            loader.override_global(LEVEL, &SILENT, true).map_max_entries("AYA_LOGS", NO_ROOM);
        }
    }

    /// What they will say.
    ///
    /// # Errors
    /// They are of an object without a voice.
    pub(super) fn hear(self, loaded: &mut Ebpf) -> Result<Option<Voice>, Error> {
        self.0.then(|| EbpfLogger::init_with_logger(loaded, Ours).map(Voice)).transpose()
    }
}

/// What programs say.
pub(super) struct Voice(EbpfLogger<Ours>);

impl Voice {
    /// Writes down what was said since.
    pub(super) fn write(&mut self) {
        self.0.flush();
    }
}

/// Our log.
struct Ours;

impl Log for Ours {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(probe = record.target(), "in the kernel: {}", record.args());
    }

    fn flush(&self) {}
}
