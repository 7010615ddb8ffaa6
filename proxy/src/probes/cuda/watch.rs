//! Finds the processes that use a GPU's library, and attaches the probes to each.
//!
//! Why one by one: the file of a driver's library is often one for all containers of a node, so that probes for all
//! processes would put breakpoints into those of other pods. Each process is attached to by itself, when it is in the
//! network namespace of the proxy; its children are processes of their own and found as such.
//!
//! Decides how often a process is looked at: a new one every second, an old one ever more seldom ([`pause`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::Builder,
    time::{Duration, Instant},
};

use outrigger_probes::{Cookie, Detail, FUNCTIONS};

use super::{
    super::kernel::{MappedFile, Obstacle, Place, UserLink, UserPrograms, UserWay},
    library::{Library, Rules, Site},
    process::{self, FileId, Mapped},
};
use crate::telemetry::metrics::GpuMetrics;

/// A new process is looked at this often. So is the list of processes.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// The oldest is looked at this often.
const LONGEST: Duration = Duration::from_secs(30);

/// Libraries whose functions are remembered.
const LIBRARIES_MOST: usize = 16;

/// When to look again at a process that has been known so long: an eighth of that, so that a library is found after at most
/// an eighth more than the time that the process took to load it.
fn pause(known: Duration) -> Duration {
    (known / 8).clamp(SHORTEST, LONGEST)
}

/// The processes, and the probes in them.
pub(super) struct Watcher {
    programs: UserPrograms,
    rules: Rules,
    namespace: u32,
    metrics: Arc<GpuMetrics>,
    /// While it is false nothing is attached.
    on: Arc<AtomicBool>,
    known: HashMap<u32, Known>,
    libraries: HashMap<FileId, Arc<Library>>,
    /// How many processes were numbered so far.
    numbered: u32,
}

/// A process.
struct Known {
    /// When it began; tells it from another of the same number.
    started: u64,
    since: Instant,
    due: Instant,
    /// What its probes call it.
    number: u32,
    watched: Vec<Watched>,
}

/// A library in a process.
struct Watched {
    file: FileId,
    path: PathBuf,
    probes: Probes,
}

/// What was put into a library of a process; nothing when it could not be.
#[derive(Default)]
struct Probes {
    /// Dropping them takes it out.
    links: Vec<UserLink>,
    /// Probes.
    count: usize,
    /// Where they are.
    sites: Vec<Site>,
    /// Where the kernel takes none, and what it says.
    left_out: BTreeMap<Site, String>,
}

/// A process that is watched, for people.
#[derive(Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The library, as the process sees it.
    pub library: PathBuf,
    /// Probes in it.
    pub probes: usize,
}

impl Watcher {
    pub(super) fn new(
        programs: UserPrograms,
        rules: Rules,
        namespace: u32,
        metrics: Arc<GpuMetrics>,
        on: Arc<AtomicBool>,
    ) -> Self {
        let (known, libraries) = (HashMap::new(), HashMap::new());
        Watcher { programs, rules, namespace, metrics, on, known, libraries, numbered: 0 }
    }

    /// Looks at the processes that it is time for.
    pub(super) fn round(&mut self, now: Instant) {
        let all = process::all();
        let there: HashSet<u32> = all.iter().copied().collect();
        let gone: Vec<u32> =
            self.known.keys().copied().filter(|pid| !there.contains(pid)).collect();
        for pid in gone {
            self.forget(pid);
        }
        for pid in all {
            if self.on.load(SeqCst) {
                self.look(pid, now);
            }
        }
        let watched = self.known.values().filter(|known| known.is_watched()).count();
        self.metrics.processes.set(i64::try_from(watched).unwrap_or(i64::MAX));
        self.programs.programs().write_down();
    }

    fn look(&mut self, pid: u32, now: Instant) {
        let known = self.known.get(&pid);
        if known.is_some_and(|known| now < known.due && !known.is_watched()) {
            return;
        }
        let Some(started) = process::started(pid) else {
            self.forget(pid);
            return;
        };
        if known.is_none_or(|known| known.started != started) {
            self.forget(pid);
            self.numbered = self.numbered.wrapping_add(1);
            self.known.insert(pid, Known::new(started, now, self.numbered));
        }
        let Some(known) = self.known.get_mut(&pid).filter(|known| known.due <= now) else { return };
        known.due = now + pause(now.saturating_duration_since(known.since));
        if process::namespace(pid) != Some(self.namespace) {
            return;
        }
        for mapped in process::libraries(pid) {
            self.watch(pid, &mapped);
        }
    }

