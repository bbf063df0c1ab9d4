//! Events as entries of a stream: added in pipelines, several on their way, read in pages.

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::Value;
use redis::aio::MultiplexedConnection;

use super::Bare;
use crate::error::{Error, Result};
use crate::topic::{BATCH_EVENTS, EVENT_BYTES};

/// Pipelines on their way, more of which are not faster.
const UNDER_WAY: usize = 4;
/// The entries of a page, likewise.
const PAGE: usize = 4_000;

pub(super) struct Stream {
    connection: MultiplexedConnection,
    name: String,
}

impl Stream {
    pub(super) async fn make(url: &str, name: &str) -> Result<Self> {
        let connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        Ok(Self { connection, name: name.to_owned() })
    }

    async fn add(&self, events: usize) -> Result<()> {
        let mut pipe = redis::pipe();
        for _ in 0..events {
            let id = uuid::Uuid::now_v7().to_string();
            pipe.cmd("XADD").arg(&self.name).arg("*");
            pipe.arg("id").arg(id).arg("type").arg("bench.written.v1");
            pipe.arg("event").arg(&[b'e'; EVENT_BYTES][..]).ignore();
        }
        pipe.query_async::<()>(&mut self.connection.clone()).await?;
        Ok(())
    }
}

#[async_trait]
impl Bare for Stream {
    async fn one(&self) -> Result<()> {
        self.add(1).await
    }

    async fn many(&self, batches: usize) -> Result<()> {
        let mut added =
            futures_util::stream::iter(0..batches).map(|_| self.add(BATCH_EVENTS)).buffered(UNDER_WAY);
        while let Some(done) = added.next().await {
            done?;
        }
        Ok(())
    }

    async fn read(&self, events: usize) -> Result<()> {
        let (mut after, mut read) = ("-".to_owned(), 0);
        while read < events {
            let mut page = redis::cmd("XRANGE");
            page.arg(&self.name).arg(&after).arg("+").arg("COUNT").arg(PAGE);
            let Value::Array(entries) = page.query_async(&mut self.connection.clone()).await? else {
                return Err(Error::new("a page is no list"));
            };
            let Some(Value::Array(last)) = entries.last() else { return Err(Error::new("too few entries")) };
            let Some(Value::BulkString(id)) = last.first() else { return Err(Error::new("no id")) };
            after = format!("({}", String::from_utf8_lossy(id));
            read += entries.len();
        }
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        redis::cmd("DEL").arg(&self.name).query_async::<()>(&mut self.connection.clone()).await?;
        Ok(())
    }
}
