//! Under which key an answer is stored.
//!
//! Why: an answer may only be given again to a request that could have got it itself. The known failures of this field
//! are keys that leave something out (the tenant above all) and hashes that are believed without a look. So the key
//! covers who asks, the route, the arm where arms answer differently, the method, the target, the fields of the head
//! that the route says matter, and every value of the body; and beside the key stands a [`Proof`], made by another hash
//! of the same bytes, which a stored answer must bring along. Whoever makes two requests with one key (BLAKE3) would
//! have to make them agree in SHA-256 at once.
//!
//! What it decides: a JSON body is compared by meaning as far as that is safe ([`crate::batch::canonical`]): the order of
//! members, white space and escapes do not matter, numbers are compared as they are written, because some servers tell
//! `1` and `1.0` apart. A body that names a member twice means different things to different readers and has no key.
//! Bodies that are not JSON are compared byte by byte.
//!
//! What it leaves out: whether the request may be answered from store at all ([`super::policy`]).

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{batch::canonical, tenant::Tenant};

/// Begins everything that is hashed, so that keys of another layout are never the same.
const LAYOUT: &[u8] = b"outrigger answer key 1";

/// What an answer is stored under.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// A second digest of what the key was made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; 32]);

/// What answers are purged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Whose it is.
    pub tenant: Tenant,
    /// The route that it came through.
    pub route: Arc<str>,
    /// The arm that gave it.
    pub arm: Arc<str>,
    /// The model that was asked for; empty when none was.
    pub model: Box<str>,
}

/// What makes two requests the same.
pub struct Identity<'a> {
    /// Who asks.
    pub tenant: Tenant,
    /// The name of the route.
    pub route: &'a str,
    /// The arm, where its answers are not given for another arm's.
    pub arm: Option<&'a str>,
    /// The model the client asked for.
    pub model: &'a str,
    /// The method.
    pub method: &'a str,
    /// Path and query, as the client sent them.
    pub target: &'a str,
    /// The fields of the head that matter, by name, with all their values.
    pub fields: Vec<(&'a str, Vec<&'a [u8]>)>,
    /// The body.
    pub body: Body<'a>,
}

/// The body of a request.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    /// Said to be JSON.
    Json(&'a [u8]),
    /// Anything else, or nothing.
    Bytes(&'a [u8]),
}

impl Identity<'_> {
    /// The key and its proof; `None` for a JSON body that is not JSON, or not in one meaning.
    #[must_use]
    pub fn digest(&self) -> Option<(Key, Proof)> {
        let mut whole = Vec::with_capacity(1024);
        whole.extend_from_slice(LAYOUT);
        let parts: [&[u8]; 6] = [
            self.tenant.as_bytes(),
            self.route.as_bytes(),
            self.arm.unwrap_or("").as_bytes(),
            self.model.as_bytes(),
            self.method.as_bytes(),
            self.target.as_bytes(),
        ];
        whole.push(u8::from(self.arm.is_some()));
        parts.iter().for_each(|part| put(&mut whole, part));
        for (name, values) in &self.fields {
            put(&mut whole, name.as_bytes());
            count(&mut whole, values.len());
            values.iter().for_each(|value| put(&mut whole, value));
        }
        count(&mut whole, self.fields.len());
        match self.body {
            Body::Bytes(bytes) => {
                whole.push(b'b');
                put(&mut whole, bytes);
            }
            Body::Json(text) => {
                whole.push(b'j');
                whole.extend_from_slice(&canonical(text)?);
            }
        }
        let key = Key(*blake3::hash(&whole).as_bytes());
        Some((key, Proof(Sha256::digest(&whole).into())))
    }
}

/// A part with its length, so that parts can not run into each other.
fn put(whole: &mut Vec<u8>, part: &[u8]) {
    count(whole, part.len());
    whole.extend_from_slice(part);
}

fn count(whole: &mut Vec<u8>, count: usize) {
    whole.extend_from_slice(&(count as u64).to_le_bytes());
}

