//! Which devices are looked for, and what they are called.
//!
//! Decides: a driver that is known is found by its name in /proc/devices, whatever number it has got, and all its devices
//! are looked for, also those that appear later. Files that the configuration names come beside them. A driver may be
//! loaded when the proxy runs already, so all is looked up again every so often; what a device was called is kept, for what
//! was counted outlives it.
//!
//! Left out: what a device is called in other file systems. The name is made of driver and number, as the drivers do it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use outrigger_probes::{NAMED, Place, device, major, minor};

use super::commands::Interface;

/// The devices that are looked for.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By major number, with those that are gone.
    drivers: BTreeMap<u32, Driver>,
    named: Vec<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Driver {
    /// As in /proc/devices.
    name: String,
    interface: Interface,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    interface: Interface,
    found: Option<Place>,
    /// It is no device. Looking it up again may wait for whoever serves it.
    is_settled: bool,
}

impl Devices {
    /// Those of known drivers, and these files.
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let named = |path: &PathBuf| {
            let interface = guess(path);
            Named { path: path.clone(), interface, found: None, is_settled: false }
        };
        Devices { drivers: BTreeMap::new(), named: paths.iter().map(named).collect() }
    }

    /// Looks them up: the places to look for now, and the number that each goes by.
    pub(super) fn look(&mut self) -> BTreeMap<(u64, u64), u64> {
        let listed = fs::read_to_string("/proc/devices").unwrap_or_default();
        for named in self.named.iter_mut().filter(|named| !named.is_settled) {
            named.look();
        }
        self.places(&listed)
    }

    fn places(&mut self, listed: &str) -> BTreeMap<(u64, u64), u64> {
        let drivers = known(listed);
        let majors = drivers.keys().map(|major| (Place::driver(*major), 0));
        let named = (0..).zip(&self.named);
        let named = named.filter_map(|(at, named)| Some((named.found?, device(NAMED, at).into())));
        let all = majors.chain(named).map(|(place, name)| ((place.device, place.inode), name));
        let all = all.collect();
        self.drivers.extend(drivers);
        all
    }

    /// What is found, in words.
    pub(super) fn found(&self) -> String {
        let mut names: Vec<_> = self.drivers.values().map(|driver| driver.name.clone()).collect();
        let named = self.named.iter().filter(|named| named.found.is_some());
        names.extend(named.map(|named| named.path.display().to_string()));
        names.dedup();
        if names.is_empty() { "no GPU driver is here yet".to_owned() } else { names.join(", ") }
    }

    /// What a device is called, and whose commands it has.
    pub(super) fn name(&self, device: u32) -> (String, Interface) {
        let (major, minor) = (major(device), minor(device));
        if major == NAMED {
            let named = usize::try_from(minor).ok().and_then(|at| self.named.get(at));
            return named
                .map_or_else(unknown, |named| (named.path.display().to_string(), named.interface));
        }
        self.drivers.get(&major).map_or_else(unknown, |driver| {
            let is_amd = driver.interface == Interface::Drm && is_amdgpu(major, minor);
            let interface = if is_amd { Interface::Amdgpu } else { driver.interface };
            (driver.file(minor), interface)
        })
    }
}

fn unknown() -> (String, Interface) {
    ("unknown".to_owned(), Interface::Unknown)
}

/// Whether the device belongs to that driver; others use its numbers for other commands.
fn is_amdgpu(major: u32, minor: u32) -> bool {
    let link = fs::read_link(format!("/sys/dev/char/{major}:{minor}/device/driver"));
    link.is_ok_and(|driver| driver.ends_with("amdgpu"))
}

impl Driver {
    /// What its device of this number is called under /dev.
    fn file(&self, minor: u32) -> String {
        match (&*self.name, minor) {
            ("nvidia" | "nvidia-frontend" | "nvidiactl", 255) => "nvidiactl".to_owned(),
            ("nvidia" | "nvidia-frontend" | "nvidiactl", 254) => "nvidia-modeset".to_owned(),
            ("nvidia" | "nvidia-frontend" | "nvidiactl", minor) => format!("nvidia{minor}"),
            ("nvidia-uvm", 1) => "nvidia-uvm-tools".to_owned(),
            ("drm", 0..64) => format!("card{minor}"),
            ("drm", 128..192) => format!("renderD{minor}"),
            ("drm" | "accel", minor) => format!("{}{minor}", self.name),
            (name, _) => name.to_owned(),
        }
    }
}

impl Named {
    fn look(&mut self) {
        let Ok(file) = fs::metadata(&self.path) else {
            self.found = None;
            return;
        };
        if file.file_type().is_char_device() {
            self.found = Some(Place::device(number(file.rdev())));
        } else {
            self.found = Some(Place::file(number(file.dev()), file.ino()));
            self.is_settled = true;
        }
    }
}

/// The number of a device as the kernel has it, of the number that it tells: twelve bits of major number, with eight bits
/// of minor number below and the other twelve above.
fn number(told: u64) -> u32 {
    let low = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
    let (major, minor) = (low(told >> 8 & 0xfff), low((told & 0xff) | (told >> 12 & 0xf_ff00)));
    device(major, minor)
}

