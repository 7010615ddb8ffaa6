//! Whose task it is that something happens in.

/// A thread of the kernel's own, in `task_struct.flags`. The bit has meant that since 2.6.17.
pub const KERNEL_THREAD: u32 = 0x0020_0000;

/// What programs have to be told to know whether a task is one of ours: the first numbers of their table of facts. Offsets
/// are in bytes from the start of the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum TaskFact {
    /// `task_struct.flags`.
    Flags,
    /// `task_struct.nsproxy`: the namespaces of a task.
    Namespaces,
    /// `nsproxy.net_ns`: its network namespace.
    NetworkNamespace,
    /// `net.ns.inum`: the number of a network namespace.
    NamespaceNumber,
    /// No offset but the number of the proxy's network namespace.
    OwnNamespace,
}

impl TaskFact {
    /// How many there are.
    pub const COUNT: usize = Self::OwnNamespace as usize + 1;
}
