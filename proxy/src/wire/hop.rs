//! What concerns one connection alone and must not pass a proxy.

use super::{Fields, fields::tokens};

/// Says that a request left the pod of the Outrigger that sent it: whoever gets it serves it or turns it away, so that
/// two that think each other idle do not pass it to and fro.
pub const LEFT_POD: &str = "x-outrigger-hop";

/// Removes what concerns one connection alone, and what `connection` names besides (RFC 9110, 7.6.1).
pub fn strip_hop_by_hop(fields: &mut Fields) {
    let named: Vec<Vec<u8>> = fields
        .get_all("connection")
        .flat_map(tokens)
        .filter(|token| !is_hop_by_hop(token) && !is_framing(token))
        .map(<[u8]>::to_vec)
        .collect();
    fields.retain(|name, _| {
        !is_hop_by_hop(name) && !named.iter().any(|n| n.eq_ignore_ascii_case(name))
    });
}

/// Options and fields that never pass a proxy; `close` is an option, not a field, but no field has its name either.
fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "close",
        "http2-settings",
        "proxy-authenticate",
    ];
    // Most names differ in length or first letter from all of these.
    NAMES
        .iter()
        .any(|known| known.len() == name.len() && name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Fields that no `connection` option may take away.
fn is_framing(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_goes_too_but_not_the_framing() {
        let mut fields = Fields::new();
        for (name, value) in [
            ("Connection", "close, X-Secret, Content-Length"),
            ("Keep-Alive", "timeout=5"),
            ("X-Secret", "1"),
            ("Content-Length", "3"),
            ("Transfer-Encoding", "chunked"),
            ("X-Kept", "1"),
        ] {
            fields.append(name, value);
        }
        strip_hop_by_hop(&mut fields);
        let left: Vec<_> =
            fields.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(left, ["Content-Length", "X-Kept"]);
    }
}
