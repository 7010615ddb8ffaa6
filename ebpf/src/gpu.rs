//! Which functions of a GPU's user-space driver are looked at, and what a probe is told of the one that it is attached to.
//!
//! The table is read by user space only. A program gets everything that it has to know of a function in its [`Cookie`], so
//! that the kernel's side has no table to agree with.
//!
//! Left out: copies whose size is in a structure that an argument points to, for reading the application's memory costs
//! more than the size is worth; and polls (`cuEventQuery`), which are called in loops.

use crate::call::Histogram;
use crate::record::record;

/// A vendor's driver library, by the name of its functions and its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// NVIDIA's CUDA driver API.
    Cuda,
    /// AMD's HIP.
    Hip,
}

impl Api {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Api::Cuda => "cuda",
            Api::Hip => "hip",
        }
    }

    /// Which one a file holds, by its name: a link of any version leads to a file that begins with the plain name.
    #[must_use]
    pub fn of_file(name: &[u8]) -> Option<Self> {
        let is = |plain: &[u8]| {
            let rest = name.strip_prefix(plain);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
        };
        match () {
            () if is(b"libcuda.so") => Some(Api::Cuda),
            () if is(b"libamdhip64.so") => Some(Api::Hip),
            () => None,
        }
    }
}

/// How closely calls of a function are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The caller is blocked until the GPU is done: timed, and long ones are told one by one.
    Wait,
    /// Timed.
    Timed,
    /// Counted, as often as they are called; only when that is asked for.
    Counted,
}

/// A function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name without what tells its variants apart.
    pub name: &'static str,
    /// Whose it is.
    pub api: Api,
    /// How closely it is looked at.
    pub detail: Detail,
    /// Which argument is a number of bytes, counted from 1; 0 when none is. The program reads the second, third
    /// and fifth.
    pub bytes: u8,
}

const fn cuda(name: &'static str, detail: Detail, bytes: u8) -> Function {
    Function { name, api: Api::Cuda, detail, bytes }
}

const fn hip(name: &'static str, detail: Detail, bytes: u8) -> Function {
    Function { name, api: Api::Hip, detail, bytes }
}

use Detail::{Counted, Timed, Wait};

/// Every function that is looked at; its place here is its number.
pub const FUNCTIONS: &[Function] = &[
    cuda("cuStreamSynchronize", Wait, 0),
    cuda("cuEventSynchronize", Wait, 0),
    cuda("cuCtxSynchronize", Wait, 0),
    cuda("cuMemcpy", Wait, 3),
    cuda("cuMemcpyDtoH", Wait, 3),
    cuda("cuMemcpyHtoD", Wait, 3),
    cuda("cuMemcpyDtoD", Wait, 3),
    cuda("cuMemcpyPeer", Wait, 5),
    cuda("cuMemcpy2D", Wait, 0),
    cuda("cuMemcpy3D", Wait, 0),
    cuda("cuMemcpyAsync", Timed, 3),
    cuda("cuMemcpyDtoHAsync", Timed, 3),
    cuda("cuMemcpyHtoDAsync", Timed, 3),
    cuda("cuMemcpyDtoDAsync", Timed, 3),
    cuda("cuMemcpyPeerAsync", Timed, 5),
    cuda("cuMemcpy2DAsync", Timed, 0),
    cuda("cuMemcpy3DAsync", Timed, 0),
    cuda("cuMemcpyBatchAsync", Timed, 0),
    cuda("cuGraphLaunch", Timed, 0),
    cuda("cuMemAlloc", Timed, 2),
    cuda("cuMemAllocAsync", Timed, 2),
    cuda("cuMemAllocFromPoolAsync", Timed, 2),
    cuda("cuMemAllocManaged", Timed, 2),
    cuda("cuMemHostAlloc", Timed, 2),
    cuda("cuMemCreate", Timed, 2),
    cuda("cuMemFree", Timed, 0),
    cuda("cuMemFreeAsync", Timed, 0),
    cuda("cuMemFreeHost", Timed, 0),
    cuda("cuModuleLoad", Timed, 0),
    cuda("cuModuleLoadData", Timed, 0),
    cuda("cuModuleLoadDataEx", Timed, 0),
    cuda("cuModuleLoadFatBinary", Timed, 0),
    cuda("cuLibraryLoadData", Timed, 0),
    cuda("cuLibraryLoadFromFile", Timed, 0),
    cuda("cuLaunchKernel", Counted, 0),
    cuda("cuLaunchKernelEx", Counted, 0),
    cuda("cuLaunchCooperativeKernel", Counted, 0),
    hip("hipStreamSynchronize", Wait, 0),
    hip("hipEventSynchronize", Wait, 0),
    hip("hipDeviceSynchronize", Wait, 0),
    hip("hipMemcpy", Wait, 3),
    hip("hipMemcpyDtoH", Wait, 3),
    hip("hipMemcpyHtoD", Wait, 3),
    hip("hipMemcpyDtoD", Wait, 3),
    hip("hipMemcpyWithStream", Wait, 3),
    hip("hipMemcpyPeer", Wait, 5),
    hip("hipMemcpyAsync", Timed, 3),
    hip("hipMemcpyDtoHAsync", Timed, 3),
    hip("hipMemcpyHtoDAsync", Timed, 3),
    hip("hipMemcpyDtoDAsync", Timed, 3),
    hip("hipMemcpyPeerAsync", Timed, 5),
    hip("hipGraphLaunch", Timed, 0),
    hip("hipMalloc", Timed, 2),
    hip("hipMallocAsync", Timed, 2),
    hip("hipMallocFromPoolAsync", Timed, 2),
    hip("hipMallocManaged", Timed, 2),
    hip("hipExtMallocWithFlags", Timed, 2),
    hip("hipHostMalloc", Timed, 2),
    hip("hipFree", Timed, 0),
    hip("hipFreeAsync", Timed, 0),
    hip("hipHostFree", Timed, 0),
    hip("hipModuleLoad", Timed, 0),
    hip("hipModuleLoadData", Timed, 0),
    hip("hipModuleLoadDataEx", Timed, 0),
    hip("hipLaunchKernel", Counted, 0),
    hip("hipModuleLaunchKernel", Counted, 0),
    hip("hipExtModuleLaunchKernel", Counted, 0),
];

