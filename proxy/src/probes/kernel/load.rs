//! Putting the programs of a family into the kernel, and taking them out again: what is loaded lives as long as its
//! [`Programs`], and no longer than the process, for nothing is pinned.

use std::io;

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{Map, MapError},
    programs::{
        BtfTracePoint, FEntry, FExit, ProgramError, TracePoint, UProbe, uprobe::UProbeLink,
    },
    sys::SyscallError,
};

use super::{
    facts::Kernel,
    hook::{Hook, Way, first},
    obstacle::{Obstacle, Rights, explain},
    user::{MappedFile, Place},
    voice::{Voice, Wanted},
};

/// The programs of one family in the kernel.
pub(in crate::probes) struct Programs {
    loaded: Ebpf,
    btf: Btf,
    voice: Option<Voice>,
}

impl Programs {
    /// Creates the maps of an object that `cargo xtask ebpf` has built, and tells its programs the facts of this kernel.
    /// Nothing runs before it is attached.
    ///
    /// # Errors
    /// What stands in the way; nothing is left in the kernel then.
    pub(in crate::probes) fn new<const N: usize>(
        object: &[u8],
        facts: &[u32; N],
    ) -> Result<Self, Obstacle>
    where
        [u32; N]: Pod,
    {
        Self::with(object, facts, |_| Ok(())).map(|(programs, ())| programs)
    }

    /// The same, and what is made of the maps beside them.
    ///
    /// # Errors
    /// What stands in the way; nothing is left in the kernel then.
    pub(super) fn with<const N: usize, T>(
        object: &[u8],
        facts: &[u32; N],
        beside: impl FnOnce(&Ebpf) -> Result<T, Obstacle>,
    ) -> Result<(Self, T), Obstacle>
    where
        [u32; N]: Pod,
    {
        if object.is_empty() {
            return Err(Obstacle::NotBuilt);
        }
        let btf = Btf::from_sys_fs().map_err(|error| refused(&error))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).override_global("FACTS", facts, true);
        let voice = Wanted::now();
        voice.tell(&mut loader);
        let mut loaded = loader.load(object).map_err(|error| obstacle_of(&error))?;
        let made = beside(&loaded)?;
        let voice = voice.hear(&mut loaded).map_err(|error| refused(&error))?;
        Ok((Programs { loaded, btf, voice }, made))
    }

    /// Writes down what the programs have said since.
    pub(in crate::probes) fn write_down(&mut self) {
        if let Some(voice) = &mut self.voice {
            voice.write();
        }
    }

    /// The programs of an object, hung in the first of these ways that this kernel has and permits; and which one that is.
    /// Programs that it does not need are not loaded.
    ///
    /// # Errors
    /// What stands in the way; nothing is left in the kernel then.
    pub(in crate::probes) fn hung<const N: usize>(
        object: &[u8],
        facts: &[u32; N],
        kernel: &Kernel,
        ways: &'static [Way],
    ) -> Result<(Self, &'static Way), Obstacle>
    where
        [u32; N]: Pod,
    {
        first(&kernel.possible(ways)?, |way| {
            let mut programs = Self::new(object, facts)?;
            for (name, hook) in way.programs {
                let Self { loaded, btf, .. } = &mut programs;
                attach(loaded, btf, name, *hook).map_err(|error| obstacle_of(&error))?;
            }
            Ok((programs, way))
        })
    }

    /// Loads a program that is to hang in user space by perf events.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn load_user(&mut self, name: &str) -> Result<(), Obstacle> {
        let loaded = self.user(name).and_then(|program| Ok(program.load()?));
        loaded.map_err(|error| obstacle_of(&error))
    }

    /// Hangs a program that was loaded into a process.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn attach_user(
        &mut self,
        name: &str,
        file: MappedFile<'_>,
        place: Place,
    ) -> Result<UProbeLink, Obstacle> {
        let link = self.user(name).and_then(|program| Ok(file.attach(program, place)?));
        link.map_err(|error| obstacle_of(&error))
    }

    fn user(&mut self, name: &str) -> Result<&mut UProbe, EbpfError> {
        let program = self.loaded.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        Ok(program.try_into()?)
    }

    /// A map of the programs, taken out.
    ///
    /// # Errors
    /// There is none of this name and type.
    pub(in crate::probes) fn map<T>(
        &mut self,
        name: &str,
        typed: impl FnOnce(Map) -> Result<T, MapError>,
    ) -> Result<T, Obstacle> {
        let Some(map) = self.loaded.take_map(name) else {
            return Err(Obstacle::Refused { why: format!("the object has no map {name}") });
        };
        typed(map).map_err(|error| refused(&error))
    }
}

fn attach(loaded: &mut Ebpf, btf: &Btf, name: &str, hook: Hook) -> Result<(), EbpfError> {
    let program = loaded.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    match hook {
        Hook::Tracepoint(tracepoint) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(tracepoint, btf)?;
            program.attach()?;
        }
        Hook::Listed(group, tracepoint) => {
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            program.attach(group, tracepoint)?;
        }
        Hook::Entry(function) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(function.name, btf)?;
            program.attach()?;
        }
        Hook::Return(function) => {
            let program: &mut FExit = program.try_into()?;
            program.load(function.name, btf)?;
            program.attach()?;
        }
    }
    Ok(())
}

/// What an error of aya says, judged by what we may do.
fn obstacle_of(error: &EbpfError) -> Obstacle {
    match io_error(error) {
        // The verifier says "not permitted", too, but also why.
        _ if has_verdict(error) => refused(error),
        Some(error) if error.kind() == io::ErrorKind::PermissionDenied => explain(&Rights::own()),
        _ => refused(error),
    }
}

fn has_verdict(error: &EbpfError) -> bool {
    let EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. }) = error else {
        return false;
    };
    !verifier_log.to_string().trim().is_empty()
}

/// The error of the system call at the bottom of the chain.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        match error.downcast_ref::<SyscallError>() {
            Some(SyscallError { io_error, .. }) => return Some(io_error),
            None => cause = error.source(),
        }
    }
    None
}

/// The whole chain in one line.
pub(super) fn refused(error: &dyn std::error::Error) -> Obstacle {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        why.push_str(": ");
        why.push_str(&error.to_string());
        cause = error.source();
    }
    // The verifier's last words tell why; what it said of each instruction does not fit into a line.
    let mut lines = why.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    let why = match lines.rev().nth(1) {
        Some(last) => format!("{first} … {last}"),
        None => first,
    };
    Obstacle::Refused { why }
}
