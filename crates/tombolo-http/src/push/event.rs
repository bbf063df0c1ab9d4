//! An event on its way to a subscriber, and the request that carries it.
//!
//! Invariant: whatever may have come to the subscriber before is marked as such.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use tombolo_bus::Record;
use tombolo_event::envelope::JSON;
use tombolo_event::{Envelope, EventId};

use super::settings::{Mode, Order};
use crate::cloudevents::{STRUCTURED, binary_headers, to_json};

const SUBSCRIPTION: HeaderName = HeaderName::from_static("tombolo-subscription");
const ATTEMPT: HeaderName = HeaderName::from_static("tombolo-attempt");
/// Marks what may have come before.
pub(crate) const REDELIVERY: HeaderName = HeaderName::from_static("tombolo-redelivery");

/// What events wait for each other by: the key, or the empty text where all of them do.
pub(crate) type Key = Arc<str>;

/// Where an event is in its topic: partition and sequence.
pub(crate) type Place = (u32, u64);

/// An event that is to be delivered.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) place: Place,
    pub(crate) id: EventId,
    pub(crate) key: Key,
    pub(crate) envelope: Envelope,
    /// How many tries have failed.
    pub(crate) attempts: u32,
    /// Whether it may have come to the subscriber before.
    pub(crate) is_repeated: bool,
    /// Why the last try failed.
    pub(crate) cause: String,
}

impl Event {
    /// The event in a record.
    pub(crate) fn new(partition: u32, record: Record, order: Order) -> Result<Self, tombolo_event::Error> {
        let envelope = Envelope::decode(record.bytes)?;
        let key = match order {
            Order::Key => envelope.key.as_str().into(),
            Order::Serial => "".into(),
        };
        let place = (partition, record.sequence);
        Ok(Self {
            place,
            id: record.id,
            key,
            envelope,
            attempts: 0,
            is_repeated: false,
            cause: String::new(),
        })
    }
}

/// How a subscription's requests are written.
#[derive(Debug, Clone)]
pub(crate) struct Writing {
    pub(crate) subscription: HeaderValue,
    pub(crate) target: Uri,
    pub(crate) host: HeaderValue,
    pub(crate) mode: Mode,
}

/// The request that carries `event`.
pub(crate) fn request(writing: &Writing, event: &Event) -> Request<Full<Bytes>> {
    let envelope = &event.envelope;
    let (headers, body) = match writing.mode {
        Mode::Plain => (content_type(JSON), envelope.data.clone()),
        Mode::Binary => (binary_headers(envelope.clone(), Some(event.place.1)), envelope.data.clone()),
        Mode::Structured => {
            let json = to_json(envelope.clone(), Some(event.place.1));
            (content_type(STRUCTURED), json.to_string().into())
        }
    };
    let mut request = empty(writing, Method::POST);
    *request.body_mut() = Full::new(body);
    request.headers_mut().extend(headers);
    request.headers_mut().insert(ATTEMPT, HeaderValue::from(event.attempts + 1));
    if event.is_repeated {
        request.headers_mut().insert(REDELIVERY, possible());
    }
    request
}

/// A request of the subscription without a body.
pub(crate) fn empty(writing: &Writing, method: Method) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = method;
    let path = writing.target.path_and_query().map_or("/", |it| it.as_str());
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(header::HOST, writing.host.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static("tombolo"));
    headers.insert(SUBSCRIPTION, writing.subscription.clone());
    request
}

/// What stands in the mark.
pub(crate) fn possible() -> HeaderValue {
    HeaderValue::from_static("possible")
}

fn content_type(media: &'static str) -> http::HeaderMap {
    [(header::CONTENT_TYPE, HeaderValue::from_static(media))].into_iter().collect()
}
