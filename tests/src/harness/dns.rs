//! A DNS server that says what a test tells it to, over UDP and TCP on one port of 127.0.0.1.
//!
//! Decides: a name that nobody set does not exist; a name that has records of another kind only has none of that kind.
//! Every question is remembered, with its time, so that a test can say when something was asked and when it was not.
//! Leaves out: zones, recursion, everything else that a real server does.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::within;

/// The kind of a record.
pub use hickory_proto::rr::RecordType;

/// A running DNS server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Zone>,
    _tasks: JoinSet<()>,
}

/// What is said to questions about a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// These records, for `ttl` seconds.
    Records {
        /// Of any kinds.
        records: Vec<RData>,
        /// Of each of them.
        ttl: u32,
    },
    /// There is no such name, for so many seconds (the minimum of the SOA).
    NoSuchName(u32),
    /// The server has failed.
    Failure,
    /// Nothing.
    Silence,
}

/// A question that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In lower case, without the closing dot.
    pub name: String,
    /// What for.
    pub kind: RecordType,
    /// Whether it came over TCP.
    pub tcp: bool,
    /// When.
    pub at: Instant,
}

impl Says {
    /// The name has these addresses, for `ttl` seconds.
    ///
    /// # Panics
    /// When one is none.
    pub fn addresses(addresses: &[&str], ttl: u32) -> Self {
        let record = |address: &&str| match address.parse().expect("an address") {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        };
        Self::Records { records: addresses.iter().map(record).collect(), ttl }
    }

    /// The service is at these targets, for `ttl` seconds; each is priority, weight, port and name.
    pub fn services(targets: &[(u16, u16, u16, &str)], ttl: u32) -> Self {
        let record = |&(priority, weight, port, target): &(u16, u16, u16, &str)| {
            RData::SRV(SRV::new(priority, weight, port, whole(target)))
        };
        Self::Records { records: targets.iter().map(record).collect(), ttl }
    }

    /// The name is another one's, for `ttl` seconds.
    pub fn alias(target: &str, ttl: u32) -> Self {
        Self::Records { records: vec![RData::CNAME(CNAME(whole(target)))], ttl }
    }
}

impl DnsServer {
    /// Starts one that knows no name.
    ///
    /// # Panics
    /// When there is no port that is free for both UDP and TCP.
    pub async fn start() -> Self {
        let (udp, tcp) = sockets().await.expect("a port that is free for UDP and TCP");
        let address = tcp.local_addr().expect("a bound socket has an address");
        let zone = Arc::new(Zone { state: Mutex::default(), asked: watch::Sender::new(0) });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&zone)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&zone)));
        Self { address, zone, _tasks: tasks }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The part of a configuration that has it asked.
    pub fn yaml(&self) -> String {
        format!("dns: {{ servers: ['{}'] }}\n", self.address)
    }

    /// Says this to every question about `name` from now on.
    pub fn set(&self, name: &str, says: Says) {
        let mut state = self.zone.state();
        state.says.retain(|(known, _), _| known != name);
        state.says.insert((name.to_owned(), None), says);
    }

    /// Says this to questions about `name` for records of this kind, whatever it says to others.
    pub fn set_kind(&self, name: &str, kind: RecordType, says: Says) {
        self.zone.state().says.insert((name.to_owned(), Some(kind)), says);
    }

    /// Answers over UDP have no room for records from now on: whoever asks has to ask again over TCP.
    pub fn truncate(&self) {
        self.zone.state().truncates = true;
    }

    /// What was asked about `name` for records of this kind, the oldest first.
    pub fn asked(&self, name: &str, kind: RecordType) -> Vec<Question> {
        let state = self.zone.state();
        let about = state.questions.iter().filter(|q| q.name == name && q.kind == kind);
        about.cloned().collect()
    }

    /// What was asked about `name` for records of this kind, as soon as that was asked `count` times.
    ///
    /// # Panics
    /// After 20 s.
    pub async fn await_asked(&self, name: &str, kind: RecordType, count: usize) -> Vec<Question> {
        let mut changes = self.zone.asked.subscribe();
        let what = format!("question {count} about {name} ({kind})");
        within(&what, async {
            loop {
                let asked = self.asked(name, kind);
                if asked.len() >= count {
                    return asked;
                }
                // The sender lives in the zone that `self` holds.
                let _ = changes.changed().await;
            }
        })
        .await
    }
}

#[derive(Debug)]
struct Zone {
    state: Mutex<State>,
    asked: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    says: HashMap<(String, Option<RecordType>), Says>,
    truncates: bool,
    questions: Vec<Question>,
}

impl Zone {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a message; none to one that is no question, or when silence is the answer.
    fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let (name, kind) = (plain(query.name()), query.query_type());
        let (says, truncates) = {
            let mut state = self.state();
            state.questions.push(Question { name: name.clone(), kind, tcp, at: Instant::now() });
            self.asked.send_replace(state.questions.len());
            let says = [Some(kind), None].map(|kind| state.says.get(&(name.clone(), kind)));
            let says = says.into_iter().flatten().next().cloned();
            (says.unwrap_or(Says::NoSuchName(1)), state.truncates && !tcp)
        };
        let mut answer = question;
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.recursion_available = true;
        answer.edns = None;
        fill(&mut answer, &query, says)?;
        if truncates {
            answer.answers.clear();
            answer.authorities.clear();
            answer.metadata.truncation = true;
        }
        answer.to_vec().ok()
    }
}

