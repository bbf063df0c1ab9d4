//! The elected relay's rounds on MongoDB.
//!
//! takes: rows that have no number · writes: their numbers, marks, removals · commits: all of a round in one transaction that
//! touches the leader's document, acknowledged by a majority before anybody sees the rows · if we crash here: the next leader
//! hands out the same rows with the same numbers first · if it repeats: the bus finds the same bytes under them.
//!
//! Invariant: a number is given once, by whoever touches the leader's document under the present epoch, to a row that is
//! there and has none; a row that commits late is there when it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use ::mongodb::ClientSession;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, Document, doc};
use ::mongodb::options::ReturnDocument;
use async_trait::async_trait;
use jiff::Timestamp;
use tombolo_event::operator::Outcome;
use tombolo_event::{EventId, Generations, Incarnation, KeyHash, barrier};
use uuid::Uuid;

use super::outbox::{Won, leader_of};
use super::rows::{self, DELETE, LEADER, LeaderRow, ONE, OUTBOX, OutboxDocument, PARTITION, SERVICE, UPDATE};
use super::session::{self, Tries};
use super::{Mongodb, limit as bound, millis, signed};
use crate::mutant::Mutant;
use crate::{Leader, Mark, OutboxRow, Result, RoundLimit, fencing};

pub(super) struct MongodbLeader {
    pub(super) database: Mongodb,
    epoch: u64,
    generations: Generations,
    lease: Duration,
    marks: Vec<Mark>,
    removed: Vec<Mark>,
    /// The last sequence that was handed out, by partition.
    taken: BTreeMap<u32, u64>,
    /// Whether rows may have numbers that were not handed out: at the start, and after any failure.
    is_backlog: bool,
    /// The highest position seen; used by nothing but a mutant.
    highest: i64,
    next_due: Option<Timestamp>,
    /// The session by which a successor knows what this one may have left open.
    session: Option<ClientSession>,
}

/// What a round is about.
struct Round<'r> {
    news: &'r [Mark],
    limit: RoundLimit,
    from_backlog: bool,
}

/// What a round came to: rows, whether there may be more that had numbers already, and the highest position among them.
struct Done {
    rows: Vec<OutboxRow>,
    is_backlog: bool,
    highest: i64,
}

/// A row that is about to get its number.
struct Unnumbered {
    place: ObjectId,
    row: OutboxRow,
}

impl MongodbLeader {
    pub(super) fn new(database: Mongodb, lease: Duration, won: Won, session: ClientSession) -> Self {
        let Won { epoch, generations, marks } = won;
        Self {
            database,
            epoch,
            generations,
            lease,
            removed: marks.clone(),
            taken: marks.iter().map(|mark| (mark.partition, mark.sequence)).collect(),
            marks,
            is_backlog: true,
            highest: i64::MIN,
            next_due: None,
            session: Some(session),
        }
    }

    /// Begins a transaction in the leader's own session.
    pub(super) async fn begin(&mut self) -> Result<ClientSession> {
        match self.session.take() {
            Some(mut session) => session::start(&mut session).await.map(|()| session),
            None => self.database.session().await,
        }
    }

    /// Ends it, and keeps the session for the next one.
    pub(super) async fn end<T>(
        &mut self,
        tries: &mut Tries,
        mut session: ClientSession,
        done: Result<T>,
    ) -> Result<Option<T>> {
        let ended = tries.end(&mut session, done).await;
        self.session = Some(session);
        ended
    }

    /// The marks of `done` that lie above what was removed before.
    fn news(&self, done: &[Mark]) -> Vec<Mark> {
        let is_news = |mark: &&Mark| {
            let known = self.removed.iter().find(|known| known.partition == mark.partition);
            mark.sequence > known.map_or(0, |known| known.sequence)
        };
        done.iter().filter(is_news).copied().collect()
    }

    fn compare(&self, found: &LeaderRow) -> Result<()> {
        if found.led() == self.epoch || self.database.mutation.is(Mutant::NoFencing) {
            return Ok(());
        }
        Err(fencing::replaced(self.epoch, found.led()))
    }

