//! How a caller proves who it is: by a bearer token, of which the server knows the hash, or by a certificate.
//!
//! Invariant: where there are credentials, nobody gets in without one; where there are none, nobody from elsewhere does.

use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tombolo_event::ServiceName;

use super::ClientCertificate;
use crate::{Error, Identity, Kind, Result};

/// What one caller shows, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Who it is.
    pub identity: Identity,
    /// The SHA-256 of each token that it may show: two of them while one takes the place of the other.
    pub tokens: Vec<[u8; 32]>,
    /// The names for which a certificate of it may have been given out (mutual TLS).
    pub certificates: Vec<String>,
    /// The topics that it may read; none for all.
    pub reads: Option<Vec<ServiceName>>,
}

impl Credential {
    /// The hash by which a token is known.
    #[must_use]
    pub fn hash(token: &str) -> [u8; 32] {
        Sha256::digest(token.as_bytes()).into()
    }

    /// Whether it may read `topic`; its own always.
    #[must_use]
    pub fn may_read(&self, topic: &ServiceName) -> bool {
        let is_its_own = matches!(&self.identity, Identity::Service(name) if name == topic);
        is_its_own || self.reads.as_ref().is_none_or(|topics| topics.contains(topic))
    }
}

/// What a caller shows of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown<'a> {
    /// The bearer token. Where there is one, it decides.
    pub token: Option<&'a str>,
    /// The certificate, which was verified already.
    pub certificate: Option<&'a ClientCertificate>,
}

/// The credentials of everybody, which can be replaced while the server runs.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Arc<RwLock<Vec<Credential>>>);

impl Credentials {
    /// Puts these in place of those before: from now on only they count.
    pub fn replace(&self, credentials: Vec<Credential>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Who shows this. None where there are no credentials at all and the caller is on this machine: then it is taken at its word.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn recognise(&self, shown: Shown<'_>, is_on_this_machine: bool) -> Result<Option<Credential>> {
        let wrong = |message: &str| Err(Error::new(Kind::Unauthenticated, message));
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return match is_on_this_machine {
                true => Ok(None),
                false => wrong(
                    "this bus has no credentials, so it answers callers on its own machine only; give it some (`[[bus.credential]]`)",
                ),
            };
        }
        let Some(token) = shown.token else {
            let Some(certificate) = shown.certificate else {
                return wrong(
                    "the call shows neither a token nor a certificate; expected the bearer token of a service or an operator that this bus knows",
                );
            };
            let is_its = |of: &&Credential| of.certificates.iter().any(|name| certificate.is_for(name));
            return match known.iter().find(is_its) {
                Some(credential) => Ok(Some(credential.clone())),
                None => wrong(
                    "the certificate is for no name that this bus knows; expected one of a `[[bus.credential]]`",
                ),
            };
        };
        let hash = Credential::hash(token);
        // All are compared, each in constant time, so that nothing is told by how long it takes.
        let mut found = None;
        for credential in known.iter() {
            for token in &credential.tokens {
                if bool::from(token.ct_eq(&hash)) {
                    found = Some(credential);
                }
            }
        }
        match found {
            Some(credential) => Ok(Some(credential.clone())),
            None => wrong("the token is none that this bus knows; it may have been replaced"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(identity: &str, tokens: &[&str]) -> Credential {
        Credential {
            identity: identity.parse().unwrap(),
            tokens: tokens.iter().map(|it| Credential::hash(it)).collect(),
            certificates: Vec::new(),
            reads: Some(Vec::new()),
        }
    }

    fn by(token: Option<&str>) -> Shown<'_> {
        Shown { token, certificate: None }
    }

    #[test]
    fn without_credentials_only_this_machine_is_let_in() {
        let credentials = Credentials::default();
        assert_eq!(credentials.recognise(Shown::default(), true).unwrap(), None);
        assert_eq!(credentials.recognise(Shown::default(), false).unwrap_err().kind(), Kind::Unauthenticated);
    }

    #[test]
    fn with_credentials_a_token_has_to_be_known() {
        let credentials = Credentials::default();
        credentials.replace(vec![of("service/posts", &["old", "new"]), of("operator", &["root"])]);
        for token in ["old", "new"] {
            let found = credentials.recognise(by(Some(token)), true).unwrap().unwrap();
            assert_eq!(found.identity.to_string(), "service/posts");
        }
        for token in [None, Some("other"), Some("")] {
            assert_eq!(credentials.recognise(by(token), true).unwrap_err().kind(), Kind::Unauthenticated);
        }
        credentials.replace(vec![of("service/posts", &["new"])]);
        assert!(credentials.recognise(by(Some("old")), true).is_err());
        assert!(credentials.recognise(by(Some("new")), false).is_ok());
    }

    #[test]
    fn a_service_reads_its_own_topic_and_those_that_are_named() {
        let topic = |name: &str| ServiceName::new(name).unwrap();
        let posts = Credential { reads: Some(vec![topic("users")]), ..of("service/posts", &["t"]) };
        assert!(posts.may_read(&topic("posts")) && posts.may_read(&topic("users")));
        assert!(!posts.may_read(&topic("orders")));
        assert!(Credential { reads: None, ..posts }.may_read(&topic("orders")));
    }
}
