//! Who calls: what the client says in the metadata, and what the server makes of it.
//!
//! Invariant: a topic is changed only by the service of its name. Where the server has credentials, an identity is what the
//! token or the certificate proves; where it has none, callers are taken at their word. [`of`] is the one place where a caller is recognised.

use tombolo_event::ServiceName;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::{Credentials, Peer, Shown};
use crate::{Error, Identity, Kind, Result};

/// The metadata in which a client says who it is.
const HEADER: &str = "tombolo-identity";

/// The metadata in which a client shows its token.
const AUTHORIZATION: &str = "authorization";

/// Who sent a request.
///
/// # Errors
/// `Configuration` if it does not say so, `Unauthenticated` if it does not prove it.
pub(super) fn of<T>(request: &Request<T>, credentials: &Credentials) -> Result<Identity> {
    let metadata = request.metadata();
    if credentials.is_asked_for() {
        let shown = metadata.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|it| it.strip_prefix("Bearer "));
        let peer = request.extensions().get::<Peer>();
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        if let Some(credential) = credentials.recognise(Shown { token, certificate }, false)? {
            return Ok(credential.identity);
        }
    }
    said(metadata)
}

/// Who it says that it is.
fn said(metadata: &MetadataMap) -> Result<Identity> {
    let said = metadata.get(HEADER).and_then(|value| value.to_str().ok()).ok_or_else(|| {
        let message = format!(
            "the call does not say who makes it; expected {HEADER:?} with \"service/<name>\" or \"operator\""
        );
        Error::new(Kind::Configuration, message)
    })?;
    said.parse()
}

/// Refuses unless `caller` is the service that owns `topic`.
///
/// # Errors
/// `NotOwner`.
pub(super) fn must_own(caller: &Identity, topic: &ServiceName, act: &str) -> Result<()> {
    match caller {
        Identity::Service(service) if service == topic => Ok(()),
        _ => Err(Error::new(
            Kind::NotOwner,
            format!(
                "topic {topic} belongs to the service {topic}, so {caller} may not {act}; only its owner may"
            ),
        )),
    }
}

/// Puts the client's identity, and its token if it has one, on each of its calls.
#[derive(Clone)]
pub(super) struct Identified {
    identity: MetadataValue<Ascii>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl std::fmt::Debug for Identified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identified").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Identified {
    /// # Errors
    /// `Configuration` if the token has what no header can hold.
    pub(super) fn new(identity: &Identity, token: Option<&str>) -> Result<Self> {
        let value = |what: &str, text: String| {
            text.parse().map_err(|error| {
                Error::new(
                    Kind::Configuration,
                    format!("the {what} of {identity} cannot be sent as metadata"),
                )
                .because(Box::<dyn std::error::Error + Send + Sync>::from(format!("{error}")))
            })
        };
        let authorization = token.map(|token| value("token", format!("Bearer {token}"))).transpose()?;
        Ok(Self { identity: value("name", identity.to_string())?, authorization })
    }
}

impl Interceptor for Identified {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        request.metadata_mut().insert(HEADER, self.identity.clone());
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_recognised_as_what_it_says() {
        for identity in [Identity::Service(ServiceName::new("orders").unwrap()), Identity::Operator] {
            let request = Identified::new(&identity, None).unwrap().call(Request::new(())).unwrap();
            assert_eq!(of(&request, &Credentials::default()).unwrap(), identity);
        }
    }

    #[test]
    fn a_caller_that_does_not_say_who_it_is_is_refused() {
        assert_eq!(said(&MetadataMap::new()).unwrap_err().kind(), Kind::Configuration);
        for odd in ["", "orders", "service/", "service/Orders", "operator/x", "root"] {
            let mut metadata = MetadataMap::new();
            metadata.insert(HEADER, odd.parse().unwrap());
            assert!(said(&metadata).is_err(), "{odd:?}");
        }
    }
}
