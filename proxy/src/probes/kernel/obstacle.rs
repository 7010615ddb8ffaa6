//! Why a probe cannot be, in the words of somebody who can change it.
//!
//! The kernel says "operation not permitted" for four different reasons; which one it is follows from what the process may
//! do and from the kernel's settings, which are read here and judged in [`explain`].

use std::{fmt, fs, io};

use super::{
    hook::Hook,
    user::{Release, UserWay},
};

/// Bits of capabilities, as the kernel counts them.
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// What stands in the way of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The binary was built without the programs.
    NotBuilt,
    /// The kernel does not describe its types, or not so that we could read it.
    NoBtf(io::ErrorKind),
    /// The kernel has nothing of what programs would have to hang on; of each way in which they could, the first that it
    /// lacks.
    NoHook(Vec<Hook>),
    /// The kernel lacks something that programs call.
    Older {
        /// The one that runs.
        running: Release,
        /// The first that has it.
        first: Release,
    },
    /// The kernel has no such field.
    NoField {
        /// Its name.
        field: String,
    },
    /// Which tracepoints there are cannot be read.
    NoTracefs(io::ErrorKind),
    /// The own network namespace has no number.
    NoNamespace,
    /// These capabilities are missing.
    Capabilities(Vec<&'static str>),
    /// These capabilities are missing, which probes in user space need.
    UserCapabilities(Vec<&'static str>),
    /// Probes in user space are not done on such a processor.
    Architecture(&'static str),
    /// The kernel does not tell a program where in user space it hangs.
    NoCookies(Release),
    /// The kernel would have applications ended that run under a filter of system calls.
    ReturnProbes(Release),
    /// The capabilities are there, but a filter of system calls is too.
    Seccomp,
    /// The capabilities are there and nothing is filtered, but the kernel is locked down, or something else forbids it.
    Forbidden {
        /// `/sys/kernel/security/lockdown`, where that can be read.
        lockdown: Option<String>,
    },
    /// The kernel does not answer questions about sockets.
    NoAnswer {
        /// What it said.
        why: String,
    },
    /// The processes that hold a socket are hidden.
    Processes,
    /// The kernel refused for a reason of its own.
    Refused {
        /// What it said.
        why: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => write!(f, "this binary was built without the probes"),
            Self::NoBtf(kind) => {
                write!(
                    f,
                    "the kernel's type information {} cannot be read ({kind})",
                    super::facts::VMLINUX
                )
            }
            Self::NoHook(missing) => {
                let missing: Vec<String> = missing.iter().map(Hook::to_string).collect();
                write!(f, "the kernel has no {}", missing.join(" and no "))
            }
            Self::Older { running, first } => {
                write!(f, "Linux {running} is older than {first}")
            }
            Self::NoField { field } => write!(f, "the kernel has no field `{field}`"),
            Self::NoTracefs(kind) => {
                write!(f, "the tracefs at /sys/kernel/tracing cannot be read ({kind})")
            }
            Self::NoNamespace => write!(f, "/proc/self/ns/net cannot be read"),
            Self::Architecture(name) => write!(f, "not done on {name}, only on x86_64"),
            Self::NoCookies(release) => {
                write!(f, "Linux {release} does not tell a probe in user space where it hangs")
            }
            Self::ReturnProbes(release) => write!(
                f,
                "Linux {release} kills applications under a seccomp filter, as all containers are, when a function returns \
                 that has a probe"
            ),
            Self::Capabilities(missing) | Self::UserCapabilities(missing) => {
                write!(f, "not permitted without {}", listed(missing))
            }
            Self::Seccomp => write!(f, "not permitted: a seccomp filter forbids bpf()"),
            Self::Forbidden { lockdown: Some(mode) } => {
                write!(f, "not permitted: the kernel's lockdown is {mode}")
            }
            Self::Forbidden { lockdown: None } => {
                write!(f, "not permitted, though the capabilities are there")
            }
            Self::NoAnswer { why } => {
                write!(f, "the kernel does not answer questions about sockets: {why}")
            }
            Self::Processes => {
                write!(f, "the processes that hold the application's sockets cannot be seen")
            }
            Self::Refused { why } => write!(f, "the kernel refused: {why}"),
        }
    }
}

impl Obstacle {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotBuilt => {
                "build with `cargo xtask build`, which needs bpf-linker (`cargo xtask setup`)"
            }
            Self::NoBtf(_) => {
                "needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys of the host in the container"
            }
            Self::NoHook(missing) if missing.contains(&Hook::Tracepoint("sys_exit")) => {
                "needs a kernel with CONFIG_FTRACE_SYSCALLS"
            }
            Self::NoHook(missing) if missing.iter().any(Hook::is_of_scheduler) => {
                "is there while a module has it that uses it (amdgpu, xe, nouveau)"
            }
            Self::NoHook(missing) if missing.iter().any(Hook::is_of_fences) => {
                "needs a kernel with CONFIG_DMA_SHARED_BUFFER"
            }
            Self::NoHook(_) => "needs Linux 5.10 or newer, on other processors than x86-64 6.3",
            Self::Older { .. } => "needs a newer kernel",
            Self::NoField { .. } => "needs a kernel that has it; please report the version",
            Self::NoTracefs(_) => "run as root with the host's /sys/kernel/tracing mounted",
            Self::NoNamespace => "mount /proc",
            Self::Capabilities(_) => {
                "run as root, or add the capabilities BPF and PERFMON (securityContext.capabilities.add)"
            }
            Self::UserCapabilities(missing) if !missing.contains(&"CAP_SYS_ADMIN") => {
                "run as root, or add the capabilities BPF, PERFMON and SYS_PTRACE (/proc/PID/root) \
                 (securityContext.capabilities.add), and shareProcessNamespace: true to the pod"
            }
            Self::UserCapabilities(_) => {
                "run as root, or add the capabilities SYS_ADMIN (before Linux 6.10 uprobes are perf events) and SYS_PTRACE (/proc/PID/root) \
                 (securityContext.capabilities.add), and shareProcessNamespace: true to the pod"
            }
            Self::Architecture(_) => "where the arguments of a call are was not tried there",
            Self::NoCookies(_) => "needs Linux 5.15 or newer",
            Self::ReturnProbes(_) => "needs Linux 6.10 or older, or 6.14 or newer",
            Self::Seccomp => {
                "allow bpf() in the seccomp profile (RuntimeDefault allows it with CAP_BPF from containerd 1.6 and \
                 Docker 23 on)"
            }
            Self::Forbidden { .. } => {
                "lockdown must not be `confidentiality`; a user namespace cannot have it at all"
            }
            Self::NoAnswer { .. } => {
                "needs CONFIG_INET_DIAG, and a seccomp profile that allows netlink sockets (RuntimeDefault does)"
            }
            Self::Processes => {
                "run as the application's user, or add the capabilities SYS_PTRACE and DAC_READ_SEARCH; in a pod, set \
                 shareProcessNamespace"
            }
            Self::Refused { .. } => "please report this with the version of the kernel",
        }
    }
}