    /// Proves the epoch and touches the leader's document, so that nobody else takes over before the commit.
    pub(super) async fn touch(&self, session: &mut ClientSession) -> Result<()> {
        let touch = self.database.rows::<LeaderRow>(ONE);
        let touch = touch.find_one_and_update(doc! { "_id": LEADER }, doc! { "$inc": { "touched": 1_i64 } });
        let found = touch.return_document(ReturnDocument::After).session(session).await?;
        self.compare(&leader_of(found)?)
    }

    /// Whether there are rows without a number; fails if somebody else leads. Looks when the next event is due, too.
    async fn is_waiting(&mut self) -> Result<bool> {
        let found = self.database.rows::<LeaderRow>(ONE).find_one(doc! { "_id": LEADER }).await?;
        self.compare(&leader_of(found)?)?;
        self.next_due = self.database.next_due().await?;
        let rows = self.database.rows::<OutboxDocument>(OUTBOX);
        let waiting = rows.find_one(doc! { "sequence": null });
        Ok(waiting.await?.is_some())
    }

    /// One transaction: removes, then numbers; or hands out what has numbers already.
    async fn work(&self, session: &mut ClientSession, round: &Round<'_>) -> Result<Done> {
        self.touch(session).await?;
        self.database.remove(session, round.news).await?;
        if round.from_backlog {
            let rows = self.backlog(session, round.limit).await?;
            if !rows.is_empty() {
                return Ok(Done { rows, is_backlog: true, highest: self.highest });
            }
        }
        let (rows, highest) = self.number(session, round.limit).await?;
        Ok(Done { rows, is_backlog: false, highest })
    }

    /// Rows that an earlier leader numbered, or this one before a failure, above what was handed out.
    async fn backlog(&self, session: &mut ClientSession, limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let mut fitting = Fitting::new(limit);
        for (&partition, &after) in &self.taken {
            let above = doc! { "partition": i64::from(partition), "sequence": { "$gt": signed(after) } };
            self.read(session, (above, doc! { "sequence": 1 }), &mut fitting).await?;
            if fitting.is_full {
                break;
            }
        }
        Ok(fitting.found.into_iter().map(outbox_row).collect())
    }

    /// Reads rows as long as they fit.
    async fn read(
        &self,
        session: &mut ClientSession,
        (filter, order): (Document, Document),
        fitting: &mut Fitting,
    ) -> Result<()> {
        let rows = self.database.rows::<OutboxDocument>(OUTBOX);
        let found = rows.find(filter).sort(order).limit(bound(fitting.limit.rows + 1));
        let mut found = found.session(&mut *session).await?;
        while let Some(row) = found.next(session).await.transpose()? {
            if !fitting.take(row) {
                break;
            }
        }
        Ok(())
    }

    /// Gives numbers to the next rows that have none, in the order of their positions: in the present generation, wherever
    /// whoever published them believed that they would go. Drops what is on the bus already: it was published while that
    /// was learned.
    async fn number(&self, session: &mut ClientSession, limit: RoundLimit) -> Result<(Vec<OutboxRow>, i64)> {
        let mut fitting = Fitting::new(limit);
        let mut waiting = doc! { "sequence": null };
        if self.database.mutation.is(Mutant::NaiveOutboxCursor) {
            waiting.insert("at", doc! { "$gt": self.highest });
        }
        self.read(session, (waiting, doc! { "at": 1, "nth": 1 }), &mut fitting).await?;
        let mut found = fitting.found;
        self.drop_known(session, &mut found).await?;
        if found.is_empty() {
            return Ok((Vec::new(), self.highest));
        }
        let highest = found.iter().map(|row| row.at).fold(self.highest, i64::max);
        let partitions = self.database.partitions(session).await?;
        let mut last: BTreeMap<u32, u64> =
            partitions.iter().map(|row| (row.partition, row.numbered.unsigned_abs())).collect();
        let as_hinted = self.database.mutation.is(Mutant::NumbersWhereHinted);
        let next: Vec<Unnumbered> = found
            .into_iter()
            .map(|row| {
                let (place, key_hash) = (row.place, KeyHash(row.key_hash.cast_unsigned()));
                let mut row = outbox_row(row);
                if !as_hinted {
                    row.partition = self.generations.partition(key_hash);
                }
                let last = last.entry(row.partition).or_default();
                *last += 1;
                row.sequence = *last;
                Unnumbered { place, row }
            })
            .collect();
        self.store_numbers(session, &next).await?;
        let mut rows: Vec<OutboxRow> = next.into_iter().map(|next| next.row).collect();
        rows.sort_by_key(|row| (row.partition, row.sequence));
        Ok((rows, highest))
    }

