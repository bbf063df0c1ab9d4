//! A bus with its door, in this process, on free ports of loopback.
//!
//! Invariant: each stage has files and ports of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Credential, Credentials, Listen, Server};
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;
use tombolo_http::plain::Plain;
use tombolo_http::push::{Subscription, Webhooks};
use tombolo_http::{Door, Settings, push};

/// How long anything may take that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A bus that is asked over HTTP.
pub(crate) struct Stage {
    folder: Arc<TempDir>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) door: Arc<Door>,
    pub(crate) address: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    pub(crate) client: Client,
}

/// What a stage is made with.
#[derive(Clone, Default)]
pub(crate) struct Made {
    pub(crate) plain: Vec<Plain>,
    pub(crate) push: Vec<Subscription>,
    pub(crate) webhooks: Webhooks,
    pub(crate) credentials: Vec<Credential>,
}

impl Made {
    /// Plain events, as an operator writes them.
    pub(crate) fn plain(json: Value) -> Self {
        Self { plain: vec![serde_json::from_value(json).unwrap()], ..Self::default() }
    }

    /// A subscription, as an operator writes it.
    pub(crate) fn push(json: Value) -> Self {
        Self { push: vec![serde_json::from_value(json).unwrap()], ..Self::default() }
    }

    pub(crate) async fn start(&self) -> Stage {
        self.start_in(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn start_in(&self, folder: Arc<TempDir>) -> Stage {
        let bus: Arc<dyn Bus> = open_log(folder.path()).await;
        let credentials = Credentials::default();
        credentials.replace(self.credentials.clone());
        let settings = Settings {
            folder: folder.path().join("http"),
            credentials: credentials.clone(),
            plain: self.plain.clone(),
            push: push::Settings::new(self.push.clone(), self.webhooks.clone()),
        };
        let door = Arc::new(Door::open(bus.clone(), settings).await.unwrap());
        let listen = [Listen::Tcp { host: "127.0.0.1".into(), port: 0 }];
        let server = Server::bind(&listen, bus.clone()).await.unwrap().with_credentials(credentials);
        let address = server.addresses()[0].to_string().replace("tombolo://", "http://");
        let stop = CancellationToken::new();
        let serving = server.beside(door.routes()).serve(stop.clone());
        let serving = tokio::spawn(async { serving.await.unwrap() });
        Stage { folder, bus, door, address, stop, serving, client: Client::new() }
    }
}

/// The log; another one may just be letting go of it.
pub(crate) async fn open_log(folder: &Path) -> Arc<Log> {
    Log::open(&folder.join("log"), Options { first_segment_bytes: 1 << 20, ..Options::default() }).unwrap().0
}

/// A token, and the credential that it proves.
pub(crate) fn credential(name: &str) -> Credential {
    let identity = match name {
        "operator" => Identity::Operator,
        service => Identity::Service(ServiceName::new(service).unwrap()),
    };
    Credential { identity, tokens: vec![Credential::hash(name)], reads: None }
}

impl Stage {
    /// Ends it, and starts it again with the same files.
    pub(crate) async fn restart(self, made: &Made) -> Stage {
        let folder = self.folder.clone();
        self.end().await;
        made.start_in(folder).await
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.door.close().await;
        self.serving.await.unwrap();
        self.bus.close().await;
    }

    /// The address at which plain events are taken.
    pub(crate) fn plain(&self) -> SocketAddr {
        self.door.plain_addresses()[0]
    }

    /// Publishes a plain event.
    pub(crate) async fn post(&self, body: impl Into<String>) -> Response {
        let url = format!("http://{}/events", self.plain());
        let sent = self.client.post(url).body(body.into()).send();
        tokio::time::timeout(SOON, sent).await.unwrap().unwrap()
    }

    /// Publishes plain events `{"n": 1}`, …
    pub(crate) async fn post_numbers(&self, numbers: std::ops::RangeInclusive<u64>) {
        for n in numbers {
            assert_eq!(self.post(json!({"n": n}).to_string()).await.status(), 200);
        }
    }

    /// Publishes CloudEvents with a key each.
    pub(crate) async fn publish(&self, topic: &str, events: &[(&str, &str, Value)]) {
        let batch: Vec<Value> = events
            .iter()
            .map(|(id, key, data)| json!({"specversion": "1.0", "id": id, "source": "/test", "type": "T", "subject": key, "data": data}))
            .collect();
        let request = self.client.post(format!("{}/topics/{topic}/events", self.address));
        let request = request.header("content-type", "application/cloudevents-batch+json");
        let answer = request.body(json!(batch).to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    /// What a subscription says of itself.
    pub(crate) async fn stands(&self, name: &str) -> Value {
        let (status, body) = self.call(self.client.get(self.of(name, ""))).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Asks until a subscription is as it should be.
    pub(crate) async fn stands_when(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asked = async {
            loop {
                last = self.stands(name).await;
                if is_so(&last) {
                    return last.clone();
                }
            }
        };
        match tokio::time::timeout(SOON, asked).await {
            Ok(found) => found,
            Err(_) => panic!("it stands otherwise: {last:#}"),
        }
    }

    /// Does something to a subscription.
    pub(crate) async fn act(&self, name: &str, action: &str, body: Value) -> (u16, Value) {
        self.call(self.client.post(self.of(name, &format!("/{action}"))).body(body.to_string())).await
    }

    pub(crate) async fn parked(&self, name: &str) -> Vec<Value> {
        let (_, body) = self.call(self.client.get(self.of(name, "/parked"))).await;
        body["parked"].as_array().unwrap().clone()
    }

    pub(crate) fn of(&self, name: &str, rest: &str) -> String {
        format!("{}/subscriptions/{name}{rest}", self.address)
    }

    /// Status and document of an answer.
    pub(crate) async fn call(&self, request: RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}
