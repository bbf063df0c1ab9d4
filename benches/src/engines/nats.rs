//! Events as messages of a stream in files: published with many acknowledgements on their way, read by a pull consumer.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use futures_util::StreamExt;

use super::Bare;
use crate::error::{Error, Result};
use crate::topic::{BATCH_EVENTS, EVENT_BYTES};

/// Messages on their way, more of which are not faster.
const UNDER_WAY: usize = 512;
/// The messages of a page, likewise.
const PAGE: usize = 2_000;

pub(super) struct Stream {
    context: Context,
    name: String,
}

impl Stream {
    pub(super) async fn make(url: &str, name: &str) -> Result<Self> {
        let context = jetstream::new(async_nats::connect(url).await?);
        let (name, subjects) = (name.to_owned(), vec![name.to_owned()]);
        let config = Config { name: name.clone(), subjects, storage: StorageType::File, ..Config::default() };
        context.create_stream(config).await?;
        Ok(Self { context, name })
    }
}

#[async_trait]
impl Bare for Stream {
    async fn one(&self) -> Result<()> {
        self.context.publish(self.name.clone(), vec![b'e'; EVENT_BYTES].into()).await?.await?;
        Ok(())
    }

    async fn many(&self, batches: usize) -> Result<()> {
        let mut published =
            futures_util::stream::iter(0..batches * BATCH_EVENTS).map(|_| self.one()).buffered(UNDER_WAY);
        while let Some(done) = published.next().await {
            done?;
        }
        Ok(())
    }

    async fn read(&self, events: usize) -> Result<()> {
        let stream = self.context.get_stream(&self.name).await?;
        let place = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
        let consumer = stream.create_consumer(place).await?;
        let mut messages = consumer.stream().max_messages_per_batch(PAGE).messages().await?;
        for _ in 0..events {
            messages.next().await.ok_or_else(|| Error::new("too few messages"))??;
        }
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        self.context.delete_stream(&self.name).await?;
        Ok(())
    }
}