fn fill(answer: &mut Message, query: &Query, says: Says) -> Option<()> {
    let name = query.name();
    match says {
        Says::Silence => return None,
        Says::Failure => answer.metadata.response_code = ResponseCode::ServFail,
        Says::NoSuchName(minimum) => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(soa(name, minimum));
        }
        Says::Records { records, ttl } => {
            let fits = |data: &RData| {
                [query.query_type(), RecordType::CNAME].contains(&data.record_type())
            };
            let record = |data| Record::from_rdata(name.clone(), ttl, data);
            answer.add_answers(records.into_iter().filter(fits).map(record));
            if answer.answers.is_empty() {
                answer.add_authority(soa(name, ttl));
            }
        }
    }
    Some(())
}

/// The SOA of a zone whose denials are to be believed for `minimum` seconds.
fn soa(name: &Name, minimum: u32) -> Record {
    let zone = name.base_name();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86400, minimum);
    Record::from_rdata(zone, minimum, RData::SOA(soa))
}

fn whole(name: &str) -> Name {
    let mut name = Name::from_str_relaxed(name).expect("a name");
    name.set_fqdn(true);
    name
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

async fn sockets() -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = io::Error::other("no try");
    for _ in 0..100 {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = [0; 4096];
    loop {
        // An error is an earlier answer that nobody waited for.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = zone.answer(&buffer[..length], false) {
            // Whoever does not get it asks again.
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, Arc::clone(&zone)));
    }
}

/// Answers until the peer closes, which is no error.
async fn serve_connection(mut stream: TcpStream, zone: Arc<Zone>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await?;
        if let Some(answer) = zone.answer(&question, true) {
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(whole(name), kind));
        message.to_vec().expect("a question")
    }

    async fn over_udp(server: &DnsServer, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a socket");
        socket.send_to(&question(name, kind), server.address()).await.expect("sent");
        let mut buffer = [0; 4096];
        let length = within("an answer", socket.recv(&mut buffer)).await.expect("an answer");
        Message::from_vec(&buffer[..length]).expect("a message")
    }

    async fn over_tcp(server: &DnsServer, name: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(server.address()).await.expect("a connection");
        let question = question(name, kind);
        stream.write_u16(question.len().try_into().expect("short")).await.expect("sent");
        stream.write_all(&question).await.expect("sent");
        let length = within("an answer", stream.read_u16()).await.expect("an answer");
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.expect("an answer");
        Message::from_vec(&answer).expect("a message")
    }

    #[tokio::test]
    async fn records_are_given_by_kind() {
        let server = DnsServer::start().await;
        server.set("fleet.test", Says::addresses(&["127.0.0.2", "::1", "127.0.0.3"], 7));
        let v4 = over_udp(&server, "fleet.test", RecordType::A).await;
        assert_eq!((v4.answers.len(), v4.answers[0].ttl), (2, 7));
        let v6 = over_tcp(&server, "Fleet.Test", RecordType::AAAA).await;
        assert_eq!(v6.answers[0].data.ip_addr(), "::1".parse().ok());
        let none = over_udp(&server, "fleet.test", RecordType::SRV).await;
        assert_eq!((none.answers.len(), none.response_code), (0, ResponseCode::NoError));
        assert_eq!(none.authorities[0].record_type(), RecordType::SOA);
    }

    #[tokio::test]
    async fn denials_and_failures_are_told_apart() {
        let server = DnsServer::start().await;
        let unknown = over_udp(&server, "nobody.test", RecordType::A).await;
        assert_eq!(unknown.response_code, ResponseCode::NXDomain);
        server.set("fleet.test", Says::addresses(&["127.0.0.2"], 7));
        server.set_kind("fleet.test", RecordType::AAAA, Says::Failure);
        let failed = over_udp(&server, "fleet.test", RecordType::AAAA).await;
        assert_eq!(failed.response_code, ResponseCode::ServFail);
        let fine = over_udp(&server, "fleet.test", RecordType::A).await;
        assert_eq!(fine.answers.len(), 1);
    }

    #[tokio::test]
    async fn what_has_no_room_in_udp_is_whole_in_tcp() {
        let server = DnsServer::start().await;
        server.set("fleet.test", Says::addresses(&["127.0.0.2"], 7));
        server.truncate();
        let short = over_udp(&server, "fleet.test", RecordType::A).await;
        assert!(short.truncation && short.answers.is_empty());
        let whole = over_tcp(&server, "fleet.test", RecordType::A).await;
        assert!(!whole.truncation && whole.answers.len() == 1);
        let asked: Vec<_> =
            server.asked("fleet.test", RecordType::A).iter().map(|question| question.tcp).collect();
        assert_eq!(asked, [false, true]);
    }

    #[tokio::test]
    async fn silence_is_counted_too() {
        let server = DnsServer::start().await;
        server.set("fleet.test", Says::Silence);
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a socket");
        let asks = question("fleet.test", RecordType::A);
        socket.send_to(&asks, server.address()).await.expect("sent");
        socket.send_to(&asks, server.address()).await.expect("sent");
        server.await_asked("fleet.test", RecordType::A, 2).await;
        let mut buffer = [0; 512];
        let answer = socket.try_recv(&mut buffer);
        assert_eq!(answer.expect_err("no answer").kind(), io::ErrorKind::WouldBlock);
    }
}
