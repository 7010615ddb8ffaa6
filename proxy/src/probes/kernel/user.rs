//! Whether and how programs can be hung into user space here (uprobes), and hanging them there.

use std::{fmt, fs, num::NonZeroU32, os::fd::OwnedFd, path::Path};

use aya::{
    Ebpf, Pod,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use super::{
    hook::first,
    load::Programs,
    multi::Multi,
    obstacle::{Obstacle, Rights},
};

/// The version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Release {
    /// The first kernel that tells a program where it hangs.
    const COOKIES: Self = Release { major: 5, minor: 15 };

    /// From here on a link at many places keeps to one process. Such links are older (6.6), but those that were for one process
    /// were for the one thread in it that has its number.
    const LINKS: Self = Release { major: 6, minor: 10 };

    /// From here on a function that returns does a system call where it has a probe, which filters of system calls do not
    /// know; what they do not know ends the process.
    const UNKNOWN_CALL: Self = Release { major: 6, minor: 11 };

    /// From here on they let it through.
    const KNOWN_CALL: Self = Release { major: 6, minor: 14 };

    /// The one that runs.
    ///
    /// # Errors
    /// It cannot be read.
    pub(in crate::probes) fn running() -> Result<Self, Obstacle> {
        let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let why = || "/proc/sys/kernel/osrelease cannot be read".to_owned();
        Self::parse(&text).ok_or_else(|| Obstacle::Refused { why: why() })
    }

    /// Passes when the running kernel is this one or a later one.
    ///
    /// # Errors
    /// It is older, or not known.
    pub(in crate::probes) fn required(self) -> Result<(), Obstacle> {
        self.satisfied_by(Self::running()?)
    }

    fn satisfied_by(self, running: Self) -> Result<(), Obstacle> {
        if running < self { Err(Obstacle::Older { running, first: self }) } else { Ok(()) }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Release { major: next()?, minor: next()? })
    }
}

/// A way of hanging programs at the beginnings and returns of functions in user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::probes) enum UserWay {
    /// One link for all places in a file of a process.
    Links,
    /// A perf event for each place.
    Events,
}

impl fmt::Display for UserWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UserWay::Links => "by one link of each program for all functions (uprobe_multi)",
            UserWay::Events => "by a perf event for each function",
        })
    }
}

/// The ways of hanging programs into user space here, the one that is rather taken first.
///
/// # Errors
/// There are none; what stands in the way.
pub(in crate::probes) fn user_ways(release: Release) -> Result<Vec<UserWay>, Obstacle> {
    judge(std::env::consts::ARCH, release, &Rights::own())
}

fn judge(
    architecture: &'static str,
    release: Release,
    rights: &Rights,
) -> Result<Vec<UserWay>, Obstacle> {
    match () {
        () if architecture != "x86_64" => return Err(Obstacle::Architecture(architecture)),
        () if release < Release::COOKIES => return Err(Obstacle::NoCookies(release)),
        () if (Release::UNKNOWN_CALL..Release::KNOWN_CALL).contains(&release) => {
            return Err(Obstacle::ReturnProbes(release));
        }
        () => {}
    }
    let mut ways = vec![UserWay::Events];
    if release >= Release::LINKS {
        ways.insert(0, UserWay::Links);
    }
    // What the best way lacks is the least that has to be added.
    let missing = rights.missing_for_user(ways[0]);
    ways.retain(|way| rights.missing_for_user(*way).is_empty());
    if ways.is_empty() { Err(Obstacle::UserCapabilities(missing)) } else { Ok(ways) }
}

/// A file that a process has mapped.
#[derive(Clone, Copy)]
pub(in crate::probes) struct MappedFile<'a> {
    /// The process. Its threads are included, its children are not.
    pub(in crate::probes) pid: u32,
    /// The file.
    pub(in crate::probes) path: &'a Path,
}

/// Where in the file.
#[derive(Clone, Copy, Debug)]
pub(in crate::probes) struct Place {
    /// Bytes from its beginning.
    pub(in crate::probes) offset: u64,
    /// What the program is told.
    pub(in crate::probes) cookie: u64,
}

/// A program that hangs in a process, as long as this is there.
pub(in crate::probes) enum UserLink {
    /// At many places.
    Many { _link: OwnedFd },
    /// At one.
    One { _link: UProbeLink },
}

/// What came of hanging a program somewhere.
pub(in crate::probes) struct Hung {
    /// What holds it there.
    pub(in crate::probes) links: Vec<UserLink>,
    /// Where the kernel does not take it for what is there: bytes from the beginning of the file, and what it says.
    pub(in crate::probes) left_out: Vec<(u64, String)>,
}

/// The programs of a family that hang in user space.
pub(in crate::probes) struct UserPrograms {
    /// In the second way all of it, in the first the maps.
    programs: Programs,
    multi: Option<Multi>,
}

impl UserPrograms {
    /// Loads these programs of an object, in the first of these ways that this kernel permits.
    ///
    /// # Errors
    /// What stands in the way; nothing is left in the kernel then.
    pub(in crate::probes) fn load<const N: usize>(
        object: &[u8],
        facts: &[u32; N],
        names: &[&str],
        ways: &[UserWay],
    ) -> Result<Self, Obstacle>
    where
        [u32; N]: Pod,
    {
        first(ways, |way| match way {
            UserWay::Links => {
                let load = |maps: &Ebpf| Multi::load(object, maps, names);
                let (programs, multi) = Programs::with(object, facts, load)?;
                Ok(UserPrograms { programs, multi: Some(multi) })
            }
            UserWay::Events => {
                let mut programs = Programs::new(object, facts)?;
                names.iter().try_for_each(|name| programs.load_user(name))?;
                Ok(UserPrograms { programs, multi: None })
            }
        })
    }

