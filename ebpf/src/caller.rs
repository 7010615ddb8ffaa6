//! Whose task a program runs in. A module of the programs that ask, for the same reason as `program.rs`.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use outrigger_probes::{KERNEL_THREAD, TaskFact};

use crate::program;

/// Whether this is a task of a process in the proxy's network namespace. `facts` begin with those of [`TaskFact`].
#[inline(always)]
pub(crate) fn is_ours<const N: usize>(facts: &'static [u32; N]) -> bool {
    let fact = |fact: TaskFact| program::fact(facts, fact as usize);
    // SAFETY: the kernel helper has no preconditions.
    let task = Typed(unsafe { bpf_get_current_task_btf() }.cast());
    let namespaces: Typed = task.field(fact(TaskFact::Namespaces));
    let network: Typed = namespaces.field(fact(TaskFact::NetworkNamespace));
    let namespace: u32 = network.field(fact(TaskFact::NamespaceNumber));
    let flags: u32 = task.field(fact(TaskFact::Flags));
    namespace == fact(TaskFact::OwnNamespace) && flags & KERNEL_THREAD == 0
}

/// A structure of the kernel that the verifier knows the type of.
#[derive(Clone, Copy)]
struct Typed(*const u8);

impl Typed {
    #[inline(always)]
    fn field<T: Copy>(self, offset: u32) -> T {
        // SAFETY: a pointer that the kernel passed, to a type of which BTF said where the fields are; the verifier
        // checks that there is such a field. Where it leads to nothing, the kernel reads zeros.
        unsafe { *self.0.add(offset as usize).cast::<T>() }
    }
}