/// Whose commands a file is likely to have, by what it is called.
fn guess(path: &Path) -> Interface {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let numbered = |prefix: &str| {
        let number = name.strip_prefix(prefix)?;
        number.bytes().all(|digit| digit.is_ascii_digit()).then_some(())
    };
    match name {
        "nvidia-uvm" => Interface::Uvm,
        "nvidiactl" => Interface::Rm,
        "kfd" => Interface::Kfd,
        _ if numbered("nvidia").is_some() => Interface::Rm,
        _ if numbered("card").or(numbered("renderD")).is_some() => Interface::Drm,
        _ => Interface::Unknown,
    }
}

/// The drivers that are known, by the major numbers of their character devices in the text of /proc/devices.
fn known(listed: &str) -> BTreeMap<u32, Driver> {
    let lines = listed.lines().skip_while(|line| *line != "Character devices:").skip(1);
    let mut found = BTreeMap::new();
    for line in lines.take_while(|line| !line.trim().is_empty()) {
        let Some((major, name)) = line.trim().split_once(' ') else { continue };
        let (Ok(major), Some(interface)) = (major.parse(), interface(name)) else { continue };
        // Several may share a number: the first has told what it is.
        found.entry(major).or_insert_with(|| Driver { name: name.to_owned(), interface });
    }
    found
}

/// Whose commands a driver has, if it is one of a GPU.
fn interface(driver: &str) -> Option<Interface> {
    Some(match driver {
        "nvidia" | "nvidia-frontend" | "nvidiactl" => Interface::Rm,
        "nvidia-uvm" => Interface::Uvm,
        "drm" | "accel" => Interface::Drm,
        "kfd" => Interface::Kfd,
        // Switches, capabilities, screens.
        _ if driver.starts_with("nvidia") => Interface::Unknown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n226 drm\n\
                          238 kfd\n506 nvidia-caps\n510 nvidia-uvm\n\nBlock devices:\n259 nvidia\n";

    fn listed() -> Devices {
        let mut devices = Devices::new(&["/dev/odd".into(), "/x/nvidia3".into()]);
        devices.named[1].found = Some(Place::file(5, 7));
        devices.places(LISTED);
        devices
    }

    #[test]
    fn drivers_are_found_by_their_names() {
        let places = listed().places(LISTED);
        let mut wanted: BTreeMap<_, _> = [195, 226, 238, 506, 510]
            .map(|major| ((Place::driver(major).device, 0), 0))
            .into_iter()
            .collect();
        wanted.insert((5, 7), device(NAMED, 1).into());
        assert_eq!(places, wanted, "no block device, and no file that is not there");
        assert_eq!(known("nonsense\n\n1"), BTreeMap::new());
        assert_eq!(known("Character devices:\nx nvidia\n 195\n99999999999 kfd"), BTreeMap::new());
    }

    #[test]
    fn devices_are_called_as_their_drivers_call_them() {
        let devices = listed();
        let named = [
            (device(195, 0), "nvidia0", Interface::Rm),
            (device(195, 255), "nvidiactl", Interface::Rm),
            (device(510, 0), "nvidia-uvm", Interface::Uvm),
            (device(510, 1), "nvidia-uvm-tools", Interface::Uvm),
            (device(506, 2), "nvidia-caps", Interface::Unknown),
            (device(238, 0), "kfd", Interface::Kfd),
            (device(NAMED, 0), "/dev/odd", Interface::Unknown),
            (device(NAMED, 1), "/x/nvidia3", Interface::Rm),
            (device(NAMED, 2), "unknown", Interface::Unknown),
            (device(9, 9), "unknown", Interface::Unknown),
        ];
        for (device, name, interface) in named {
            assert_eq!(devices.name(device), (name.to_owned(), interface));
        }
        // Whose commands these have depends on the machine.
        let drawn = [
            (0, "card0"),
            (63, "card63"),
            (128, "renderD128"),
            (191, "renderD191"),
            (192, "drm192"),
        ];
        for (minor, name) in drawn {
            assert_eq!(devices.name(device(226, minor)).0, name);
        }
        assert_eq!(devices.found(), "nvidia, drm, kfd, nvidia-caps, nvidia-uvm, /x/nvidia3");
    }

    #[test]
    fn what_is_gone_keeps_its_name_and_is_not_looked_for() {
        let mut devices = listed();
        assert_eq!(devices.places("").len(), 1);
        assert_eq!(devices.name(device(238, 0)).0, "kfd");
    }

    #[test]
    fn numbers_of_devices_are_the_kernels() {
        // As makedev(3) of 226:128, 0:40, 511:1048575 has them.
        for (told, (major, minor)) in
            [(0xe280, (226, 128)), (0x28, (0, 40)), (0xfff1_ffff, (511, 0xf_ffff))]
        {
            assert_eq!(number(told), device(major, minor), "{told:#x}");
        }
    }

    #[test]
    fn files_are_looked_up_by_what_they_are() {
        let name = format!("outrigger-stand-in-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut devices = Devices::new(&["/dev/null".into(), path.clone()]);
        let (null, name) = (Place::device(device(1, 3)), u64::from(device(NAMED, 0)));
        assert_eq!(devices.look().get(&(null.device, null.inode)), Some(&name));
        assert_eq!(devices.named[1].found, None);
        fs::write(&path, "").expect("writable");
        let file = fs::metadata(&path).expect("it is there");
        let later = devices.look();
        fs::remove_file(&path).expect("ours");
        let name = u64::from(device(NAMED, 1));
        assert!(later.iter().any(|((_, inode), as_)| *inode == file.ino() && *as_ == name));
    }
}
