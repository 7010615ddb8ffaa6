//! Real Redis servers: single ones, with a password or TLS, and a cluster of three.
//!
//! Each server has a directory and a socket of the file system of its own, through which the test speaks to it whatever
//! else it listens on; nothing is left running. A server that is killed or restarted comes back at the same place. Redis
//! can not be told to take any free port, so ports are drawn below those that the kernel gives away, and others are tried
//! while one is taken.
//!
//! Debian's package `redis-tools` has the server as well, under the name of one of its tools: it looks at the name by which
//! it is called. So nothing need be installed that starts a service.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Process, fail, within};

/// What is said of a test that can not be run.
const MISSING: &str = "SKIPPED: there is no redis-server; `cargo xtask setup` installs it";

/// Drawn from: below the ports that the kernel gives to whoever asks for any, as are those 10,000 above, where the nodes
/// of a cluster listen for each other.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// How a server is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Who wants to be heard must say this.
    pub password: Option<&'static str>,
    /// It speaks TLS on its port, for 127.0.0.1, vouched for by an authority of its own.
    pub tls: bool,
    /// It listens on a port, not only on a socket of the file system.
    pub port: bool,
    /// What it holds survives its end.
    pub persistent: bool,
    /// It is a node of a cluster.
    pub cluster: bool,
}

/// A running server; dropping it kills it.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    setup: Setup,
    port: u16,
    directory: TempDir,
}

/// An answer of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A status such as OK.
    Status(String),
    /// A number.
    Number(i64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing.
    Nothing,
    /// Several.
    List(Vec<Reply>),
    /// It would not.
    Error(String),
}

impl Redis {
    /// One that listens on a socket of the file system and forgets; none, and a word about it, where there is no program
    /// for it.
    pub async fn start() -> Option<Self> {
        Self::with(Setup::default()).await
    }

    /// One that is set up so.
    ///
    /// # Panics
    /// When it does not start.
    #[expect(clippy::print_stderr, reason = "a test that did nothing must say so")]
    pub async fn with(setup: Setup) -> Option<Self> {
        if program().is_none() {
            eprintln!("{MISSING}");
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        if setup.tls {
            write_certificates(directory.path());
        }
        for _ in 0..50 {
            let port = if setup.port || setup.tls || setup.cluster { draw() } else { 0 };
            if let Some(process) = run(setup, port, directory.path()).await {
                return Some(Redis { process, setup, port, directory });
            }
        }
        fail("no port was free for redis-server in 50 attempts")
    }

    /// What the proxy is given to find it, without a password.
    pub fn url(&self) -> String {
        match self.setup {
            Setup { tls: true, .. } => format!("rediss://127.0.0.1:{}", self.port),
            _ if self.port != 0 => format!("redis://127.0.0.1:{}", self.port),
            _ => format!("unix://{}", socket(self.directory.path()).display()),
        }
    }

    /// Its password.
    pub fn password(&self) -> Option<&'static str> {
        self.setup.password
    }

    /// The certificate of who vouches for it.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Stops it as it is: it hears, and does nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Ends it without warning.
    pub async fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
        within("the end of redis-server", self.process.exited()).await;
    }

    /// Starts it again where it was, after it has been killed.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn revive(&mut self) {
        match run(self.setup, self.port, self.directory.path()).await {
            Some(process) => self.process = process,
            None => fail("somebody has taken the port of a redis-server that was away"),
        }
    }

    /// Says something and gives the answer.
    ///
    /// # Panics
    /// When there is none.
    pub async fn ask<const N: usize>(&self, words: [&[u8]; N]) -> Reply {
        let talk = async {
            let stream = UnixStream::connect(socket(self.directory.path())).await?;
            let mut stream = BufReader::new(stream);
            if let Some(password) = self.setup.password {
                say(&mut stream, &[b"AUTH", password.as_bytes()]).await?;
            }
            say(&mut stream, &words).await
        };
        match within("an answer of redis-server", talk).await {
            Ok(reply) => reply,
            Err(error) => self.process.fail(&format!("redis-server does not answer: {error}")),
        }
    }

    /// Waits until nothing stands under a key.
    pub async fn await_gone(&self, key: &[u8]) {
        let gone = async {
            // Redis tells nobody.
            let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
            while self.ask([b"EXISTS", key]).await != Reply::Number(0) {
                pause.tick().await;
            }
        };
        within("the end of a value", gone).await;
    }

    /// The names of all values.
    pub async fn keys(&self) -> Vec<String> {
        let Reply::List(keys) = self.ask([b"KEYS", b"*"]).await else { fail("no list of keys") };
        let text = |key| match key {
            Reply::Bytes(bytes) => String::from_utf8(bytes).ok(),
            _ => None,
        };
        keys.into_iter().filter_map(text).collect()
    }

    /// The names of all stored answers.
    pub async fn answers(&self) -> Vec<String> {
        let mut keys = self.keys().await;
        keys.retain(|key| key.rsplit(':').next().is_some_and(|end| end.len() == 64));
        keys
    }
}

