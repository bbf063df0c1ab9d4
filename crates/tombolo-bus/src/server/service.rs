//! The port, served: each call of the protocol as a call of the bus behind it.
//!
//! Invariant: nothing is decided here but who may call what; the bus behind decides everything else.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Credentials, convert, exchange, generated as wire, identity, streams};
use crate::{Bus, Error, Kind, Read, Registration, Result, TopicSpec};

type Answer<T> = std::result::Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// The bus behind the protocol.
pub(super) struct Service {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) credentials: Credentials,
    /// Cancelled when the server stops: every stream ends.
    pub(super) ending: CancellationToken,
}

#[tonic::async_trait]
impl wire::bus_server::Bus for Service {
    async fn ensure_topic(&self, request: Request<wire::EnsureTopicRequest>) -> Answer<wire::Topic> {
        let caller = identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let knows = !request.generations.is_empty();
        let spec = TopicSpec::try_from(request)?;
        identity::must_own(&caller, &spec.name, "make it")?;
        Ok(Response::new(convert::topic_for(self.bus.ensure_topic(&spec).await?, knows)?))
    }

    async fn topic(&self, request: Request<wire::TopicRequest>) -> Answer<wire::Topic> {
        identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let topic = self.bus.topic(&convert::name(&request.name)?).await?;
        Ok(Response::new(convert::topic_for(topic, request.knows_generations)?))
    }

    async fn topics(&self, request: Request<wire::TopicsRequest>) -> Answer<wire::TopicsReply> {
        identity::of(&request, &self.credentials)?;
        let knows = request.get_ref().knows_generations;
        let topics = self.bus.topics().await?.into_iter();
        let topics = topics.map(|topic| convert::topic_for(topic, knows)).collect::<Result<_>>()?;
        Ok(Response::new(wire::TopicsReply { topics }))
    }

    async fn divide(&self, request: Request<wire::DivideRequest>) -> Answer<wire::Topic> {
        let caller = identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let topic = convert::name(&request.topic)?;
        identity::must_own(&caller, &topic, "divide it")?;
        let incarnation = convert::incarnation(&request.incarnation)?;
        let generations = convert::divided(&request)?;
        Ok(Response::new(self.bus.divide(&topic, incarnation, request.epoch, &generations).await?.into()))
    }

    async fn raise_epoch(&self, request: Request<wire::RaiseEpochRequest>) -> Answer<wire::TailsReply> {
        let caller = identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let topic = convert::name(&request.topic)?;
        identity::must_own(&caller, &topic, "raise its epoch")?;
        let incarnation = convert::incarnation(&request.incarnation)?;
        let tails = self.bus.raise_epoch(&topic, incarnation, request.epoch).await?;
        Ok(Response::new(convert::tails_reply(tails)))
    }

    async fn tails(&self, request: Request<wire::TailsRequest>) -> Answer<wire::TailsReply> {
        identity::of(&request, &self.credentials)?;
        let topic = convert::name(&request.get_ref().topic)?;
        Ok(Response::new(convert::tails_reply(self.bus.tails(&topic).await?)))
    }

    type AppendStream = Answers<wire::AppendReply>;

    async fn append(&self, request: Request<Streaming<wire::AppendRequest>>) -> Answer<Self::AppendStream> {
        let caller = identity::of(&request, &self.credentials)?;
        let (bus, ending) = (Arc::clone(&self.bus), self.ending.clone());
        Ok(Response::new(exchange::answer(bus, caller, request.into_inner(), ending)))
    }

    type ReadStream = Answers<wire::Batch>;

    async fn read(&self, request: Request<wire::ReadRequest>) -> Answer<Self::ReadStream> {
        identity::of(&request, &self.credentials)?;
        let batches = self.bus.read(Read::try_from(request.into_inner())?).await?;
        Ok(Response::new(self.answers(batches.map(|batch| batch.map(Into::into)))))
    }

    async fn signal(&self, request: Request<wire::SignalRequest>) -> Answer<wire::SignalReply> {
        identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let signal = request.signal.unwrap_or_default().into();
        let reach = wire::Reach::from(self.bus.signal(&request.subject, signal).await?);
        Ok(Response::new(wire::SignalReply { reach: reach.into() }))
    }

    type SignalsStream = Answers<wire::SignalsReply>;

    async fn signals(
        &self,
        request: Request<Streaming<wire::SignalsRequest>>,
    ) -> Answer<Self::SignalsStream> {
        let caller = identity::of(&request, &self.credentials)?;
        let (bus, ending) = (Arc::clone(&self.bus), self.ending.clone());
        Ok(Response::new(exchange::answer(bus, caller, request.into_inner(), ending)))
    }

    type ListenStream = Answers<wire::Heard>;

    async fn listen(&self, request: Request<wire::ListenRequest>) -> Answer<Self::ListenStream> {
        identity::of(&request, &self.credentials)?;
        let request = request.into_inner();
        let signals = self.bus.listen(&request.subject, request.group.as_deref()).await?;
        let signals = signals.map(|signal| Ok(wire::Heard { signal: Some(signal.into()) }));
        let listening = stream::iter([Ok(wire::Heard { signal: None })]);
        Ok(Response::new(self.answers(listening.chain(signals))))
    }

    async fn register(&self, request: Request<wire::Registration>) -> Answer<wire::RegisterReply> {
        let caller = identity::of(&request, &self.credentials)?;
        let registration = Registration::try_from(request.into_inner())?;
        identity::must_own(&caller, &registration.service, "register for it")?;
        self.bus.register(&registration).await?;
        Ok(Response::new(wire::RegisterReply {}))
    }

    type RegistrationsStream = Answers<wire::Registration>;

    async fn registrations(
        &self,
        request: Request<wire::RegistrationsRequest>,
    ) -> Answer<Self::RegistrationsStream> {
        identity::of(&request, &self.credentials)?;
        let registrations = self.bus.registrations().await?;
        let registrations =
            stream::iter(registrations.into_iter().map(|registration| Ok(registration.into())));
        Ok(Response::new(self.answers(registrations)))
    }

    async fn guarantee(&self, request: Request<wire::GuaranteeRequest>) -> Answer<wire::GuaranteeReply> {
        identity::of(&request, &self.credentials)?;
        Ok(Response::new(self.bus.guarantee().into()))
    }
}

impl Service {
    fn answers<T: Send + 'static>(
        &self,
        items: impl Stream<Item = Result<T>> + Send + Unpin + 'static,
    ) -> Answers<T> {
        let items = streams::until(items, self.ending.clone(), || Some(stopping()));
        Box::pin(items.map(|item| item.map_err(Status::from)))
    }
}

fn stopping() -> Error {
    Error::new(Kind::Unavailable, "the bus is being stopped; start again from the same place once it is back")
}
