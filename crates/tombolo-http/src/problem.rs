//! Problem documents (RFC 9457): how every route says what went wrong.
//!
//! Invariant: the `type` of a problem is stable, and is all that a program needs to tell one from another.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9457>.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use tombolo_bus::Kind;

/// What begins the `type` of every problem.
const TYPE_PREFIX: &str = "urn:tombolo:problem:";

/// What can be wrong with a request: the last word of a problem's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The body is not what its content type says.
    Malformed,
    /// The content type is none that this route takes.
    ContentType,
    /// An attribute that every CloudEvent has is missing.
    MissingAttribute,
    /// An attribute cannot have this value.
    InvalidAttribute,
    /// `specversion` is none that is known here.
    SpecVersion,
    /// A body, an event, a batch or a header is over its limit.
    TooLarge,
    /// A name of a topic or a subscription cannot be one.
    InvalidName,
    /// A parameter of the query or a header cannot have this value.
    InvalidParameter,
    /// There is no proof of who is asking.
    Unauthenticated,
    /// Whoever is asking may not do this.
    Forbidden,
    /// There is no such topic.
    UnknownTopic,
    /// There is nothing under this address.
    NotFound,
    /// There is something under this address, but not by this method.
    Method,
    /// The topic is fed by the outbox of its service, and takes nothing else.
    FedByOutbox,
    /// The topic is there, and is another.
    TopicDiffers,
    /// The place to read after is not in this topic.
    OtherPlace,
    /// What was asked for was moved to an archive.
    Trimmed,
    /// The same id came before with other content.
    IdReused,
    /// The bus, or what it stands on, cannot answer now.
    Unavailable,
    /// Something that should not happen did.
    Internal,
}

impl Refusal {
    fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::ContentType => "content-type",
            Self::MissingAttribute => "missing-attribute",
            Self::InvalidAttribute => "invalid-attribute",
            Self::SpecVersion => "specversion",
            Self::TooLarge => "too-large",
            Self::InvalidName => "invalid-name",
            Self::InvalidParameter => "invalid-parameter",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::UnknownTopic => "unknown-topic",
            Self::NotFound => "not-found",
            Self::Method => "method",
            Self::FedByOutbox => "fed-by-outbox",
            Self::TopicDiffers => "topic-differs",
            Self::OtherPlace => "other-place",
            Self::Trimmed => "trimmed",
            Self::IdReused => "id-reused",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Malformed
            | Self::MissingAttribute
            | Self::InvalidAttribute
            | Self::SpecVersion
            | Self::InvalidName
            | Self::InvalidParameter => StatusCode::BAD_REQUEST,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::UnknownTopic | Self::NotFound => StatusCode::NOT_FOUND,
            Self::FedByOutbox | Self::TopicDiffers | Self::OtherPlace | Self::IdReused => {
                StatusCode::CONFLICT
            }
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Trimmed => StatusCode::GONE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The body cannot be read",
            Self::ContentType => "The content type is not taken here",
            Self::MissingAttribute => "An attribute is missing",
            Self::InvalidAttribute => "An attribute has a value that it cannot have",
            Self::SpecVersion => "This version of CloudEvents is not known",
            Self::TooLarge => "Too large",
            Self::InvalidName => "This cannot be a name",
            Self::InvalidParameter => "A parameter has a value that it cannot have",
            Self::Unauthenticated => "Who is asking is not known",
            Self::Forbidden => "Not allowed",
            Self::UnknownTopic => "There is no such topic",
            Self::NotFound => "There is nothing here",
            Self::Method => "Not by this method",
            Self::FedByOutbox => "The topic is fed by an outbox",
            Self::TopicDiffers => "The topic is another",
            Self::OtherPlace => "The place is not in this topic",
            Self::Trimmed => "The events were moved to an archive",
            Self::IdReused => "The id was used for another event",
            Self::Unavailable => "Not available now",
            Self::Internal => "Internal error",
        }
    }
}

/// A refusal with what was found, what was expected and what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    refusal: Refusal,
    detail: String,
    members: Map<String, Value>,
}

impl Problem {
    /// A problem with a sentence or two.
    pub fn new(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self { refusal, detail: detail.into(), members: Map::new() }
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The same with other words.
    #[must_use]
    pub(crate) fn saying(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    /// What is wrong, for code.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        self.refusal
    }

    /// What is wrong, for people.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> Value {
        let mut document = self.members.clone();
        document.insert("type".into(), json!(format!("{TYPE_PREFIX}{}", self.refusal.word())));
        document.insert("title".into(), json!(self.refusal.title()));
        document.insert("status".into(), json!(self.refusal.status().as_u16()));
        document.insert("detail".into(), json!(self.detail));
        Value::Object(document)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/problem+json");
        let mut response =
            (self.refusal.status(), [(header::CONTENT_TYPE, json)], self.document().to_string())
                .into_response();
        let headers = response.headers_mut();
        match self.refusal {
            Refusal::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Refusal::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The rest of the body is not read, so the connection ends: said, so that nobody sends another request there meanwhile.
            Refusal::TooLarge => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<tombolo_bus::Error> for Problem {
    fn from(error: tombolo_bus::Error) -> Self {
        let refusal = match error.kind() {
            Kind::UnknownTopic => Refusal::UnknownTopic,
            Kind::UnknownPartition => Refusal::NotFound,
            Kind::InvalidName => Refusal::InvalidName,
            Kind::TooLarge => Refusal::TooLarge,
            Kind::NotOwner => Refusal::Forbidden,
            Kind::TopicDiffers => Refusal::TopicDiffers,
            Kind::OtherId | Kind::OtherIncarnation | Kind::BeyondTail => Refusal::OtherPlace,
            Kind::Trimmed => Refusal::Trimmed,
            Kind::Unavailable | Kind::ReadOnly | Kind::OlderEpoch | Kind::Hole | Kind::Sealed => {
                Refusal::Unavailable
            }
            _ => Refusal::Internal,
        };
        Self::new(refusal, error.to_string())
    }
}

impl From<tombolo_event::Error> for Problem {
    fn from(error: tombolo_event::Error) -> Self {
        let refusal = match error.kind() {
            tombolo_event::Kind::InvalidName => Refusal::InvalidName,
            tombolo_event::Kind::InvalidGenerations => Refusal::InvalidParameter,
            tombolo_event::Kind::InvalidKey => Refusal::InvalidAttribute,
            tombolo_event::Kind::TooLarge => Refusal::TooLarge,
            tombolo_event::Kind::Malformed => Refusal::Malformed,
            _ => Refusal::Internal,
        };
        Self::new(refusal, error.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Refusal::InvalidParameter, rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Refusal::InvalidParameter, rejection.body_text())
    }
}
