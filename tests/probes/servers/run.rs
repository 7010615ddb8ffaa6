//! Starts the servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::harness::Process;
use tempfile::TempDir;
use tokio::sync::RwLockReadGuard;

use crate::{PROCESSORS, not_tested};

/// A server; dropping it ends it.
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
    /// What it serves or was built in.
    _folder: Option<TempDir>,
    _processors: RwLockReadGuard<'static, ()>,
}

/// The two ways in which uvicorn is run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flavour {
    /// uvloop and httptools
    Uvloop,
    /// asyncio and h11
    Asyncio,
}

/// Both.
pub(super) const FLAVOURS: [Flavour; 2] = [Flavour::Uvloop, Flavour::Asyncio];

impl Flavour {
    pub(super) fn name(self) -> &'static str {
        match self {
            Flavour::Uvloop => "uvicorn (uvloop, httptools)",
            Flavour::Asyncio => "uvicorn (asyncio, h11)",
        }
    }
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("probes/servers").join(name)
}

fn missing(what: &str) {
    not_tested(&format!("there is no {what}; `cargo xtask setup` installs it"));
}

/// The first of these that is a file.
fn first(candidates: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    candidates.into_iter().find(|path| path.is_file())
}

/// In TARGET, where `cargo xtask setup` puts things.
fn installed(path: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    // TARGET/PROFILE/deps/this
    Some(program.ancestors().nth(3)?.join(path))
}

/// Everywhere in PATH where it could be.
fn in_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).collect()
}

/// uvicorn at an address of this machine; none, said aloud, when its packages are not there.
pub(super) async fn uvicorn(flavour: Flavour, at: IpAddr) -> Option<Server> {
    let told = std::env::var_os("OUTRIGGER_PYTHON").map(PathBuf::from);
    let python = first(told.into_iter().chain(installed("clients/bin/python3")));
    let has_packages = |python: &PathBuf| {
        let packages = "import uvicorn, uvloop, httptools, h11";
        Command::new(python).args(["-c", packages]).output().is_ok_and(|it| it.status.success())
    };
    let Some(python) = python.filter(has_packages) else {
        missing(flavour.name());
        return None;
    };
    let word = match flavour {
        Flavour::Uvloop => "uvloop",
        Flavour::Asyncio => "asyncio",
    };
    let mut command = Command::new(python);
    command.arg(source("asgi.py")).arg(word).arg(at.to_string());
    Some(listening(Process::spawn(&mut command), at).await)
}

/// uvicorn at 127.0.0.1.
pub(super) async fn uvicorn_here(flavour: Flavour) -> Option<Server> {
    uvicorn(flavour, LOCAL).await
}

/// Python's `http.server` with threads, and connections that are kept.
pub(super) async fn http_server(at: IpAddr) -> Server {
    let mut command = Command::new("python3");
    command.arg(source("threaded.py")).arg(at.to_string());
    listening(Process::spawn(&mut command), at).await
}

/// The server of `ring.c`; none, said aloud, where it cannot be compiled or the kernel gives it no ring.
pub(super) async fn io_uring() -> Option<Server> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let program = folder.path().join("ring");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-o"]).arg(&program).arg(source("ring.c"));
    let Some(compiled) = cc.output().ok() else {
        missing("cc");
        return None;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let process = Process::spawn(&mut Command::new(&program));
    let told = process.await_lines(|lines| lines.first().cloned()).await.expect("a word");
    if told.starts_with("REFUSED") {
        not_tested(&format!("no io_uring here: {told}"));
        return None;
    }
    let server = listening(process, LOCAL).await;
    Some(Server { _folder: Some(folder), ..server })
}

/// Waits until it says on which port it listens.
async fn listening(process: Process, at: IpAddr) -> Server {
    let line = process.await_log("LISTENING").await;
    let port = line.split(' ').nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let _processors = PROCESSORS.read().await;
    Server { process, address: SocketAddr::new(at, port), _folder: None, _processors }
}

/// The files that nginx serves: a name, and how many bytes; each ends with [`END`].
pub(super) const FILES: [(&str, usize); 2] = [("small", 1000), ("large", 10 << 20)];

/// The last bytes of each file.
pub(super) const END: &[u8] = b"~the end~\n";

/// nginx with [`FILES`]; none, said aloud, where it is not.
pub(super) async fn nginx() -> Option<Server> {
    let candidates = installed("nginx/usr/sbin/nginx").into_iter().chain(in_path("nginx"));
    let Some(program) = first(candidates.chain(["/usr/sbin/nginx".into()])) else {
        missing("nginx");
        return None;
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (name, size) in FILES {
        let body = [&vec![b'x'; size - END.len()], END].concat();
        std::fs::write(folder.path().join(name), body).expect("the directory is writable");
    }
    // It cannot be told to take any free port; another may take the one that was free.
    let mut tries = 0..50;
    loop {
        let address = free_port();
        if let Some(process) = start_nginx(&program, folder.path(), address).await {
            let _processors = PROCESSORS.read().await;
            return Some(Server { process, address, _folder: Some(folder), _processors });
        }
        assert!(tries.next().is_some(), "nginx found no port");
    }
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((LOCAL, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

/// None when its port is taken.
async fn start_nginx(program: &Path, folder: &Path, address: SocketAddr) -> Option<Process> {
    let at = folder.display();
    // As it is installed, but for what would be written elsewhere and connections that last.
    let config = format!(
        "daemon off; master_process off; pid {at}/pid;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
         client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;\n\
         uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
         server {{ listen {address}; root {at}; }} }}\n"
    );
    std::fs::write(folder.join("nginx.conf"), config).expect("the directory is writable");
    let mut command = Command::new(program);
    command.args(["-e", "stderr", "-g", "error_log stderr notice;", "-p"]).arg(folder);
    let process = Process::spawn(command.arg("-c").arg(folder.join("nginx.conf")));
    let ready = |lines: &[String]| {
        let says = |words: &str| lines.iter().any(|line| line.contains(words));
        // It says so when it listens.
        let listens = says("getrlimit(RLIMIT_NOFILE)").then_some(true);
        listens.or_else(|| says("Address already in use").then_some(false))
    };
    match process.await_lines(ready).await {
        Some(true) => Some(process),
        Some(false) => None,
        None => process.fail("nginx does not start"),
    }
}