/// Three servers that share the keys among them.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// A cluster in which every slot has its node.
    ///
    /// # Panics
    /// When it does not come together.
    pub async fn start() -> Option<Self> {
        let setup = Setup { port: true, cluster: true, ..Setup::default() };
        let mut nodes = Vec::new();
        for slots in [(0, 5460), (5461, 10_922), (10_923, 16_383)] {
            let node = Redis::with(setup).await?;
            let (first, last) = (slots.0.to_string(), slots.1.to_string());
            let epoch = (nodes.len() + 1).to_string();
            let said = [
                node.ask([b"CLUSTER", b"ADDSLOTSRANGE", first.as_bytes(), last.as_bytes()]).await,
                node.ask([b"CLUSTER", b"SET-CONFIG-EPOCH", epoch.as_bytes()]).await,
            ];
            assert_eq!(said, [(); 2].map(|()| Reply::Status("OK".to_owned())));
            nodes.push(node);
        }
        for other in &nodes[1..] {
            let port = other.port.to_string();
            nodes[0].ask([b"CLUSTER", b"MEET", b"127.0.0.1", port.as_bytes()]).await;
        }
        let cluster = RedisCluster { nodes };
        within("a cluster that is whole", cluster.is_whole()).await;
        Some(cluster)
    }

    /// Redis tells nobody when that is so; it is asked.
    async fn is_whole(&self) {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
        for node in &self.nodes {
            loop {
                pause.tick().await;
                let told = node.ask([b"CLUSTER", b"INFO"]).await;
                let whole = ["cluster_state:ok", "cluster_known_nodes:3", "cluster_slots_ok:16384"];
                let Reply::Bytes(told) = told else { continue };
                let told = String::from_utf8_lossy(&told).into_owned();
                if whole.iter().all(|line| told.contains(line)) {
                    break;
                }
            }
        }
    }
}

/// `redis-server`, or the tool that is the same program.
fn program() -> Option<PathBuf> {
    let found = |name: &str| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    found("redis-server").or_else(|| found("redis-check-rdb"))
}

fn draw() -> u16 {
    // A map with random keys is the randomness that the standard library has.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let width = u64::from(PORTS.end - PORTS.start);
    PORTS.start + u16::try_from(random % width).unwrap_or(0)
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("redis.sock")
}

/// Runs it until it is ready; none when its port is taken.
async fn run(setup: Setup, port: u16, directory: &Path) -> Option<Process> {
    let mut command = Command::new(program()?);
    command.arg0("redis-server").current_dir(directory);
    for (name, value) in arguments(setup, port, directory) {
        command.arg(format!("--{name}")).arg(value);
    }
    let process = Process::spawn(&mut command);
    let ready = |lines: &[String]| {
        let says = |words: &str| lines.iter().any(|line| line.contains(words));
        if says("ready to accept connections at") {
            return Some(true);
        }
        says("already in use").then_some(false)
    };
    match process.await_lines(ready).await {
        Some(true) => Some(process),
        Some(false) => None,
        None => process.fail("redis-server does not start"),
    }
}

fn arguments(setup: Setup, port: u16, directory: &Path) -> Vec<(&'static str, String)> {
    let mut arguments = vec![
        ("bind", "127.0.0.1".to_owned()),
        ("dir", directory.display().to_string()),
        ("unixsocket", socket(directory).display().to_string()),
        ("save", String::new()),
        ("appendonly", if setup.persistent { "yes" } else { "no" }.to_owned()),
        // What was answered is on the disk.
        ("appendfsync", "always".to_owned()),
        ("port", if setup.tls { 0 } else { port }.to_string()),
    ];
    if setup.tls {
        let file = |name: &str| directory.join(name).display().to_string();
        arguments.extend([
            ("tls-port", port.to_string()),
            ("tls-cert-file", file("server.pem")),
            ("tls-key-file", file("server.key")),
            ("tls-ca-cert-file", file("ca.pem")),
            ("tls-auth-clients", "no".to_owned()),
        ]);
    }
    if let Some(password) = setup.password {
        arguments.push(("requirepass", password.to_owned()));
    }
    if setup.cluster {
        arguments.push(("cluster-enabled", "yes".to_owned()));
    }
    arguments
}

/// An authority, and a certificate of its for 127.0.0.1.
fn write_certificates(directory: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let key = || KeyPair::generate().expect("a key can be made");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no name is a bad one");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "an authority of a test");
    let authority_key = key();
    let authority = params.self_signed(&authority_key).expect("an authority vouches for itself");
    let issuer = Issuer::new(params, authority_key);
    let names = ["127.0.0.1".to_owned()];
    let server = CertificateParams::new(names).expect("an address is a good name");
    let server_key = key();
    let certificate = server.signed_by(&server_key, &issuer).expect("the authority signs");
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("server.pem", certificate.pem()),
        ("server.key", server_key.serialize_pem()),
    ] {
        std::fs::write(directory.join(name), text).expect("the directory is writable");
    }
}

/// Sends words as a list of texts and reads the answer.
async fn say(stream: &mut BufReader<UnixStream>, words: &[&[u8]]) -> std::io::Result<Reply> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    stream.write_all(&out).await?;
    hear(stream).await
}

async fn hear(stream: &mut BufReader<UnixStream>) -> std::io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let text = line.trim_end().to_owned();
    let (kind, text) = text.split_at_checked(1).unwrap_or(("", ""));
    let count = || text.parse::<i64>().unwrap_or(-1);
    Ok(match kind {
        "+" => Reply::Status(text.to_owned()),
        ":" => Reply::Number(count()),
        "-" => Reply::Error(text.to_owned()),
        "$" if count() < 0 => Reply::Nothing,
        "$" => {
            let mut bytes = vec![0; usize::try_from(count()).unwrap_or(0) + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(bytes.len() - 2);
            Reply::Bytes(bytes)
        }
        "*" => {
            let mut list = Vec::new();
            for _ in 0..count() {
                list.push(Box::pin(hear(stream)).await?);
            }
            Reply::List(list)
        }
        _ => fail(&format!("redis-server said {line:?}")),
    })
}
