//! Whose request it is.
//!
//! What belongs to a tenant (its rate, its stored answers) must never be another's. So a tenant is not a name that a
//! client may choose but a digest of its credentials, by a hash for which nobody can find a second value; neither
//! credentials nor digest are ever shown.
//!
//! Left out: whether the credentials are good. That is for whoever answers to say.

use crate::wire::Fields;

/// A tenant. Requests without any of the fields are all of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant([u8; 16]);

impl Tenant {
    /// Whose request it is, by the values of these fields, in this order.
    pub fn of(fields: &Fields, names: &[String]) -> Self {
        let mut digest = blake3::Hasher::new();
        for (index, name) in names.iter().enumerate() {
            for value in fields.get_all(name) {
                // With place and length, so that values of one field are never taken for those of another.
                digest.update(&(index as u64).to_le_bytes());
                digest.update(&(value.len() as u64).to_le_bytes());
                digest.update(value);
            }
        }
        let mut tenant = [0; 16];
        digest.finalize_xof().fill(&mut tenant);
        Tenant(tenant)
    }

    /// The tenant that [`Tenant::as_bytes`] told.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Tenant(bytes)
    }

    /// What makes it this tenant and no other.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(fields: &[(&str, &str)]) -> Tenant {
        let mut head = Fields::default();
        for (name, value) in fields {
            head.append(name, value);
        }
        Tenant::of(&head, &["authorization", "x-api-key"].map(str::to_owned))
    }

    #[test]
    fn a_tenant_is_known_by_all_its_values_and_nothing_else() {
        let ada = tenant(&[("authorization", "Bearer ada")]);
        assert_eq!(ada, tenant(&[("user-agent", "x"), ("authorization", "Bearer ada")]));
        let others = [
            tenant(&[]),
            tenant(&[("authorization", "Bearer bob")]),
            tenant(&[("x-api-key", "Bearer ada")]),
            tenant(&[("authorization", "Bearer ada"), ("x-api-key", "k")]),
            tenant(&[("authorization", "Bearer ada"), ("authorization", "Bearer ada")]),
            tenant(&[("authorization", "Bearer"), ("x-api-key", " ada")]),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != ada && !others[..i].contains(other), "{i}");
        }
    }
}
