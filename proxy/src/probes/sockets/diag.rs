//! The kernel's question-and-answer about sockets (`NETLINK_SOCK_DIAG`), as bytes: what to send, and what came back.
//!
//! Why not a crate: the one there is (netlink-packet-sock-diag 0.5) cannot send a filter, and a proxy has far more
//! connections to clients than to endpoints; it copies the facts of TCP for every socket, and refuses those of a kernel
//! that has fewer than it knows. The layouts are those of `linux/netlink.h`, `linux/inet_diag.h` and `linux/tcp.h`.
//!
//! Left out: everything that is not TCP. Bytes that are no answer give an error, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Families of addresses.
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// `SOCK_DIAG_BY_FAMILY`, and the messages that every dump ends with.
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// `INET_DIAG_INFO`: the attribute that holds a `tcp_info`, and the bit that asks for it.
const INFO: u16 = 2;
const WANT_INFO: u8 = 1 << (INFO - 1);

/// `INET_DIAG_REQ_BYTECODE`: the attribute of a filter.
const BYTECODE: u16 = 1;

/// States, and the set of both that is asked for.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
const STATES: u32 = 1 << ESTABLISHED | 1 << LISTEN;

/// Steps of a filter: go on elsewhere; compare the own port, the other's port.
const JUMP: u8 = 1;
const OWN: u8 = 7;
const PEER: u8 = 8;

/// More ports than these are not filtered for: the kernel checks a filter in the square of its length.
const MOST_PORTS: usize = 64;

/// Lengths of the header of a message, a request, an answer without its attributes, and an attribute's head.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const ATTRIBUTE: usize = 4;

/// A TCP socket, as the kernel sees it now. Addresses of IPv4 are such, whatever family the socket is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) kind: Kind,
    /// Its own address.
    pub(super) own: SocketAddr,
    /// The one at the other end.
    pub(super) peer: SocketAddr,
    /// The number of its file; 0 while nobody has accepted it.
    pub(super) inode: u32,
    /// A number that no other socket had or will have until the machine is started again.
    pub(super) cookie: u64,
}

/// What it is, and what there is to know then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Connection {
        /// Bytes that came and were not read.
        unread: u32,
        /// Bytes that were written and not acknowledged by the other end.
        unacked: u32,
        info: Info,
    },
    Listener {
        /// Connections that wait to be accepted.
        waiting: u32,
        /// How many may, less one: the kernel turns away when there are more.
        limit: u32,
    },
}

/// What the kernel knows of a connection's transport; `None` where it does not know yet, or is too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Smoothed round-trip time in microseconds.
    pub(super) rtt: Option<u32>,
    /// The shortest of late, in microseconds.
    pub(super) min_rtt: Option<u32>,
    /// Segments sent again since it began.
    pub(super) retransmits: Option<u32>,
    /// Bytes that came since it began.
    pub(super) received: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The kernel said no, with this number of an error.
    Errno(i32),
    /// It said something that is no answer.
    Garbled,
}

/// Whether the dump goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dump {
    More,
    Complete,
}

/// Asks for the listeners and connections of a family that have one of these ports at either end.
pub(super) fn request(family: u8, sequence: u32, ports: &[u16]) -> Vec<u8> {
    let filter = if ports.len() <= MOST_PORTS { filter(ports) } else { Vec::new() };
    let attribute = if filter.is_empty() { 0 } else { ATTRIBUTE + filter.len() };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST + attribute);
    bytes.extend(narrow(HEADER + REQUEST + attribute).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, TCP, WANT_INFO, 0]);
    bytes.extend(STATES.to_ne_bytes());
    // No particular socket.
    bytes.resize(HEADER + REQUEST, 0);
    if !filter.is_empty() {
        bytes.extend(half(attribute).to_ne_bytes());
        bytes.extend(BYTECODE.to_ne_bytes());
        bytes.extend(filter);
    }
    bytes
}

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Lengths of a comparison, and of a jump.
const COMPARE: usize = 12;
const LEAP: usize = 4;

/// A program for the kernel: passes a socket with one of the ports at either end. A socket passes when the end of the
/// program is reached exactly, and does not when something leads beyond it.
fn filter(ports: &[u16]) -> Vec<u8> {
    let count = 2 * ports.len();
    let whole = (count * (COMPARE + LEAP)).saturating_sub(LEAP);
    let mut code = Vec::with_capacity(whole);
    for (at, (port, end)) in ports.iter().flat_map(|port| [(port, OWN), (port, PEER)]).enumerate() {
        // As it is: on with the next step, which leads to the end. Else: past that one.
        code.extend([end, 12]);
        code.extend(half(COMPARE + LEAP).to_ne_bytes());
        // Any family, no bits of any address, this port.
        code.extend([0; 4]);
        code.extend(u32::from(*port).to_ne_bytes());
        if at + 1 < count {
            code.extend([JUMP, 4]);
            code.extend(half(whole - code.len() + 2).to_ne_bytes());
        }
    }
    code
}

