//! The directory of a namespace: a stream in which the names of topics and the registrations are written.
//!
//! AMQP cannot list queues, so every topic is written here when it is made. The stream is only ever added to; what a replica
//! says again without a change is not written again, so that it grows with deployments and not with time. It is read once in
//! a process, and from then on only what is new.
//!
//! What is new is read without writing anything: a reader begins at the last entry that it knows, acknowledges it, and asks
//! the channel for something else; the server sends what there is before it answers. In a cluster that is what the node of
//! the connection knows, which may be a moment behind.
//!
//! Invariant: nothing is listed that its replica did not say last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tombolo_event::ServiceName;

use super::link::{Lines, Link, REQUEST_SECONDS_MAX};
use super::stream::{self, Feed, From};
use crate::port::DESCRIPTOR_BYTES_MAX;
use crate::{Error, Kind, Registration, Result};

/// An entry, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// The first, so that there is always one.
    Tombolo {
        layout: u32,
    },
    Topic(ServiceName),
    Registration(Registration),
}

/// What this process knows of the directory.
#[derive(Default)]
pub(super) struct Directory {
    known: Mutex<Known>,
}

#[derive(Default, Clone)]
struct Known {
    topics: BTreeSet<ServiceName>,
    registrations: BTreeMap<(ServiceName, u32), Registration>,
    /// The offset of the last entry that was read.
    last: Option<u64>,
}

impl Known {
    fn apply(&mut self, at: u64, bytes: &Bytes) {
        self.last = self.last.max(Some(at));
        match serde_json::from_slice(bytes) {
            Ok(Entry::Tombolo { .. }) => {}
            Ok(Entry::Topic(name)) => drop(self.topics.insert(name)),
            Ok(Entry::Registration(said)) => {
                drop(self.registrations.insert((said.service.clone(), said.replica), said));
            }
            Err(error) => {
                tracing::warn!(%error, "entry {at} of the directory is passed over: Tombolo did not write it")
            }
        }
    }

    fn says(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Tombolo { .. } => self.last.is_some(),
            Entry::Topic(name) => self.topics.contains(name),
            Entry::Registration(said) => {
                self.registrations.get(&(said.service.clone(), said.replica)) == Some(said)
            }
        }
    }
}

impl Directory {
    /// Writes that there is a topic, unless that is known.
    pub(super) async fn add_topic(&self, link: &Arc<Link>, topic: &ServiceName) -> Result<()> {
        self.write(link, Entry::Topic(topic.clone())).await
    }

    pub(super) async fn topics(&self, link: &Arc<Link>) -> Result<Vec<ServiceName>> {
        Ok(self.read(link).await?.topics.into_iter().collect())
    }

    /// Whether there is a topic of this name.
    pub(super) async fn lists(&self, link: &Arc<Link>, topic: &ServiceName) -> Result<bool> {
        Ok(self.read(link).await?.topics.contains(topic))
    }

    pub(super) async fn register(&self, link: &Arc<Link>, registration: &Registration) -> Result<()> {
        let found = registration.descriptor.len();
        if found > DESCRIPTOR_BYTES_MAX {
            let message = format!(
                "descriptor of {} is {found} bytes; expected at most {DESCRIPTOR_BYTES_MAX}",
                registration.service
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        self.write(link, Entry::Registration(registration.clone())).await
    }

    pub(super) async fn registrations(&self, link: &Arc<Link>) -> Result<Vec<Registration>> {
        Ok(self.read(link).await?.registrations.into_values().collect())
    }

    async fn write(&self, link: &Arc<Link>, entry: Entry) -> Result<()> {
        if self.read(link).await?.says(&entry) {
            return Ok(());
        }
        let lines = link.ready()?;
        let stream = link.names.directory();
        stream::ensure(&lines, &stream).await?;
        add(&lines, &stream, &entry).await
    }

    /// Reads what is new.
    async fn read(&self, link: &Arc<Link>) -> Result<Known> {
        let lines = link.ready()?;
        let stream = link.names.directory();
        let mut known = self.known.lock().await;
        if !stream::exists(&lines, &stream).await? {
            *known = Known::default();
            return Ok(known.clone());
        }
        let reading = async {
            if known.last.is_none() {
                // It may be there and be empty, if who made it has crashed.
                add(&lines, &stream, &Entry::Tombolo { layout: 1 }).await?;
                stream::check_beginning(&lines, &stream).await?;
            }
            catch_up(&lines, &stream, &mut known).await
        };
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        match tokio::time::timeout(limit, reading).await {
            Ok(read) => read?,
            Err(_) => {
                // The stream may be an older copy, which ends before what is known.
                *known = Known::default();
                let message = "the directory of topics and registrations was not read in time";
                return Err(Error::new(Kind::Unavailable, message));
            }
        }
        Ok(known.clone())
    }
}

async fn catch_up(lines: &Lines, stream: &str, known: &mut Known) -> Result<()> {
    let from = known.last.map_or(From::First, From::Offset);
    let mut feed = Feed::open(lines, stream, from).await?;
    let (at, bytes) = feed.next_bytes().await?;
    known.apply(at, &bytes);
    loop {
        feed.settle().await?;
        let mut is_new = false;
        while let Some((at, bytes)) = feed.next_bytes_ready().await? {
            known.apply(at, &bytes);
            is_new = true;
        }
        if !is_new {
            return Ok(());
        }
    }
}

async fn add(lines: &Lines, stream: &str, entry: &Entry) -> Result<()> {
    lines.take_writes()?;
    let body = serde_json::to_vec(entry)
        .map_err(|error| Error::new(Kind::Corrupt, "an entry cannot be written").because(error))?;
    stream::publish(&lines.sending().await?, stream, &body).await
}
