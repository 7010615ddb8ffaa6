//! What programs hang on in the kernel, and which of several ways a family takes to see what it wants to see.
//!
//! Kernels differ in what can be hung on: a tracepoint that one has another lacks, a function has other parameters, or nothing
//! may be hung on functions at all. So a family has ways, the one that it would rather take first. Those of which this kernel
//! says that it has all hooks are tried, until one is permitted.
//!
//! What it decides: which ways there are here, and which one is taken. Hanging the programs is `load`'s.

use std::fmt;

use super::obstacle::Obstacle;

/// Something in the kernel that a program can hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A tracepoint, by its type in the kernel's BTF.
    Tracepoint(&'static str),
    /// A tracepoint, by its group and name in tracefs. Whether there is one is known when it is tried.
    Listed(&'static str, &'static str),
    /// Where a function begins.
    Entry(Function),
    /// Where it returns.
    Return(Function),
}

/// A function of the kernel, of which its programs know where the arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// How many parameters it has. The value that it returns lies behind them.
    pub parameters: u32,
}

impl Hook {
    /// Whether the module of the DRM scheduler has it.
    pub(super) fn is_of_scheduler(&self) -> bool {
        matches!(self, Hook::Listed("gpu_scheduler", _))
    }

    /// Whether a kernel without fences lacks it.
    pub(super) fn is_of_fences(&self) -> bool {
        matches!(self, Hook::Tracepoint(name) if name.starts_with("dma_fence_"))
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Tracepoint(name) | Hook::Listed(_, name) => write!(f, "tracepoint `{name}`"),
            Hook::Entry(function) | Hook::Return(function) => {
                let Function { name, parameters } = function;
                write!(f, "function `{name}` with {parameters} parameters")
            }
        }
    }
}

/// One of the ways to see what a family wants to see.
#[derive(Debug)]
pub(in crate::probes) struct Way {
    /// What is said of it, after "seen" or the like.
    pub(in crate::probes) told: &'static str,
    /// Programs and what they hang on, in the order in which they are hung there.
    pub(in crate::probes) programs: &'static [(&'static str, Hook)],
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.told)
    }
}

/// Those of the ways of which the kernel has all hooks.
///
/// # Errors
/// There are none; what each of them lacks first.
pub(super) fn possible(
    ways: &'static [Way],
    has: impl Fn(Hook) -> bool,
) -> Result<Vec<&'static Way>, Obstacle> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for way in ways {
        match way.programs.iter().find(|(_, hook)| !has(*hook)) {
            Some((_, hook)) => missing.push(*hook),
            None => found.push(way),
        }
    }
    if found.is_empty() { Err(Obstacle::NoHook(missing)) } else { Ok(found) }
}

/// What comes of the first way that can be taken.
///
/// # Errors
/// None can; why not the last one, which asks for least.
pub(super) fn first<W: Copy + fmt::Display, T>(
    ways: &[W],
    mut take: impl FnMut(W) -> Result<T, Obstacle>,
) -> Result<T, Obstacle> {
    let mut last = Obstacle::NoHook(Vec::new());
    for way in ways {
        match take(*way) {
            Ok(taken) => return Ok(taken),
            Err(obstacle) => {
                tracing::debug!("not {way}: {obstacle}");
                last = obstacle;
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: Hook = Hook::Return(Function { name: "called", parameters: 3 });
    const WAYS: &[Way] = &[
        Way { told: "new", programs: &[("a", Hook::Tracepoint("old")), ("b", CALLED)] },
        Way { told: "old", programs: &[("a", Hook::Tracepoint("old"))] },
    ];

    fn names(ways: &[&'static Way]) -> Vec<&'static str> {
        ways.iter().map(|way| way.told).collect()
    }

    #[test]
    fn a_way_is_possible_when_the_kernel_has_all_its_hooks() {
        let found = |has: &[Hook]| possible(WAYS, |hook| has.contains(&hook));
        let old = Hook::Tracepoint("old");
        assert_eq!(names(&found(&[old, CALLED]).expect("both")), ["new", "old"]);
        assert_eq!(names(&found(&[old]).expect("one")), ["old"]);
        let obstacle = found(&[CALLED]).expect_err("none");
        assert_eq!(obstacle, Obstacle::NoHook(vec![old, old]));
    }

    #[test]
    fn the_first_that_can_be_taken_is() {
        let ways: Vec<&'static Way> = WAYS.iter().collect();
        let mut tried = Vec::new();
        let mut take = |permitted: &[&str]| {
            first(&ways, |way| {
                tried.push(way.told);
                if permitted.contains(&way.told) { Ok(way.told) } else { Err(Obstacle::Seccomp) }
            })
        };
        assert_eq!(take(&["new", "old"]), Ok("new"));
        assert_eq!(take(&["old"]), Ok("old"));
        assert_eq!(take(&[]), Err(Obstacle::Seccomp));
        assert_eq!(tried, ["new", "new", "old", "new", "old"], "none after the one that is taken");
    }
}
