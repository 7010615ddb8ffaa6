//! The two system calls that programs need which hang at many places of user space by one link (`uprobe_multi`), and which
//! the loader library in use does not make: loading such a program, and hanging it.
//!
//! Why by hand: the releases of that library that can do it need a newer compiler than we do, and what it does instead, a
//! perf event for each place, needs CAP_SYS_ADMIN.
//!
//! This is the only module of the proxy that has `unsafe` code, and nothing else is in it. It decides nothing: which
//! programs, where and when is `multi`'s.

#![expect(
    unsafe_code,
    reason = "no safe library makes these system calls; each block says why it is sound"
)]

use std::{
    ffi::CStr,
    io,
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use aya_obj::generated::{
    BPF_F_UPROBE_MULTI_RETURN, bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_cmd, bpf_insn,
    bpf_prog_type::BPF_PROG_TYPE_KPROBE,
};

/// What BPF_PROG_LOAD reads: the beginning of `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`, whose name for a
/// field stands behind ours where it is another. What lies behind is nothing to it. There are no bytes between the fields.
#[repr(C)]
#[derive(Default)]
struct LoadArguments {
    /// `prog_type`
    kind: u32,
    /// `insn_cnt`
    instruction_count: u32,
    /// `insns`
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    /// `prog_name`, which ends with a zero.
    name: [u8; 16],
    prog_ifindex: u32,
    /// `expected_attach_type`
    attach_type: u32,
}

const _: () = assert!(
    size_of::<LoadArguments>() == 72
        && offset_of!(LoadArguments, name) == 48
        && offset_of!(LoadArguments, attach_type) == 68
);

/// What BPF_LINK_CREATE reads (`link_create`), likewise.
#[repr(C)]
#[derive(Default)]
struct LinkArguments {
    /// `prog_fd`
    program: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    /// `uprobe_multi.path` and so on
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    /// `cnt`
    count: u32,
    /// `flags`
    multi_flags: u32,
    pid: u32,
    /// Behind the last field.
    rest: u32,
}

const _: () = assert!(
    size_of::<LinkArguments>() == 64
        && offset_of!(LinkArguments, path) == 16
        && offset_of!(LinkArguments, count) == 48
        && offset_of!(LinkArguments, pid) == 56
);

/// Places of one file where a program is to hang in one process.
pub(super) struct Places<'a> {
    /// The file.
    pub(super) path: &'a CStr,
    /// Bytes from its beginning.
    pub(super) offsets: &'a [u64],
    /// What the program is told at each of them: as many.
    pub(super) cookies: &'a [u64],
    /// The process; none is number 0.
    pub(super) pid: u32,
    /// Not there, but when the function returns that begins there.
    pub(super) at_return: bool,
}

/// Loads a program that is to hang at many places of user space. It is gone when it is closed and hangs nowhere.
///
/// # Errors
/// What the kernel says; EINVAL from one that does not have such programs (before Linux 6.6).
pub(super) fn load(name: &str, license: &CStr, program: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut arguments = LoadArguments {
        kind: BPF_PROG_TYPE_KPROBE as u32,
        instruction_count: count(program)?,
        instructions: address(program.as_ptr()),
        license: address(license.as_ptr()),
        attach_type: BPF_TRACE_UPROBE_MULTI as u32,
        ..LoadArguments::default()
    };
    let room = arguments.name.len() - 1;
    for (place, byte) in arguments.name[..room].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: the program and its license are borrowed until this returns, the kernel copies both, and it reads as many
    // instructions as it is told there are, and the license up to its zero.
    unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &arguments) }
}

/// Hangs it there, until what this gives is closed: by us, or with this process.
///
/// # Errors
/// What the kernel says; then it hangs nowhere.
pub(super) fn link(program: BorrowedFd<'_>, places: &Places<'_>) -> io::Result<OwnedFd> {
    if places.offsets.len() != places.cookies.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let arguments = LinkArguments {
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_TRACE_UPROBE_MULTI as u32,
        path: address(places.path.as_ptr()),
        offsets: address(places.offsets.as_ptr()),
        cookies: address(places.cookies.as_ptr()),
        count: count(places.offsets)?,
        multi_flags: if places.at_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        pid: places.pid,
        ..LinkArguments::default()
    };
    // SAFETY: path, offsets and cookies are borrowed until this returns and the kernel copies them. It reads the path up to
    // its zero, and of the others as many as it is told, which both have.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &arguments) }
}

fn count<T>(of: &[T]) -> io::Result<u32> {
    u32::try_from(of.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn address<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

/// Makes a system call whose answer is a descriptor.
///
/// # Safety
/// `A` is laid out as the kernel has it for this command, without bytes that belong to no field; where it has addresses, what
/// the command reads or writes there is there. The answer to the command is a descriptor.
unsafe fn bpf<A>(command: bpf_cmd, arguments: &A) -> io::Result<OwnedFd> {
    let [command, size] = [command as libc::c_long, size_of::<A>() as libc::c_long];
    // SAFETY: the kernel reads `size` bytes, which are there and have values, and follows addresses that the caller answers for.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(arguments), size) };
    match i32::try_from(answer) {
        // SAFETY: the kernel has just made it for this call, so that it is open and nobody else's.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
