//! Errors on the wire, both ways.
//!
//! Invariant: a [`Kind`] arrives as it left; a failure of the transport itself is `Unavailable`, the one kind
//! that is worth a retry.

use std::error::Error as StdError;
use std::fmt;

use prost::Message;
use tonic::{Code, Status};

use super::generated::{Failure, FailureKind};
use crate::{Error, Kind};

/// The longest text of one error that travels, in bytes; headers have bounds.
const TEXT_BYTES_MAX: usize = 2 << 10;
/// The longest text for tools that do not know [`Failure`], in bytes.
const SHORT_TEXT_BYTES_MAX: usize = 512;
/// How many causes travel.
const CAUSES_MAX: usize = 3;

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        Self {
            kind: kind_to_wire(error.kind()).into(),
            message: shortened(&error.to_string(), TEXT_BYTES_MAX),
            causes: causes
                .take(CAUSES_MAX)
                .map(|cause| shortened(&cause.to_string(), SHORT_TEXT_BYTES_MAX))
                .collect(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = kind_from_wire(failure.kind());
        let error = Error::new(kind, failure.message);
        let chain = |source, message| Some(Box::new(Cause { message, source }));
        match failure.causes.into_iter().rev().fold(None, chain) {
            Some(cause) => error.because(cause as Box<dyn StdError + Send + Sync>),
            None => error,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let failure = Failure::from(&error);
        let text = shortened(&failure.message, SHORT_TEXT_BYTES_MAX);
        Status::with_details(code(error.kind()), text, failure.encode_to_vec().into())
    }
}

/// What a status says, asked of the bus at `address`.
pub(super) fn from_status(status: &Status, address: &str) -> Error {
    if !status.details().is_empty()
        && let Ok(failure) = Failure::decode(status.details())
    {
        return failure.into();
    }
    let said = said(status);
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            Error::new(Kind::TooLarge, format!("the bus at {address} refused a message for its size: {said}"))
        }
        Code::Unimplemented => Error::new(
            Kind::Configuration,
            format!("{address} does not know this call: {said}; is it a bus of the same version?"),
        ),
        _ => Error::new(
            Kind::Unavailable,
            format!("the bus at {address} cannot be reached: {said}; is `tombolo bus` running there?"),
        ),
    }
}

