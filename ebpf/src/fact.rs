//! What a program has to be told of the kernel it runs in: where fields lie, and which network namespace is ours.

/// One number of the table that a program is loaded with. Offsets are in bytes from the start of the structure, and come
/// from the kernel's own type information (BTF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SocketFact {
    /// `sock_common.skc_rcv_saddr`: the own IPv4 address.
    OwnAddress,
    /// `sock_common.skc_v6_rcv_saddr`: the own IPv6 address.
    OwnAddressV6,
    /// `sock_common.skc_num`: the own port, in the order of the host.
    OwnPort,
    /// `inet_sock.inet_sport`: the port that the socket had before it was closed, in the order of the network.
    FormerPort,
    /// `sock_common.skc_dport`: the peer's port, in the order of the network.
    PeerPort,
    /// `sock_common.skc_family`.
    Family,
    /// `sock_common.skc_net`: the network namespace.
    Namespace,
    /// `net.ns.inum`: the number of a network namespace.
    NamespaceNumber,
    /// `tcp_sock.bytes_received`: bytes of the stream before the present segment.
    BytesReceived,
    /// `tcp_sock.write_seq`: the sequence number after the last byte that was written.
    WriteSequence,
    /// `tcp_skb_cb.seq` in `sk_buff.cb`: the sequence number of the segment's first byte.
    SegmentStart,
    /// `tcp_skb_cb.end_seq` in `sk_buff.cb`: the one after its last.
    SegmentEnd,
    /// `tcp_skb_cb.tcp_flags` in `sk_buff.cb`.
    SegmentFlags,
    /// No offset but the number of the proxy's network namespace.
    OwnNamespace,
    /// No offset but the device that the proxy's PID namespace is a file of.
    OwnPidsDevice,
    /// No offset but the number of that file.
    OwnPidsNumber,
    /// No offset but how many writes of a burst are told one by one, the first included; 0 for none.
    WritesTold,
}

impl SocketFact {
    /// How many there are.
    pub const COUNT: usize = Self::WritesTold as usize + 1;
}