    /// Removes consequences that are on the bus already.
    async fn drop_known(&self, session: &mut ClientSession, found: &mut Vec<OutboxDocument>) -> Result<()> {
        let is_consequence = |id: &Uuid| id.get_version() == Some(uuid::Version::Sha1);
        let ids: Vec<Uuid> = found.iter().map(|row| row.id).filter(is_consequence).collect();
        let known = self.database.on_bus_already(session, &ids).await?;
        if known.is_empty() {
            return Ok(());
        }
        let gone = found.iter().filter(|row| known.contains(&row.id));
        let gone = gone.map(|row| doc! { "q": { "_id": row.place }, "limit": 1 }).collect();
        found.retain(|row| !known.contains(&row.id));
        self.database.run(Some(session), OUTBOX, DELETE, gone).await
    }

    /// Writes the numbers of rows, and the last one of each partition.
    async fn store_numbers(&self, session: &mut ClientSession, next: &[Unnumbered]) -> Result<()> {
        let one = |Unnumbered { place, row }: &Unnumbered| {
            let number = doc! { "partition": i64::from(row.partition), "sequence": signed(row.sequence) };
            doc! { "q": { "_id": *place }, "u": { "$set": number } }
        };
        self.database.run(Some(&mut *session), OUTBOX, UPDATE, next.iter().map(one).collect()).await?;
        let last: BTreeMap<u32, u64> =
            next.iter().map(|next| (next.row.partition, next.row.sequence)).collect();
        let last = last.into_iter().map(|(partition, sequence)| {
            doc! { "q": { "_id": i64::from(partition) }, "u": { "$set": { "numbered": signed(sequence) } } }
        });
        self.database.run(Some(session), PARTITION, UPDATE, last.collect()).await
    }

    fn remember(&mut self, news: &[Mark], rows: &[OutboxRow]) {
        for mark in news {
            self.removed.retain(|known| known.partition != mark.partition);
            self.removed.push(*mark);
            let taken = self.taken.entry(mark.partition).or_default();
            *taken = mark.sequence.max(*taken);
        }
        for row in rows {
            let taken = self.taken.entry(row.partition).or_default();
            *taken = row.sequence.max(*taken);
        }
    }

    /// Removes what is done in a transaction of its own.
    async fn remove(&mut self, news: &[Mark]) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.begin().await?;
            let removed = match self.touch(&mut session).await {
                Ok(()) => self.database.remove(&mut session, news).await,
                Err(error) => Err(error),
            };
            if let Some(()) = self.end(&mut tries, session, removed).await? {
                self.remember(news, &[]);
                return Ok(());
            }
        }
    }

    /// Compares the incarnation with the one that is remembered, or remembers it.
    async fn pin_now(&self, session: &mut ClientSession, found: Incarnation) -> Result<()> {
        self.touch(session).await?;
        let row = self.database.service(session).await?;
        if let Some(known) = row.incarnation {
            return fencing::compare_incarnation(&row.service, known, found);
        }
        let pin = doc! { "$set": { "incarnation": rows::id(found.0) } };
        self.database.rows::<Document>(ONE).update_one(doc! { "_id": SERVICE }, pin).session(session).await?;
        Ok(())
    }

    async fn divide_now(
        &self,
        session: &mut ClientSession,
        next: &Generations,
        asked: Option<(Uuid, &Outcome)>,
    ) -> Result<()> {
        self.touch(session).await?;
        self.database.divide(session, next).await?;
        if let Some((request, outcome)) = asked {
            self.database.finish_request(session, request, outcome).await?;
        }
        barrier::reach("divide.before-commit");
        Ok(())
    }

    /// Changes the leader's document, if this one leads still.
    async fn update(&self, set: Document) -> Result<()> {
        let ours = doc! { "_id": LEADER, "epoch": signed(self.epoch), "halt": null };
        let updated = self.database.rows::<Document>(ONE).update_one(ours, doc! { "$set": set }).await?;
        if updated.matched_count == 0 {
            let found = self.database.rows::<LeaderRow>(ONE).find_one(doc! { "_id": LEADER }).await?;
            return self.compare(&leader_of(found)?);
        }
        Ok(())
    }

    pub(super) fn generations_now(&self) -> &Generations {
        &self.generations
    }
}

