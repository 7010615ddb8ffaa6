//! Calls into the GPU's driver: ioctls on the files of its devices.

use crate::record::record;

/// A call that takes longer than this is told as one of its own, besides being counted: 20 us, in nanoseconds.
pub const TOLD_FROM: u64 = 20_000;

/// The major number of devices that have none: files that are named in the configuration. The kernel's own majors of
/// character devices end at 511.
pub const NAMED: u32 = 0xfff;

/// What a file is when it is a character device, in the bits of its mode that [`FILE_TYPE`] leaves.
pub const CHARACTER_DEVICE: u16 = 0o020_000;
/// The bits of a mode that say what a file is.
pub const FILE_TYPE: u16 = 0o170_000;

/// One number of the table that the programs are loaded with. Offsets are in bytes from the start of the structure, and
/// come from the kernel's own type information (BTF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DriverFact {
    /// `task_struct.nsproxy`: the namespaces of a task.
    Namespaces,
    /// `nsproxy.net_ns`: its network namespace.
    NetworkNamespace,
    /// `net.ns.inum`: the number of a network namespace.
    NamespaceNumber,
    /// `task_struct.files`: its open files.
    Files,
    /// `files_struct.fdt`: their table.
    Table,
    /// `fdtable.max_fds`: the places of a table.
    Places,
    /// `fdtable.fd`: the first place.
    First,
    /// `file.f_inode`.
    Inode,
    /// `inode.i_mode`.
    Mode,
    /// `inode.i_rdev`: the number of a device.
    Device,
    /// `inode.i_ino`: the number of a file.
    Number,
    /// `inode.i_sb`: the file system of a file.
    FileSystem,
    /// `super_block.s_dev`: the number of a file system.
    FileSystemDevice,
    /// `pt_regs`: the number of the system call.
    Call,
    /// `pt_regs`: its first argument.
    FirstArgument,
    /// `pt_regs`: its second argument.
    SecondArgument,
    /// No offset but the number of the system call ioctl.
    Ioctl,
    /// No offset but the number of the proxy's network namespace.
    OwnNamespace,
    /// No offset but 1 when single files and devices are looked for, beside all of a driver; else 0.
    Named,
}

impl DriverFact {
    /// How many there are.
    pub const COUNT: usize = Self::Named as usize + 1;
}

record! {
    /// What is looked for, as the map of devices has it.
    Place {
        /// Of a file: the device of its file system, as the kernel numbers it. Else see [`Place::driver`] and
        /// [`Place::device`].
        device,
        /// Of a file: its number. Else zero, which no file has.
        inode,
    }
}

impl Place {
    /// Every character device with this major number.
    #[inline(always)]
    #[must_use]
    pub const fn driver(major: u32) -> Self {
        Place { device: 1 << 32 | major as u64, inode: 0 }
    }

    /// The character device of this number.
    #[inline(always)]
    #[must_use]
    pub const fn device(device: u32) -> Self {
        Place { device: device as u64, inode: 0 }
    }

    /// A file.
    #[inline(always)]
    #[must_use]
    pub const fn file(file_system: u32, inode: u64) -> Self {
        Place { device: file_system as u64, inode }
    }
}

/// The number of a device as the kernel has it: twelve bits of major number above twenty of minor.
#[inline(always)]
#[must_use]
pub const fn device(major: u32, minor: u32) -> u32 {
    major << 20 | (minor & 0xf_ffff)
}

/// The major number of a device.
#[inline(always)]
#[must_use]
pub const fn major(device: u32) -> u32 {
    device >> 20
}

/// The minor number of a device.
#[inline(always)]
#[must_use]
pub const fn minor(device: u32) -> u32 {
    device & 0xf_ffff
}

/// What was called, in one word: the device above the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct What {
    /// The device's number, see [`device`]; of a named file: [`NAMED`] and its place in the list.
    pub device: u32,
    /// The command, as ioctl was given it.
    pub command: u32,
}

impl What {
    /// Both in one word.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.device as u64) << 32 | self.command as u64
    }

    /// Both out of one word.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        What { device: (word >> 32) as u32, command: word as u32 }
    }
}

record! {
    /// A call that has not returned.
    Flight {
        /// When it began, in nanoseconds of CLOCK_MONOTONIC.
        start,
        /// A [`What`].
        what,
    }
}

/// What there was no room for: the places of the array that the programs count it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DriverLoss {
    /// Calls that are not counted, for too many commands were seen.
    Counts,
    /// Calls that were not seen at all, for too many were under way.
    Flights,
    /// Calls that are counted but not told as ones of their own.
    Calls,
}

impl DriverLoss {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Counts, Self::Flights, Self::Calls];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were() {
        let number = device(226, 128);
        assert_eq!((number, major(number), minor(number)), (0x0e20_0080, 226, 128));
        let what = What { device: device(NAMED, 7), command: 0xc020_462a };
        assert_eq!(What::from_word(what.to_word()), what);
        assert_eq!(major(what.device), NAMED);
    }

    #[test]
    fn no_place_is_anothers() {
        let same = 0x0c30_0000;
        let places = [
            Place::driver(195),
            Place::device(195),
            Place::file(195, 1),
            Place::driver(same),
            Place::device(same),
            Place::file(same, 1),
        ];
        for (at, place) in places.iter().enumerate() {
            assert!(!places[..at].contains(place), "{place:?}");
        }
    }
}
