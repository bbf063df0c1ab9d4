//! A bus with its door, in this process, on free ports of loopback: started, ended, and started again with the same files.
//!
//! Invariant: each stage has files and ports of its own; what has ended has ended in order, and writes nothing any more.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
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

pub(crate) const STRUCTURED: &str = "application/cloudevents+json";
pub(crate) const BATCH: &str = "application/cloudevents-batch+json";
/// How long anything may take that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A bus that is asked over HTTP.
pub(crate) struct Stage {
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) bus: Arc<Log>,
    pub(crate) credentials: Credentials,
    pub(crate) door: Arc<Door>,
    pub(crate) client: Client,
    folder: Arc<TempDir>,
    made: Made,
    stop: CancellationToken,
    serving: JoinHandle<()>,
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
        let bus = open_log(folder.path()).await;
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
        let server = Server::bind(&listen, bus.clone()).await.unwrap().with_credentials(credentials.clone());
        let Listen::Tcp { port, .. } = server.addresses()[0] else { unreachable!() };
        let stop = CancellationToken::new();
        let serving = server.beside(door.routes()).serve(stop.clone());
        let serving = tokio::spawn(async { serving.await.unwrap() });
        let (url, client) = (format!("http://127.0.0.1:{port}"), Client::new());
        Stage { url, port, bus, credentials, door, client, folder, made: self.clone(), stop, serving }
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
    Credential { identity, tokens: vec![Credential::hash(name)], certificates: Vec::new(), reads: None }
}

/// Status and body of an answer; every refusal is a problem document.
pub(crate) async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let is_problem =
        response.headers().get("content-type").is_some_and(|it| it == "application/problem+json");
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    assert_eq!(status.is_client_error() || status.is_server_error(), is_problem, "{status} {body}");
    if is_problem {
        assert_eq!(body["status"], status.as_u16());
        assert!(body["type"].as_str().unwrap().starts_with("urn:tombolo:problem:"), "{body}");
    }
    (status, body)
}

/// An event of the simplest kind.
pub(crate) fn event(id: &str, subject: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/posts", "type": "PostCreated", "subject": subject, "data": {"id": id}})
}

impl Stage {
    /// One of which nothing is said.
    pub(crate) async fn start() -> Self {
        Made::default().start().await
    }

    /// Ends it, and starts it again with the same files and other settings.
    pub(crate) async fn restart(self, made: &Made) -> Self {
        made.start_in(self.end().await).await
    }

    /// Ends it, lets `meanwhile` at its files, and starts it again.
    pub(crate) async fn again(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let made = self.made.clone();
        let folder = self.end().await;
        meanwhile(folder.path());
        made.start_in(folder).await
    }

    /// Ends it, and leaves its files.
    pub(crate) async fn end(self) -> Arc<TempDir> {
        self.stop.cancel();
        self.door.close().await;
        self.serving.await.unwrap();
        self.bus.close().await;
        self.folder
    }

    pub(crate) fn ids_folder(folder: &Path) -> PathBuf {
        folder.join("http/ids")
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Value) {
        let request = self.client.post(self.at(path)).header("content-type", content_type).body(body);
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.client.get(self.at(path)).send().await.unwrap()).await
    }

    /// Publishes one event and says where it is.
    pub(crate) async fn publish(&self, topic: &str, event: &Value) -> (StatusCode, Value) {
        self.post(&format!("/topics/{topic}/events"), STRUCTURED, event.to_string()).await
    }

    /// Everything in a topic.
    pub(crate) async fn all(&self, topic: &str) -> Vec<Value> {
        let (status, events) = self.get(&format!("/topics/{topic}/events?limit=10000")).await;
        assert_eq!(status, StatusCode::OK, "{events}");
        events.as_array().unwrap().clone()
    }

    /// The address at which plain events are taken.
    pub(crate) fn plain(&self) -> SocketAddr {
        self.door.plain_addresses()[0]
    }

    /// Publishes a plain event.
    pub(crate) async fn post_plain(&self, body: impl Into<String>) -> Response {
        let url = format!("http://{}/events", self.plain());
        let sent = self.client.post(url).body(body.into()).send();
        tokio::time::timeout(SOON, sent).await.unwrap().unwrap()
    }

    /// Publishes plain events `{"n": 1}`, …
    pub(crate) async fn post_numbers(&self, numbers: std::ops::RangeInclusive<u64>) {
        for n in numbers {
            assert_eq!(self.post_plain(json!({"n": n}).to_string()).await.status(), 200);
        }
    }

    /// Publishes CloudEvents with an id, a key and data each.
    pub(crate) async fn publish_all(&self, topic: &str, events: &[(&str, &str, Value)]) {
        let batch: Vec<Value> = events
            .iter()
            .map(|(id, key, data)| json!({"specversion": "1.0", "id": id, "source": "/test", "type": "T", "subject": key, "data": data}))
            .collect();
        let (status, answer) =
            self.post(&format!("/topics/{topic}/events"), BATCH, json!(batch).to_string()).await;
        assert_eq!(status, 200, "{answer}");
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
        self.at(&format!("/subscriptions/{name}{rest}"))
    }

    /// Status and document of an answer.
    pub(crate) async fn call(&self, request: RequestBuilder) -> (u16, Value) {
        let (status, body) = read(request.send().await.unwrap()).await;
        (status.as_u16(), body)
    }
}
