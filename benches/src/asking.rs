//! A gather from three services, beside three requests to NATS at once.
//!
//! Our bus is a process of its own behind a Unix socket; the NATS server is the one that the environment names. Asker and
//! answerers are in this process with a connection each, in both cases.
//!
//! Invariant: an answer counts only if all three are in it.

use std::path::Path;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo::{App, Problem, Question, Running, Service, Settings};
use tombolo_db::sqlite::Sqlite;

use crate::error::{Error, Result};
use crate::flow::{Files, Ground};
use crate::quantiles::Latencies;
use crate::rounds::Rounds;
use crate::scratch::Scratch;
use crate::server;
use crate::table::{Bar, Row, micros};

const SERVICES: [&str; 3] = ["bench-a", "bench-b", "bench-c"];
const ROUNDS: usize = 7;
/// Questions of one round, one after the other.
const QUESTIONS: usize = 1_000;
const SERVER_VARIABLE: &str = "TOMBOLO_TEST_NATS";
const BAR: Bar = Bar::AtMost(1.5);
const WHAT: &str = "a gather from three services, p50 / three NATS requests at once, p50";

/// What is asked.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Known {
    id: String,
}

/// What is answered.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Fact {
    text: String,
}

impl Question for Known {
    const NAME: &'static str = "bench.known.v1";
    type Answer = Fact;
}

async fn answer(question: Known, _app: App<Sqlite>) -> Result<Fact, Problem> {
    Ok(Fact { text: question.id })
}

/// The figure.
pub(crate) async fn measure(scratch: &Scratch) -> Result<Vec<Row>> {
    let Ok(url) = std::env::var(SERVER_VARIABLE) else {
        let why = format!(
            "not measured: {SERVER_VARIABLE} names no server; `cargo xtask services start` starts one"
        );
        return Ok(vec![Row::absent(WHAT, why, BAR)]);
    };
    let socket = scratch.path("asking.sock");
    let bus = server::start(&scratch.path("asking-log"), &socket, None).await?;
    let mut answerers = Vec::new();
    for service in SERVICES {
        answerers.push(start(scratch, &socket, service, true).await?);
    }
    let asker = start(scratch, &socket, "bench-asker", false).await?;
    let nats = Nats::connect(&url).await?;
    let rounds =
        Rounds::measure(ROUNDS, async || nats.round().await, async || gather(&asker.app).await).await?;
    nats.end().await;
    asker.shutdown().await;
    for answerer in answerers {
        answerer.shutdown().await;
    }
    bus.end().await?;
    Ok(vec![Row::of(WHAT, &rounds, BAR, micros)])
}

async fn start(scratch: &Scratch, socket: &Path, name: &str, answers: bool) -> Result<Running<Sqlite>> {
    let bus = server::client(socket, name).await?;
    let service = Service::new(name, Files::new(scratch).fresh(name).await?).bus(bus);
    let service = if answers { service.answer(answer) } else { service.asks::<Known>() };
    Ok(service.start(Settings::default()).await?)
}

async fn gather(app: &App<Sqlite>) -> Result<f64> {
    let mut latencies = Latencies::new();
    for number in 0..QUESTIONS {
        let began = Instant::now();
        let gathered = app.gather(&Known { id: number.to_string() }).await?;
        latencies.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if gathered.value.len() != SERVICES.len() {
            return Err(Error::new(format!("not all answered: {:?}", gathered.missing)));
        }
    }
    Ok(latencies.p50_us())
}

/// Three answerers and an asker on a NATS server, with subjects of their own.
struct Nats {
    asker: async_nats::Client,
    subjects: Vec<String>,
    answerers: tokio::task::JoinSet<()>,
}

impl Nats {
    async fn connect(url: &str) -> Result<Self> {
        let run = uuid::Uuid::now_v7().simple().to_string();
        let subjects: Vec<String> = SERVICES.iter().map(|service| format!("bench.{run}.{service}")).collect();
        let mut answerers = tokio::task::JoinSet::new();
        for subject in &subjects {
            let client = async_nats::connect(url).await?;
            let mut asked = client.subscribe(subject.clone()).await?;
            client.flush().await?;
            answerers.spawn(async move {
                while let Some(message) = asked.next().await {
                    let Some(reply) = message.reply else { continue };
                    let Ok(question) = serde_json::from_slice::<Known>(&message.payload) else { continue };
                    let fact = serde_json::to_vec(&Fact { text: question.id }).unwrap_or_default();
                    // An asker that has gone is seen by the asker.
                    client.publish(reply, fact.into()).await.ok();
                }
            });
        }
        Ok(Self { asker: async_nats::connect(url).await?, subjects, answerers })
    }

    async fn round(&self) -> Result<f64> {
        let mut latencies = Latencies::new();
        for number in 0..QUESTIONS {
            let question = serde_json::to_vec(&Known { id: number.to_string() })?;
            let began = Instant::now();
            let requests = self
                .subjects
                .iter()
                .map(|subject| self.asker.request(subject.clone(), question.clone().into()));
            for message in try_join_all(requests).await? {
                serde_json::from_slice::<Fact>(&message.payload)?;
            }
            latencies.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(latencies.p50_us())
    }

    async fn end(mut self) {
        self.answerers.shutdown().await;
    }
}
