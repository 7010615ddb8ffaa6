//! Which answers to forget, as the query of the admin page says it.

use crate::{
    answers::{Key, Purge},
    tenant::Tenant,
};

/// Reads `route=…&model=…&tenant=own&key=…`, or `all=true`. Credentials have no place in an address, which is written into
/// logs: a tenant is named by the credentials of the purge request itself, which are `own`.
///
/// # Errors
/// What is wrong with it. Nothing at all is an error: it would mean everything.
pub(super) fn parse(query: &str, own: Tenant) -> Result<Purge, String> {
    let (mut purge, mut given) = (Purge::default(), false);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or_else(|| format!("{name} is not percent-encoded UTF-8"))?;
        match name {
            "route" => purge.route = Some(value),
            "model" => purge.model = Some(value),
            "tenant" if value == "own" => purge.tenant = Some(own),
            "key" => {
                let key = Key::parse(&value).ok_or("key is not 64 hexadecimal digits")?;
                purge.key = Some(key);
            }
            "all" if value == "true" => {}
            _ => {
                return Err(format!(
                    "{name} is none of route, model, tenant=own, key and all=true"
                ));
            }
        }
        given = true;
    }
    given
        .then_some(purge)
        .ok_or_else(|| "say which: route, model, tenant=own, key, or all=true".to_owned())
}

/// The text behind a percent-encoded one.
fn decoded(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(16 * high + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_what_is_meant() {
        let own = Tenant::from_bytes([7; 16]);
        let purge = parse("model=org%2Fllama+3&route=chat", own).unwrap();
        let expected = Purge {
            model: Some("org/llama 3".to_owned()),
            route: Some("chat".to_owned()),
            ..Purge::default()
        };
        assert_eq!(purge, expected);
        assert_eq!(parse("all=true", own), Ok(Purge::default()));
        assert_eq!(parse("tenant=own", own).unwrap().tenant, Some(own));
    }

    #[test]
    fn nothing_and_nonsense_purge_nothing() {
        let nonsense = ["all=yes", "rout=chat", "key=12", "model=%zz", "model=%f", "model=%ff"];
        for query in ["", "&", "tenant=ada"].into_iter().chain(nonsense) {
            assert!(parse(query, Tenant::from_bytes([7; 16])).is_err(), "{query}");
        }
    }
}
