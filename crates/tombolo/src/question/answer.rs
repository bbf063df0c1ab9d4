//! Answering: the same handler, whether it is reached by a call over HTTP or by a gather over the bus.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_bus::{Bus, Signal};
use tombolo_db::Database;
use tombolo_event::descriptor;
use tombolo_event::event::schema_of;
use tombolo_event::{Question, TraceContext, Why};
use tracing::Instrument;

use super::{Answered, Asked, Failure, Heard, Outcome, subject};
use crate::App;
use crate::current::Current;
use crate::problem::Problem;

/// The longest that an answer may take when the question brings no deadline.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// Questions from the bus that are answered at the same time; more wait.
const ANSWERS_AT_ONCE_MAX: usize = 256;

type Answering = Pin<Box<dyn Future<Output = Result<Box<RawValue>, Problem>> + Send>>;

type Run<D> = dyn Fn(&str, App<D>) -> Answering + Send + Sync;

/// A handler of questions with its types worked out.
pub(crate) struct Answerer<D: Database> {
    pub(crate) describe: descriptor::Answered,
    run: Arc<Run<D>>,
}

/// All of a service's, by question.
pub(crate) type Answerers<D> = BTreeMap<String, Answerer<D>>;

impl<D: Database> Answerer<D> {
    pub(crate) fn new<Q, F, Fut>(handler: F) -> Self
    where
        Q: Question,
        F: Fn(Q, App<D>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Q::Answer, Problem>> + Send + 'static,
    {
        let run = move |body: &str, app: App<D>| -> Answering {
            match serde_json::from_str::<Q>(body) {
                Ok(question) => {
                    let answering = handler(question, app);
                    Box::pin(async move {
                        to_raw_value(&answering.await?).map_err(|error| unwritable::<Q>(&error))
                    })
                }
                Err(error) => Box::pin(std::future::ready(Err(not_a::<Q>(&error)))),
            }
        };
        let describe = descriptor::Answered {
            question: Q::NAME.to_owned(),
            schema: schema_of::<Q>(),
            answer: schema_of::<Q::Answer>(),
        };
        Self { describe, run: Arc::new(run) }
    }
}

fn not_a<Q: Question>(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the body is not a question {}: {error}", Q::NAME))
}

fn unwritable<Q: Question>(error: &serde_json::Error) -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the answer to {} cannot be written as JSON: {error}", Q::NAME),
    )
}

/// Answers within the question's deadline, as the next service on its path.
pub(crate) async fn answer<D: Database>(
    app: &App<D>,
    mut current: Current,
    name: &str,
    body: &str,
) -> Result<Box<RawValue>, Problem> {
    let service = app.service().to_string();
    let Some(answerer) = app.answerers().get(name) else {
        let known: Vec<&str> = app.answerers().keys().map(String::as_str).collect();
        let detail = format!("service {service} does not answer {name:?}; it answers: {}", known.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    if current.asked.contains(&service) {
        let detail = format!(
            "loop: {} → {service}; {service} is already answering on this path",
            current.asked.join(" → ")
        );
        return Err(Problem::new(StatusCode::LOOP_DETECTED, detail));
    }
    current.asked.push(service.clone());
    let left = current.left(ANSWER_BOUND);
    let span = tracing::info_span!("answer", question = name, trace = current.trace.trace_id());
    let answering = current.scope((answerer.run)(body, app.clone())).instrument(span);
    timeout(left, answering).await.unwrap_or_else(|_| {
        Err(Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("service {service} did not answer {name} within {} ms", left.as_millis()),
        ))
    })
}

/// Listens for one question on the bus until it is stopped.
pub(crate) async fn listen<D: Database>(
    app: App<D>,
    bus: Arc<dyn Bus>,
    name: String,
    heard: Heard,
    stop: CancellationToken,
) {
    let service = app.service().to_string();
    let subject = subject(&service, &name);
    let mut attempt = 0;
    let mut answering = JoinSet::new();
    while !stop.is_cancelled() {
        // One replica of the service gets each question.
        if let Ok(mut signals) = bus.listen(&subject, Some(&service)).await {
            attempt = 0;
            heard.say();
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    signal = signals.next(), if answering.len() < ANSWERS_AT_ONCE_MAX => match signal {
                        Some(signal) => drop(answering.spawn(reply(app.clone(), Arc::clone(&bus), name.clone(), signal))),
                        None => break,
                    },
                    Some(_) = answering.join_next() => {}
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(crate::RETRY.jittered(attempt)) => attempt += 1,
        }
    }
    while answering.join_next().await.is_some() {}
}

async fn reply<D: Database>(app: App<D>, bus: Arc<dyn Bus>, name: String, signal: Signal) {
    let Some(reply_to) = signal.reply_to else { return };
    let asked: Asked = match serde_json::from_slice(&signal.payload) {
        Ok(asked) => asked,
        Err(error) => return tracing::warn!("a question on the bus cannot be read, it is dropped: {error}"),
    };
    let trace =
        asked.traceparent.parse::<TraceContext>().map_or_else(|_| TraceContext::begin(), TraceContext::child);
    let mut current = Current::within(trace, asked.correlation);
    current.deadline = Some(Instant::now() + Duration::from_millis(asked.left_ms));
    current.asked = asked.asked;
    let outcome = match answer(&app, current, &name, asked.question.get()).await {
        Ok(answer) => Outcome::Answer(answer),
        Err(problem) => Outcome::Failure(Failure { why: why(problem.status), detail: problem.detail }),
    };
    let answered = Answered { id: asked.id, service: app.service().to_string(), outcome };
    send(&*bus, &reply_to, &name, answered).await;
}

/// Sends an answer. One that the bus cannot carry becomes a failure, so that nobody waits for it in vain.
async fn send(bus: &dyn Bus, reply_to: &str, name: &str, answered: Answered) {
    let mut sent = bus.signal(reply_to, signal_of(&answered)).await;
    if let Err(error) = &sent
        && error.kind() == tombolo_bus::Kind::TooLarge
    {
        let detail =
            format!("its answer is too large for a gather: {error}; ask for less, or call the service");
        let failed = Answered { outcome: Outcome::Failure(Failure { why: Why::Failed, detail }), ..answered };
        sent = bus.signal(reply_to, signal_of(&failed)).await;
    }
    if let Err(error) = sent {
        tracing::warn!(question = name, "an answer cannot be sent: {error}");
    }
}

fn signal_of(answered: &Answered) -> Signal {
    let payload = serde_json::to_vec(answered).map(Bytes::from).unwrap_or_default();
    Signal { reply_to: None, payload }
}

/// What a status of an answer means to a gather.
pub(crate) fn why(status: StatusCode) -> Why {
    match status {
        StatusCode::GATEWAY_TIMEOUT => Why::TimedOut,
        StatusCode::LOOP_DETECTED => Why::Loop,
        StatusCode::UNPROCESSABLE_ENTITY => Why::Malformed,
        _ => Why::Failed,
    }
}