    /// Lets go of a process that has ended. Taking probes out is slow (100 ms each were measured under load, one after the
    /// other, where each is a perf event), and as there is nothing left to take these out of, nobody waits for it.
    fn forget(&mut self, pid: u32) {
        let Some(known) = self.known.remove(&pid).filter(Known::is_watched) else { return };
        // Where no thread is to be had, they are dropped here.
        let _ = Builder::new().name("gpu-probe-gone".to_owned()).spawn(move || drop(known));
    }

    fn watch(&mut self, pid: u32, mapped: &Mapped) {
        let Some(known) = self.known.get(&pid) else { return };
        if known.watched.iter().any(|watched| watched.file == mapped.file) {
            return;
        }
        let (number, path) = (known.number, mapped.path.clone());
        let probes = self.attach(pid, number, mapped);
        if let Some(known) = self.known.get_mut(&pid) {
            known.watched.push(Watched { file: mapped.file, path, probes });
        }
    }

    /// Attaches everything that the kernel takes, or nothing: half of the functions would be taken for all.
    fn attach(&mut self, pid: u32, number: u32, mapped: &Mapped) -> Probes {
        let library = mapped.path.display();
        let Some(path) = mapped.path_for_us(pid) else {
            tracing::warn!(pid, %library, "not watched: the library cannot be reached; {UNREACHED}");
            return Probes::default();
        };
        let Some(found) = self.library(&path, mapped) else { return Probes::default() };
        let began = Instant::now();
        let file = MappedFile { pid, path: &path };
        let mut probes = Probes::default();
        for sites in found.sites.chunks(at_once(self.programs.way())) {
            match self.put_in(file, number, sites, &mut probes) {
                Err(why) if process::started(pid).is_some() => {
                    tracing::warn!(pid, %library, "not watched: {why}; {}", why.remedy());
                    return Probes::default();
                }
                Ok(()) if self.on.load(SeqCst) => {}
                _ => return Probes::default(),
            }
        }
        self.tell(pid, mapped, &probes, began.elapsed());
        probes
    }

    /// Hangs the programs at some of the functions.
    fn put_in(
        &mut self,
        file: MappedFile<'_>,
        number: u32,
        sites: &[Site],
        probes: &mut Probes,
    ) -> Result<(), Obstacle> {
        let is_counted = |site: &Site| FUNCTIONS[site.function].detail == Detail::Counted;
        let (counted, timed): (Vec<Site>, Vec<Site>) = sites.iter().partition(|it| is_counted(it));
        // First the return: a call whose beginning alone was seen would be taken to hang.
        for (name, sites) in [("returned", &timed), ("entered", &timed), ("counted", &counted)] {
            let sites = sites.iter().filter(|site| !probes.left_out.contains_key(site));
            let sites: Vec<Site> = sites.copied().collect();
            let places = sites.iter().filter_map(|site| {
                let cookie = Cookie::new(site.function, number)?.0;
                Some(Place { offset: site.offset, cookie })
            });
            let places: Vec<Place> = places.collect();
            let hung = self.programs.hang(name, file, &places)?;
            probes.count += places.len() - hung.left_out.len();
            probes.links.extend(hung.links);
            for (offset, why) in hung.left_out {
                let site = sites.iter().find(|site| site.offset == offset);
                probes.left_out.extend(site.map(|site| (*site, why)));
            }
        }
        probes.sites.extend(sites.iter().filter(|site| !probes.left_out.contains_key(site)));
        Ok(())
    }

    /// Says what was attached, and what the kernel did not take.
    fn tell(&self, pid: u32, mapped: &Mapped, probes: &Probes, took: Duration) {
        let (library, count, took_ms) = (mapped.path.display(), probes.count, took.as_millis());
        for (site, why) in &probes.left_out {
            let function = FUNCTIONS[site.function].name;
            tracing::warn!(pid, %library, function, "not timed: the kernel takes no probe there: {why}");
        }
        self.metrics.refused(probes.left_out.keys().map(|site| site.function));
        self.metrics.attached(probes.sites.iter().map(|site| site.function));
        if !probes.links.is_empty() {
            tracing::info!(pid, %library, probes = count, took_ms, "calls of the GPU's library are timed");
        }
    }

