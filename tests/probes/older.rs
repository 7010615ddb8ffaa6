//! The probes in kernels that are older than this one, which their programs see by other means: those of Debian 11 and 12, in
//! an emulated machine.
//!
//! The machine has no disk: everything that it needs, these tests among it, is in the archive that its kernel unpacks into
//! memory. What it then runs is `steps.rs`. It is slow, so that no time is told of here; that it is right is. Any other kernel with BTF, and a serial console and an archive in memory built in, can be tried:
//! `OUTRIGGER_KERNEL=FILE cargo test --profile fast --workspace --test probes -- --ignored --nocapture another_kernel`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outrigger_tests::harness::{Process, program};
use tempfile::TempDir;

use crate::{PROCESSORS, not_tested};

/// How long a machine may take: 25 s of a processor, of which others may want the most.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the machine runs.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin OUTRIGGER_BIN=/outrigger OUTRIGGER_PROBES_REQUIRED=1 RUST_BACKTRACE=1
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
ip link set lo up
uname -r
for module in drm drm_shmem_helper vgem; do
    [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko
done
mount -t tracefs none /sys/kernel/tracing
/probes --test-threads=1 --include-ignored $(cat /arguments)
echo ended with $?
poweroff -f
";

/// What is in the machine besides: its folders.
const FOLDERS: [&str; 7] = ["bin", "dev", "proc", "sys", "tmp", "lib64", "lib"];

/// The tests that need fences: a part of their names.
const VGEM: &str = "vgem::";

/// Where `cargo xtask setup` has put the emulator and the kernels.
fn place() -> PathBuf {
    let program = std::env::current_exe().expect("this test");
    // TARGET/PROFILE/deps/this
    program.ancestors().nth(3).expect("a target folder").join("older")
}

/// The only file of a folder whose name begins so.
fn file_of(folder: &Path, beginning: &str) -> Option<PathBuf> {
    let mut files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning))
    })
}

/// An archive in the only format that a kernel unpacks (`cpio`, "newc").
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let length = |bytes: usize| u32::try_from(bytes).expect("less than 4 GiB");
        let mut fields = [0; 13];
        fields[1] = mode;
        fields[4] = 1;
        fields[6] = length(content.len());
        fields[11] = length(name.len() + 1);
        self.0.extend(b"070701");
        self.0.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The libraries that a program needs, as it names them.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd is with every libc");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    told.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// The files of a folder.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten();
    files.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// The program of `fence.c`; none, which is said, where it cannot be compiled.
