//! What the tests share: identity, a service behind it, a clock that they move, and a client.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{interval, timeout};
use tombolo::auth::{Admin, Auth, User, Way};
use tombolo::bus::Bus;
use tombolo::sqlite::Sqlite;
use tombolo::testing::WorldBus;
use tombolo::{App, Clock, Running, Service, Settings};
use tombolo_identity::{Config, SealingKey};

use crate::ground::{Ground, Ran, With};

pub(crate) const ISSUER: &str = "http://identity.test";
pub(crate) const CLIENT: (&str, &str) = ("orders", "the secret of orders");
pub(crate) const OPERATOR: (&str, &str) = ("operator", "the secret of operators");
pub(crate) const PASSWORD: &str = "correct horse battery";

/// How long a test waits for a state before it says that it never came.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `state` holds, looking often, and fails with `what` if it never does.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let mut look = interval(Duration::from_millis(2));
    let seen = timeout(PATIENCE, async {
        while !state().await {
            look.tick().await;
        }
    });
    assert!(seen.await.is_ok(), "never happened: {what}");
}

pub(crate) struct Stage {
    ground: OnceCell<Ground>,
    folder: TempDir,
    pub(crate) bus: Arc<WorldBus>,
    pub(crate) clock: Clock,
    key: SealingKey,
    pub(crate) http: Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

/// The tokens of a session.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
}

impl Tokens {
    fn of(answer: &Answer) -> Self {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        Self::in_body(&answer.body)
    }

    pub(crate) fn in_body(body: &Value) -> Self {
        let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
        Self { access: text("access_token"), refresh: text("refresh_token") }
    }
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            ground: OnceCell::new(),
            folder: tempfile::tempdir().unwrap(),
            bus: Arc::new(WorldBus::calm()),
            clock: Clock::stopped(),
            key: SealingKey::generate().unwrap(),
            http: Client::builder().no_proxy().build().unwrap(),
        }
    }

    pub(crate) fn config(&self) -> Config {
        let config = Config::new(ISSUER, self.key.clone());
        config.client(CLIENT.0, CLIENT.1).client(OPERATOR.0, OPERATOR.1)
    }

    pub(crate) fn database(&self, name: &str) -> Sqlite {
        Sqlite::open(self.folder.path().join(format!("{name}.db")).to_str().unwrap()).unwrap()
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(crate) async fn start(&self, service: Service<Sqlite>) -> Running<Sqlite> {
        let bus = Arc::clone(&self.bus) as Arc<dyn Bus>;
        service.bus(bus).clock(self.clock.clone()).start(Settings::default()).await.unwrap()
    }

    pub(crate) async fn identity(&self) -> Identity<'_> {
        self.identity_with(self.config()).await
    }

    /// Identity on the bus that its settings name.
    pub(crate) async fn identity_in(&self, settings: Settings) -> Identity<'_> {
        self.identity_of(self.config(), None, settings).await
    }

    /// Identity on another bus than the stage's.
    pub(crate) async fn identity_on(&self, bus: Arc<dyn Bus>) -> Identity<'_> {
        self.identity_of(self.config(), Some(bus), Settings::default()).await
    }

    /// Identity as `config` says, on the stage's bus, where `settings` say.
    pub(crate) async fn identity_at(&self, config: Config, settings: Settings) -> Identity<'_> {
        self.identity_of(config, Some(Arc::clone(&self.bus) as Arc<dyn Bus>), settings).await
    }

    async fn identity_of(
        &self,
        config: Config,
        bus: Option<Arc<dyn Bus>>,
        settings: Settings,
    ) -> Identity<'_> {
        let with = With { config, bus, clock: self.clock.clone(), settings };
        Identity { stage: self, running: self.ground().await.start(with).await }
    }

    /// The database that identity owns.
    pub(crate) async fn ground(&self) -> &Ground {
        self.ground.get_or_init(|| Ground::new(self.folder.path())).await
    }

    pub(crate) async fn identity_with(&self, config: Config) -> Identity<'_> {
        self.identity_at(config, Settings::default()).await
    }

    /// A service whose routes say who is asking.
    pub(crate) async fn behind(&self, name: &str, auth: Auth) -> Running<Sqlite> {
        self.start(self.asking(name, auth)).await
    }

    pub(crate) fn asking(&self, name: &str, auth: Auth) -> Service<Sqlite> {
        let routes: Router<App<Sqlite>> = Router::new()
            .route("/who", get(async |user: User| Json(user)))
            .route("/admin", get(async |Admin(user): Admin| Json(user)))
            .route("/maybe", get(async |user: Option<User>| Json(user)))
            .route("/central", get(async |user: User| Json(user)).layer(axum::Extension(Way::Central)));
        Service::new(name, self.database(name)).routes(routes).auth(auth)
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    /// Asks a route of a service with a token.
    pub(crate) async fn ask(&self, service: &Running<Sqlite>, path: &str, token: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", service.url)).bearer_auth(token)).await
    }

    pub(crate) async fn status(&self, service: &Running<Sqlite>, token: &str) -> StatusCode {
        self.ask(service, "/who", token).await.status
    }
}

