//! The client: the port, answered by a server elsewhere.
//!
//! Connects when it is first used and again whenever the connection broke; while the server is away every call
//! answers `Unavailable`, and the log says so once. Invariant: no call is repeated behind the caller's back, so
//! `Unavailable` always means "outcome unknown, repeat".

mod connection;
mod exchange;
mod hearing;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use tombolo_event::{Generations, Incarnation, ServiceName};

use super::{Listen, Trust, convert, generated as wire, streams};
use crate::{
    Append, Appended, Batch, Bus, Guarantee, Identity, Reach, Read, RecordStream, Registration, Result,
    Signal, SignalStream, Tail, Topic, TopicSpec, port,
};
use connection::Connection;
use exchange::Lane;

/// A bus that is served by another process.
///
/// Dropping it lets streams that were handed out go on; [`Bus::close`] ends them.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    appends: Lane<wire::AppendRequest>,
    signals: Lane<wire::SignalsRequest>,
}

impl Client {
    /// A client of the bus at `address`, which calls as `identity`. Connects when it is first used.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Configuration` if the address cannot be one.
    pub fn new(address: &Listen, identity: &Identity) -> Result<Self> {
        Self::with_trust(address, identity, None, &Trust::default())
    }

    /// The same, which proves who it is by a bearer token that the server knows.
    ///
    /// # Errors
    /// `Configuration` if the address cannot be one, or the token cannot be shown.
    pub fn with_token(address: &Listen, identity: &Identity, token: &str) -> Result<Self> {
        Self::with_trust(address, identity, Some(token), &Trust::default())
    }

    /// The same, with what it trusts and shows where the address asks for TLS; with a certificate that the server knows, no token is needed.
    ///
    /// # Errors
    /// `Configuration` if the address cannot be one, or a file cannot be used.
    pub fn with_trust(
        address: &Listen,
        identity: &Identity,
        token: Option<&str>,
        trust: &Trust,
    ) -> Result<Self> {
        let connection = Connection::new(address, identity, token, trust)?;
        let (appends, signals) = (Lane::new(connection.clone()), Lane::new(connection.clone()));
        Ok(Self { connection, appends, signals })
    }

    /// Asks the server whether it is there and what it guarantees.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn ping(&self) -> Result<Guarantee> {
        self.connection.ask_guarantee().await
    }
}

#[async_trait]
impl Bus for Client {
    fn guarantee(&self) -> Guarantee {
        self.connection.guarantee()
    }

    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<Topic> {
        let request = wire::EnsureTopicRequest::from(spec);
        self.connection.call(async |bus| bus.ensure_topic(request).await).await?.try_into()
    }

    async fn topic(&self, name: &ServiceName) -> Result<Topic> {
        let request = wire::TopicRequest { name: name.to_string(), knows_generations: true };
        self.connection.call(async |bus| bus.topic(request).await).await?.try_into()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        let request = wire::TopicsRequest { knows_generations: true };
        let reply = self.connection.call(async |bus| bus.topics(request).await).await?;
        reply.topics.into_iter().map(TryInto::try_into).collect()
    }

    async fn raise_epoch(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
    ) -> Result<Vec<Tail>> {
        let request = convert::raise_request(topic, incarnation, epoch);
        convert::tails(self.connection.call(async |bus| bus.raise_epoch(request).await).await?)
    }

    async fn divide(
        &self,
        topic: &ServiceName,
        incarnation: Incarnation,
        epoch: u64,
        generations: &Generations,
    ) -> Result<Topic> {
        let request = convert::divide_request(topic, incarnation, epoch, generations);
        self.connection.call(async |bus| bus.divide(request).await).await?.try_into()
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        port::check_append(&append)?;
        self.appends.send(&self.connection, convert::append_request(0, &append)).await
    }

    async fn tails(&self, topic: &ServiceName) -> Result<Vec<Tail>> {
        let request = wire::TailsRequest { topic: topic.to_string() };
        convert::tails(self.connection.call(async |bus| bus.tails(request).await).await?)
    }

    async fn read(&self, read: Read) -> Result<RecordStream> {
        let request = wire::ReadRequest::from(read);
        let batches = self.connection.bulk(async |bus| bus.read(request).await).await?;
        let connection = self.connection.clone();
        let batches = batches
            .map(move |batch| batch.map_err(|status| connection.lost(&status)).and_then(Batch::try_from));
        Ok(Box::pin(streams::until(batches, self.connection.closed().clone(), || None)))
    }

    async fn signal(&self, subject: &str, signal: Signal) -> Result<Reach> {
        let (subject, signal) = (subject.to_owned(), Some(signal.into()));
        self.signals.send(&self.connection, wire::SignalsRequest { number: 0, subject, signal }).await
    }

    async fn listen(&self, subject: &str, group: Option<&str>) -> Result<SignalStream> {
        hearing::listen(self.connection.clone(), subject, group).await
    }

    async fn register(&self, registration: &Registration) -> Result<()> {
        let request = wire::Registration::from(registration.clone());
        self.connection.call(async |bus| bus.register(request).await).await?;
        Ok(())
    }

    async fn registrations(&self) -> Result<Vec<Registration>> {
        let request = wire::RegistrationsRequest {};
        let registrations = self.connection.bulk(async |bus| bus.registrations(request).await).await?;
        let registrations = registrations.map_err(|status| self.connection.lost(&status));
        registrations.and_then(async |registration| Registration::try_from(registration)).try_collect().await
    }

    async fn close(&self) {
        self.connection.closed().cancel();
        self.appends.ended().await;
        self.signals.ended().await;
    }
}
