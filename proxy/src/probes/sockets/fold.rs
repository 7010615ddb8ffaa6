//! From all sockets of a round to what is said of each endpoint.
//!
//! What it decides: which connections are the proxy's own (those that it has dialled), which sockets are the other ends of them (the application's,
//! when it is in the same network namespace), and which listener an endpoint's connections go to. What lasts from round to
//! round is told by the sockets' cookies, which are never used again.
//!
//! Left out: asking, clocks and processes.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::diag::{Info, Kind, Socket};

/// What is known of an address that was asked about.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// Smoothed round-trip time, the mean over our connections.
    pub(super) rtt: Option<Duration>,
    /// The shortest round trip of any of them of late.
    pub(super) min_rtt: Option<Duration>,
    /// Bytes that we have written to it and that are not acknowledged.
    pub(super) unacked: u64,
    /// Segments that were sent again since the last round.
    pub(super) retransmits: u64,
    /// The application's side, where it is in our network namespace.
    pub(super) app: Option<App>,
}

/// The other ends of our connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct App {
    /// Bytes that came and were not read.
    pub(super) unread_bytes: u64,
    /// Connections with such.
    pub(super) unread_connections: u32,
    /// How long at least the oldest of those bytes has lain there.
    pub(super) unread_for: Duration,
    pub(super) accept: Option<Accept>,
    /// Files that the application's processes hold: its listeners, or connections while there is no listener.
    pub(super) inodes: Vec<u32>,
}

/// Connections that wait for the application to accept them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accept {
    pub(super) waiting: u64,
    pub(super) limit: u64,
}

/// What lasts from round to round.
#[derive(Default)]
pub(super) struct Fold {
    /// Our connections to endpoints, by their cookies.
    ours: HashSet<u64>,
    /// Segments sent again by then.
    retransmits: HashMap<u64, u32>,
    unread: HashMap<u64, Unread>,
    /// Addresses in our network namespace.
    here: HashSet<SocketAddr>,
}

/// Bytes that lie in a socket.
#[derive(Clone, Copy)]
struct Unread {
    since: Instant,
    /// Bytes that had been read by then, all in all.
    read: Option<u64>,
}

impl Fold {
    /// What these sockets say of these addresses. `dialled`: our ends of connections that were made since the round before,
    /// with the address they were made to.
    pub(super) fn round(
        &mut self,
        now: Instant,
        addresses: &HashSet<SocketAddr>,
        sockets: &[Socket],
        dialled: &HashSet<(SocketAddr, SocketAddr)>,
    ) -> HashMap<SocketAddr, Facts> {
        self.forget(sockets);
        let new = candidates(addresses, sockets).filter(|it| dialled.contains(&(it.own, it.peer)));
        self.ours.extend(new.map(|socket| socket.cookie));
        self.here.retain(|address| addresses.contains(address));
        let mut told = self.transports(addresses, sockets);
        let pairs: HashSet<_> = candidates(addresses, sockets)
            .filter(|socket| self.ours.contains(&socket.cookie))
            .map(|socket| (socket.peer, socket.own))
            .collect();
        for (address, own) in &pairs {
            if own.ip() == address.ip() {
                self.here.insert(*address);
            }
        }
        for (address, facts) in &mut told {
            if address.ip().is_loopback() || self.here.contains(address) {
                facts.app = Some(App::default());
            }
        }
        self.other_ends(now, &pairs, sockets, &mut told);
        listeners(sockets, &mut told);
        told
    }

    /// What is gone is not kept.
    fn forget(&mut self, sockets: &[Socket]) {
        let there: HashSet<u64> = sockets.iter().map(|socket| socket.cookie).collect();
        self.ours.retain(|cookie| there.contains(cookie));
        self.retransmits.retain(|cookie, _| there.contains(cookie));
        self.unread.retain(|cookie, _| there.contains(cookie));
    }

    /// What our own ends say.
    fn transports(
        &mut self,
        addresses: &HashSet<SocketAddr>,
        sockets: &[Socket],
    ) -> HashMap<SocketAddr, Facts> {
        let mut told: HashMap<SocketAddr, (Facts, Mean)> =
            addresses.iter().map(|address| (*address, Default::default())).collect();
        for socket in candidates(addresses, sockets) {
            let Kind::Connection { unacked, info, .. } = &socket.kind else { continue };
            let Some((facts, rtt)) = told.get_mut(&socket.peer) else { continue };
            if !self.ours.contains(&socket.cookie) {
                continue;
            }
            rtt.add(info.rtt);
            let min_rtt = info.min_rtt.map(|micros| Duration::from_micros(micros.into()));
            facts.min_rtt = facts.min_rtt.into_iter().chain(min_rtt).min();
            facts.unacked += u64::from(*unacked);
            facts.retransmits += self.sent_again(socket.cookie, info);
        }
        let done = |(address, (facts, rtt)): (_, (Facts, Mean))| {
            (address, Facts { rtt: rtt.get(), ..facts })
        };
        told.into_iter().map(done).collect()
    }