pub(crate) struct Identity<'a> {
    stage: &'a Stage,
    pub(crate) running: Ran,
}

impl Identity<'_> {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.running.url)
    }

    pub(crate) fn local(&self) -> Auth {
        Auth::local(ISSUER).keys_at(&self.url("/.well-known/jwks.json"))
    }

    /// Checks that are made at identity; local ones, too, for those who ask for them.
    pub(crate) fn central(&self) -> Auth {
        let auth = Auth::central(ISSUER, CLIENT.0, CLIENT.1).introspect_at(&self.url("/introspect"));
        auth.keys_at(&self.url("/.well-known/jwks.json"))
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.stage.send(self.stage.http.post(self.url(path)).json(&body)).await
    }

    pub(crate) async fn register(&self, email: &str) {
        let body = json!({ "name": "Ada", "email": email, "password": PASSWORD });
        let answer = self.post("/users", body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }

    pub(crate) async fn sign_in(&self, email: &str) -> Tokens {
        Tokens::of(&self.post("/sign-in", json!({ "email": email, "password": PASSWORD })).await)
    }

    /// A user who has registered and signed in: the id and the tokens.
    pub(crate) async fn user(&self, email: &str) -> (String, Tokens) {
        self.register(email).await;
        let tokens = self.sign_in(email).await;
        let me = self.as_user(Method::GET, "/me", &tokens.access).await;
        (me.body["id"].as_str().unwrap().to_owned(), tokens)
    }

    pub(crate) async fn as_user(&self, method: Method, path: &str, token: &str) -> Answer {
        self.stage.send(self.stage.http.request(method, self.url(path)).bearer_auth(token)).await
    }

    pub(crate) async fn as_operator(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request =
            self.stage.http.request(method, self.url(path)).basic_auth(OPERATOR.0, Some(OPERATOR.1));
        self.stage.send(body.iter().fold(request, |request, body| request.json(body))).await
    }

    pub(crate) async fn form(&self, path: &str, form: &[(&str, &str)], client: bool) -> Answer {
        let request = self.stage.http.post(self.url(path)).form(form);
        let request = if client { request.basic_auth(CLIENT.0, Some(CLIENT.1)) } else { request };
        self.stage.send(request).await
    }

    pub(crate) async fn refresh(&self, token: &str) -> Answer {
        self.form("/token", &[("grant_type", "refresh_token"), ("refresh_token", token)], false).await
    }

    pub(crate) async fn refreshed(&self, token: &str) -> Tokens {
        Tokens::of(&self.refresh(token).await)
    }

    pub(crate) async fn block(&self, user: &str) {
        let answer = self.as_operator(Method::POST, &format!("/users/{user}/block"), None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }

    pub(crate) async fn unblock(&self, user: &str) {
        let answer = self.as_operator(Method::POST, &format!("/users/{user}/unblock"), None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
}
