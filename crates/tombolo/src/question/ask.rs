//! Asking: [`Call`] asks one service over HTTP, [`Gather`] asks all who answer over the bus.
//!
//! Invariant: no question leaves while this piece of work holds a transaction that wrote; whoever did not answer is
//! named with the reason.

use std::collections::BTreeSet;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::RequestBuilder;
use serde_json::value::to_raw_value;
use tokio::time::{Instant, timeout_at};
use tombolo_bus::{Bus, Reach, Signal};
use tombolo_event::{Gathered, Missing, Question, Why};

use super::inbox::{Inbox, Ticket};
use super::{Asked, Failure, Outcome, subject};
use crate::current::Current;
use crate::directory::Directory;
use crate::metrics::{Metrics, OfQuestion};
use crate::problem::Problem;
use crate::{Error, Kind, Result};

/// How long a call waits unless it says otherwise, or came with less.
pub const CALL_BOUND: Duration = Duration::from_secs(2);
/// How long a gather waits unless it says otherwise, or came with less.
pub const GATHER_BOUND: Duration = Duration::from_secs(1);

/// What asking needs; one for each service.
pub(crate) struct Asker {
    pub(crate) service: String,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) http: reqwest::Client,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) next: AtomicUsize,
    #[cfg(feature = "auth")]
    pub(crate) internal: Arc<crate::auth::Internal>,
}

impl Asker {
    /// What is at hand, if a question may leave now.
    fn current(&self, question: &str) -> Result<Current> {
        let current = Current::get();
        if current.holds_transaction() {
            return Err(Error::new(
                Kind::InTransaction,
                format!(
                    "service {} asks {question} while a transaction in which it did something is open; ask before the first statement, or commit first, so that no lock waits for another service",
                    self.service
                ),
            ));
        }
        Ok(current)
    }

    /// Says in a request to `service` who asks, and for which user.
    #[cfg(feature = "auth")]
    fn vouch(&self, request: RequestBuilder, current: &Current, service: &str) -> RequestBuilder {
        let user = current.user().and_then(Result::ok);
        let token = self.internal.sign(user.as_ref(), service);
        token.into_iter().fold(request, |request, token| request.header(crate::auth::INTERNAL_HEADER, token))
    }

    #[cfg(not(feature = "auth"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    fn vouch(&self, request: RequestBuilder, _current: &Current, _service: &str) -> RequestBuilder {
        request
    }

    fn count(&self, question: &str, via: &str, outcome: &str) {
        let of =
            OfQuestion { question: question.to_owned(), via: via.to_owned(), outcome: outcome.to_owned() };
        self.metrics.asked.get_or_create(&of).inc();
    }
}

/// A question to one service. Awaiting it sends it.
#[must_use = "a call is sent when it is awaited"]
pub struct Call<'a, Q: Question> {
    pub(crate) asker: &'a Asker,
    pub(crate) service: &'a str,
    pub(crate) question: &'a Q,
    pub(crate) bound: Duration,
}

impl<'a, Q: Question> Call<'a, Q> {
    /// Waits at most so long. A call within a call has what is left of the time, if that is less.
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    async fn send(self) -> Result<Q::Answer> {
        let answered = self.ask().await;
        let outcome = answered
            .as_ref()
            .map_or_else(|error| format!("{:?}", error.kind()).to_lowercase(), |_| "answered".into());
        self.asker.count(Q::NAME, "call", &outcome);
        answered
    }

    async fn ask(&self) -> Result<Q::Answer> {
        let current = self.asker.current(Q::NAME)?;
        let service = self.service;
        if current.asked.iter().any(|asked| asked == service) {
            let path = current.asked.join(" → ");
            return Err(Error::new(
                Kind::Loop,
                format!("loop: {path} → {service}; {service} is already answering on this path"),
            ));
        }
        let left = current.left(self.bound);
        let urls = self.urls().await?;
        let first = self.asker.next.fetch_add(1, Ordering::Relaxed);
        let mut unreachable = None;
        for n in 0..urls.len() {
            let url = &urls[(first + n) % urls.len()];
            match self.post(url, &current, left).await {
                // Nothing was sent, so another replica may be asked.
                Err(error) if error.kind() == Kind::Unreachable => unreachable = Some(error),
                answered => return answered,
            }
        }
        Err(unreachable.unwrap_or_else(|| self.unknown()))
    }