/// The text of a status with everything that caused it, each said once.
fn said(status: &Status) -> String {
    let mut said = status.message().to_owned();
    for cause in std::iter::successors(status.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

fn shortened(text: &str, bytes_max: usize) -> String {
    match text.len() <= bytes_max {
        true => text.to_owned(),
        false => format!("{}…", &text[..text.floor_char_boundary(bytes_max)]),
    }
}

/// A cause that came over the wire: its text and what caused it.
#[derive(Debug)]
struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as &(dyn StdError + 'static))
    }
}

fn kind_to_wire(kind: Kind) -> FailureKind {
    match kind {
        Kind::UnknownTopic => FailureKind::UnknownTopic,
        Kind::TopicDiffers => FailureKind::TopicDiffers,
        Kind::UnknownPartition => FailureKind::UnknownPartition,
        Kind::OtherIncarnation => FailureKind::OtherIncarnation,
        Kind::OlderEpoch => FailureKind::OlderEpoch,
        Kind::Hole => FailureKind::Hole,
        Kind::OtherId => FailureKind::OtherId,
        Kind::Sealed => FailureKind::Sealed,
        Kind::BeyondTail => FailureKind::BeyondTail,
        Kind::Trimmed => FailureKind::Trimmed,
        Kind::NotOwner => FailureKind::NotOwner,
        Kind::Unauthenticated => FailureKind::Unauthenticated,
        Kind::TooLarge => FailureKind::TooLarge,
        Kind::InvalidName => FailureKind::InvalidName,
        Kind::Corrupt => FailureKind::Corrupt,
        Kind::ReadOnly => FailureKind::ReadOnly,
        Kind::Unsafe => FailureKind::Unsafe,
        Kind::Unavailable => FailureKind::Unavailable,
        Kind::Configuration => FailureKind::Configuration,
        Kind::Closed => FailureKind::Closed,
    }
}

/// A kind that a newer server names is `Configuration`: never retried, and the text says what it was.
fn kind_from_wire(kind: FailureKind) -> Kind {
    match kind {
        FailureKind::UnknownTopic => Kind::UnknownTopic,
        FailureKind::TopicDiffers => Kind::TopicDiffers,
        FailureKind::UnknownPartition => Kind::UnknownPartition,
        FailureKind::OtherIncarnation => Kind::OtherIncarnation,
        FailureKind::OlderEpoch => Kind::OlderEpoch,
        FailureKind::Hole => Kind::Hole,
        FailureKind::OtherId => Kind::OtherId,
        FailureKind::Sealed => Kind::Sealed,
        FailureKind::BeyondTail => Kind::BeyondTail,
        FailureKind::Trimmed => Kind::Trimmed,
        FailureKind::NotOwner => Kind::NotOwner,
        FailureKind::Unauthenticated => Kind::Unauthenticated,
        FailureKind::TooLarge => Kind::TooLarge,
        FailureKind::InvalidName => Kind::InvalidName,
        FailureKind::Corrupt => Kind::Corrupt,
        FailureKind::ReadOnly => Kind::ReadOnly,
        FailureKind::Unsafe => Kind::Unsafe,
        FailureKind::Unavailable => Kind::Unavailable,
        FailureKind::Closed => Kind::Closed,
        FailureKind::Configuration | FailureKind::Unspecified => Kind::Configuration,
    }
}

/// The nearest code of gRPC, for proxies and tools; Tombolo's client reads the [`Failure`].
fn code(kind: Kind) -> Code {
    match kind {
        Kind::UnknownTopic | Kind::UnknownPartition => Code::NotFound,
        Kind::TopicDiffers => Code::AlreadyExists,
        Kind::OlderEpoch | Kind::Hole | Kind::OtherId | Kind::Sealed => Code::Aborted,
        Kind::NotOwner => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::TooLarge | Kind::InvalidName | Kind::Configuration => Code::InvalidArgument,
        Kind::Corrupt => Code::DataLoss,
        Kind::Unavailable | Kind::Closed => Code::Unavailable,
        Kind::OtherIncarnation | Kind::BeyondTail | Kind::Trimmed | Kind::ReadOnly | Kind::Unsafe => {
            Code::FailedPrecondition
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Every kind, in order. A kind that is added to [`Kind`] does not compile until it is named here.
    fn after(kind: Kind) -> Option<Kind> {
        Some(match kind {
            Kind::UnknownTopic => Kind::TopicDiffers,
            Kind::TopicDiffers => Kind::UnknownPartition,
            Kind::UnknownPartition => Kind::OtherIncarnation,
            Kind::OtherIncarnation => Kind::OlderEpoch,
            Kind::OlderEpoch => Kind::Hole,
            Kind::Hole => Kind::OtherId,
            Kind::OtherId => Kind::Sealed,
            Kind::Sealed => Kind::BeyondTail,
            Kind::BeyondTail => Kind::Trimmed,
            Kind::Trimmed => Kind::NotOwner,
            Kind::NotOwner => Kind::Unauthenticated,
            Kind::Unauthenticated => Kind::TooLarge,
            Kind::TooLarge => Kind::InvalidName,
            Kind::InvalidName => Kind::Corrupt,
            Kind::Corrupt => Kind::ReadOnly,
            Kind::ReadOnly => Kind::Unsafe,
            Kind::Unsafe => Kind::Unavailable,
            Kind::Unavailable => Kind::Configuration,
            Kind::Configuration => Kind::Closed,
            Kind::Closed => return None,
        })
    }

    fn all() -> Vec<Kind> {
        std::iter::successors(Some(Kind::UnknownTopic), |kind| after(*kind)).collect()
    }

    #[test]
    fn every_kind_arrives_as_it_left() {
        let mut numbers = HashSet::new();
        for kind in all() {
            let error = Error::new(kind, format!("found {kind:?}")).because("the disk").because("the cable");
            let failure = Failure::from(&error);
            assert!(numbers.insert(failure.kind), "{kind:?} shares its number");
            let through_status = from_status(&Status::from(error), "here");
            let through_reply = Error::from(failure);
            for arrived in [through_status, through_reply] {
                assert_eq!(arrived.kind(), kind);
                assert_eq!(arrived.to_string(), format!("found {kind:?}"));
                assert_eq!(arrived.source().unwrap().to_string(), "the cable");
            }
        }
    }

    #[test]
    fn causes_arrive_in_their_order() {
        let failure = Failure { kind: 1, message: "m".into(), causes: vec!["near".into(), "far".into()] };
        let error = Error::from(failure.clone());
        let far = error.source().unwrap().source().unwrap();
        assert_eq!(far.to_string(), "far");
        assert_eq!(Failure::from(&error), failure);
    }

    #[test]
    fn a_kind_of_the_future_is_not_retried() {
        let failure = Failure { kind: 4711, message: "from tomorrow".into(), causes: vec![] };
        assert_eq!(Error::from(failure).kind(), Kind::Configuration);
    }

    #[test]
    fn a_very_long_text_is_cut_between_characters() {
        let error = Error::new(Kind::Corrupt, "ü".repeat(TEXT_BYTES_MAX));
        let arrived = from_status(&Status::from(error), "here").to_string();
        assert!(arrived.len() <= TEXT_BYTES_MAX + 3 && arrived.ends_with("ü…"), "{}", arrived.len());
    }

    #[test]
    fn what_the_transport_says_is_unavailable_and_names_the_address() {
        let error = from_status(&Status::unavailable("tcp connect error"), "tombolo://somewhere:1");
        assert!(error.is_transient());
        assert!(error.to_string().contains("tombolo://somewhere:1"), "{error}");
        assert_eq!(from_status(&Status::unimplemented("?"), "x").kind(), Kind::Configuration);
    }
}