fn fence(folder: &Path) -> Option<PathBuf> {
    let program = folder.join("fence");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("probes/fence.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source);
    let Ok(compiled) = compiler.output() else {
        not_tested("there is no C compiler");
        return None;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(program)
}

/// All that the machine has: `modules` of its kernel and `more` programs among it.
fn archive(busybox: &Path, arguments: &str, modules: &[PathBuf], more: &[PathBuf]) -> Vec<u8> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    let this = std::env::current_exe().expect("this test");
    let mut files = BTreeMap::from([
        ("bin/busybox".to_owned(), busybox.to_owned()),
        ("outrigger".to_owned(), program()),
        ("probes".to_owned(), this.clone()),
    ]);
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    files.extend(modules.iter().map(|it| (format!("modules/{}", name(it)), it.clone())));
    files.extend(more.iter().map(|it| (name(it), it.clone())));
    let programs = [program(), this].into_iter().chain(more.to_vec());
    let needed = programs.flat_map(|it| libraries(&it)).collect::<Vec<_>>();
    files.extend(needed.iter().map(|path| (path.trim_start_matches('/').to_owned(), path.into())));
    let mut archive = Archive::default();
    let above = files.keys().flat_map(|name| Path::new(name).ancestors().skip(1));
    let mut folders: Vec<&Path> = above.chain(FOLDERS.map(Path::new)).collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
        archive.add(&folder.to_string_lossy(), FOLDER, &[]);
    }
    for (name, path) in &files {
        archive.add(name, PROGRAM, &std::fs::read(path).expect("a file of this machine"));
    }
    archive.add("init", PROGRAM, INIT.as_bytes());
    archive.add("arguments", PROGRAM, arguments.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    archive.0
}

/// The emulator, as it was unpacked or is installed.
fn emulator(folder: &Path) -> Command {
    let own = folder.join("qemu/usr/bin/qemu-system-x86_64");
    if !own.is_file() {
        return Command::new("qemu-system-x86_64");
    }
    let mut command = Command::new(own);
    let inside = |path: &str| folder.join("qemu").join(path).to_string_lossy().into_owned();
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(inside);
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command.args(["-L", &inside("usr/share/qemu"), "-L", &inside("usr/share/seabios")]);
    command
}

/// Runs a kernel with an archive; what it wrote. One processor, for other tests want one meanwhile.
async fn boot(folder: &Path, kernel: &Path, archive: &Path) -> Vec<String> {
    let mut command = emulator(folder);
    command.args(["-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", "1G"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
    command.args(["-no-reboot", "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    let machine = Process::spawn(&mut command);
    machine.wait_exit(PATIENCE).await;
    machine.log()
}

/// What was written in the machine with the kernel that this finds among what `cargo xtask setup` has put there; none, which
/// is said, when something is missing. `arguments` say which of the steps are tried.
async fn tried_in(
    kernel: impl Fn(&Path) -> Option<PathBuf>,
    arguments: &str,
) -> Option<Vec<String>> {
    let folder = place();
    let busybox = folder.join("busybox/bin/busybox");
    let runs = emulator(&folder).arg("--version").output().is_ok_and(|it| it.status.success());
    let Some(kernel) = kernel(&folder).filter(|_| runs && busybox.is_file()) else {
        not_tested("there is no emulator, or no older kernel; `cargo xtask setup` brings them");
        return None;
    };
    let scratch = TempDir::new().expect("a temporary directory");
    let file = scratch.path().join("archive");
    let modules = kernel.parent().map(|boot| files_of(&boot.with_file_name("modules")));
    let modules = modules.unwrap_or_default();
    let wants = arguments.contains(VGEM);
    if wants && modules.is_empty() {
        not_tested("the kernel is there without vgem; `cargo xtask setup` brings it");
    }
    let fence = if wants && !modules.is_empty() { fence(scratch.path()) } else { None };
    let arguments = if fence.is_some() { arguments } else { &arguments.replace(VGEM, "") };
    let more: Vec<PathBuf> = fence.into_iter().collect();
    std::fs::write(&file, archive(&busybox, arguments, &modules, &more)).expect("room for it");
    let _all = PROCESSORS.write().await;
    Some(boot(&folder, &kernel, &file).await)
}

/// What each of these kernels is called, and what its doctor says.
async fn is_seen_in(debian: &str, release: &str, arguments: &str, doctor: [&str; 2]) {
    let kernel = |folder: &Path| file_of(&folder.join(debian).join("boot"), "vmlinuz-");
    let Some(told) = tried_in(kernel, arguments).await else { return };
    let has = |what: &str| told.iter().any(|line| line.contains(what));
    assert!(told.iter().any(|line| line.starts_with(release)), "{told:#?}");
    assert!(has("test result: ok") && has("ended with 0"), "{told:#?}");
    assert!(doctor.iter().all(|said| has(said)), "{told:#?}");
}

const FUNCTIONS: &str = "reads and writes are seen by functions of TCP";

#[tokio::test]
async fn requests_are_seen_in_linux_5_10() {
    let doctor = [FUNCTIONS, "Linux 5.10 is older than 5.11"];
    is_seen_in("bullseye", "5.10.", "steps:: --skip device", doctor).await;
}

#[tokio::test]
async fn requests_calls_of_the_driver_and_fences_are_seen_in_linux_6_1() {
    let doctor = [FUNCTIONS, "by the function of ioctl"];
    is_seen_in("bookworm", "6.1.", "steps:: vgem::", doctor).await;
}

#[tokio::test]
#[ignore = "a kernel has to be given"]
async fn another_kernel() {
    let given = |_: &Path| std::env::var_os("OUTRIGGER_KERNEL").map(PathBuf::from);
    let told = tried_in(given, "steps::").await.unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "{}", told.join("\n"));
}