#[async_trait]
impl Leader for MongodbLeader {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn marks(&self) -> &[Mark] {
        &self.marks
    }

    async fn pin(&mut self, found: Incarnation) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.begin().await?;
            let pinned = self.pin_now(&mut session, found).await;
            if let Some(()) = self.end(&mut tries, session, pinned).await? {
                return Ok(());
            }
        }
    }

    fn generations(&self) -> &Generations {
        &self.generations
    }

    async fn divide(&mut self, generations: &Generations, asked: Option<(Uuid, &Outcome)>) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let mut session = self.begin().await?;
            let divided = self.divide_now(&mut session, generations, asked).await;
            if let Some(()) = self.end(&mut tries, session, divided).await? {
                break;
            }
        }
        barrier::reach("divide.after-commit");
        self.generations = generations.clone();
        for partition in 0..generations.partitions() {
            self.taken.entry(partition).or_default();
        }
        Ok(())
    }

    async fn round(&mut self, done: &[Mark], limit: RoundLimit) -> Result<Vec<OutboxRow>> {
        let news = self.news(done);
        if news.is_empty() && !self.is_backlog && !self.is_waiting().await? {
            return Ok(Vec::new());
        }
        // A commit whose answer is lost may have given numbers all the same: they would be found there.
        let from_backlog = std::mem::replace(&mut self.is_backlog, true);
        let round = Round { news: &news, limit, from_backlog };
        let mut tries = Tries::new();
        let done = loop {
            let mut session = self.begin().await?;
            let worked = self.work(&mut session, &round).await;
            if let Some(done) = self.end(&mut tries, session, worked).await? {
                break done;
            }
        };
        (self.is_backlog, self.highest) = (done.is_backlog, done.highest);
        self.next_due = self.database.next_due().await?;
        self.remember(&news, &done.rows);
        if !done.rows.is_empty() {
            barrier::reach("relay.after-numbering");
        }
        if !news.is_empty() {
            barrier::reach("relay.after-remove");
        }
        Ok(done.rows)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    async fn move_due(&mut self, now: Timestamp, limit: RoundLimit) -> Result<usize> {
        let moved = self.move_all(now, limit).await?;
        self.next_due = self.next_due.filter(|_| moved == 0);
        Ok(moved)
    }

    async fn renew(&mut self) -> Result<()> {
        let until_ms = self.database.server_ms().await?.saturating_add(millis(self.lease));
        self.update(doc! { "until_ms": until_ms }).await
    }

    async fn resign(mut self: Box<Self>, done: &[Mark]) -> Result<()> {
        let news = self.news(done);
        if !news.is_empty() {
            self.remove(&news).await?;
            barrier::reach("relay.after-remove");
        }
        self.update(doc! { "until_ms": 0_i64, "holder": Bson::Null }).await
    }
}

/// Rows as long as they fit into a round.
struct Fitting {
    limit: RoundLimit,
    bytes: usize,
    found: Vec<OutboxDocument>,
    is_full: bool,
}

impl Fitting {
    fn new(limit: RoundLimit) -> Self {
        Self { limit, bytes: 0, found: Vec::new(), is_full: false }
    }

    /// Takes a row in, if it fits; the first one however large.
    fn take(&mut self, row: OutboxDocument) -> bool {
        let bytes = self.bytes + row.bytes.bytes.len();
        let is_first = self.found.is_empty();
        self.is_full = !is_first && (bytes > self.limit.bytes || self.found.len() >= self.limit.rows);
        if !self.is_full {
            self.bytes = bytes;
            self.found.push(row);
        }
        !self.is_full
    }
}

/// A row of the outbox, with its number if it has one.
fn outbox_row(row: OutboxDocument) -> OutboxRow {
    OutboxRow {
        partition: row.partition,
        sequence: row.sequence.unwrap_or_default().unsigned_abs(),
        id: EventId(row.id),
        event_type: row.event_type,
        bytes: row.bytes.bytes.into(),
    }
}