    /// Since the last round; or since it began, if that was after it.
    fn sent_again(&mut self, cookie: u64, info: &Info) -> u64 {
        let Some(now) = info.retransmits else { return 0 };
        let before = self.retransmits.insert(cookie, now).unwrap_or(0);
        now.saturating_sub(before).into()
    }

    /// What the application's ends of our connections say.
    fn other_ends(
        &mut self,
        now: Instant,
        pairs: &HashSet<(SocketAddr, SocketAddr)>,
        sockets: &[Socket],
        told: &mut HashMap<SocketAddr, Facts>,
    ) {
        for socket in sockets.iter().filter(|it| pairs.contains(&(it.own, it.peer))) {
            let Kind::Connection { unread, info, .. } = &socket.kind else { continue };
            let Some(facts) = told.get_mut(&socket.own) else { continue };
            let app = facts.app.get_or_insert_default();
            self.here.insert(socket.own);
            if socket.inode != 0 {
                app.inodes.push(socket.inode);
            }
            let lain = self.lain(now, socket.cookie, *unread, info);
            if *unread > 0 {
                app.unread_bytes += u64::from(*unread);
                app.unread_connections += 1;
                app.unread_for = app.unread_for.max(lain);
            }
        }
    }

    /// How long at least the oldest unread byte has lain there: since the first round from which on there was always one,
    /// and none was read.
    fn lain(&mut self, now: Instant, cookie: u64, unread: u32, info: &Info) -> Duration {
        if unread == 0 {
            self.unread.remove(&cookie);
            return Duration::ZERO;
        }
        let read = info.received.map(|received| received.saturating_sub(unread.into()));
        let fresh = Unread { since: now, read };
        let before = self.unread.entry(cookie).or_insert(fresh);
        if before.read != read {
            *before = fresh;
        }
        now.saturating_duration_since(before.since)
    }
}

/// Connections to one of these addresses, whoever's they are.
fn candidates<'a>(
    addresses: &HashSet<SocketAddr>,
    sockets: &'a [Socket],
) -> impl Iterator<Item = &'a Socket> {
    let is_connection = |socket: &&Socket| matches!(socket.kind, Kind::Connection { .. });
    sockets.iter().filter(is_connection).filter(|socket| addresses.contains(&socket.peer))
}

/// What the listeners say that connections to these addresses go to; several share a port where each worker has its own.
fn listeners(sockets: &[Socket], told: &mut HashMap<SocketAddr, Facts>) {
    for (address, facts) in told {
        let Some(app) = &mut facts.app else { continue };
        let nearness = |socket: &&Socket| nearness(socket, *address);
        let Some(nearest) = sockets.iter().filter_map(|socket| nearness(&socket)).max() else {
            continue;
        };
        let mut accept = Accept::default();
        app.inodes.clear();
        for socket in sockets.iter().filter(|socket| nearness(socket) == Some(nearest)) {
            if let Kind::Listener { waiting, limit } = socket.kind {
                accept.waiting += u64::from(waiting);
                accept.limit += u64::from(limit);
                app.inodes.push(socket.inode);
            }
        }
        app.accept = Some(accept);
    }
}