/// The number of the function of which this symbol is a variant: `_v2` and so on are revisions of its arguments, `_ptsz`,
/// `_ptds` and `_spt` are for a default stream per thread.
#[must_use]
pub fn function(api: Api, symbol: &str) -> Option<usize> {
    let plain = ["_ptsz", "_ptds", "_spt"].iter().find_map(|end| symbol.strip_suffix(end));
    let name = without_revision(plain.unwrap_or(symbol));
    FUNCTIONS.iter().position(|function| function.api == api && function.name == name)
}

fn without_revision(symbol: &str) -> &str {
    match symbol.rsplit_once("_v") {
        Some((name, digits))
            if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit()) =>
        {
            name
        }
        _ => symbol,
    }
}

/// What a probe is told of where it is attached: the function, what to do there, and for whom. In one word:
///
/// | bits | |
/// |---|---|
/// | 0 to 7 | the function's number |
/// | 8 to 11 | which argument is a number of bytes, from 1; 0 for none |
/// | 12 | whether the caller is blocked |
/// | 32 to 63 | the process, as user space numbers those it watches |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The one for a function of the table in a process. A number that is not in the table is nobody's.
    #[must_use]
    pub fn new(function: usize, process: u32) -> Option<Self> {
        let Function { detail, bytes, .. } = FUNCTIONS.get(function)?;
        let waits = u64::from(*detail == Wait);
        let word = function as u64 & 0xff | u64::from(*bytes & 0xf) << 8 | waits << 12;
        Some(Cookie(word | u64::from(process) << 32))
    }

    /// The function's number.
    #[must_use]
    #[inline(always)]
    pub const fn function(self) -> u64 {
        self.0 & 0xff
    }

    /// Which argument is a number of bytes, from 1; 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0 >> 8 & 0xf
    }

    /// Whether the caller is blocked.
    #[must_use]
    #[inline(always)]
    pub const fn waits(self) -> bool {
        self.0 >> 12 & 1 == 1
    }

    /// The process.
    #[must_use]
    #[inline(always)]
    pub const fn process(self) -> u64 {
        self.0 >> 32
    }
}

record! {
    /// Which call: that of a function by a thread in one frame of its stack. A function that calls itself has another frame
    /// each time, and a call that was never returned from gives way to the next in its place.
    Frame {
        /// The process in the upper half, the thread in the lower, as the first PID namespace counts.
        task,
        /// The function in the lower 8 bits, and above it where on the stack it was called from.
        place,
    }
}

impl Frame {
    /// A frame by the stack pointer at the function's first instruction.
    #[must_use]
    #[inline(always)]
    pub const fn entered(task: u64, stack: u64, cookie: Cookie) -> Self {
        // A stack is below 2^56 on every processor that there is.
        Frame { task, place: stack << 8 | cookie.function() }
    }

    /// The same by the stack pointer after the function has returned, which has taken the return address off.
    #[must_use]
    #[inline(always)]
    pub const fn returned(task: u64, stack: u64, cookie: Cookie) -> Self {
        Self::entered(task, stack.wrapping_sub(8), cookie)
    }

    /// The number of the function.
    #[must_use]
    pub const fn function(self) -> u64 {
        self.place & 0xff
    }
}

record! {
    /// A call that has begun.
    Begun {
        /// When, in nanoseconds of CLOCK_MONOTONIC.
        start,
        /// The bytes that it is about.
        bytes,
        /// The process, as user space numbers those it watches.
        process,
    }
}

/// The calls of one function on one processor. One value of a map, as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Calls {
    /// How long they took.
    pub times: Histogram,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Those that did not: what they returned was not 0.
    pub failed: u64,
}

impl Calls {
    /// How many words it has.
    pub const WORDS: usize = Histogram::WORDS + 2;

