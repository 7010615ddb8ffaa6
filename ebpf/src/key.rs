//! Which connection: a number that both sides can make of what they know of it.

/// The key of a connection of ours, by the two ports and the server's address (in IPv4 the address as it lies in memory,
/// in IPv6 [`fold_v6`]).
#[must_use]
pub const fn key(client_port: u16, server_port: u16, server_address: u32) -> u64 {
    ((client_port as u64) << 48) | ((server_port as u64) << 32) | server_address as u64
}

/// An IPv6 address in 32 bits, of its four words as they lie in memory. An IPv4 address in IPv6's clothes (`::ffff:0:0/96`)
/// is that IPv4 address, for a socket that listens to both sees clients of the one so.
#[must_use]
pub const fn fold_v6(words: [u32; 4]) -> u32 {
    let [a, b, c, d] = words;
    if a == 0 && b == 0 && c == 0xffff_u32.to_be() { d } else { a ^ b ^ c ^ d }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    fn words(address: Ipv6Addr) -> [u32; 4] {
        let octets = address.octets();
        core::array::from_fn(|at| {
            u32::from_ne_bytes(core::array::from_fn(|byte| octets[4 * at + byte]))
        })
    }

    #[test]
    fn a_mapped_address_is_the_address_it_stands_for() {
        let v4 = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(fold_v6(words(v4.to_ipv6_mapped())), u32::from_ne_bytes(v4.octets()));
        assert_ne!(fold_v6(words(Ipv6Addr::LOCALHOST)), 0);
    }

    #[test]
    fn keys_differ_wherever_connections_do() {
        let keys = [key(1, 2, 3), key(2, 1, 3), key(1, 2, 4), key(1, 3, 3), key(3, 2, 3)];
        for (at, one) in keys.iter().enumerate() {
            assert!(keys[at + 1..].iter().all(|other| other != one));
        }
    }
}
