//! Whether programs can be hung into user space here (uprobes), and hanging them there.

use std::{fmt, fs, num::NonZeroU32, path::Path};

use aya::programs::{
    UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};

use super::obstacle::{Obstacle, Rights};

/// A program that hangs in a process, as long as this is there.
pub(in crate::probes) type UserLink = UProbeLink;

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

/// Passes when programs can be hung at the beginnings and returns of functions.
///
/// # Errors
/// What stands in the way.
pub(in crate::probes) fn may_probe_user(release: Release) -> Result<(), Obstacle> {
    judge(std::env::consts::ARCH, release, &Rights::own())
}

fn judge(architecture: &'static str, release: Release, rights: &Rights) -> Result<(), Obstacle> {
    let missing = rights.missing_for_user();
    match () {
        () if architecture != "x86_64" => Err(Obstacle::Architecture(architecture)),
        () if release < Release::COOKIES => Err(Obstacle::NoCookies(release)),
        () if (Release::UNKNOWN_CALL..Release::KNOWN_CALL).contains(&release) => {
            Err(Obstacle::ReturnProbes(release))
        }
        () if !missing.is_empty() => Err(Obstacle::UserCapabilities(missing)),
        () => Ok(()),
    }
}

/// Where in which process.
pub(in crate::probes) struct UserPoint<'a> {
    /// The file that it has mapped.
    pub(in crate::probes) path: &'a Path,
    /// Bytes from its beginning.
    pub(in crate::probes) offset: u64,
    /// The process. Its threads are included, its children are not.
    pub(in crate::probes) pid: u32,
    /// What the program is told.
    pub(in crate::probes) cookie: u64,
}

impl UserPoint<'_> {
    pub(super) fn attach(
        &self,
        program: &mut UProbe,
    ) -> Result<UserLink, aya::programs::ProgramError> {
        let location = UProbeAttachLocation::AbsoluteOffset(self.offset);
        let point = UProbeAttachPoint { location, cookie: Some(self.cookie) };
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
        for fine in [(5, 15), (6, 1), (6, 10), (6, 14), (6, 18), (7, 0)] {
            assert_eq!(judged(fine.0, fine.1), Ok(()), "{fine:?}");
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
        let judged = |bits: u64| {
            let status = format!("CapEff:\t{bits:016x}\n");
            judge("x86_64", release(6, 18), &Rights::read(&status, None))
        };
        let both = vec!["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"];
        assert_eq!(judged(0), Err(Obstacle::UserCapabilities(both)));
        let one = |name| Err(Obstacle::UserCapabilities(vec![name]));
        assert_eq!(judged(1 << 21), one("CAP_SYS_PTRACE"));
        assert_eq!(judged(1 << 19), one("CAP_SYS_ADMIN"));
        assert_eq!(judged(1 << 21 | 1 << 19), Ok(()));
    }
}
