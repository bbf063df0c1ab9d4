//! A bus that listens, with its log in a folder: started, stopped, and opened again.
//!
//! Invariant: what is dropped is gone as after a crash: nothing is written any more; what is stopped has ended in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_bus::Bus;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::server::{Credentials, Listen, Server};
use tombolo_http::{Door, Settings};

pub(crate) const STRUCTURED: &str = "application/cloudevents+json";
pub(crate) const BATCH: &str = "application/cloudevents-batch+json";

/// A running bus.
pub(crate) struct Stage {
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) bus: Arc<Log>,
    pub(crate) credentials: Credentials,
    pub(crate) client: Client,
    folder: Arc<TempDir>,
    door: Door,
    shutdown: CancellationToken,
    serving: JoinHandle<tombolo_bus::Result<()>>,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        Self::on(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn on(folder: Arc<TempDir>) -> Self {
        let (bus, _) = Log::open(&folder.path().join("log"), Options::default()).unwrap();
        let credentials = Credentials::default();
        let settings = Settings {
            folder: folder.path().join("http"),
            credentials: credentials.clone(),
            ..Settings::default()
        };
        let door = Door::open(bus.clone(), settings).await.unwrap();
        let listen = Listen::Tcp { host: "127.0.0.1".into(), port: 0 };
        let server = Server::bind(&[listen], bus.clone()).await.unwrap();
        let server = server.with_credentials(credentials.clone()).beside(door.routes());
        let Listen::Tcp { port, .. } = server.addresses()[0] else { unreachable!() };
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        let url = format!("http://127.0.0.1:{port}");
        Self { url, port, bus, credentials, client: Client::new(), folder, door, shutdown, serving }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> Arc<TempDir> {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
        self.door.close().await;
        self.bus.close().await;
        self.folder
    }

    /// Stops it, lets `meanwhile` at its files, and opens it again.
    pub(crate) async fn again(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let folder = self.stop().await;
        meanwhile(folder.path());
        Self::on(folder).await
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) fn ids_folder(folder: &Path) -> PathBuf {
        folder.join("http/ids")
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
}

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
