//! Registrations: a stream with one subject for each replica, of which the last message counts.
//!
//! Invariant: nothing is listed that its replica did not say last.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::link::{Link, unavailable};
use crate::port::DESCRIPTOR_BYTES_MAX;
use crate::{Error, Kind, Registration, Result};

const URL: &str = "Tombolo-Url";
/// How many registrations are read at once.
const READS_AT_ONCE: usize = 16;

pub(super) async fn register(link: &Arc<Link>, registration: &Registration) -> Result<()> {
    check(link, registration)?;
    open(link).await?;
    let mut headers = HeaderMap::new();
    headers.insert(URL, registration.url.as_str());
    let payload = Bytes::copy_from_slice(registration.descriptor.as_bytes());
    let message = PublishMessage::build().payload(payload).headers(headers);
    let subject = link.names.registration(&registration.service, registration.replica);
    let refused = |error| super::writer::refusal(&registration.service, error);
    link.jetstream.send_publish(subject, message).await.map_err(refused)?.await.map_err(refused)?;
    Ok(())
}

fn check(link: &Link, registration: &Registration) -> Result<()> {
    let found = registration.descriptor.len();
    let bound =
        link.client.max_payload().saturating_sub(registration.url.len() + 64).min(DESCRIPTOR_BYTES_MAX);
    if found > bound {
        let message = format!(
            "descriptor of {} is {found} bytes; expected at most {bound}, of {DESCRIPTOR_BYTES_MAX} and the NATS server's `max_payload`",
            registration.service
        );
        return Err(Error::new(Kind::TooLarge, message));
    }
    if registration.url.chars().any(char::is_control) {
        let message = format!("url {:?} holds a control character", registration.url);
        return Err(Error::new(Kind::InvalidName, message));
    }
    Ok(())
}

pub(super) async fn all(link: &Arc<Link>) -> Result<Vec<Registration>> {
    let stream = open(link).await?;
    let listed = stream.info_with_subjects(link.names.registrations_subjects()).await;
    let subjects: Vec<(String, usize)> = listed
        .map_err(|error| unavailable("the registrations cannot be listed", error))?
        .try_collect()
        .await
        .map_err(|error| unavailable("the registrations cannot be listed", error))?;
    let found = stream::iter(subjects).map(|(subject, _)| last(&stream, subject)).buffered(READS_AT_ONCE);
    found.try_filter_map(|found| async { Ok(found) }).try_collect().await
}

async fn last(stream: &Stream, subject: String) -> Result<Option<Registration>> {
    match stream.raw_message_builder().last_by_subject(subject).send().await {
        Ok(message) => read(&message).map(Some),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable("a registration cannot be read", error)),
    }
}

fn read(message: &StreamMessage) -> Result<Registration> {
    let subject = message.subject.as_str();
    let wrong = || Error::new(Kind::Corrupt, format!("the registration on subject {subject} cannot be read"));
    let mut tokens = subject.rsplit('.');
    let replica = tokens.next().and_then(|token| token.parse().ok()).ok_or_else(wrong)?;
    let service = tokens.next().and_then(|token| token.parse().ok()).ok_or_else(wrong)?;
    let url = message.headers.get(URL).ok_or_else(wrong)?.as_str().to_owned();
    let descriptor = String::from_utf8(message.payload.to_vec()).map_err(|error| wrong().because(error))?;
    Ok(Registration { service, replica, url, descriptor })
}

/// Finds the stream, or makes it.
async fn open(link: &Arc<Link>) -> Result<Stream> {
    link.ready().await?;
    let name = link.names.registrations_stream();
    match link.jetstream.get_stream(&name).await {
        Ok(stream) => ours(link, stream),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                make(link).await
            }
            _ => Err(unavailable("the registrations cannot be found", error)),
        },
    }
}

async fn make(link: &Arc<Link>) -> Result<Stream> {
    let settings = Config {
        name: link.names.registrations_stream(),
        description: Some(link.names.registrations_mark()),
        subjects: vec![link.names.registrations_subjects()],
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        num_replicas: link.replicas,
        ..Config::default()
    };
    match link.jetstream.create_stream(settings).await {
        Ok(stream) => ours(link, stream),
        Err(error) => match error.kind() {
            CreateStreamErrorKind::JetStream(why) => Err(super::made::not_made(link, "registrations", &why)),
            _ => Err(unavailable("the registrations cannot be kept", error)),
        },
    }
}

fn ours(link: &Link, stream: Stream) -> Result<Stream> {
    let found = &stream.cached_info().config;
    if found.description.as_ref() != Some(&link.names.registrations_mark()) {
        let message = format!("stream {} is not Tombolo's: choose another namespace", found.name);
        return Err(Error::new(Kind::TopicDiffers, message));
    }
    if found.storage != StorageType::File || !found.max_age.is_zero() || found.max_messages > 0 {
        let message = format!(
            "stream {} is set to lose registrations; expected file storage and no max_age or max_msgs",
            found.name
        );
        return Err(Error::new(Kind::Unsafe, message));
    }
    super::made::check_replicas(link, found)?;
    Ok(stream)
}