impl Key {
    /// The 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that [`Key`] is displayed as: 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Key(*hash.as_bytes()))
    }

    #[cfg(test)]
    pub(super) fn of(seed: u64) -> Self {
        Key(*blake3::hash(&seed.to_le_bytes()).as_bytes())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Key({self})")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Proof({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl Proof {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Proof(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::wire::Fields;

    pub(in crate::answers) fn tenant(name: &str) -> Tenant {
        let mut fields = Fields::new();
        fields.append("authorization", name);
        Tenant::of(&fields, &["authorization".to_owned()])
    }

    fn asked<'a>(body: Body<'a>) -> Identity<'a> {
        Identity {
            tenant: tenant("a"),
            route: "chat",
            arm: Some("stable"),
            model: "m",
            method: "POST",
            target: "/v1/chat/completions",
            fields: vec![("accept", vec![b"*/*"])],
            body,
        }
    }

    fn of(body: &str) -> Option<(Key, Proof)> {
        asked(Body::Json(body.as_bytes())).digest()
    }

    #[test]
    fn order_and_white_space_do_not_matter_and_values_do() {
        let one = of(r#"{"a":[1,{"x":null,"y":"é"}],"stream":true}"#);
        assert!(one.is_some());
        assert_eq!(one, of(" {\"stream\" : true, \"a\":[1,{\"y\":\"\\u00e9\",\"x\":null}]}\n"));
        for other in [
            r#"{"a":[1,{"x":null,"y":"é"}],"stream":false}"#,
            r#"{"a":[1,{"x":null,"y":"é"}]}"#,
            r#"{"a":[1.0,{"x":null,"y":"é"}],"stream":true}"#,
            r#"{"a":[{"x":null,"y":"é"},1],"stream":true}"#,
        ] {
            assert_ne!(one, of(other), "{other}");
        }
    }

    #[test]
    fn what_has_two_meanings_or_none_has_no_key() {
        for body in ["", "{", "{\"a\":1,\"a\":1}", "{\"a\":{\"b\":1,\"\\u0062\":2}}", "{} {}"] {
            assert_eq!(of(body), None, "{body}");
        }
        assert!(asked(Body::Bytes(b"{\"a\":1,\"a\":1}")).digest().is_some());
    }

    #[test]
    fn every_part_makes_a_difference_and_parts_do_not_run_into_each_other() {
        let body = Body::Json(b"{}");
        let all = [
            asked(body),
            Identity { tenant: tenant("b"), ..asked(body) },
            Identity { route: "chat2", ..asked(body) },
            Identity { arm: Some("canary"), ..asked(body) },
            Identity { arm: Some(""), ..asked(body) },
            Identity { arm: None, ..asked(body) },
            Identity { model: "n", ..asked(body) },
            Identity { model: "mP", method: "OST", ..asked(body) },
            Identity { method: "GET", ..asked(body) },
            Identity { target: "/v1/chat/completions?x=1", ..asked(body) },
            Identity { fields: vec![], ..asked(body) },
            Identity { fields: vec![("accept", vec![])], ..asked(body) },
            Identity { fields: vec![("accept", vec![b"*/*", b"*/*"])], ..asked(body) },
            Identity { fields: vec![("accep", vec![b"t*/*"])], ..asked(body) },
            asked(Body::Bytes(b"{}")),
            asked(Body::Json(b"[]")),
        ];
        let keys: Vec<_> = all.iter().map(|asked| asked.digest().unwrap()).collect();
        for (i, one) in keys.iter().enumerate() {
            for (j, other) in keys.iter().enumerate().skip(i + 1) {
                assert!(one.0 != other.0 && one.1 != other.1, "{i} and {j}");
            }
        }
    }

    /// A random document of few values, so that documents are often equal and often nearly so.
    fn document(rng: &mut SmallRng, depth: u32) -> Value {
        match rng.random_range(0..if depth == 0 { 4 } else { 6 }) {
            0 => Value::Null,
            1 => json!(rng.random_range(0..3)),
            2 => json!(["", "a", "b\n", "é"][rng.random_range(0..4)]),
            3 => json!(rng.random_bool(0.5)),
            4 => (0..rng.random_range(0..3)).map(|_| document(rng, depth - 1)).collect(),
            _ => {
                let names = ["a", "b", "ab", "stream"];
                let members = (0..rng.random_range(0..4))
                    .map(|_| (names[rng.random_range(0..4)].to_owned(), document(rng, depth - 1)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// The same document with its members in another order and other white space.
    fn rewritten(value: &Value, rng: &mut SmallRng) -> String {
        let space = |rng: &mut SmallRng| ["", " ", "\n\t"][rng.random_range(0..3)];
        match value {
            Value::Object(map) => {
                let mut members: Vec<_> = map.iter().collect();
                let turn = rng.random_range(0..members.len().max(1));
                members.rotate_left(turn);
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(name, value)| format!("{name:?}:{}", rewritten(value, rng)))
                    .collect();
                format!("{{{}{}}}", space(rng), members.join(&format!("{},", space(rng))))
            }
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| rewritten(item, rng)).collect();
                format!("[{}{}]", items.join(","), space(rng))
            }
            value => format!("{}{value}{}", space(rng), space(rng)),
        }
    }

    #[test]
    fn the_same_document_has_one_key_and_another_one_has_another() {
        let mut known: HashMap<Key, Value> = HashMap::new();
        for seed in 0..4_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let document = json!({"messages": document(&mut rng, 3)});
            let (key, _) = of(&document.to_string()).unwrap();
            let again = rewritten(&document, &mut rng);
            assert_eq!(of(&again).map(|(key, _)| key), Some(key), "seed {seed}: {again}");
            if let Some(other) = known.insert(key, document.clone()) {
                assert_eq!(other, document, "seed {seed}");
            }
        }
        assert!(known.len() > 500, "only {} documents differ", known.len());
    }

    /// Random fields, of which some tell who asks and some do not.
    fn head(rng: &mut SmallRng) -> Fields {
        const NAMES: [&str; 7] = [
            "authorization",
            "X-Api-Key",
            "api-key",
            "cookie",
            "user-agent",
            "x-request-id",
            "x-forwarded-for",
        ];
        let mut fields = Fields::new();
        for _ in 0..rng.random_range(0..4) {
            let value = ["a", "b", "ab", "Bearer a"][rng.random_range(0..4)];
            fields.append(NAMES[rng.random_range(0..NAMES.len())], value);
        }
        fields
    }

    #[test]
    fn whoever_asks_with_other_credentials_has_another_key_and_nothing_else_matters() {
        const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "api-key", "cookie"];
        type Asker = (Vec<Vec<Vec<u8>>>, Value);
        let (mut askers, mut keys) = (HashMap::<Key, Asker>::new(), HashMap::new());
        for seed in 0..8_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (head, document) = (head(&mut rng), document(&mut rng, 1));
            let body = rewritten(&document, &mut rng);
            let values = |name| head.get_all(name).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let asker: Asker = (CREDENTIALS.map(values).into(), document);
            let names = CREDENTIALS[..3].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let asked = Identity {
                tenant: Tenant::of(&head, &names),
                fields: vec![("cookie", head.get_all("cookie").collect())],
                ..asked(Body::Json(body.as_bytes()))
            };
            let (key, _) = asked.digest().unwrap();
            let known = keys.entry(format!("{asker:?}")).or_insert(key);
            assert_eq!(*known, key, "seed {seed}: {head:?} {body}");
            if let Some(other) = askers.insert(key, asker.clone()) {
                assert_eq!(other, asker, "seed {seed}");
            }
        }
        assert!((500..7_500).contains(&keys.len()), "{} askers of 8000 differ", keys.len());
    }

    #[test]
    fn a_key_is_read_as_it_is_shown() {
        let (key, proof) = of("{}").unwrap();
        assert_eq!(Key::parse(&key.to_string()), Some(key));
        assert_eq!(Key::parse("12"), None);
        assert_ne!(key.bytes(), proof.bytes());
    }

    /// Prints what a key costs; run with `--nocapture` in a build with optimisation.
    #[test]
    fn time_of_a_key() {
        for bytes in [300, 10_000, 200_000] {
            let text = "word ".repeat(bytes / 5);
            let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
            let (body, rounds) = (body.to_string(), 2_000_000 / bytes as u32);
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                assert!(std::hint::black_box(of(&body)).is_some());
            }
            println!("key of a body of {bytes} bytes: {:?}", start.elapsed() / rounds);
        }
    }
}
