//! A server and its clients over real sockets: who may do what, what a broken connection means, and what one
//! client can do to the others.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod logged;
mod stand_in;
#[cfg(feature = "tls")]
mod sealed;
#[cfg(feature = "conformance")]
mod owners;
#[cfg(feature = "conformance")]
mod conforming;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_bus::server::{Client, Listen, Server};
use tombolo_bus::{
    Append, Bus, Error, Identity, Kind, Reach, Read, Record, Registration, Result, Signal, TopicSpec, connect,
};
use tombolo_event::{Cursor, EventId, Generations, Incarnation, ServiceName};

use stand_in::{BATCH_BYTES, StandIn};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// More appends than any test makes.
const OPEN: usize = 1_000_000;

/// A server that runs until it is stopped, at an address that it can be started at again.
struct Running {
    address: Listen,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Running {
    async fn at(address: Listen, bus: Arc<dyn Bus>) -> Self {
        let server = Server::bind(&[address], bus).await.unwrap();
        let address = server.addresses().remove(0);
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { address, shutdown, serving, _folder: None }
    }

    async fn on_tcp(bus: Arc<dyn Bus>) -> Self {
        Self::at("tombolo://127.0.0.1:0".parse().unwrap(), bus).await
    }

    async fn on_unix(bus: Arc<dyn Bus>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Listen::Unix(folder.path().join("bus.sock"));
        Self { _folder: Some(folder), ..Self::at(address, bus).await }
    }

    fn client(&self) -> Client {
        Client::new(&self.address, &Identity::Service(orders())).unwrap()
    }

    async fn stop(self) -> (Listen, Option<tempfile::TempDir>) {
        self.shutdown.cancel();
        soon(self.serving).await.unwrap().unwrap();
        (self.address, self._folder)
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("should have happened long ago")
}

fn orders() -> ServiceName {
    ServiceName::new("orders").unwrap()
}

fn append_of(topic: ServiceName, first: u64, count: u64) -> Append {
    let record = |sequence| Record {
        sequence,
        id: EventId::new(),
        event_type: Bytes::from_static(b"orders.placed.v1"),
        bytes: Bytes::from_static(&[1; 256]),
    };
    let records = (first..first + count).map(record).collect();
    Append { topic, incarnation: Incarnation::new(), epoch: 1, partition: 0, records }
}

fn append(first: u64) -> Append {
    append_of(orders(), first, 3)
}

fn generations(each: &[u32]) -> Generations {
    Generations::try_from(each.to_vec()).unwrap()
}

fn from_start() -> Read {
    Read::following(&orders(), 0, Cursor::start(Incarnation::new()))
}

fn signal(text: &'static str) -> Signal {
    Signal { reply_to: Some("reply.here".into()), payload: Bytes::from_static(text.as_bytes()) }
}

/// Tries until it works, as a relay or a reader does.
async fn until_available<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    soon(async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) if error.is_transient() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_error_keeps_its_kind_and_its_text_over_the_wire() {
    for server in [
        Running::on_tcp(Arc::new(StandIn::new(OPEN))).await,
        Running::on_unix(Arc::new(StandIn::new(OPEN))).await,
    ] {
        let error = server.client().topic(&orders()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::UnknownTopic);
        assert_eq!(error.to_string(), "the stand-in has no topic „orders“");
        assert_eq!(server.client().ping().await.unwrap().engine, "stand-in");
        server.stop().await;
    }
}

#[tokio::test]
async fn only_the_owner_changes_a_topic_and_everybody_reads() {
    let bus = Arc::new(StandIn::new(OPEN));
    let server = Running::on_unix(bus.clone()).await;
    let spec = TopicSpec::new(orders(), generations(&[2]));
    let topic = server.client().ensure_topic(&spec).await.unwrap();
    let registration = Registration {
        service: orders(),
        replica: 1,
        url: "http://localhost:1".into(),
        descriptor: "{}".into(),
    };
    let thief = Identity::Service(ServiceName::new("thief").unwrap());
    for stranger in [thief, Identity::Operator] {
        let client = Client::new(&server.address, &stranger).unwrap();
        let refusals: [Error; 5] = [
            client.ensure_topic(&spec).await.unwrap_err(),
            client.raise_epoch(&orders(), topic.incarnation, 9).await.unwrap_err(),
            client.divide(&orders(), topic.incarnation, 1, &generations(&[2, 3])).await.unwrap_err(),
            client.append(append(1)).await.unwrap_err(),
            client.register(&registration).await.unwrap_err(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.kind(), Kind::NotOwner, "{refusal}");
            assert!(refusal.to_string().contains(&stranger.to_string()), "{refusal}");
        }
        assert_eq!(client.topics().await.unwrap(), vec![topic.clone()]);
        assert!(client.read(from_start()).await.unwrap().next().await.unwrap().is_ok());
    }
    assert!(bus.came.borrow().is_empty() && bus.registrations().await.unwrap().is_empty());
    server.client().register(&registration).await.unwrap();
    assert_eq!(server.client().registrations().await.unwrap(), vec![registration]);
    server.stop().await;
}

#[tokio::test]
async fn appends_do_not_wait_for_each_other_and_come_in_order() {
    // More than a task may do at one go before tokio makes it yield: what yields must not fall behind.
    let many = 250;
    let bus = Arc::new(StandIn::new(0));
    let server = Running::on_unix(bus.clone()).await;
    let client = server.client();
    let appends = join_all((0..many).map(|n| client.append(append(1 + 3 * n))));
    let opened = async {
        let mut came = bus.came.subscribe();
        let all = came.wait_for(|came| came.len() == many as usize).await.unwrap().clone();
        assert!(all.is_sorted(), "{all:?}");
        bus.gate.add_permits(many as usize);
    };
    let (answers, ()) = soon(join(appends, opened)).await;
    for (n, answer) in (0..).zip(answers) {
        assert_eq!(answer.unwrap().last, 3 + 3 * n);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_append_under_way_when_the_connection_breaks_is_unavailable_and_its_repeat_works() {
    let bus = Arc::new(StandIn::new(0));
    let server = Running::on_tcp(bus.clone()).await;
    let broken = Breakable::before(&server.address).await;
    let client = Client::new(&broken.address, &Identity::Service(orders())).unwrap();
    let appends = join(client.append(append(1)), client.append(append(4)));
    let breaking = async {
        bus.came.subscribe().wait_for(|came| came.len() == 2).await.unwrap();
        broken.shutdown.cancel();
    };
    let ((first, second), ()) = soon(join(appends, breaking)).await;
    assert_eq!(first.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(second.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(client.append(append(1)).await.unwrap_err().kind(), Kind::Unavailable);

    let mended = broken.again().await;
    bus.gate.add_permits(OPEN);
    assert_eq!(until_available(async || client.append(append(1)).await).await.last, 3);
    mended.shutdown.cancel();
    server.stop().await;
}

#[tokio::test]
async fn after_a_restart_appends_resume_and_listeners_hear_again() {
    let bus = Arc::new(StandIn::new(OPEN));
    for server in [Running::on_tcp(bus.clone()).await, Running::on_unix(bus.clone()).await] {
        let client = server.client();
        client.append(append(1)).await.unwrap();
        let mut heard = client.listen("a.b", None).await.unwrap();
        assert_eq!(client.signal("a.b", signal("before")).await.unwrap(), Reach::Somebody);
        assert_eq!(soon(heard.next()).await.unwrap(), signal("before"));
        let mut batches = client.read(from_start()).await.unwrap();
        batches.next().await.unwrap().unwrap();

        let (address, folder) = server.stop().await;
        let error = client.append(append(4)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let ended = soon(batches.filter(|batch| std::future::ready(batch.is_err())).next()).await;
        assert_eq!(ended.unwrap().unwrap_err().kind(), Kind::Unavailable);

        let server = Running::at(address, bus.clone()).await;
        assert_eq!(until_available(async || client.append(append(4)).await).await.last, 6);
        drop(until_available(async || client.read(from_start()).await).await);
        let mut next = pin!(heard.next());
        let signals = async || client.signal("a.b", signal("after")).await;
        let again = soon(async {
            loop {
                tokio::select! {
                    biased;
                    heard = &mut next => return heard,
                    () = until_available(signals).map(drop) => {}
                }
            }
        });
        assert_eq!(again.await.unwrap(), signal("after"));
        server.stop().await;
        drop(folder);
    }
}

#[tokio::test]
async fn a_server_that_stops_answers_what_is_under_way() {
    let bus = Arc::new(StandIn::new(0));
    let server = Running::on_unix(bus.clone()).await;
    let client = server.client();
    let stopping = async {
        bus.came.subscribe().wait_for(|came| came.len() == 1).await.unwrap();
        let shutdown = server.shutdown.clone();
        shutdown.cancel();
        bus.gate.add_permits(1);
        server.stop().await;
    };
    let (answer, _) = soon(join(client.append(append(1)), stopping)).await;
    assert_eq!(answer.unwrap().last, 3);
}

#[tokio::test]
async fn a_slow_reader_holds_bounded_memory_and_nobody_up() {
    let bus = Arc::new(StandIn::new(OPEN));
    let server = Running::on_unix(bus.clone()).await;
    let client = server.client();
    let mut slow = client.read(from_start()).await.unwrap();
    slow.next().await.unwrap().unwrap();

    let mut quick = client.read(from_start()).await.unwrap();
    let quick_batches = 400;
    for _ in 0..quick_batches {
        soon(quick.next()).await.unwrap().unwrap();
    }
    drop(quick);
    client.append(append(1)).await.unwrap();

    let read_for_both = bus.batches_read.load(Ordering::SeqCst);
    let waiting = (read_for_both - quick_batches) * BATCH_BYTES;
    assert!(waiting <= 6 << 20, "{waiting} bytes wait for two readers");
    for expected in 2..50 {
        assert_eq!(soon(slow.next()).await.unwrap().unwrap().first, expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn garbage_on_the_port_hurts_nobody_else() {
    let server = Running::on_tcp(Arc::new(StandIn::new(OPEN))).await;
    let Listen::Tcp { port, .. } = server.address else { unreachable!("listens on TCP") };
    let client = server.client();
    client.append(append(1)).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage: [Vec<u8>; 4] = [
        b"GET / NOTHING/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        [preface.as_slice(), &[0xff; 1000]].concat(),
        [preface.as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 255, 255, 0, 0, 0, 0, 0, 1], &[0; 70_000]]
            .concat(),
    ];
    for bytes in garbage {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // The server may hang up while we still send; that is the point.
        drop(socket.write_all(&bytes).await);
        let mut answer = Vec::new();
        drop(soon(socket.read_to_end(&mut answer)).await);
        assert_eq!(client.append(append(4)).await.unwrap().last, 6);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_silent_connection_does_not_keep_the_server_from_stopping() {
    let server = Running::on_tcp(Arc::new(StandIn::new(OPEN))).await;
    let Listen::Tcp { port, .. } = server.address else { unreachable!("listens on TCP") };
    let _silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    server.client().append(append(1)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn closing_a_client_ends_its_streams_and_refuses_its_calls() {
    let bus = Arc::new(StandIn::new(0));
    let server = Running::on_unix(bus.clone()).await;
    let client = server.client();
    let batches = client.read(from_start()).await.unwrap();
    let signals = client.listen("a.b", None).await.unwrap();
    let closing = async {
        bus.came.subscribe().wait_for(|came| came.len() == 1).await.unwrap();
        client.close().await;
    };
    let (under_way, ()) = soon(join(client.append(append(1)), closing)).await;
    assert_eq!(under_way.unwrap_err().kind(), Kind::Closed);
    assert!(soon(batches.all(|batch| std::future::ready(batch.is_ok()))).await);
    assert_eq!(soon(signals.count()).await, 0);
    assert_eq!(client.append(append(1)).await.unwrap_err().kind(), Kind::Closed);
    assert_eq!(client.topics().await.unwrap_err().kind(), Kind::Closed);
    client.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_what_to_do() {
    let server = Running::on_tcp(Arc::new(StandIn::new(OPEN))).await;
    let error =
        Server::bind(std::slice::from_ref(&server.address), Arc::new(StandIn::new(OPEN))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Configuration);
    assert!(error.to_string().contains(&server.address.to_string()), "{error}");
    assert!(error.to_string().contains("another process listens there; stop it"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_socket_file_is_taken_over_only_if_nobody_answers() {
    let server = Running::on_unix(Arc::new(StandIn::new(OPEN))).await;
    let bind = async |path: PathBuf| {
        let bus = Arc::new(StandIn::new(OPEN));
        Server::bind(&[Listen::Unix(path)], bus).await.map(drop).map_err(|error| error.kind())
    };
    let Listen::Unix(live) = server.address.clone() else { unreachable!("listens on a Unix socket") };
    assert_eq!(bind(live.clone()).await, Err(Kind::Configuration));
    server.client().append(append(1)).await.unwrap();

    let stale = live.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    assert_eq!(bind(stale.clone()).await, Ok(()));
    assert!(!stale.exists(), "a listener that is gone leaves no file");

    let precious = live.with_file_name("precious.txt");
    std::fs::write(&precious, "thesis").unwrap();
    assert_eq!(bind(precious.clone()).await, Err(Kind::Configuration));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "thesis");
    server.stop().await;
    assert!(!live.exists());
}

#[tokio::test]
async fn a_url_that_cannot_be_used_says_what_was_found_and_what_there_is() {
    for (url, said) in [
        ("localhost", "no scheme"),
        ("pulsar://localhost:6650", "\"pulsar\""),
        ("memory:x", "after the colon"),
        ("file://relative/folder", "no absolute path"),
        ("tombolo://nowhere", "no port"),
        ("tombolo+unix://bus.sock", "no absolute path"),
    ] {
        let error = connect(url, &Identity::Operator).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration, "{error}");
        assert!(error.to_string().contains(url) && error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("tombolo://host:port"), "{error}");
    }
}

#[tokio::test]
async fn an_engine_that_was_not_built_in_is_named_and_no_password_told() {
    let engines = [
        ("nats", cfg!(feature = "nats")),
        ("postgres", cfg!(feature = "postgres")),
        ("redis", cfg!(feature = "redis")),
        ("kafka", cfg!(feature = "kafka")),
    ];
    for (engine, _) in engines.into_iter().filter(|(_, built_in)| !built_in) {
        let url = format!("{engine}://me:secret@localhost:1");
        let error = connect(&url, &Identity::Operator).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration);
        let said = error.to_string();
        assert!(said.contains(&format!("feature {engine:?}")) && !said.contains("secret"), "{said}");
    }
}

#[tokio::test]
async fn a_url_opens_the_log_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let spec = TopicSpec::new(orders(), generations(&[2]));
    let bus = connect(&url, &Identity::Service(orders())).await.unwrap();
    let topic = bus.ensure_topic(&spec).await.unwrap();
    bus.close().await;
    let again = connect(&url, &Identity::Operator).await.unwrap();
    assert_eq!(again.topics().await.unwrap(), vec![topic]);
    again.close().await;
    let in_memory = connect("memory:", &Identity::Operator).await.unwrap();
    assert_eq!(in_memory.topics().await.unwrap(), vec![]);
    in_memory.close().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_no_error_until_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let address = Listen::Unix(folder.path().join("bus.sock"));
    let bus = connect(&address.to_string(), &Identity::Service(orders())).await.unwrap();
    assert!(!bus.guarantee().survives_power_cut, "nothing is promised for a server that was not reached");
    let error = bus.append(append(1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("tombolo bus"), "{error}");

    let server = Running::at(address, Arc::new(StandIn::new(OPEN))).await;
    until_available(async || bus.topics().await).await;
    assert_eq!(bus.guarantee().engine, "stand-in");
    server.stop().await;
}

#[tokio::test]
async fn that_the_bus_is_away_is_logged_once_and_that_it_is_back_once() {
    let log = logged::Logged::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let bus: Arc<dyn Bus> = Arc::new(StandIn::new(OPEN));
    let mut server = Running::on_unix(Arc::clone(&bus)).await;
    let client = server.client();
    for round in 1..=2 {
        client.append(append(1)).await.unwrap();
        let (address, folder) = server.stop().await;
        for _ in 0..20 {
            assert_eq!(client.append(append(1)).await.unwrap_err().kind(), Kind::Unavailable);
            assert!(client.topics().await.is_err() && client.read(from_start()).await.is_err());
        }
        server = Running { _folder: folder, ..Running::at(address, Arc::clone(&bus)).await };
        until_available(async || client.append(append(1)).await).await;
        assert_eq!((log.count("the bus is away"), log.count("the bus is back")), (round, round));
    }
    server.stop().await;
}

/// A TCP proxy before a server, whose connections all break when it is told so.
struct Breakable {
    address: Listen,
    target: u16,
    shutdown: CancellationToken,
}

impl Breakable {
    async fn before(server: &Listen) -> Self {
        let Listen::Tcp { port: target, .. } = *server else { unreachable!("listens on TCP") };
        Self::listening(0, target).await
    }

    /// The same proxy again, on the same port.
    async fn again(&self) -> Self {
        let Listen::Tcp { port, .. } = self.address else { unreachable!("listens on TCP") };
        Self::listening(port, self.target).await
    }

    async fn listening(port: u16, target: u16) -> Self {
        let bind = async || tokio::net::TcpListener::bind(("127.0.0.1", port)).await;
        let listener = soon(async {
            loop {
                match bind().await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        let port = listener.local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        tokio::spawn(until.clone().run_until_cancelled_owned(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let until = until.clone();
                tokio::spawn(until.run_until_cancelled_owned(async move {
                    let mut far = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                }));
            }
        }));
        Self { address: Listen::Tcp { host: "127.0.0.1".into(), port }, target, shutdown }
    }
}