/// What the process may do, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    capabilities: u64,
    filtered: bool,
    lockdown: Option<String>,
}

impl Rights {
    /// Those of this process.
    pub(super) fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").ok();
        Self::read(&status, lockdown.as_deref())
    }

    pub(super) fn read(status: &str, lockdown: Option<&str>) -> Self {
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim())
        };
        let capabilities = value("CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // `none [integrity] confidentiality`: the one in brackets holds.
        let mode = lockdown.and_then(|line| line.split_once('[')?.1.split_once(']'));
        Rights {
            capabilities: capabilities.unwrap_or(0),
            filtered: value("Seccomp") == Some("2"),
            lockdown: mode.map(|(mode, _)| mode.to_owned()).filter(|mode| mode != "none"),
        }
    }

    /// What is missing for probes in user space, in this way.
    pub(super) fn missing_for_user(&self, way: UserWay) -> Vec<&'static str> {
        let mut missing = match way {
            UserWay::Links => self.missing(),
            UserWay::Events => self.without(&[(SYS_ADMIN, "CAP_SYS_ADMIN")]),
        };
        missing.extend(self.without(&[(SYS_PTRACE, "CAP_SYS_PTRACE")]));
        missing
    }

    fn without(&self, wanted: &[(u64, &'static str)]) -> Vec<&'static str> {
        let missing = wanted.iter().filter(|(bit, _)| self.capabilities & bit == 0);
        missing.map(|(_, name)| *name).collect()
    }

    fn missing(&self) -> Vec<&'static str> {
        if self.capabilities & SYS_ADMIN != 0 {
            return Vec::new();
        }
        self.without(&[(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")])
    }
}

/// Names in a sentence.
fn listed(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// Why the kernel said "not permitted" to a process with these rights.
pub(super) fn explain(rights: &Rights) -> Obstacle {
    let missing = rights.missing();
    if !missing.is_empty() {
        Obstacle::Capabilities(missing)
    } else if rights.filtered {
        Obstacle::Seccomp
    } else {
        Obstacle::Forbidden { lockdown: rights.lockdown.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::kernel::Function;

    fn explained(capabilities: u64, seccomp: u8, lockdown: Option<&str>) -> Obstacle {
        let status = format!("Name:\tx\nCapEff:\t{capabilities:016x}\nSeccomp:\t{seccomp}\n");
        explain(&Rights::read(&status, lockdown))
    }

    #[test]
    fn what_is_missing_is_named() {
        let both = Obstacle::Capabilities(vec!["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(explained(0, 2, None), both);
        assert_eq!(explained(BPF, 0, None), Obstacle::Capabilities(vec!["CAP_PERFMON"]));
        assert_eq!(explained(PERFMON, 0, None), Obstacle::Capabilities(vec!["CAP_BPF"]));
        assert_eq!(explained(BPF | PERFMON, 2, None), Obstacle::Seccomp);
        assert_eq!(explained(SYS_ADMIN, 2, None), Obstacle::Seccomp);
        let locked = Obstacle::Forbidden { lockdown: Some("confidentiality".to_owned()) };
        let file = Some("none integrity [confidentiality]\n");
        assert_eq!(explained(SYS_ADMIN, 0, file), locked);
        let file = Some("[none] integrity confidentiality\n");
        assert_eq!(explained(SYS_ADMIN, 0, file), Obstacle::Forbidden { lockdown: None });
    }

    #[test]
    fn capabilities_are_listed_as_in_a_sentence() {
        let told = |missing: &[&'static str]| {
            Obstacle::UserCapabilities(missing.to_vec()).to_string().split_off(22)
        };
        assert_eq!(told(&["CAP_BPF"]), "CAP_BPF");
        assert_eq!(told(&["CAP_BPF", "CAP_PERFMON"]), "CAP_BPF and CAP_PERFMON");
        let three = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"];
        assert_eq!(told(&three), "CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE");
        let remedy =
            |missing: &[&'static str]| Obstacle::UserCapabilities(missing.to_vec()).remedy();
        assert!(!remedy(&three).contains("SYS_ADMIN"));
        assert!(remedy(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]).contains("capabilities SYS_ADMIN"));
    }

    #[test]
    fn what_there_is_nothing_of_is_named() {
        let function = Function { name: "tcp_recvmsg", parameters: 5 };
        let missing = vec![Hook::Return(function), Hook::Tracepoint("sock_recv_length")];
        assert_eq!(
            Obstacle::NoHook(missing).to_string(),
            "the kernel has no function `tcp_recvmsg` with 5 parameters and no tracepoint `sock_recv_length`"
        );
    }

    #[test]
    fn a_status_that_cannot_be_read_is_no_right() {
        let both = Obstacle::Capabilities(vec!["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(explain(&Rights::read("", None)), both);
        assert_eq!(explain(&Rights::read("CapEff:\tzz\n", None)), both);
    }
}
