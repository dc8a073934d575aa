//! Names and secrets: what a tenant is called inside PostgreSQL, and passwords that can't be printed.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{Error, Result};

/// A tenant's name inside PostgreSQL: `t_` and 12 lower-case base32 characters (60 bits) of the
/// SHA-256 of the Tenant's UID. It says nothing of the customer, and a name that was ever given
/// away is never derived again. A tenant that was taken back keeps the id it had.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

impl TenantId {
    /// The id of a Tenant that is placed for the first time.
    #[must_use]
    pub fn from_uid(uid: &str) -> Self {
        let digest = BASE32_NOPAD.encode(&Sha256::digest(uid.as_bytes())).to_ascii_lowercase();
        Self(format!("t_{}", &digest[..12]))
    }

    /// The id as text: also the name of the tenant's schema.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The schema while the tenant is in use.
    pub(super) fn schema(&self) -> &str {
        &self.0
    }

    /// The schema while the tenant is retained: out of every search path that ever was.
    pub(super) fn retained_schema(&self) -> String {
        format!("d_{}", self.0)
    }

    pub(super) fn owner(&self) -> String {
        format!("{}_owner", self.0)
    }

    pub(super) fn runtime(&self) -> String {
        format!("{}_rw", self.0)
    }

    pub(super) fn migrator(&self) -> String {
        format!("{}_mig", self.0)
    }

    pub(super) fn login(&self, slot: Slot) -> String {
        format!("{}_app_{}", self.0, slot.letter())
    }

    /// Every role of the tenant: those that log in first, the one that owns things last.
    pub(super) fn roles(&self) -> [String; 5] {
        [self.login(Slot::A), self.login(Slot::B), self.migrator(), self.runtime(), self.owner()]
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TenantId {
    type Err = Error;

    /// Reads an id back, from a status or a record.
    fn from_str(text: &str) -> Result<Self> {
        let valid = text
            .strip_prefix("t_")
            .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::permanent(format!("{text:?} is not a tenant id: expected t_ and 12 characters of a-z, 2-7")))
        }
    }
}

/// One of the two logins that a tenant's application uses in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The login that ends in `_app_a`.
    A,
    /// The login that ends in `_app_b`.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    pub(super) fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }
}

/// A password. It can't be printed by accident and is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// A password that came from elsewhere, for instance out of a Secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// A fresh password: 192 random bits as 32 characters that need no escaping in a URL.
    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new([0_u8; 24]);
        rand::rng().fill_bytes(bytes.as_mut());
        Self(Zeroizing::new(BASE64URL_NOPAD.encode(bytes.as_ref())))
    }

    /// The password itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the records keep to recognise the password again. Passwords of this module have 192
    /// random bits, so a plain hash can't be searched back.
    #[must_use]
    pub fn digest(&self) -> PasswordDigest {
        PasswordDigest(Sha256::digest(self.0.as_bytes()).into())
    }

    /// What the server gets instead of the password.
    pub(super) fn verifier(&self) -> String {
        postgres_protocol::password::scram_sha_256(self.0.as_bytes())
    }

    /// The same with one iteration instead of 4096, for a login that the operator alone uses.
    ///
    /// Iterations make guessing slow; what has 192 random bits is never guessed. They cost the
    /// server 10 ms each time a verifier is set (it tries whether the password is empty), and
    /// the client 1 ms at each login. Tenants' logins have 4096 all the same, since some of
    /// their drivers insist on it.
    #[must_use]
    pub fn verifier_for_us(&self) -> String {
        let mut salt = [0_u8; 16];
        rand::rng().fill_bytes(&mut salt);
        // PBKDF2 with one iteration, then RFC 5802. A random password is plain ASCII, which
        // SASLprep leaves as it is.
        let salted = mac(self.0.as_bytes(), &[&salt, &1_u32.to_be_bytes()]);
        let client_key = mac(salted.as_ref(), &[b"Client Key"]);
        let server_key = mac(salted.as_ref(), &[b"Server Key"]);
        let (salt, stored) = (BASE64.encode(&salt), BASE64.encode(&Sha256::digest(client_key.as_ref())));
        format!("SCRAM-SHA-256$1:{salt}${stored}:{}", BASE64.encode(server_key.as_ref()))
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// SHA-256 of a [`Password`] that the operator issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PasswordDigest(pub(super) [u8; 32]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_opaque_stable_and_read_back() {
        let id = TenantId::from_uid("6a1f0c1e-0000-4000-8000-000000000001");
        assert_eq!(id.as_str().len(), 14);
        assert_eq!(id, TenantId::from_uid("6a1f0c1e-0000-4000-8000-000000000001"));
        assert_ne!(id, TenantId::from_uid("6a1f0c1e-0000-4000-8000-000000000002"));
        assert_eq!(id.as_str().parse::<TenantId>().expect("valid"), id);
        for bad in ["", "t_", "t_ABCDEFGHIJKL", "t_abcdefghijk1", "x_abcdefghijkl", "t_abcdefghijklm"] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn passwords_are_random_and_not_printed() {
        let (one, two) = (Password::random(), Password::random());
        assert_ne!(one.expose(), two.expose());
        assert_eq!(one.expose().len(), 32);
        assert!(!format!("{one:?}").contains(one.expose()));
        assert_eq!(one.digest(), Password::new(one.expose()).digest());
        assert_ne!(one.digest(), two.digest());
    }
}