/// How well a listener fits an address: its own goes before any of its family, that before any at all.
fn nearness(socket: &Socket, address: SocketAddr) -> Option<u8> {
    if !matches!(socket.kind, Kind::Listener { .. }) || socket.own.port() != address.port() {
        return None;
    }
    match (socket.own.ip(), address.ip()) {
        (own, wanted) if own == wanted => Some(3),
        (IpAddr::V4(own), IpAddr::V4(_)) if own.is_unspecified() => Some(2),
        (IpAddr::V6(own), IpAddr::V6(_)) if own.is_unspecified() => Some(2),
        (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() => Some(1),
        _ => None,
    }
}

/// The mean of microseconds.
#[derive(Default)]
struct Mean {
    sum: u64,
    count: u32,
}

impl Mean {
    fn add(&mut self, micros: Option<u32>) {
        if let Some(micros) = micros {
            self.sum += u64::from(micros);
            self.count += 1;
        }
    }

    fn get(&self) -> Option<Duration> {
        Duration::from_micros(self.sum).checked_div(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn connection(cookie: u64, own: &str, peer: &str, unread: u32) -> Socket {
        let kind = Kind::Connection { unread, unacked: 0, info: Info::default() };
        let inode = u32::try_from(cookie).expect("a small one");
        Socket { kind, own: at(own), peer: at(peer), inode, cookie }
    }

    fn listener(cookie: u64, own: &str, waiting: u32) -> Socket {
        let kind = Kind::Listener { waiting, limit: 128 };
        Socket { kind, ..connection(cookie, own, "0.0.0.0:0", 0) }
    }

    fn with(mut socket: Socket, change: impl FnOnce(&mut u32, &mut Info)) -> Socket {
        if let Kind::Connection { unacked, info, .. } = &mut socket.kind {
            change(unacked, info);
        }
        socket
    }

    /// Rounds a second apart, in which the proxy dials the connections with cookies below 100.
    struct Rounds {
        fold: Fold,
        now: Instant,
    }

    impl Rounds {
        fn new() -> Self {
            Rounds { fold: Fold::default(), now: Instant::now() }
        }

        fn round(&mut self, address: &str, sockets: &[Socket]) -> Facts {
            let addresses = HashSet::from([at(address)]);
            self.now += Duration::from_secs(1);
            let ours = sockets.iter().filter(|socket| socket.cookie < 100);
            let dialled = ours.map(|socket| (socket.own, socket.peer)).collect();
            let mut told = self.fold.round(self.now, &addresses, sockets, &dialled);
            told.remove(&at(address)).expect("what was asked")
        }
    }

    #[test]
    fn our_own_connections_are_told_from_those_of_others() {
        let rtt = |socket, micros| {
            with(socket, |unacked, info| {
                *unacked = 10;
                info.rtt = Some(micros);
                info.min_rtt = Some(micros / 2);
            })
        };
        let facts = Rounds::new().round(
            "10.0.0.9:80",
            &[
                rtt(connection(1, "10.0.0.1:5001", "10.0.0.9:80", 0), 100),
                rtt(connection(2, "10.0.0.1:5002", "10.0.0.9:80", 0), 300),
                rtt(connection(101, "10.0.0.1:5003", "10.0.0.9:80", 0), 9000),
                rtt(connection(3, "10.0.0.1:5004", "10.0.0.8:80", 0), 9000),
            ],
        );
        assert_eq!(facts.rtt, Some(Duration::from_micros(200)));
        assert_eq!(facts.min_rtt, Some(Duration::from_micros(50)));
        assert_eq!(facts.unacked, 20);
        assert_eq!(facts.app, None, "elsewhere");
    }

    #[test]
    fn a_connection_is_ours_from_when_it_was_dialled_until_it_is_gone() {
        let (own, peer) = (at("10.0.0.1:5001"), at("10.0.0.9:80"));
        let (addresses, mut fold) = (HashSet::from([peer]), Fold::default());
        let mut is_ours = |cookie, dialled: &HashSet<_>| {
            let socket =
                with(connection(cookie, "10.0.0.1:5001", "10.0.0.9:80", 0), |unacked, _| {
                    *unacked = 1;
                });
            fold.round(Instant::now(), &addresses, &[socket], dialled)[&peer].unacked == 1
        };
        let (dialled, none) = (HashSet::from([(own, peer)]), HashSet::new());
        // The kernel may show it before the proxy has said that it dialled it.
        assert!(!is_ours(1, &none));
        assert!(is_ours(1, &dialled));
        assert!(is_ours(1, &none));
        // Somebody else got the port.
        assert!(!is_ours(2, &none));
        assert!(!is_ours(1, &none));
    }

    #[test]
    fn segments_sent_again_are_counted_once() {
        let mut rounds = Rounds::new();
        let mut round = |all: &[(u64, u32)]| {
            let one = |(cookie, count): &(u64, u32)| {
                let socket = connection(*cookie, "10.0.0.1:5001", "10.0.0.9:80", 0);
                with(socket, |_, info| info.retransmits = Some(*count))
            };
            let sockets: Vec<_> = all.iter().map(one).collect();
            rounds.round("10.0.0.9:80", &sockets).retransmits
        };
        assert_eq!(round(&[(1, 2)]), 2);
        assert_eq!(round(&[(1, 2), (2, 1)]), 1);
        assert_eq!(round(&[(1, 5)]), 3);
        assert_eq!(round(&[]), 0);
        assert_eq!(round(&[(3, 4)]), 4);
    }

    /// Our end and the application's.
    fn pair(unread: u32, received: u64) -> [Socket; 2] {
        let own = connection(1, "127.0.0.1:5001", "127.0.0.1:80", 0);
        let other = connection(201, "127.0.0.1:80", "127.0.0.1:5001", unread);
        [own, with(other, |_, info| info.received = Some(received))]
    }

    fn unread(facts: Facts) -> (u64, u32, u64) {
        let app = facts.app.expect("here");
        (app.unread_bytes, app.unread_connections, app.unread_for.as_secs())
    }

    #[test]
    fn bytes_lie_as_long_as_none_is_read() {
        let mut rounds = Rounds::new();
        let mut round =
            |bytes, received| unread(rounds.round("127.0.0.1:80", &pair(bytes, received)));
        assert_eq!(round(0, 0), (0, 0, 0));
        assert_eq!(round(100, 100), (100, 1, 0));
        assert_eq!(round(100, 100), (100, 1, 1));
        // More came, and none was read.
        assert_eq!(round(150, 150), (150, 1, 2));
        // 100 were read: the rest has not lain as long.
        assert_eq!(round(50, 150), (50, 1, 0));
        assert_eq!(round(50, 150), (50, 1, 1));
        assert_eq!(round(0, 150), (0, 0, 0));
        assert_eq!(round(1, 151), (1, 1, 0));
    }

    #[test]
    fn where_nobody_knows_what_was_read_an_empty_socket_tells() {
        let mut rounds = Rounds::new();
        let mut round = |bytes| {
            let [own, other] = pair(bytes, 0);
            let other = with(other, |_, info| info.received = None);
            unread(rounds.round("127.0.0.1:80", &[own, other]))
        };
        assert_eq!(
            [round(5), round(5), round(0), round(5)],
            [(5, 1, 0), (5, 1, 1), (0, 0, 0), (5, 1, 0)]
        );
    }

    #[test]
    fn only_the_ends_of_our_connections_are_the_applications() {
        let [own, other] = pair(5, 5);
        let others = [
            connection(102, "127.0.0.1:6001", "127.0.0.1:80", 0),
            connection(202, "127.0.0.1:80", "127.0.0.1:6001", 7000),
        ];
        let sockets = [vec![own, other], others.to_vec()].concat();
        assert_eq!(unread(Rounds::new().round("127.0.0.1:80", &sockets)), (5, 1, 0));
    }

    #[test]
    fn a_pod_that_calls_its_own_address_is_at_home() {
        let mut rounds = Rounds::new();
        let listening = || listener(300, "0.0.0.0:80", 1);
        assert_eq!(rounds.round("10.0.0.1:80", &[listening()]).app, None, "not known yet");
        let ours = connection(1, "10.0.0.1:5001", "10.0.0.1:80", 0);
        let accept = Some(Accept { waiting: 1, limit: 128 });
        let app = rounds.round("10.0.0.1:80", &[listening(), ours]).app.expect("here");
        assert_eq!(app.accept, accept);
        let app = rounds.round("10.0.0.1:80", &[listening()]).app.expect("it stays so");
        assert_eq!(app.accept, accept);
        // A listener at home is nothing to an endpoint elsewhere.
        let ours = connection(2, "10.0.0.1:5001", "10.0.0.9:80", 0);
        assert_eq!(rounds.round("10.0.0.9:80", &[listening(), ours]).app, None);
    }

    #[test]
    fn the_nearest_listener_gets_the_connections() {
        let accept = |address: &str, sockets: &[Socket]| {
            let app = Rounds::new().round(address, sockets).app.expect("here");
            (app.accept.map(|accept| accept.waiting), app.inodes)
        };
        let any = [listener(301, "0.0.0.0:80", 1), listener(302, "[::]:80", 2)];
        assert_eq!(accept("127.0.0.1:80", &any), (Some(1), vec![301]));
        assert_eq!(accept("127.0.0.1:80", &any[1..]), (Some(2), vec![302]));
        assert_eq!(accept("[::1]:80", &any), (Some(2), vec![302]));
        let workers = [listener(303, "127.0.0.1:80", 4), listener(304, "127.0.0.1:80", 8)];
        let all = [any.to_vec(), workers.to_vec()].concat();
        assert_eq!(accept("127.0.0.1:80", &all), (Some(12), vec![303, 304]));
        assert_eq!(accept("127.0.0.1:81", &all), (None, vec![]));
    }

    #[test]
    fn without_a_listener_the_connections_lead_to_the_processes() {
        let [own, other] = pair(5, 5);
        let waiting = Socket { inode: 0, ..connection(203, "127.0.0.1:80", "127.0.0.1:5002", 9) };
        let own_too = connection(2, "127.0.0.1:5002", "127.0.0.1:80", 0);
        let facts = Rounds::new().round("127.0.0.1:80", &[own, other, own_too, waiting]);
        let app = facts.app.expect("here");
        assert_eq!((app.inodes, app.unread_bytes), (vec![201], 14), "one is not accepted yet");
        let [own, other] = pair(5, 5);
        let sockets = [own, other, listener(300, "127.0.0.1:80", 0)];
        let app = Rounds::new().round("127.0.0.1:80", &sockets).app.expect("here");
        assert_eq!(app.inodes, [300], "a listener is enough");
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let mut rounds = Rounds::new();
        rounds.round("127.0.0.1:80", &pair(5, 5));
        rounds.round("127.0.0.1:80", &[]);
        let Fold { ours, retransmits, unread, .. } = rounds.fold;
        assert!(ours.is_empty() && retransmits.is_empty() && unread.is_empty());
    }
}
