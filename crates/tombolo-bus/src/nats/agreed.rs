//! Appends to a stream with replicas: nothing is sent before what precedes it is acknowledged.
//!
//! Takes an append; writes one message per record, many of them as one batch that is stored whole, where the servers can do that (NATS
//! 2.12, ADR-50). If we crash in the middle, a prefix is stored and the repeat completes it.
//!
//! A chain by message ids (`writer`) would not do here: a server that was restarted may not know the id of its last message; and from some
//! version on, a message that names another id is refused only where the majority applies it, which stops the stream for good ("critical
//! write error: last msgid mismatch", seen with NATS 2.15.1).
//!
//! Invariant: a message is sent on the sequence of one that was read or acknowledged, so whatever comes in between refuses it.

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_ID, NATS_BATCH_SEQUENCE, NATS_EXPECTED_LAST_SEQUENCE,
};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use tombolo_event::ServiceName;

use super::link::{Link, unavailable};
use super::log::{End, Known, Sending, did_not_hold};
use super::message;
use super::writer::refusal;
use crate::{Append, Record, Result};

/// The most records of one batch; servers take 1,000.
const BATCH_RECORDS_MAX: usize = 500;

/// Stores the records from `first` on, and lets `known` be of them; `false` if a condition did not hold or an answer was lost.
pub(super) async fn store(link: &Link, known: &mut Known, append: &Append, first: usize) -> Result<bool> {
    let each = match known.sending {
        Sending::Batched => BATCH_RECORDS_MAX,
        Sending::OneByOne | Sending::Chained => 1,
    };
    for records in append.records[first..].chunks(each) {
        if let Err(error) = send(link, known.last, append, records).await? {
            return refused(link, &append.topic, error).await;
        }
        known.last += records.len() as u64;
        if let Some(last) = records.last() {
            let end = End { sequence: last.sequence, id: Some(last.id), at: known.last };
            known.ends[append.partition as usize] = end;
        }
    }
    Ok(true)
}

/// Sends some records behind message `after` of the stream, and waits until they are stored.
async fn send(
    link: &Link,
    after: u64,
    append: &Append,
    records: &[Record],
) -> Result<std::result::Result<(), PublishError>> {
    let subject = link.names.partition(&append.topic, append.partition);
    let batch = link.message_id();
    let mut headers = (1..).zip(records).map(|(place, record)| {
        let mut headers = message::headers(record, append.epoch);
        if place == 1 {
            headers.insert(NATS_EXPECTED_LAST_SEQUENCE, after.to_string());
        }
        if records.len() > 1 {
            headers.insert(NATS_BATCH_ID, batch.as_str());
            headers.insert(NATS_BATCH_SEQUENCE, place.to_string());
        }
        headers
    });
    let Some((last, before)) = records.split_last() else { return Ok(Ok(())) };
    for record in before {
        let headers = headers.next().unwrap_or_default();
        let sent = link.client.publish_with_headers(subject.clone(), headers, record.bytes.clone()).await;
        sent.map_err(|error| unavailable("the NATS server did not take a message", error))?;
    }
    let mut headers: HeaderMap = headers.next().unwrap_or_default();
    if !before.is_empty() {
        headers.insert(NATS_BATCH_COMMIT, "1");
    }
    let message = PublishMessage::build().payload(last.bytes.clone()).headers(headers);
    Ok(match link.jetstream.send_publish(subject, message).await {
        Ok(ack) => ack.await.map(drop),
        Err(error) => Err(error),
    })
}

/// What became of records that were not acknowledged: they are looked for, or it is an error to look into.
async fn refused(link: &Link, topic: &ServiceName, error: PublishError) -> Result<bool> {
    match error.kind() {
        _ if did_not_hold(&error) => Ok(false),
        PublishErrorKind::Other => Err(refusal(topic, error)),
        PublishErrorKind::TimedOut => {
            link.leave().await;
            Ok(false)
        }
        _ => Ok(false),
    }
}
