//! The directory of a namespace: a stream in which the names of topics and the registrations are written.
//!
//! Not every server can list its streams, so every topic is written here when it is made. The stream is only ever added to; what a replica
//! says again without a change is not written again, so that it grows with deployments and not with time. It is read once in
//! a process, and from then on only what is new.
//!
//! What is new is read without writing anything: a reader begins at the last entry that it knows, and goes on until all has
//! arrived that the server had. In a cluster that may be what one of its nodes knows, which may be a moment behind.
//!
//! Invariant: nothing is listed that its replica did not say last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tombolo_event::ServiceName;

use super::{Feed, From, Outlet, REQUEST_SECONDS_MAX, Streams};
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
    pub(super) async fn add_topic<S: Streams>(&self, server: &Arc<S>, topic: &ServiceName) -> Result<()> {
        self.write(server, Entry::Topic(topic.clone())).await
    }

    pub(super) async fn topics<S: Streams>(&self, server: &Arc<S>) -> Result<Vec<ServiceName>> {
        Ok(self.read(server).await?.topics.into_iter().collect())
    }

    /// Whether there is a topic of this name.
    pub(super) async fn lists<S: Streams>(&self, server: &Arc<S>, topic: &ServiceName) -> Result<bool> {
        Ok(self.read(server).await?.topics.contains(topic))
    }

    pub(super) async fn register<S: Streams>(
        &self,
        server: &Arc<S>,
        registration: &Registration,
    ) -> Result<()> {
        let found = registration.descriptor.len();
        if found > DESCRIPTOR_BYTES_MAX {
            let message = format!(
                "descriptor of {} is {found} bytes; expected at most {DESCRIPTOR_BYTES_MAX}",
                registration.service
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        self.write(server, Entry::Registration(registration.clone())).await
    }

    pub(super) async fn registrations<S: Streams>(&self, server: &Arc<S>) -> Result<Vec<Registration>> {
        Ok(self.read(server).await?.registrations.into_values().collect())
    }

    async fn write<S: Streams>(&self, server: &Arc<S>, entry: Entry) -> Result<()> {
        if self.read(server).await?.says(&entry) {
            return Ok(());
        }
        let stream = server.directory();
        server.ensure(&stream).await?;
        add(server, &stream, &entry).await
    }

    /// Reads what is new.
    async fn read<S: Streams>(&self, server: &Arc<S>) -> Result<Known> {
        let stream = server.directory();
        let mut known = self.known.lock().await;
        if !server.exists(&stream).await? {
            *known = Known::default();
            return Ok(known.clone());
        }
        let reading = async {
            if known.last.is_none() {
                // It may be there and be empty, if who made it has crashed.
                add(server, &stream, &Entry::Tombolo { layout: 1 }).await?;
                super::check_beginning(&**server, &stream).await?;
            }
            catch_up(server, &stream, &mut known).await
        };
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        match tokio::time::timeout(limit, reading).await {
            Ok(Ok(())) => {}
            // The stream may be an older copy, which ends before what is known.
            Ok(Err(error)) => {
                *known = Known::default();
                return Err(error);
            }
            Err(_) => {
                *known = Known::default();
                let message = "the directory of topics and registrations was not read in time";
                return Err(Error::new(Kind::Unavailable, message));
            }
        }
        Ok(known.clone())
    }
}

async fn catch_up<S: Streams>(server: &Arc<S>, stream: &str, known: &mut Known) -> Result<()> {
    let from = known.last.map_or(From::First, From::Offset);
    let mut feed = server.feed(stream, from).await?;
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

async fn add<S: Streams>(server: &Arc<S>, stream: &str, entry: &Entry) -> Result<()> {
    let outlet = server.outlet(stream).await?;
    outlet.take_writes()?;
    let body = serde_json::to_vec(entry)
        .map_err(|error| Error::new(Kind::Corrupt, "an entry cannot be written").because(error))?;
    outlet.publish(body.into()).await
}