    /// A call has returned.
    #[inline(always)]
    pub fn observe(&mut self, nanos: u64, bytes: u64, result: i32) {
        self.times.observe(nanos);
        match result {
            0 => self.bytes = self.bytes.wrapping_add(bytes),
            _ => self.failed = self.failed.wrapping_add(1),
        }
    }

    /// A call has begun that is only counted.
    #[inline(always)]
    pub fn count(&mut self) {
        self.times.count = self.times.count.wrapping_add(1);
    }

    /// Adds what another processor has counted.
    pub fn merge(&mut self, other: &Self) {
        self.times.merge(&other.times);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.failed = self.failed.wrapping_add(other.failed);
    }

    /// Those of these words, in order of declaration.
    #[must_use]
    pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let times = Histogram::from_words(&core::array::from_fn(|at| words[at]));
        let [.., bytes, failed] = *words;
        Calls { times, bytes, failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(api: Api, symbol: &str) -> Option<&'static str> {
        function(api, symbol).map(|at| FUNCTIONS[at].name)
    }

    #[test]
    fn every_variant_is_the_function_that_it_is_of() {
        for symbol in ["cuMemAlloc", "cuMemAlloc_v2"] {
            assert_eq!(named(Api::Cuda, symbol), Some("cuMemAlloc"));
        }
        for symbol in ["cuMemcpyDtoHAsync_v2_ptsz", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync"] {
            assert_eq!(named(Api::Cuda, symbol), Some("cuMemcpyDtoHAsync"));
        }
        assert_eq!(named(Api::Cuda, "cuMemcpy_ptds"), Some("cuMemcpy"));
        assert_eq!(named(Api::Cuda, "cuCtxSynchronize_v12"), Some("cuCtxSynchronize"));
        assert_eq!(named(Api::Hip, "hipMemcpy_spt"), Some("hipMemcpy"));
        for symbol in ["cuMemAlloc_v", "cuMemAlloc_v2x", "cuMemAllocPitch_v2", "_v2", "", "_ptsz"] {
            assert_eq!(named(Api::Cuda, symbol), None, "{symbol}");
        }
        assert_eq!(named(Api::Hip, "cuMemAlloc"), None, "each has its own");
    }

    #[test]
    fn a_library_is_known_by_the_file_that_its_links_lead_to() {
        assert_eq!(Api::of_file(b"libcuda.so.550.54.15"), Some(Api::Cuda));
        assert_eq!(Api::of_file(b"libcuda.so"), Some(Api::Cuda));
        assert_eq!(Api::of_file(b"libamdhip64.so.6.2.41133"), Some(Api::Hip));
        for other in ["libcudart.so.12", "libcudadebugger.so.1", "libcuda.so2", "xlibcuda.so.1"] {
            assert_eq!(Api::of_file(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_cookie_tells_everything_of_every_function() {
        for (at, function) in FUNCTIONS.iter().enumerate() {
            let cookie = Cookie::new(at, u32::MAX - 7).expect("a function of the table");
            assert_eq!(cookie.function(), at as u64);
            assert_eq!(cookie.bytes(), u64::from(function.bytes));
            assert_eq!(cookie.waits(), function.detail == Wait);
            assert_eq!(cookie.process(), u64::from(u32::MAX - 7));
            assert!(
                [0, 2, 3, 5].contains(&function.bytes),
                "the program reads it: {}",
                function.name
            );
            let first = FUNCTIONS.iter().position(|other| other.name == function.name);
            assert_eq!(first, Some(at), "once: {}", function.name);
        }
        assert!(FUNCTIONS.len() <= 0x100, "a number has 8 bits");
        assert_eq!(Cookie::new(FUNCTIONS.len(), 0), None);
    }

    #[test]
    fn a_return_finds_its_own_call() {
        let [first, second] = [0, 1].map(|at| Cookie::new(at, 1).expect("of the table"));
        let stack = 0x7fff_ffff_e000;
        let entered = Frame::entered(7, stack, first);
        assert_eq!(Frame::returned(7, stack + 8, first), entered);
        assert_eq!((entered.function(), second.function()), (0, 1));
        let others = [
            Frame::entered(8, stack, first),
            Frame::entered(7, stack - 16, first),
            Frame::entered(7, stack, second),
        ];
        assert!(others.iter().all(|other| *other != entered), "another thread, depth, function");
    }

    #[test]
    fn calls_add_up() {
        let mut calls = Calls::default();
        calls.observe(1000, 64, 0);
        calls.observe(3000, 1 << 40, 2);
        assert_eq!((calls.times.count, calls.times.sum), (2, 4000));
        assert_eq!((calls.bytes, calls.failed), (64, 1), "what failed has moved nothing");
        calls.merge(&calls.clone());
        calls.count();
        assert_eq!((calls.times.count, calls.bytes, calls.failed), (5, 128, 2));
        assert_eq!(size_of::<Calls>(), 8 * Calls::WORDS);
        let words = core::array::from_fn(|at| at as u64 + 3);
        let read = Calls::from_words(&words);
        assert_eq!(read.times.to_words()[..], words[..Histogram::WORDS]);
        assert_eq!([read.bytes, read.failed][..], words[Histogram::WORDS..]);
    }
}
