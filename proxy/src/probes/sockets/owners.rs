//! Which processes hold a socket, and what their threads did: what `/proc` shows.
//!
//! Other users' processes show their files to CAP_SYS_PTRACE with CAP_DAC_READ_SEARCH only, and those of other containers
//! of a pod are there with `shareProcessNamespace` only. What cannot be seen is left out.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::schedule::{Ran, inode};

/// Between two looks at all processes.
const LOOK: Duration = Duration::from_secs(10);

fn sockets(process: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| inode(link.to_str()?))
}

/// Who holds which socket, as of the last look.
#[derive(Default)]
pub(super) struct Owners {
    looked: Option<Instant>,
    sought: HashSet<u32>,
    of: HashMap<u32, Vec<u32>>,
}

impl Owners {
    /// Looks who holds these sockets: every ten seconds, and when there is a listener that nobody looked for before.
    pub(super) fn look(&mut self, now: Instant, listeners: &HashSet<u32>, all: &HashSet<u32>) {
        let rested = self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK);
        let is_new = !listeners.is_subset(&self.sought);
        if !all.is_empty() && (rested || is_new) {
            self.looked = Some(now);
            self.sought.clone_from(all);
            self.of = holders(all);
        }
    }

    /// The processes that hold one of these.
    pub(super) fn of(&self, inodes: &[u32]) -> HashSet<u32> {
        inodes.iter().filter_map(|inode| self.of.get(inode)).flatten().copied().collect()
    }
}

fn holders(sought: &HashSet<u32>) -> HashMap<u32, Vec<u32>> {
    let mut found: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in numbered(Path::new("/proc")).filter(|process| *process != std::process::id()) {
        for inode in held(process, sought) {
            found.entry(inode).or_default().push(process);
        }
    }
    found
}

/// Those of these sockets that a process holds. A listener is among its first files, connections are many: a file costs
/// 10 µs to look at, so it ends when nothing more can be found.
fn held(process: u32, sought: &HashSet<u32>) -> HashSet<u32> {
    let mut held = HashSet::new();
    for inode in sockets(Path::new(&format!("/proc/{process}"))) {
        if sought.contains(&inode) {
            held.insert(inode);
        }
        if held.len() == sought.len() {
            break;
        }
    }
    held
}

/// What the threads of a process did so far.
pub(super) fn threads(process: u32) -> HashMap<u32, Ran> {
    let folder = format!("/proc/{process}/task");
    let of = |thread: u32| {
        let text = fs::read_to_string(format!("{folder}/{thread}/schedstat")).ok()?;
        Some((thread, Ran::parse(&text)?))
    };
    numbered(Path::new(&folder)).filter_map(of).collect()
}

fn numbered(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
