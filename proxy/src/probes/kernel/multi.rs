//! Programs that hang at many places of user space by one link (`uprobe_multi`): they are read out of the object beside the
//! loader library, which makes the maps but does not know such programs, and loaded and hung by `bpf`.
//!
//! Why: a link takes CAP_BPF and CAP_PERFMON, where a perf event for a place in user space takes CAP_SYS_ADMIN; it is one
//! descriptor for all functions of a library, and the kernel waits once, not for each, when it is taken out.
//!
//! What it decides: whether this kernel has such links, and what becomes of places that it takes no program at.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, ProgramSection};

use super::{
    bpf::{self, Places},
    load::refused,
    obstacle::{Obstacle, Rights, explain},
    user::{MappedFile, Place},
};

/// What the kernel says of a file that is none.
const NO_FILE: i32 = libc::EBADF;

/// The kernel's own number for what it does not support, which it is not meant to let out and does.
const ENOTSUPP: i32 = 524;

/// What it says when it takes no program at a place for what is there: behind the end of the file, unreadable, no
/// instruction, or one that cannot be done elsewhere (`kernel/events/uprobes.c`, `arch/x86/kernel/uprobes.c`).
const OF_A_PLACE: [i32; 5] = [libc::EINVAL, libc::EIO, libc::ENOEXEC, libc::EOPNOTSUPP, ENOTSUPP];

/// Programs that hang nowhere yet, by their names.
pub(super) struct Multi(HashMap<String, Program>);

struct Program {
    loaded: OwnedFd,
    at_return: bool,
}

/// What came of hanging something at places.
#[derive(Debug)]
pub(super) struct Hung<P, L> {
    /// What holds it there.
    pub(super) links: Vec<L>,
    /// The places where the kernel does not take it, and what it says.
    pub(super) left_out: Vec<(P, io::Error)>,
}

impl Multi {
    /// Loads these programs of an object, whose maps the loader library has made.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn load(object: &[u8], maps: &Ebpf, names: &[&str]) -> Result<Self, Obstacle> {
        let object = relocated(object, maps)?;
        let mut programs = HashMap::new();
        for name in names {
            let program = Program::load(&object, name)?;
            program.try_link()?;
            programs.insert((*name).to_owned(), program);
        }
        Ok(Multi(programs))
    }

    /// Hangs a program at places of a file that a process has mapped: all of them by one link, if the kernel takes it at all
    /// of them.
    ///
    /// # Errors
    /// What stands in the way, other than what is at the places; it hangs nowhere then.
    pub(super) fn hang(
        &self,
        name: &str,
        file: MappedFile<'_>,
        places: &[Place],
    ) -> Result<Hung<Place, OwnedFd>, Obstacle> {
        let Some(program) = self.0.get(name) else {
            return Err(Obstacle::Refused { why: format!("there is no program {name}") });
        };
        let hung = hang(places, |places| program.link(file, places));
        hung.map_err(|error| obstacle_of("hanging", name, &error))
    }
}

impl Program {
    fn load(object: &Object, name: &str) -> Result<Self, Obstacle> {
        let found = object.programs.get(name);
        let function = found.and_then(|program| object.functions.get(&program.function_key()));
        let Some((program, function)) = found.zip(function) else {
            return Err(Obstacle::Refused { why: format!("the object has no program {name}") });
        };
        let loaded = bpf::load(name, &program.license, &function.instructions);
        let loaded = loaded.map_err(|error| obstacle_of("loading", name, &error))?;
        let at_return = matches!(program.section, ProgramSection::URetProbe { .. });
        Ok(Program { loaded, at_return })
    }

    /// Asks for a link in a file that is none, of which a kernel that has such links says just that.
    fn try_link(&self) -> Result<(), Obstacle> {
        let (offsets, cookies) = (&[0], &[0]);
        let at_return = self.at_return;
        let places = Places { path: c"/", offsets, cookies, pid: std::process::id(), at_return };
        match bpf::link(self.loaded.as_fd(), &places) {
            Err(error) if error.raw_os_error() != Some(NO_FILE) => {
                Err(obstacle_of("hanging", "anything", &error))
            }
            _ => Ok(()),
        }
    }

    fn link(&self, file: MappedFile<'_>, places: &[Place]) -> io::Result<OwnedFd> {
        let path = CString::new(file.path.as_os_str().as_bytes())?;
        let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
        let cookies: Vec<u64> = places.iter().map(|place| place.cookie).collect();
        // Nobody has the number 0, which would be all processes: the file may be that of other pods, too.
        let pid = if file.pid == 0 { u32::MAX >> 1 } else { file.pid };
        let (path, at_return) = (path.as_c_str(), self.at_return);
        let places = Places { path, offsets: &offsets, cookies: &cookies, pid, at_return };
        bpf::link(self.loaded.as_fd(), &places)
    }
}

