//! The key-encryption key: what seals the signing keys in the database, and from which a refresh token's successor follows.
//!
//! Invariant: without it the database alone signs no token; it comes from the environment or from a file that only its owner
//! reads, and is in no log.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use tombolo::{Error, Kind, Result};

const KEY_BYTES: usize = 32;

/// The key-encryption key.
#[derive(Clone)]
pub struct SealingKey([u8; KEY_BYTES]);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

fn settings(message: String) -> Error {
    Error::new(Kind::Settings, message)
}

/// What can only fail if the machine gives no chance or no memory.
pub(crate) fn broken<E>(what: &'static str) -> impl Fn(E) -> Error {
    move |_| {
        Error::new(Kind::Failed, format!("{what} failed; the system's cryptography is not to be trusted now"))
    }
}

impl SealingKey {
    /// A new one.
    ///
    /// # Errors
    /// `Failed` if the machine gives no randomness.
    pub fn generate() -> Result<Self> {
        Ok(Self(random()?))
    }

    /// The key in base64, 32 bytes; `place` says where it was found, for the refusal.
    ///
    /// # Errors
    /// `Settings` if it is something else. The text is not repeated.
    pub fn parse(place: &str, text: &str) -> Result<Self> {
        let wrong = || {
            settings(format!(
                "{place} does not hold a key; expected 32 random bytes in base64: `openssl rand -base64 32` makes one"
            ))
        };
        let bytes = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        Ok(Self(bytes.try_into().map_err(|_| wrong())?))
    }

    /// The key in a file that nobody but its owner may read; made if it is not there.
    ///
    /// # Errors
    /// `Settings` if others may read it, or it is something else.
    pub fn in_file(path: &Path) -> Result<Self> {
        let place = path.display();
        let failed =
            |error: std::io::Error| settings(format!("the key file {place} cannot be used: {error}"));
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        if let Ok(mut file) = options {
            let key = Self::generate()?;
            file.write_all(STANDARD.encode(key.0).as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
            return Ok(key);
        }
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(settings(format!(
                "the key file {place} has the mode {:o}; expected 600: run chmod 600 on it",
                mode & 0o777
            )));
        }
        Self::parse(&place.to_string(), &fs::read_to_string(path).map_err(failed)?)
    }

    fn aead(&self) -> Result<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(broken("making a key for sealing"))
    }

    /// Seals `secret`, which then opens only under the same name.
    pub(crate) fn seal(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = secret.to_vec();
        let nonce = self.aead()?.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut sealed);
        let nonce = nonce.map_err(broken("sealing"))?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// Opens what was sealed under this name.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let wrong = || {
            settings(format!(
                "the signing key {name} in the database was sealed with another key-encryption key; give the service the one with which it was first started"
            ))
        };
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut opened = sealed.to_vec();
        let length = {
            let aead = self.aead()?;
            aead.open_in_place(nonce, Aad::from(name.as_bytes()), &mut opened).map_err(|_| wrong())?.len()
        };
        opened.truncate(length);
        Ok(opened)
    }

    /// The one token that follows from `token`: whoever uses it twice at once gets the same.
    pub(crate) fn successor(&self, token: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, format!("refresh-token successor of {token}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref())
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(broken("getting random bytes"))?;
    Ok(bytes)
}

/// A new opaque token of 256 bits.
pub(crate) fn token() -> Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

/// What is stored of a token.
pub(crate) fn hash(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_own_name_and_key_only() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal("k1", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(key.open("k1", &sealed).unwrap(), b"secret");
        assert!(key.open("k2", &sealed).is_err());
        assert!(SealingKey::generate().unwrap().open("k1", &sealed).is_err());
        assert!(key.open("k1", b"short").is_err());
    }

    #[test]
    fn a_key_file_is_made_for_its_owner_alone_and_refused_if_others_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let made = SealingKey::in_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SealingKey::in_file(&path).unwrap().0, made.0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = SealingKey::in_file(&path).unwrap_err().to_string();
        assert!(refused.contains("640") && refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_wrong_key_is_not_repeated_in_the_refusal() {
        let refused = SealingKey::parse("TOMBOLO_IDENTITY_KEY", "hush").unwrap_err().to_string();
        assert!(!refused.contains("hush"), "{refused}");
        assert_eq!(format!("{:?}", SealingKey::generate().unwrap()), "SealingKey(…)");
    }
}
