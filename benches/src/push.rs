//! How fast events are pushed to subscribers: as many as the way can take, and one at a time.
//!
//! The subscribers are in this process, each on a port of its own, and answer at once. Plain events go one by one to each
//! subscriber; CloudEvents of a topic go in order of their keys, eight beside each other.
//!
//! Invariant: what counts as delivered is in the hands of each subscriber, once.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::clock::now_ns;
use crate::error::{Error, Result};
use crate::http;
use crate::quantiles::Latencies;
use crate::rounds::{Round, Rounds, Turns, median};
use crate::scratch::{Scratch, quiet};
use crate::server;
use crate::table::{Bar, Row, micros};
use crate::topic::EVENT_BYTES;
use crate::visible::arrivals;
use crate::yardstick::BareFile;

const SUBSCRIBERS: usize = 4;
/// Connections that publish, with one request under way on each.
const PUBLISHERS: usize = 8;
/// Events of one round.
const EVENTS: usize = 4_000;
const ROUNDS: usize = 5;
/// Deliveries per second, to all subscribers together.
const DELIVERIES: f64 = 5_000.0;
/// Events per second where one is under way at a time, and for how long they arrive in a round.
const GENTLE_RATE: f64 = 200.0;
const GENTLE_SECONDS: f64 = 3.0;
/// Twice as many writes as arrive in a round.
const YARDSTICK_BYTES: usize = 2 * (GENTLE_RATE * GENTLE_SECONDS) as usize * EVENT_BYTES;
/// How long the next delivery may take.
const DELIVERY_MAX: Duration = Duration::from_secs(20);

/// What is published, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Plain events, at a place of their own.
    Plain,
    /// CloudEvents of a topic.
    CloudEvents,
}

/// The figures.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let plain = rates(scratch, Way::Plain).await?;
    let keyed = rates(scratch, Way::CloudEvents).await?;
    let gentle = gentle(scratch).await?;
    let rate = |what: &str, rates: Vec<f64>| {
        let what =
            format!("{what}, delivered to {SUBSCRIBERS} subscribers, published on {PUBLISHERS} connections");
        Row::of_value(&what, median(rates.into_iter()), "/s", Bar::Reaches(DELIVERIES))
    };
    let what = "published over HTTP to delivered to a subscriber, 200/s, p50 / write + fdatasync, and one round trip to a route that does nothing, at the same arrivals, p50 of each";
    Ok(vec![
        rate("plain events", plain),
        rate("CloudEvents in order of 1,000 keys", keyed),
        Row::of(what, &gentle, Bar::AtMost(5.0), micros),
    ])
}

/// Deliveries per second of each round, to all subscribers together.
async fn rates(scratch: &Scratch, way: Way) -> Result<Vec<f64>> {
    let mut subscribers = try_join_all((0..SUBSCRIBERS).map(|_| Subscriber::new())).await?;
    let bus = TellingBus::start(scratch, way, &format!("{way:?}"), &subscribers).await?;
    let (mut rates, mut turns) = (Vec::new(), Turns::new(ROUNDS));
    while turns.next() {
        quiet(&bus.process.number()).await?;
        rates.push(rate(&bus, &mut subscribers).await?);
    }
    bus.process.end().await?;
    Ok(rates)
}

async fn rate(bus: &TellingBus, subscribers: &mut [Subscriber]) -> Result<f64> {
    let ids: Vec<Uuid> = (0..EVENTS).map(|_| Uuid::now_v7()).collect();
    let lanes = ids.chunks(EVENTS / PUBLISHERS).map(|lane| lane.iter().map(|id| bus.request(*id)).collect());
    let (lanes, ids) = (lanes.collect(), ids.iter().copied().collect());
    let began = now_ns();
    http::send(&bus.address, lanes, 1).await?;
    let mut ended = began;
    for subscriber in subscribers.iter_mut() {
        let last = subscriber.told_of(&ids).await?.into_values().max();
        ended = ended.max(last.unwrap_or_default());
    }
    Ok((EVENTS * subscribers.len()) as f64 * 1e9 / (ended - began) as f64)
}

/// From a request to publish until the subscriber has the event, beside what it cannot do without.
async fn gentle(scratch: &Scratch) -> Result<Rounds> {
    let mut subscribers = [Subscriber::new().await?];
    let bus = TellingBus::start(scratch, Way::CloudEvents, "gentle", &subscribers).await?;
    let bare = BareFile::prepare(scratch.path("gentle-yardstick"), YARDSTICK_BYTES).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (mut rounds, mut turns) = (Rounds::default(), Turns::new(ROUNDS + 1));
    for round in (0..).take_while(|_| turns.next()) {
        quiet(&bus.process.number()).await?;
        let arrivals = arrivals(round, GENTLE_RATE, GENTLE_SECONDS);
        let syncs = bare.paced_latencies(arrivals.clone(), EVENT_BYTES).await?;
        let trips = posted(&client, &bus, "/nothing", &arrivals).await?;
        let trips: Latencies = trips.values().map(|trip| trip.answered - trip.began).collect();
        let published = posted(&client, &bus, bus.way.path(), &arrivals).await?;
        let told = subscribers[0].told_of(&published.keys().copied().collect()).await?;
        let took: Latencies = told.iter().map(|(id, at)| at.saturating_sub(published[id].began)).collect();
        rounds.0.push(Round { yardstick: syncs.p50_us() + trips.p50_us(), subject: took.p50_us() });
    }
    bus.process.end().await?;
    // The first round warms everything up, and does not count.
    rounds.0.remove(0);
    Ok(rounds)
}

