//! The operators' half of the store.
//!
//! takes: requests · writes: one row each, then its outcome · commits: the outcome with the work, in the transaction of
//! both · if we crash here: the request waits · if it repeats: it has its outcome, and the repeat is refused.
//!
//! Invariant: an outcome is written once, and a request is among the open ones exactly as long as it has none.

use async_trait::async_trait;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, WriteTransaction};
use tombolo_event::operator::{Outcome, Request};
use uuid::Uuid;

use super::Documents;
use super::rows::{self, Json, OPEN, REQUEST, RequestRow};
use super::store::Synced;
use crate::port::requests::{REQUESTS_KEPT_MAX, REQUESTS_OPEN_MAX, Requests, not_open, too_many};
use crate::{Error, Kind, Result};

#[async_trait]
impl Requests for Documents {
    async fn ask(&self, requests: &[Request]) -> Result<()> {
        let requests = requests.to_vec();
        self.store.write(Synced::Now, move |transaction| ask(transaction, &requests)).await
    }

    async fn open_requests(&self, subscription: &str) -> Result<Vec<Request>> {
        let subscription = subscription.to_owned();
        let open = move |snapshot: &ReadTransaction| {
            let (open, requests) = (snapshot.open_table(OPEN)?, snapshot.open_table(REQUEST)?);
            let mut found = Vec::new();
            for key in ReadableTable::range(&open, (&*subscription, 0)..=(&*subscription, u128::MAX))? {
                found.extend(rows::get(&requests, key?.0.value().1)?);
            }
            Ok(found)
        };
        self.store.read(open).await
    }

    async fn has_open_requests(&self) -> Result<bool> {
        self.store.read(|snapshot| Ok(!snapshot.open_table(OPEN)?.is_empty()?)).await
    }

    async fn finish(&self, id: Uuid, outcome: &Outcome) -> Result<()> {
        let outcome = outcome.clone();
        self.store.write(Synced::Now, move |transaction| finish(transaction, id, &outcome)).await
    }

    async fn request(&self, id: Uuid) -> Result<Option<Request>> {
        self.store.read(move |snapshot| rows::get(&snapshot.open_table(REQUEST)?, id.as_u128())).await
    }

    async fn requests(&self, most: usize) -> Result<Vec<Request>> {
        let last = move |snapshot: &ReadTransaction| {
            let requests = snapshot.open_table(REQUEST)?;
            let last = ReadableTable::iter(&requests)?.rev().take(most);
            last.map(|found| rows::read(found?.1.value())).collect()
        };
        self.store.read(last).await
    }
}

fn ask(transaction: &WriteTransaction, asked: &[Request]) -> Result<()> {
    let (mut open, mut requests) = (transaction.open_table(OPEN)?, transaction.open_table(REQUEST)?);
    let waiting = open.len()?;
    if waiting + asked.len() as u64 > REQUESTS_OPEN_MAX as u64 {
        return Err(too_many(i64::try_from(waiting).unwrap_or(i64::MAX)));
    }
    forget_old(&mut requests, waiting)?;
    for request in asked {
        let id = request.id.as_u128();
        if requests.get(id)?.is_some() {
            let message = format!("request {} was written down before; nothing was changed", request.id);
            return Err(Error::new(Kind::Database, message));
        }
        rows::put(&mut requests, id, request)?;
        open.insert((&*request.subscription, id), ())?;
    }
    Ok(())
}

/// Removes the oldest of those that have their outcome, up to the first that has none. Ids are in the order of time.
fn forget_old(requests: &mut Table<'_, u128, Json>, waiting: u64) -> Result<()> {
    let done = requests.len()?.saturating_sub(waiting);
    for _ in REQUESTS_KEPT_MAX as u64..done {
        let Some(oldest) = first(requests)? else { return Ok(()) };
        if oldest.outcome.is_none() {
            return Ok(());
        }
        requests.remove(oldest.id.as_u128())?;
    }
    Ok(())
}

fn first(requests: &Table<'_, u128, Json>) -> Result<Option<RequestRow>> {
    requests.first()?.map(|(_, row)| rows::read(row.value())).transpose()
}

/// Writes the outcome, in whatever transaction it belongs to.
pub(super) fn finish(transaction: &WriteTransaction, id: Uuid, outcome: &Outcome) -> Result<()> {
    let mut requests = transaction.open_table(REQUEST)?;
    let found: Option<RequestRow> = rows::get(&requests, id.as_u128())?;
    let request = found.filter(|request| request.outcome.is_none()).ok_or_else(|| not_open(id))?;
    transaction.open_table(OPEN)?.remove((&*request.subscription, id.as_u128()))?;
    rows::put(&mut requests, id.as_u128(), &RequestRow { outcome: Some(outcome.clone()), ..request })
}