    /// What a library has; `None` when it cannot be read.
    fn library(&mut self, path: &std::path::Path, mapped: &Mapped) -> Option<Arc<Library>> {
        if let Some(known) = self.libraries.get(&mapped.file) {
            return Some(Arc::clone(known));
        }
        let library = Arc::new(Library::read(File::open(path).ok()?, mapped.api, self.rules));
        for function in &library.refused {
            let function = FUNCTIONS[*function].name;
            tracing::warn!(
                function,
                library = %mapped.path.display(),
                "not timed: each call would be slower by {SINGLE_STEP}; to have it: probes: {{ cuda: {{ single_step: \
                 true }} }}"
            );
        }
        self.metrics.refused(library.refused.iter().copied());
        if self.libraries.len() >= LIBRARIES_MOST {
            self.libraries.clear();
        }
        self.libraries.insert(mapped.file, Arc::clone(&library));
        Some(library)
    }

    /// Takes the probes out of all processes, and returns when they are out. They are found anew when it is on again.
    pub(super) fn detach(&mut self) {
        self.known.clear();
        self.metrics.processes.set(0);
    }

    /// Whether there are probes in a process that its probes call so.
    pub(super) fn has_number(&self, number: u64) -> bool {
        self.known.values().any(|known| known.is_watched() && u64::from(known.number) == number)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.known.values().any(Known::is_watched)
    }

    /// What is watched.
    pub(super) fn processes(&self) -> Vec<Process> {
        let watched = self.known.iter().flat_map(|(pid, known)| {
            known.watched.iter().map(|watched| Process {
                pid: *pid,
                library: watched.path.clone(),
                probes: watched.probes.count,
            })
        });
        let mut processes: Vec<Process> = watched.collect();
        processes.sort_by_key(|process| process.pid);
        processes
    }
}

/// What a call costs more whose function has to be single-stepped; measured, see `ebpf/README.md`.
const SINGLE_STEP: &str = "5 to 26 us (measured in a virtual machine), for the kernel has to single-step its first \
                           instruction";

/// What to do about a library whose file is another than the one that its path leads to: it was replaced, or lies on layers.
const UNREACHED: &str = "needs CAP_SYS_PTRACE, and where its file was replaced, or lies on a layered file system, \
                         CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN as well";

/// How many functions programs are hung at in one go. Whether it was switched off meanwhile is looked at in between.
fn at_once(way: UserWay) -> usize {
    match way {
        UserWay::Links => usize::MAX,
        UserWay::Events => 1,
    }
}

impl Known {
    fn new(started: u64, now: Instant, number: u32) -> Self {
        Known { started, since: now, due: now, number, watched: Vec::new() }
    }

    fn is_watched(&self) -> bool {
        self.watched.iter().any(|watched| !watched.probes.links.is_empty())
    }
}

/// The libraries that processes of this namespace have mapped, and in how many of them, for people.
pub(super) fn found(namespace: u32, rules: Rules) -> Vec<String> {
    let mut found: HashMap<FileId, (Mapped, u32, usize)> = HashMap::new();
    let all = process::all().into_iter();
    for pid in all.filter(|pid| process::namespace(*pid) == Some(namespace)) {
        for mapped in process::libraries(pid) {
            found.entry(mapped.file).or_insert((mapped, pid, 0)).2 += 1;
        }
    }
    let mut told: Vec<String> =
        found.into_values().map(|(mapped, pid, count)| told(&mapped, pid, count, rules)).collect();
    told.sort();
    told
}

fn told(mapped: &Mapped, pid: u32, count: usize, rules: Rules) -> String {
    let library = mapped.path_for_us(pid).and_then(|path| File::open(path).ok());
    let library = library.map(|file| Library::read(file, mapped.api, rules)).unwrap_or_default();
    let refused: Vec<&str> = library.refused.iter().map(|at| FUNCTIONS[*at].name).collect();
    let (path, places) = (mapped.path.display(), library.sites.len());
    let mut text = format!("{path} in {count} processes, {places} functions to time");
    if !refused.is_empty() {
        text += &format!(", refused: {} (slower by {SINGLE_STEP})", refused.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_is_looked_at_often_and_an_old_one_seldom() {
        let seconds = |of| pause(Duration::from_secs(of)).as_secs();
        assert_eq!([0, 5, 8, 40, 240, 3600].map(seconds), [1, 1, 1, 5, 30, 30]);
        let (mut at, mut looks) = (Duration::ZERO, 0);
        while at < Duration::from_secs(3600) {
            at += pause(at);
            looks += 1;
        }
        assert!(looks < 160, "{looks} looks in an hour");
    }
}