    /// The way that was taken.
    pub(in crate::probes) fn way(&self) -> UserWay {
        if self.multi.is_some() { UserWay::Links } else { UserWay::Events }
    }

    /// What has the maps, and writes down what the programs say.
    pub(in crate::probes) fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// Hangs a program at places.
    ///
    /// # Errors
    /// What stands in the way; it hangs nowhere then.
    pub(in crate::probes) fn hang(
        &mut self,
        name: &str,
        file: MappedFile<'_>,
        places: &[Place],
    ) -> Result<Hung, Obstacle> {
        let Some(multi) = &self.multi else {
            let one = |place: &Place| {
                let link = self.programs.attach_user(name, file, *place)?;
                Ok(UserLink::One { _link: link })
            };
            let links = places.iter().map(one).collect::<Result<_, _>>()?;
            return Ok(Hung { links, left_out: Vec::new() });
        };
        let hung = multi.hang(name, file, places)?;
        let links = hung.links.into_iter().map(|link| UserLink::Many { _link: link }).collect();
        let left_out = hung.left_out.into_iter();
        let left_out = left_out.map(|(place, why)| (place.offset, why.to_string())).collect();
        Ok(Hung { links, left_out })
    }
}

impl MappedFile<'_> {
    pub(super) fn attach(
        self,
        program: &mut UProbe,
        place: Place,
    ) -> Result<UProbeLink, ProgramError> {
        let location = UProbeAttachLocation::AbsoluteOffset(place.offset);
        let point = UProbeAttachPoint { location, cookie: Some(place.cookie) };
        // Nobody has the number 0. Never all processes: the file may be that of other pods, too.
        let pid = NonZeroU32::new(self.pid).unwrap_or(NonZeroU32::MAX);
        let id = program.attach(point, self.path, UProbeScope::OneProcess(pid))?;
        program.take_link(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(major: u32, minor: u32) -> Release {
        Release { major, minor }
    }

    #[test]
    fn a_release_is_its_first_two_numbers() {
        assert_eq!(Release::parse("6.18.44-fc-v595\n"), Some(release(6, 18)));
        assert_eq!(Release::parse("5.15-rc1"), Some(release(5, 15)));
        assert_eq!([Release::parse(""), Release::parse("6"), Release::parse("x.y")], [None; 3]);
        assert!(Release::running().is_ok());
    }

    #[test]
    fn a_kernel_that_is_too_old_is_told_which_one_would_do() {
        assert_eq!(release(5, 11).satisfied_by(release(5, 11)), Ok(()));
        assert_eq!(release(5, 11).satisfied_by(release(6, 1)), Ok(()));
        let old = release(5, 11).satisfied_by(release(5, 10)).expect_err("older");
        assert_eq!(old.to_string(), "Linux 5.10 is older than 5.11");
    }

    #[test]
    fn what_would_end_the_application_is_not_done() {
        let rights = Rights::read("CapEff:\tffffffffffffffff\n", None);
        let judged = |major, minor| judge("x86_64", release(major, minor), &rights);
        for fine in [(6, 10), (6, 14), (6, 18), (7, 0)] {
            let both = vec![UserWay::Links, UserWay::Events];
            assert_eq!(judged(fine.0, fine.1), Ok(both), "{fine:?}");
        }
        for old in [(5, 15), (6, 1), (6, 6), (6, 9)] {
            assert_eq!(judged(old.0, old.1), Ok(vec![UserWay::Events]), "{old:?}");
        }
        for minor in 11..=13 {
            assert_eq!(judged(6, minor), Err(Obstacle::ReturnProbes(release(6, minor))));
        }
        assert_eq!(judged(5, 14), Err(Obstacle::NoCookies(release(5, 14))));
        let other = judge("aarch64", release(6, 18), &rights);
        assert_eq!(other, Err(Obstacle::Architecture("aarch64")));
    }

    #[test]
    fn the_capabilities_that_are_missing_are_named() {
        let judged = |minor, bits: u64| {
            let status = format!("CapEff:\t{bits:016x}\n");
            judge("x86_64", release(6, minor), &Rights::read(&status, None))
        };
        let lacks = |names: &[&'static str]| Err(Obstacle::UserCapabilities(names.to_vec()));
        let [ptrace, admin, perfmon, bpf] = [19, 21, 38, 39].map(|number| 1 << number);
        let old = 9;
        assert_eq!(judged(old, 0), lacks(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]));
        assert_eq!(judged(old, admin), lacks(&["CAP_SYS_PTRACE"]));
        assert_eq!(judged(old, ptrace | perfmon | bpf), lacks(&["CAP_SYS_ADMIN"]));
        assert_eq!(judged(old, admin | ptrace), Ok(vec![UserWay::Events]));
        assert_eq!(judged(18, 0), lacks(&["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]));
        assert_eq!(judged(18, bpf), lacks(&["CAP_PERFMON", "CAP_SYS_PTRACE"]));
        assert_eq!(judged(18, bpf | ptrace), lacks(&["CAP_PERFMON"]));
        assert_eq!(judged(18, bpf | perfmon), lacks(&["CAP_SYS_PTRACE"]));
        assert_eq!(judged(18, admin), lacks(&["CAP_SYS_PTRACE"]));
        assert_eq!(judged(18, bpf | perfmon | ptrace), Ok(vec![UserWay::Links]));
        assert_eq!(judged(18, admin | ptrace), Ok(vec![UserWay::Links, UserWay::Events]));
    }
}