    async fn urls(&self) -> Result<Vec<String>> {
        let urls = self.asker.directory.urls(self.service);
        if !urls.is_empty() {
            return Ok(urls);
        }
        self.asker.directory.refresh().await?;
        let urls = self.asker.directory.urls(self.service);
        if urls.is_empty() { Err(self.unknown()) } else { Ok(urls) }
    }

    fn unknown(&self) -> Error {
        let known: Vec<String> = self.asker.directory.services().into_iter().collect();
        if known.iter().any(|known| known == self.service) {
            let message = format!(
                "service {:?} has registered without an address, so it cannot be called; start it with TOMBOLO_URL, or gather instead",
                self.service
            );
            return Error::new(Kind::Unknown, message);
        }
        Error::new(
            Kind::Unknown,
            format!(
                "no service {:?} has registered at the bus; known are: {}",
                self.service,
                known.join(", ")
            ),
        )
    }

    async fn post(&self, url: &str, current: &Current, left: Duration) -> Result<Q::Answer> {
        let service = self.service;
        let place = format!("{url}/tombolo/questions/{}", Q::NAME);
        let mut request = self.asker.http.post(place).json(self.question).timeout(left);
        for (name, value) in current.headers(left) {
            request = request.header(name, value);
        }
        let request = self.asker.vouch(request, current, service);
        let response = request.send().await.map_err(|error| self.not_answered(url, left, &error))?;
        let status = response.status();
        let body = response.text().await.map_err(|error| self.not_answered(url, left, &error))?;
        if !status.is_success() {
            return Err(refused(service, status, &Problem::detail_of(&body)));
        }
        serde_json::from_str(&body).map_err(|error| {
            let message = format!("service {service} answered {} with something else: {error}", Q::NAME);
            Error::new(Kind::Failed, message).because(error)
        })
    }

    /// What a broken exchange means.
    fn not_answered(&self, url: &str, left: Duration, error: &reqwest::Error) -> Error {
        let service = self.service;
        let (name, cause) = (Q::NAME, root_cause(error));
        if error.is_timeout() {
            let within = left.as_millis();
            Error::new(Kind::Deadline, format!("service {service} did not answer {name} within {within} ms"))
        } else if error.is_connect() {
            let message = format!("service {service} cannot be reached at {url}: {cause}; is it running?");
            Error::new(Kind::Unreachable, message)
        } else {
            Error::new(Kind::Failed, format!("service {service} broke off while it answered {name}: {cause}"))
        }
    }
}

