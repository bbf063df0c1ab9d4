//! Events as messages of a stream: published with many confirmations on their way, read by a consumer from the first on.

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use super::Bare;
use crate::error::{Error, Result};
use crate::topic::{BATCH_EVENTS, EVENT_BYTES};

/// Messages on their way, more of which are not faster.
const UNDER_WAY: usize = 512;
/// How many a reader is sent before it acknowledges, likewise.
const UNREAD: u16 = 2_000;

pub(super) struct Stream {
    _connection: Connection,
    sends: Channel,
    receives: Channel,
    name: String,
}

impl Stream {
    pub(super) async fn make(url: &str, name: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let (sends, receives) = (connection.create_channel().await?, connection.create_channel().await?);
        sends.confirm_select(ConfirmSelectOptions::default()).await?;
        receives.basic_qos(UNREAD, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        sends.queue_declare(name.into(), options, arguments).await?;
        Ok(Self { _connection: connection, sends, receives, name: name.to_owned() })
    }
}

#[async_trait]
impl Bare for Stream {
    async fn one(&self) -> Result<()> {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let event = [b'e'; EVENT_BYTES];
        self.sends
            .basic_publish("".into(), self.name.as_str().into(), options, &event, properties)
            .await?
            .await?;
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
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let (queue, tag) = (self.name.as_str().into(), uuid::Uuid::new_v4().to_string());
        let options = BasicConsumeOptions::default();
        let mut found = self.receives.basic_consume(queue, tag.as_str().into(), options, arguments).await?;
        for read in 1..=events {
            let message = found.next().await.ok_or_else(|| Error::new("too few messages"))??;
            if read % usize::from(UNREAD / 4) == 0 {
                message.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
        self.receives.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        self.sends.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }
}