/// The object with the descriptors of these maps in its instructions, and the functions that programs call behind them.
fn relocated(object: &[u8], maps: &Ebpf) -> Result<Object, Obstacle> {
    let mut object = Object::parse(object).map_err(|error| refused(&error))?;
    let described = std::mem::take(&mut object.maps);
    let descriptors: HashMap<&str, RawFd> = maps
        .maps()
        .filter_map(|(name, map)| Some((name, data_of(map)?.fd().as_fd().as_raw_fd())))
        .collect();
    let made = described
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), *descriptors.get(&**name)?, map)));
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(made, &sections).map_err(|error| refused(&error))?;
    object.relocate_calls(&sections).map_err(|error| refused(&error))?;
    Ok(object)
}

/// A map, if it is of a kind that programs in user space use.
fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// What a system call's error says, judged by what we may do.
fn obstacle_of(doing: &str, name: &str, error: &io::Error) -> Obstacle {
    // Unlike EACCES, which is the verifier's.
    if error.raw_os_error() == Some(libc::EPERM) {
        return explain(&Rights::own());
    }
    Obstacle::Refused { why: format!("{doing} {name} by a link: {error}") }
}

/// Hangs something at all of these places with as few links as can be. Where the kernel does not take it for what is at one
/// of several places, it does not say at which: each half is tried by itself, and so on, until those are found and left out.
/// With `n` bad ones among `m` that is at most `2n log2(m) + 1` attempts.
fn hang<P: Copy, L>(
    places: &[P],
    mut link: impl FnMut(&[P]) -> io::Result<L>,
) -> io::Result<Hung<P, L>> {
    let mut hung = Hung { links: Vec::new(), left_out: Vec::new() };
    let mut waiting = vec![places];
    while let Some(part) = waiting.pop() {
        let Some((first, others)) = part.split_first() else { continue };
        match link(part) {
            Ok(link) => hung.links.push(link),
            Err(error) if !is_of_a_place(&error) => return Err(error),
            Err(error) if others.is_empty() => hung.left_out.push((*first, error)),
            Err(_) => {
                let (before, behind) = part.split_at(part.len() / 2);
                waiting.extend([behind, before]);
            }
        }
    }
    Ok(hung)
}

fn is_of_a_place(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| OF_A_PLACE.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hangs at `0..count`, of which some are bad; the parts that were asked for, and what came of it.
    fn hung(count: u32, bad: &[u32], says: i32) -> (usize, io::Result<Hung<u32, Vec<u32>>>) {
        let mut attempts = 0;
        let places: Vec<u32> = (0..count).collect();
        let hung = hang(&places, |part| {
            attempts += 1;
            let is_bad = part.iter().any(|place| bad.contains(place));
            if is_bad { Err(io::Error::from_raw_os_error(says)) } else { Ok(part.to_vec()) }
        });
        (attempts, hung)
    }

    #[test]
    fn what_is_good_everywhere_hangs_by_one_link() {
        let (attempts, hung) = hung(100, &[], libc::EINVAL);
        let hung = hung.expect("nothing is bad");
        assert_eq!((attempts, hung.links.len(), hung.left_out.len()), (1, 1, 0));
        let (attempts, none) = self::hung(0, &[], libc::EINVAL);
        assert_eq!((attempts, none.expect("nothing").links.len()), (0, 0), "no link to nothing");
    }

    #[test]
    fn bad_places_are_left_out_and_no_other() {
        for says in OF_A_PLACE {
            for count in 1..20 {
                for bad in 0..count {
                    let bad = [bad, (bad * 7 + 3) % 20];
                    let (attempts, hung) = hung(count, &bad, says);
                    let hung = hung.expect("it is of a place");
                    let out: Vec<u32> = hung.left_out.iter().map(|(place, _)| *place).collect();
                    let good = (0..count).filter(|place| !bad.contains(place));
                    assert_eq!(hung.links.concat(), good.collect::<Vec<_>>());
                    assert!(out.iter().all(|place| bad.contains(place)), "{out:?}");
                    let most =
                        2 * out.len() * (count as usize).next_power_of_two().ilog2() as usize;
                    assert!(attempts <= most + 1, "{attempts} of {most}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_of_a_place_is_told_at_once() {
        for says in [libc::EPERM, libc::EMFILE, libc::ENOMEM, libc::ESRCH, libc::EBADF] {
            let (attempts, hung) = hung(8, &[5], says);
            assert_eq!(attempts, 1);
            assert_eq!(hung.expect_err("refused").raw_os_error(), Some(says));
        }
    }
}