/// When a request began, and when its answer was there.
struct Trip {
    began: u64,
    answered: u64,
}

/// Posts an event at each arrival, whether or not those before were answered.
async fn posted(
    client: &reqwest::Client,
    bus: &TellingBus,
    path: &str,
    arrivals: &[u64],
) -> Result<HashMap<Uuid, Trip>> {
    let (start, mut trips) = (Instant::now(), Vec::new());
    for at in arrivals {
        let id = Uuid::now_v7();
        let request = client
            .post(format!("http://{}{path}", bus.address))
            .header("content-type", bus.way.content_type())
            .body(bus.way.event(id));
        sleep_until(start + Duration::from_nanos(*at)).await;
        trips.push(tokio::spawn(async move {
            let began = now_ns();
            request.send().await?.error_for_status()?.bytes().await?;
            Ok((id, Trip { began, answered: now_ns() }))
        }));
    }
    try_join_all(trips).await?.into_iter().collect()
}

impl Way {
    fn path(self) -> &'static str {
        match self {
            Self::Plain => "/events",
            Self::CloudEvents => "/topics/push/events",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }

    /// An event, which says in its data who it is.
    fn event(self, id: Uuid) -> String {
        let data = json!({"id": id, "type": "Written", "text": "e".repeat(110)});
        match self {
            Self::Plain => data.to_string(),
            Self::CloudEvents => {
                let subject = format!("key-{}", Uuid::new_v4().as_u128() % 1_000);
                json!({
                    "specversion": "1.0", "id": id, "source": "/bench", "type": "bench.written.v1", "subject": subject,
                    "data": data,
                })
                .to_string()
            }
        }
    }

    /// What the bus is told of its subscribers.
    fn settings(self, subscribers: &[Subscriber]) -> Value {
        let each = subscribers.iter().enumerate();
        match self {
            Self::Plain => {
                let each = each.map(|(at, it)| json!({"name": format!("plain-{at}"), "url": it.url}));
                let subscribers: Vec<Value> = each.collect();
                json!({"plain": [{"listen": ["127.0.0.1:0"], "topic": "plain", "subscribers": subscribers}]})
            }
            Self::CloudEvents => {
                let each = each
                    .map(|(at, it)| json!({"name": format!("push-{at}"), "topic": "push", "url": it.url}));
                json!({"push": each.collect::<Vec<_>>()})
            }
        }
    }
}

/// A bus in a process of its own that tells subscribers of this one.
struct TellingBus {
    process: server::Process,
    way: Way,
    /// Where it takes events.
    address: String,
}

impl TellingBus {
    async fn start(scratch: &Scratch, way: Way, name: &str, subscribers: &[Subscriber]) -> Result<Self> {
        let (socket, settings) =
            (scratch.path(&format!("{name}.sock")), scratch.path(&format!("{name}.json")));
        std::fs::write(&settings, way.settings(subscribers).to_string())?;
        let folder = scratch.path(name);
        let arguments: [(&str, &Path); 3] =
            [("--log", &folder), ("--socket", &socket), ("--http", &settings)];
        let process = server::Process::start("role-bus", &arguments).await?;
        let port = match way {
            Way::Plain => server::plain_port_file(&socket),
            Way::CloudEvents => server::port_file(&socket),
        };
        let address = format!("127.0.0.1:{}", std::fs::read_to_string(port)?);
        Ok(Self { process, way, address })
    }

    fn request(&self, id: Uuid) -> Vec<u8> {
        http::request(self.way.path(), self.way.content_type(), &self.way.event(id))
    }
}

/// Which event came, and when.
type Told = (Uuid, u64);

/// A subscriber that answers at once.
struct Subscriber {
    url: String,
    told: mpsc::Receiver<Told>,
    _task: AbortOnDropHandle<std::io::Result<()>>,
}

impl Subscriber {
    async fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/events", listener.local_addr()?);
        // Room for a round, so that an answer does not wait for this program to look.
        let (tell, told) = mpsc::channel(EVENTS);
        let routes = Router::new().route("/events", post(take)).with_state(tell);
        let listener = listener.tap_io(|stream| {
            // Without it a delivery takes longer, and is one all the same.
            drop(stream.set_nodelay(true));
        });
        let task = tokio::spawn(async { axum::serve(listener, routes).await });
        Ok(Self { url, told, _task: AbortOnDropHandle::new(task) })
    }

    /// Waits until it was told of each of these once, and says when.
    async fn told_of(&mut self, expected: &HashSet<Uuid>) -> Result<HashMap<Uuid, u64>> {
        let mut heard = HashMap::with_capacity(expected.len());
        while heard.len() < expected.len() {
            let Ok(Some((id, at))) = timeout(DELIVERY_MAX, self.told.recv()).await else {
                let (found, seconds) = (heard.len(), DELIVERY_MAX.as_secs());
                let count = expected.len();
                return Err(Error::new(format!(
                    "{found} of {count} events were delivered, then none in {seconds} s"
                )));
            };
            if !expected.contains(&id) || heard.insert(id, at).is_some() {
                return Err(Error::new(format!("event {id} was delivered twice, or was never published")));
            }
        }
        Ok(heard)
    }
}

/// What is looked at in an event.
#[derive(Deserialize)]
struct Written {
    id: Uuid,
}

async fn take(State(tell): State<mpsc::Sender<Told>>, body: Bytes) -> StatusCode {
    let at = now_ns();
    let Ok(written) = serde_json::from_slice::<Written>(&body) else { return StatusCode::BAD_REQUEST };
    match tell.send((written.id, at)).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