/// Reads one datagram of an answer to the question with this number, and tells its sockets.
///
/// # Errors
/// The kernel refused, or these bytes are no answer. Sockets before that were told.
pub(super) fn read(
    mut bytes: &[u8],
    sequence: u32,
    tell: &mut impl FnMut(Socket),
) -> Result<Dump, Refusal> {
    while !bytes.is_empty() {
        let length = word(bytes, 0).ok_or(Refusal::Garbled)? as usize;
        let message = bytes.get(HEADER..length).ok_or(Refusal::Garbled)?;
        let kind = short(bytes, 4).ok_or(Refusal::Garbled)?;
        // The rest of an answer that was given up on.
        let is_ours = word(bytes, 8) == Some(sequence);
        match kind {
            _ if !is_ours => {}
            DONE => return finished(message),
            ERROR => return Err(refused(message)),
            BY_FAMILY => {
                if let Some(socket) = socket(message)? {
                    tell(socket);
                }
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Dump::More)
}

/// The last message holds the number of an error when the dump broke off.
fn finished(message: &[u8]) -> Result<Dump, Refusal> {
    match word(message, 0) {
        Some(0) | None => Ok(Dump::Complete),
        Some(_) => Err(refused(message)),
    }
}

/// Numbers of errors come with a minus.
fn refused(message: &[u8]) -> Refusal {
    word(message, 0)
        .map_or(Refusal::Garbled, |number| Refusal::Errno(number.cast_signed().saturating_neg()))
}

/// One socket; `None` for a state that was not asked for.
fn socket(message: &[u8]) -> Result<Option<Socket>, Refusal> {
    let (fixed, attributes) = message.split_at_checked(ANSWER).ok_or(Refusal::Garbled)?;
    let word = |at: usize| word(fixed, at).unwrap_or_default();
    let family = fixed[0];
    let (unread, unacked) = (word(56), word(60));
    let kind = match fixed[1] {
        ESTABLISHED => Kind::Connection { unread, unacked, info: info(attributes)? },
        LISTEN => Kind::Listener { waiting: unread, limit: unacked },
        _ => return Ok(None),
    };
    Ok(Some(Socket {
        kind,
        own: SocketAddr::new(address(family, &fixed[8..24])?, port(&fixed[4..6])),
        peer: SocketAddr::new(address(family, &fixed[24..40])?, port(&fixed[6..8])),
        inode: word(68),
        cookie: u64::from(word(48)) << 32 | u64::from(word(44)),
    }))
}

fn address(family: u8, bytes: &[u8]) -> Result<IpAddr, Refusal> {
    let v6: [u8; 16] = bytes.try_into().map_err(|_| Refusal::Garbled)?;
    let [a, b, c, d, ..] = v6;
    match family {
        AF_INET => Ok(Ipv4Addr::new(a, b, c, d).into()),
        AF_INET6 => Ok(IpAddr::from(Ipv6Addr::from(v6)).to_canonical()),
        _ => Err(Refusal::Garbled),
    }
}

fn port(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_be_bytes)
}

/// The facts of TCP among the attributes.
fn info(mut attributes: &[u8]) -> Result<Info, Refusal> {
    while attributes.len() >= ATTRIBUTE {
        let length = short(attributes, 0).ok_or(Refusal::Garbled)? as usize;
        let value = attributes.get(ATTRIBUTE..length).ok_or(Refusal::Garbled)?;
        if short(attributes, 2) == Some(INFO) {
            return Ok(tcp_info(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Info::default())
}

/// A kernel that knows less ends sooner.
fn tcp_info(value: &[u8]) -> Info {
    Info {
        rtt: word(value, 68).filter(|rtt| *rtt != 0),
        min_rtt: word(value, 148).filter(|rtt| !matches!(*rtt, 0 | u32::MAX)),
        retransmits: word(value, 100),
        received: array(value, 128).map(u64::from_ne_bytes),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

/// Lengths of what we send are a few kilobytes at most.
fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn half(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// A message of a dump with this number.
    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(narrow(HEADER + body.len()).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A socket without attributes.
    fn fixed(family: u8, state: u8, own: (&[u8], u16), peer: (&[u8], u16)) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER];
        bytes[..2].copy_from_slice(&[family, state]);
        bytes[4..6].copy_from_slice(&own.1.to_be_bytes());
        bytes[6..8].copy_from_slice(&peer.1.to_be_bytes());
        bytes[8..8 + own.0.len()].copy_from_slice(own.0);
        bytes[24..24 + peer.0.len()].copy_from_slice(peer.0);
        for (at, value) in [(44, 0xCAFE), (48, 1), (56, 300), (60, 400), (68, 77)] {
            bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(half(ATTRIBUTE + value.len()).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tcp_info_bytes(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; 232];
        for (at, value) in [(68, 250), (100, 3), (148, 90)] {
            bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes[128..136].copy_from_slice(&5_000_000_000_u64.to_ne_bytes());
        bytes.truncate(length);
        bytes
    }

    fn connection(info_length: usize) -> Vec<u8> {
        let mut body = fixed(AF_INET, ESTABLISHED, (&[10, 0, 0, 1], 8000), (&[10, 0, 0, 2], 4242));
        body.extend(attribute(8, &[1]));
        body.extend(attribute(INFO, &tcp_info_bytes(info_length)));
        message(BY_FAMILY, 7, &body)
    }

    fn sockets(bytes: &[u8]) -> (Vec<Socket>, Result<Dump, Refusal>) {
        let mut found = Vec::new();
        let end = read(bytes, 7, &mut |socket| found.push(socket));
        (found, end)
    }

    #[test]
    fn a_connection_is_read_with_the_facts_of_its_transport() {
        let (found, end) = sockets(&connection(232));
        let info = Info {
            rtt: Some(250),
            min_rtt: Some(90),
            retransmits: Some(3),
            received: Some(5_000_000_000),
        };
        let expected = Socket {
            kind: Kind::Connection { unread: 300, unacked: 400, info },
            own: "10.0.0.1:8000".parse().expect("an address"),
            peer: "10.0.0.2:4242".parse().expect("an address"),
            inode: 77,
            cookie: 0x1_0000_CAFE,
        };
        assert_eq!((found, end), (vec![expected], Ok(Dump::More)));
    }

    #[test]
    fn a_kernel_that_knows_less_says_less() {
        let info = |length| match &sockets(&connection(length)).0[..] {
            [Socket { kind: Kind::Connection { info, .. }, .. }] => *info,
            other => panic!("{other:?}"),
        };
        let old = info(104);
        assert_eq!((old.rtt, old.retransmits), (Some(250), Some(3)));
        assert_eq!((old.min_rtt, old.received), (None, None));
        assert_eq!(info(0), Info::default());
    }

    #[test]
    fn a_listener_has_a_queue_and_addresses_of_ipv4_are_such() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1];
        let body = fixed(AF_INET6, LISTEN, (&mapped, 80), (&[0; 16], 0));
        let (found, _) = sockets(&message(BY_FAMILY, 7, &body));
        assert_eq!(found[0].kind, Kind::Listener { waiting: 300, limit: 400 });
        assert_eq!(found[0].own, "127.0.0.1:80".parse().expect("an address"));
    }

    #[test]
    fn a_dump_ends_with_done_or_an_error() {
        let with = |last: Vec<u8>| sockets(&[connection(232), last].concat());
        let number = |number: i32| number.to_ne_bytes();
        let (found, end) = with(message(DONE, 7, &number(0)));
        assert_eq!((found.len(), end), (1, Ok(Dump::Complete)));
        let (_, end) = with(message(DONE, 7, &number(-4)));
        assert_eq!(end, Err(Refusal::Errno(4)));
        let (_, end) = with(message(ERROR, 7, &number(-1)));
        assert_eq!(end, Err(Refusal::Errno(1)));
    }

    #[test]
    fn an_answer_to_another_question_is_passed_over() {
        let stale = message(DONE, 6, &0_i32.to_ne_bytes());
        let (found, end) = sockets(&[stale, connection(232)].concat());
        assert_eq!((found.len(), end), (1, Ok(Dump::More)));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_no_panic() {
        let good = connection(232);
        for end in 1..good.len() {
            let (found, result) = sockets(&good[..end]);
            assert!(found.is_empty() && result == Err(Refusal::Garbled), "{end} bytes");
        }
        // A length of nothing at all must not be read for ever.
        assert_eq!(sockets(&[0; 64]).1, Err(Refusal::Garbled));
        let mut random = StdRng::seed_from_u64(11);
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            let _ = sockets(&bytes);
        }
    }

    /// Runs a filter as the kernel does: passes at the end, not beyond it.
    fn passes(code: &[u8], own: u16, peer: u16) -> bool {
        let mut at = 0;
        while at < code.len() {
            let port = word(code, at + 8);
            let fits = match code[at] {
                OWN => port == Some(own.into()),
                PEER => port == Some(peer.into()),
                _ => false,
            };
            let no = usize::from(short(code, at + 2).expect("whole steps"));
            at += if fits { usize::from(code[at + 1]) } else { no };
        }
        at == code.len()
    }

    #[test]
    fn a_filter_passes_its_ports_at_either_end_and_no_other() {
        for ports in [vec![80], vec![80, 8000, 65535], (1..=64).collect()] {
            let code = filter(&ports);
            for other in [0, 79, 4242, 65534] {
                assert_eq!(passes(&code, other, 5000), ports.contains(&other), "{other}");
            }
            for port in ports {
                assert!(passes(&code, port, 5000) && passes(&code, 5000, port), "{port}");
            }
        }
    }

    #[test]
    fn many_ports_are_not_filtered_for() {
        let few: Vec<u16> = (1..=64).collect();
        let many: Vec<u16> = (1..=65).collect();
        assert_eq!(request(AF_INET, 1, &many).len(), HEADER + REQUEST);
        let request = request(AF_INET, 1, &few);
        assert_eq!(word(&request, 0), Some(narrow(request.len())));
        assert_eq!(request.len(), HEADER + REQUEST + ATTRIBUTE + 128 * 16 - 4);
    }
}
