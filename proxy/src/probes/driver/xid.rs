//! Errors that NVIDIA's driver reports in the kernel's log: "Xid" and a number.
//!
//! Why: a GPU that fell off the bus or a channel that was reset explains calls that hang and requests that fail, and is
//! told nowhere but there. The log is the machine's: the GPU may be another pod's, and the line says which it is.
//!
//! Decides: only what the kernel itself has written counts. Whoever may write to /dev/kmsg can write the same words, but not
//! as the kernel. What was written before the proxy started is left alone.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

const KERNEL_LOG: &str = "/dev/kmsg";

/// O_NONBLOCK, which is the same number on all machines that we run on.
const NONBLOCK: i32 = 0o4000;

/// EPIPE: records were overwritten before they were read; the next reading gives the oldest that is left.
const OVERWRITTEN: i32 = 32;

/// A record has at most so many bytes.
const RECORD: usize = 8192;

/// Records that are read at once.
const RECORDS_MOST: usize = 4096;

/// An error of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Xid {
    /// What happened, as NVIDIA numbers it.
    pub(super) number: u32,
    /// The GPU, by its PCI address.
    pub(super) gpu: String,
    /// What the driver says about it.
    pub(super) text: String,
}

/// Opens the kernel's log at its end.
///
/// # Errors
/// It cannot be read: CAP_SYSLOG or the device is missing.
pub(super) fn open() -> io::Result<File> {
    let mut log = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(KERNEL_LOG)?;
    log.seek(SeekFrom::End(0))?;
    // Some kernels let it be opened, but not read.
    match log.read(&mut [0; RECORD]) {
        Err(error) if !is_harmless(&error) => Err(error),
        _ => Ok(log),
    }
}

/// The errors that were reported since the last reading.
///
/// # Errors
/// It cannot be read any more.
pub(super) fn read(log: &mut impl Read) -> io::Result<Vec<Xid>> {
    let mut found = Vec::new();
    let mut record = [0; RECORD];
    for _ in 0..RECORDS_MOST {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => found.extend(parse(&record[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if is_harmless(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_harmless(error: &io::Error) -> bool {
    let is_fleeting = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
    is_fleeting || error.raw_os_error() == Some(OVERWRITTEN)
}

/// The error that a record of the log tells of: `priority,number,time,…;text`, where the text is
/// `NVRM: Xid (PCI:0000:65:00): 79, pid=…, GPU has fallen off the bus.`
fn parse(record: &[u8]) -> Option<Xid> {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // The lower three bits are the level, the others who wrote it: the kernel is 0.
    if priority >> 3 != 0 {
        return None;
    }
    let text = text.lines().next()?.strip_prefix("NVRM: Xid (")?;
    let (gpu, text) = text.split_once("): ")?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, text) = text.split_at(digits);
    Some(Xid {
        number: number.parse().ok()?,
        gpu: gpu.strip_prefix("PCI:").unwrap_or(gpu).to_owned(),
        text: text.trim_start_matches([',', ' ']).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xid(number: u32, gpu: &str, text: &str) -> Option<Xid> {
        Some(Xid { number, gpu: gpu.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn errors_are_told_with_their_gpu() {
        let record = b"4,981,5140900,-;NVRM: Xid (PCI:0000:65:00): 79, pid=7, GPU has fallen off the bus.\n SUBSYSTEM=pci\n";
        assert_eq!(parse(record), xid(79, "0000:65:00", "pid=7, GPU has fallen off the bus."));
        let old = parse(b"3,1,2,-,caller=T1;NVRM: Xid (0000:65:00): 13\n");
        assert_eq!(old, xid(13, "0000:65:00", ""));
    }

    #[test]
    fn what_somebody_else_has_written_is_not_believed() {
        assert_eq!(parse(b"12,981,5,-;NVRM: Xid (PCI:0000:65:00): 79, forged\n"), None);
    }

    #[test]
    fn whatever_else_is_there_is_no_error() {
        let others: [&[u8]; 7] = [
            b"",
            b";",
            b"6,1,2,-;NVRM: loading",
            b"6,1,2,-;NVRM: Xid (PCI:0000:65:00",
            b"6,1,2,-;NVRM: Xid (PCI:0000:65:00): , x",
            b"6,1,2,-;NVRM: Xid (PCI:0000:65:00): 99999999999, x",
            b"6,1,2,-;\xff\xfe",
        ];
        for other in others {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    /// A log whose readings end as told.
    struct Log(Vec<io::Result<&'static [u8]>>);

    impl Read for Log {
        fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
            let Some(next) = self.0.pop() else { return Err(ErrorKind::WouldBlock.into()) };
            let next = next?;
            place[..next.len()].copy_from_slice(next);
            Ok(next.len())
        }
    }

    #[test]
    fn reading_goes_on_over_gaps_and_ends_with_the_log() {
        let record = |text: &'static str| Ok(text.as_bytes());
        let gap = || Err(io::Error::from_raw_os_error(OVERWRITTEN));
        let mut log = Log(vec![
            record("4,9,1,-;NVRM: Xid (PCI:0000:01:00): 2"),
            gap(),
            record("6,8,1,-;other"),
            record("4,7,1,-;NVRM: Xid (PCI:0000:01:00): 1"),
        ]);
        let numbers = |log: &mut Log| read(log).map(|it| it.iter().map(|xid| xid.number).collect());
        assert_eq!(numbers(&mut log).ok(), Some(vec![1, 2]));
        assert_eq!(numbers(&mut log).ok(), Some(vec![]));
        let mut gone = Log(vec![Err(ErrorKind::PermissionDenied.into())]);
        assert!(read(&mut gone).is_err());
    }
}
