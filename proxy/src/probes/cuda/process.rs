//! Which processes are there, and which libraries they have mapped, as `/proc` tells it.
//!
//! Everything is of the moment: a process may be gone between two looks, which is no error but an answer.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use outrigger_probes::Api;

/// A file, whatever it is called: the numbers of its device and the number that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    major: u64,
    minor: u64,
    inode: u64,
}

/// A library that a process executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) api: Api,
    pub(super) file: FileId,
    /// Its path, as the process sees it.
    pub(super) path: PathBuf,
    /// The addresses, as the kernel names them.
    range: String,
}

/// The numbers of all processes.
pub(super) fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// When a process began, in the kernel's ticks; a number belongs to one process after another. `None` when there is none,
/// or nothing of it but its number.
pub(super) fn started(pid: u32) -> Option<u64> {
    read_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn read_stat(stat: &[u8]) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[after + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of all; the state is field 3.
    fields.nth(18)?.parse().ok().filter(|_| state != "Z" && state != "X")
}

/// The number of the network namespace that a process is in.
pub(super) fn namespace(pid: u32) -> Option<u32> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The libraries that a process has mapped, each once.
pub(super) fn libraries(pid: u32) -> Vec<Mapped> {
    read_maps(&fs::read(format!("/proc/{pid}/maps")).unwrap_or_default())
}

fn read_maps(maps: &[u8]) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    for mapped in maps.split(|byte| *byte == b'\n').filter_map(read_mapping) {
        if found.iter().all(|other| other.file != mapped.file) {
            found.push(mapped);
        }
    }
    found
}

/// Reads `range permissions offset device inode path`, if it is code of a library that is looked for.
fn read_mapping(line: &[u8]) -> Option<Mapped> {
    let path = &line[line.iter().position(|byte| *byte == b'/')?..];
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let api = Api::of_file(path.file_name()?.as_bytes())?;
    let mut fields = std::str::from_utf8(line.split(|byte| *byte == b'/').next()?)
        .ok()?
        .split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    if !permissions.contains('x') {
        return None;
    }
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let number = |hex| u64::from_str_radix(hex, 16).ok();
    let inode = fields.next()?.parse().ok()?;
    let file = FileId { major: number(major)?, minor: number(minor)?, inode };
    Some(Mapped { api, file, path: path.to_owned(), range: range.to_owned() })
}

impl Mapped {
    /// A path that leads us to the file: through the root of the process, if that leads to what it has mapped, and otherwise
    /// (the file was replaced, or lies on a layered file system) through the mapping itself.
    pub(super) fn path_for_us(&self, pid: u32) -> Option<PathBuf> {
        let inside = self.path.strip_prefix("/").ok()?;
        let through_root = PathBuf::from(format!("/proc/{pid}/root")).join(inside);
        if identify(&through_root) == Some(self.file) {
            return Some(through_root);
        }
        let itself = PathBuf::from(format!("/proc/{pid}/map_files/{}", self.range));
        identify(&itself).is_some().then_some(itself)
    }
}

/// Which file is there, if it is an ordinary one.
fn identify(path: &Path) -> Option<FileId> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let (major, minor) = device_numbers(file.dev());
    Some(FileId { major, minor, inode: file.ino() })
}

/// Both numbers of a device, out of the one that `stat` gives (the layout of the GNU C library).
fn device_numbers(device: u64) -> (u64, u64) {
    let major = device >> 8 & 0xfff | device >> 32 & !0xfff;
    let minor = device & 0xff | device >> 12 & 0xffff_ff00;
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
559d1c400000-559d1c401000 r--p 00000000 fe:00 1311                       /usr/bin/python3.11
7f0000000000-7f0000001000 r--p 00000000 00:2b 77                         /opt/lib dir/libcuda.so.550.54.15
7f0000001000-7f0000002000 r-xp 00001000 00:2b 77                         /opt/lib dir/libcuda.so.550.54.15
7f0000002000-7f0000003000 r-xp 00002000 00:2b 77                         /opt/lib dir/libcuda.so.550.54.15
7f0000004000-7f0000005000 r-xp 00001000 103:1f 9223372036854775807       /opt/rocm/libamdhip64.so.6 (deleted)
7f0000006000-7f0000007000 r-xp 00001000 fe:00 5                          /usr/lib/libcudart.so.12
7f0000008000-7f0000009000 rw-p 00000000 00:00 0                          [stack]
";

    #[test]
    fn code_of_the_libraries_is_found_once_each() {
        let found = read_maps(MAPS.as_bytes());
        let told: Vec<_> = found.iter().map(|it| (it.api, it.path.to_str(), &*it.range)).collect();
        let (cuda, hip) = ("/opt/lib dir/libcuda.so.550.54.15", "/opt/rocm/libamdhip64.so.6");
        assert_eq!(
            told,
            [
                (Api::Cuda, Some(cuda), "7f0000001000-7f0000002000"),
                (Api::Hip, Some(hip), "7f0000004000-7f0000005000")
            ]
        );
        let file = FileId { major: 0x103, minor: 0x1f, inode: 9_223_372_036_854_775_807 };
        assert_eq!(found[1].file, file);
    }

    #[test]
    fn torn_lines_are_nothing() {
        for at in 0..MAPS.len() {
            let found = read_maps(&MAPS.as_bytes()[at..]);
            assert!(found.len() <= 2, "{at}");
        }
        for line in [
            "/libcuda.so",
            "a r-xp / /libcuda.so",
            "a r-xp 0 0:0 x /libcuda.so",
            "a r-xp 0 00 1 /libcuda.so",
        ] {
            assert_eq!(read_mapping(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn the_beginning_of_a_process_is_read_past_its_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        let stat = |state: &str| format!("17 (a) b) c) {state} {rest}");
        assert_eq!(read_stat(stat("S").as_bytes()), Some(4242));
        assert_eq!(read_stat(stat("Z").as_bytes()), None, "only its number is left");
        assert_eq!(read_stat(b"17 (x) S 1 2"), None);
        assert_eq!(read_stat(b""), None);
        assert!(started(std::process::id()).is_some());
    }

    #[test]
    fn a_mapped_file_is_the_one_that_its_path_leads_to() {
        let maps = fs::read_to_string("/proc/self/maps").expect("readable");
        let own = std::env::current_exe().expect("a path");
        let line = maps
            .lines()
            .find(|line| line.contains("r-xp") && line.ends_with(own.to_str().expect("UTF-8")));
        let fields: Vec<&str> = line.expect("we are mapped").split_ascii_whitespace().collect();
        let id = identify(&own).expect("a file");
        assert_eq!(
            format!("{:02x}:{:02x} {}", id.major, id.minor, id.inode),
            format!("{} {}", fields[3], fields[4])
        );
        assert_eq!(identify(Path::new("/proc/self")), None, "no file");
    }

    #[test]
    fn devices_have_large_numbers_too() {
        assert_eq!(device_numbers(0xfe00), (0xfe, 0));
        assert_eq!(
            device_numbers(0x1000_0000_0000 | 0x0123 << 8 | 0x45 | 0x8_9a67 << 20),
            (0x1123, 0x89a_6745)
        );
    }
}