fn refused(service: &str, status: http::StatusCode, detail: &str) -> Error {
    let kind = match status {
        http::StatusCode::GATEWAY_TIMEOUT => Kind::Deadline,
        http::StatusCode::LOOP_DETECTED => Kind::Loop,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("service {service} answered {status}: {detail}"))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl<'a, Q: Question> IntoFuture for Call<'a, Q> {
    type Output = Result<Q::Answer>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// A question to everybody who answers it. Awaiting it gives the answers by service; [`Gather::map_reduce`] gives what
/// they reduce to. Either says who did not answer.
#[must_use = "a gather is sent when it is awaited"]
pub struct Gather<'a, Q: Question> {
    pub(crate) asker: &'a Asker,
    pub(crate) question: &'a Q,
    pub(crate) bound: Duration,
}

impl<'a, Q: Question> Gather<'a, Q> {
    /// Waits at most so long. A gather within a call has what is left of the time, if that is less.
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Runs each answer through `map`, and the results through `reduce`, in the order of the services' names.
    ///
    /// # Errors
    /// `InTransaction`, or `Unknown` if nobody who answers is known. A missing answer is not an error.
    pub async fn map_reduce<M, R>(
        self,
        map: impl Fn(&str, Q::Answer) -> M,
        start: R,
        reduce: impl FnMut(R, M) -> R,
    ) -> Result<Gathered<R>> {
        let gathered = self.send().await?;
        let value =
            gathered.value.into_iter().map(|(service, answer)| map(&service, answer)).fold(start, reduce);
        Ok(Gathered { value, answered: gathered.answered, missing: gathered.missing })
    }

    async fn send(self) -> Result<Gathered<Vec<(String, Q::Answer)>>> {
        let current = self.asker.current(Q::NAME)?;
        let bound = current.left(self.bound);
        let deadline = Instant::now() + bound;
        let mut round = Round { expected: self.expected().await?, answers: Vec::new(), missing: Vec::new() };
        let mut ticket = self.asker.inbox.wait();
        self.ask_all(&current, deadline, &ticket, &mut round).await;
        self.collect(deadline, &mut ticket, &mut round).await;
        for service in std::mem::take(&mut round.expected) {
            round.miss(&service, Why::TimedOut, format!("did not answer within {} ms", bound.as_millis()));
        }
        let outcome = if round.missing.is_empty() { "answered" } else { "partial" };
        self.asker.count(Q::NAME, "gather", outcome);
        round.answers.sort_by(|a, b| a.0.cmp(&b.0));
        round.missing.sort_by(|a, b| a.service.cmp(&b.service));
        let answered = round.answers.iter().map(|(service, _)| service.clone()).collect();
        Ok(Gathered { value: round.answers, answered, missing: round.missing })
    }

    /// Who should answer, by the descriptors.
    async fn expected(&self) -> Result<BTreeSet<String>> {
        let expected = self.asker.directory.answerers(Q::NAME);
        if !expected.is_empty() {
            return Ok(expected);
        }
        self.asker.directory.refresh().await?;
        let expected = self.asker.directory.answerers(Q::NAME);
        if expected.is_empty() {
            let known: Vec<String> = self.asker.directory.services().into_iter().collect();
            return Err(Error::new(
                Kind::Unknown,
                format!(
                    "no service answers {}; registered are: {}; add `.answer(…)` to the one that should",
                    Q::NAME,
                    known.join(", ")
                ),
            ));
        }
        Ok(expected)
    }

    async fn ask_all(&self, current: &Current, deadline: Instant, ticket: &Ticket, round: &mut Round<Q>) {
        let Ok(question) = to_raw_value(self.question) else { return };
        let asked = Asked {
            id: ticket.id,
            left_ms: deadline.saturating_duration_since(Instant::now()).as_millis() as u64,
            asked: current.asked.clone(),
            traceparent: current.trace.child().to_string(),
            correlation: current.correlation.clone(),
            question,
        };
        let payload = Bytes::from(serde_json::to_vec(&asked).unwrap_or_default());
        let expected = round.expected.clone();
        let asking = expected.iter().map(|service| async {
            if current.asked.contains(service) {
                let path = current.asked.join(" → ");
                return Some((Why::Loop, format!("is already answering on this path: {path}")));
            }
            let signal =
                Signal { reply_to: Some(self.asker.inbox.subject().to_owned()), payload: payload.clone() };
            match timeout_at(deadline, self.asker.bus.signal(&subject(service, Q::NAME), signal)).await {
                Ok(Ok(Reach::Nobody)) => {
                    Some((Why::NotRunning, "is not running: nobody listens on the bus".to_owned()))
                }
                Ok(Err(error)) => Some((Why::BusAway, format!("cannot be asked: {error}"))),
                Ok(Ok(_)) | Err(_) => None,
            }
        });
        let asked = futures_util::future::join_all(asking).await;
        for (service, failed) in expected.iter().zip(asked) {
            if let Some((why, detail)) = failed {
                round.expected.remove(service);
                round.miss(service, why, detail);
            }
        }
    }

    async fn collect(&self, deadline: Instant, ticket: &mut Ticket, round: &mut Round<Q>) {
        while !round.expected.is_empty() {
            let Ok(Some(answered)) = timeout_at(deadline, ticket.answers.recv()).await else { return };
            if !round.expected.remove(&answered.service) {
                continue;
            }
            match answered.outcome {
                Outcome::Answer(answer) => match serde_json::from_str(answer.get()) {
                    Ok(answer) => round.answers.push((answered.service, answer)),
                    Err(error) => round.miss(
                        &answered.service,
                        Why::Malformed,
                        format!("answered something else: {error}"),
                    ),
                },
                Outcome::Failure(Failure { why, detail }) => round.miss(&answered.service, why, detail),
            }
        }
    }
}

impl<'a, Q: Question> IntoFuture for Gather<'a, Q> {
    type Output = Result<Gathered<Vec<(String, Q::Answer)>>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// What a gather has so far.
struct Round<Q: Question> {
    expected: BTreeSet<String>,
    answers: Vec<(String, Q::Answer)>,
    missing: Vec<Missing>,
}

impl<Q: Question> Round<Q> {
    fn miss(&mut self, service: &str, reason: Why, detail: String) {
        self.missing.push(Missing { service: service.to_owned(), reason, detail });
    }
}
