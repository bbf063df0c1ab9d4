//! Who is asking, and what they may do.
//!
//! Invariant: a credential that is shown is right or refused; nobody is taken for somebody else because their token is old.

use std::net::IpAddr;

use http::{HeaderMap, header};
use tombolo_bus::Identity;
use tombolo_bus::server::{ClientCertificate, Credential, Credentials, Shown};
use tombolo_event::ServiceName;

use crate::problem::{Problem, Refusal};

/// Who may do what at this door.
#[derive(Debug, Clone, Default)]
pub struct Access {
    credentials: Credentials,
}

/// Somebody who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    credential: Option<Credential>,
}

impl Access {
    /// By these credentials. Without any, everybody on this machine is let in, and is taken at their word.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials }
    }

    /// Who sent a request with these headers, from this address (none is a socket of this machine), over a connection on which it showed
    /// this certificate.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn caller(
        &self,
        headers: &HeaderMap,
        from: Option<IpAddr>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Caller, Problem> {
        let token = headers.get(header::AUTHORIZATION).map(|it| it.to_str().unwrap_or_default());
        let token = match token.map(|it| it.split_once(' ')) {
            None => None,
            Some(Some((scheme, token))) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
            Some(_) => {
                let detail = "the authorization header is no bearer token; expected \"Bearer TOKEN\"";
                return Err(Problem::new(Refusal::Unauthenticated, detail));
            }
        };
        let is_here = from.is_none_or(|address| address.to_canonical().is_loopback());
        let credential = self.credentials.recognise(Shown { token, certificate }, is_here);
        let credential =
            credential.map_err(|error| Problem::new(Refusal::Unauthenticated, error.to_string()))?;
        Ok(Caller { credential })
    }
}

impl Caller {
    /// The service that proved to be asking.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self.credential.as_ref().map(|it| &it.identity) {
            Some(Identity::Service(name)) => Some(name),
            _ => None,
        }
    }

    /// The name that stands in the `source` of what it publishes; none where nobody has to prove who they are.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        self.service().map(ServiceName::as_str)
    }

    /// # Errors
    /// `Forbidden` unless it owns `topic`.
    pub fn must_own(&self, topic: &ServiceName) -> Result<(), Problem> {
        match &self.credential {
            None => Ok(()),
            Some(it) if it.identity == Identity::Service(topic.clone()) => Ok(()),
            Some(it) => {
                let detail = format!(
                    "topic {topic} belongs to the service {topic}, so {} may not publish there; only its owner may",
                    it.identity
                );
                Err(Problem::new(Refusal::Forbidden, detail))
            }
        }
    }

    /// # Errors
    /// `Forbidden` unless it may read `topic`.
    pub fn must_read(&self, topic: &ServiceName) -> Result<(), Problem> {
        match &self.credential {
            Some(it) if !it.may_read(topic) => {
                let detail = format!(
                    "{} may not read topic {topic}; the operator names it in its `reads`",
                    it.identity
                );
                Err(Problem::new(Refusal::Forbidden, detail))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// `Forbidden` unless it is an operator.
    pub fn must_operate(&self) -> Result<(), Problem> {
        match &self.credential {
            Some(it) if it.identity != Identity::Operator => {
                let detail = format!("{} may not do this; an operator's token may", it.identity);
                Err(Problem::new(Refusal::Forbidden, detail))
            }
            _ => Ok(()),
        }
    }
}
