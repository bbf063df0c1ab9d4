//! The operators' half of MongoDB.
//!
//! takes: requests · writes: one document each, then its outcome · commits: the outcome with the work, in the transaction of
//! both · if we crash here: the request waits · if it repeats: it has its outcome, and the repeat is refused.
//!
//! Invariant: an outcome is written once, by a change that finds the request open.

use ::mongodb::ClientSession;
use ::mongodb::bson::{Document, doc};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use tombolo_event::operator::{Outcome, Request};
use uuid::Uuid;

use super::rows::{self, REQUEST, RequestRow};
use super::session::Tries;
use super::{Mongodb, limit};
use crate::port::requests::{REQUESTS_KEPT_MAX, REQUESTS_OPEN_MAX, Requests, not_open, too_many};
use crate::{Error, Kind, Result};

#[async_trait]
impl Requests for Mongodb {
    async fn ask(&self, requests: &[Request]) -> Result<()> {
        let waiting = self.rows::<RequestRow>(REQUEST).count_documents(doc! { "open": true }).await?;
        if waiting + requests.len() as u64 > REQUESTS_OPEN_MAX as u64 {
            return Err(too_many(i64::try_from(waiting).unwrap_or(i64::MAX)));
        }
        self.forget_old().await?;
        let asked = requests.iter().map(row).collect::<Result<Vec<RequestRow>>>()?;
        let mut tries = Tries::new();
        while !asked.is_empty() {
            let mut session = self.session().await?;
            let written = self.rows::<RequestRow>(REQUEST).insert_many(&asked).session(&mut session).await;
            if tries.end(&mut session, written.map_err(Error::from)).await?.is_some() {
                break;
            }
        }
        Ok(())
    }

    async fn open_requests(&self, subscription: &str) -> Result<Vec<Request>> {
        let open = doc! { "open": true, "subscription": subscription };
        let rows: Vec<RequestRow> = self.look(REQUEST, open, doc! { "_id": 1 }).await?;
        rows.iter().map(read).collect()
    }

    async fn has_open_requests(&self) -> Result<bool> {
        Ok(self.rows::<RequestRow>(REQUEST).find_one(doc! { "open": true }).await?.is_some())
    }

    async fn finish(&self, request: Uuid, outcome: &Outcome) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.session().await?;
            let finished = self.finish_request(&mut session, request, outcome).await;
            if let Some(()) = tries.end(&mut session, finished).await? {
                return Ok(());
            }
        }
    }

    async fn request(&self, id: Uuid) -> Result<Option<Request>> {
        let found = self.rows::<RequestRow>(REQUEST).find_one(doc! { "_id": rows::id(id) }).await?;
        found.as_ref().map(read).transpose()
    }

    async fn requests(&self, most: usize) -> Result<Vec<Request>> {
        let rows = self.rows::<RequestRow>(REQUEST);
        let last = rows.find(doc! {}).sort(doc! { "_id": -1 }).limit(limit(most));
        let last: Vec<RequestRow> = last.await?.try_collect().await?;
        last.iter().map(read).collect()
    }
}

impl Mongodb {
    /// Writes the outcome, in whatever transaction it belongs to.
    pub(super) async fn finish_request(
        &self,
        session: &mut ClientSession,
        id: Uuid,
        outcome: &Outcome,
    ) -> Result<()> {
        let open = doc! { "_id": rows::id(id), "open": true };
        let found = self.rows::<RequestRow>(REQUEST).find_one(open.clone()).session(&mut *session).await?;
        let request = read(&found.ok_or_else(|| not_open(id))?)?;
        let done = row(&Request { outcome: Some(outcome.clone()), ..request })?;
        let written = self.rows::<RequestRow>(REQUEST).replace_one(open, &done).session(session).await?;
        if written.matched_count == 0 { Err(not_open(id)) } else { Ok(()) }
    }

    /// Removes the oldest of those that have their outcome. Ids are in the order of time.
    async fn forget_old(&self) -> Result<()> {
        let done = doc! { "open": false };
        let rows = self.rows::<Document>(REQUEST);
        let last = rows.find_one(done).sort(doc! { "_id": -1 });
        let last = last.skip(REQUESTS_KEPT_MAX as u64 - 1).projection(doc! { "_id": 1 }).await?;
        if let Some(last) = last.as_ref().and_then(|row| row.get("_id")) {
            let old = doc! { "open": false, "_id": { "$lt": last } };
            self.rows::<Document>(REQUEST).delete_many(old).await?;
        }
        Ok(())
    }
}

fn row(request: &Request) -> Result<RequestRow> {
    let text = serde_json::to_string(request).map_err(|error| {
        Error::new(Kind::Database, format!("request {} cannot be written as JSON", request.id)).because(error)
    })?;
    Ok(RequestRow {
        id: request.id,
        subscription: request.subscription.clone(),
        open: request.outcome.is_none(),
        action: request.action.clone(),
        topic: request.of.as_ref().map(|of| of.topic.to_string()),
        partition: request.of.as_ref().map(|of| of.partition),
        request: text,
    })
}

fn read(row: &RequestRow) -> Result<Request> {
    serde_json::from_str(&row.request).map_err(|error| {
        let message = format!("request {} cannot be read; somebody changed it by hand: {error}", row.id);
        Error::new(Kind::Database, message).because(error)
    })
}
