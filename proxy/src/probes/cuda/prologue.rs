//! Where in a function a probe is cheap.
//!
//! The kernel puts a breakpoint over an instruction and has to do that instruction's work elsewhere. A few it does itself
//! (`arch/x86/kernel/uprobes.c`: `branch_setup_insn`, `push_setup_insn`); all others it has the processor single-step, which
//! was measured to cost 5 to 26 us per call in virtual machines, against about 1 us. Functions that are built for
//! control-flow protection begin with `endbr64`, which is single-stepped, but does nothing otherwise: behind it the stack
//! and the arguments are still those of the entry.
//!
//! Decides for x86-64 only. What it does not know is taken to be single-stepped.

use super::super::kernel::Release;

/// Marks a place that indirect jumps may lead to.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The form of five bytes that compilers leave for patching.
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// The first kernel that does that one itself, and even replaces the breakpoint there with a call.
const DOES_NOP5: Release = Release { major: 6, minor: 18 };

/// How many bytes of a function have to be known.
pub(super) const ENOUGH: usize = 9;

/// So many bytes after a function's beginning a probe is cheap, as far as its code is given; `None` when it is not.
pub(super) fn cheap_offset(code: &[u8], kernel: Release) -> Option<u64> {
    let (offset, first) = match code.strip_prefix(&ENDBR64) {
        Some(behind) => (ENDBR64.len() as u64, behind),
        None => (0, code),
    };
    is_emulated(first, kernel).then_some(offset)
}

fn is_emulated(code: &[u8], kernel: Release) -> bool {
    match code {
        // push, of the older and the newer registers
        [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] => true,
        // jmp, call, jumps on a condition
        [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..] => true,
        // nop
        [0x90, ..] | [0x66, 0x90, ..] => true,
        _ => code.starts_with(&NOP5) && kernel >= DOES_NOP5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Release = DOES_NOP5;
    const OLD: Release = Release { major: 6, minor: 17 };

    fn code(hex: &str) -> Vec<u8> {
        let byte = |two: &str| u8::from_str_radix(two, 16).expect("hexadecimal");
        hex.split(' ').map(byte).collect()
    }

    #[test]
    fn what_the_kernel_does_itself_is_cheap() {
        let cheap = [
            ("55 48 89 e5", 0),
            ("41 57 41 56", 0),
            ("e9 00 01 00 00", 0),
            ("eb 10", 0),
            ("e8 00 01 00 00", 0),
            ("74 05", 0),
            ("0f 84 00 01 00 00", 0),
            ("90", 0),
            ("66 90", 0),
            ("f3 0f 1e fa 55", 4),
            ("f3 0f 1e fa 41 54", 4),
            ("f3 0f 1e fa e9 00 01 00 00", 4),
        ];
        for (hex, offset) in cheap {
            assert_eq!(cheap_offset(&code(hex), OLD), Some(offset), "{hex}");
        }
    }

    #[test]
    fn everything_else_is_single_stepped() {
        let stepped = [
            "48 89 e5",
            "48 83 ec 18",
            "31 c0",
            "c3",
            "41 89 f8",
            "ff 25 00 00 00 00",
            "f3 0f 1e fa",
            "f3 0f 1e fa 48 83 ec 18",
            "f3 0f 1e fa f3 0f 1e fa 55",
            "f3 0f 1e fb 55",
            "66 e9 00 01",
            "66 55",
            "41 90",
            "0f 1f 40 00",
            "41",
            "0f",
        ];
        for hex in stepped {
            assert_eq!(cheap_offset(&code(hex), NEW), None, "{hex}");
        }
        assert_eq!(cheap_offset(&[], NEW), None);
    }

    #[test]
    fn the_long_nop_is_cheap_where_the_kernel_knows_it() {
        for (hex, offset) in [("0f 1f 44 00 00", 0), ("f3 0f 1e fa 0f 1f 44 00 00", 4)] {
            assert_eq!(cheap_offset(&code(hex), NEW), Some(offset), "{hex}");
            assert_eq!(cheap_offset(&code(hex), OLD), None, "{hex}");
            assert_eq!(code(hex).len().max(ENOUGH), ENOUGH, "as much as is read");
        }
    }
}
