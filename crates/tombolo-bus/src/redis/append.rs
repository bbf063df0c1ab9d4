//! Appends: one call of a script each, and all that wait together in one round trip.
//!
//! Takes loads; writes records and the ends of their partitions inside the server; they are committed when the server answers, which
//! it does after it has synced its append-only file. If we crash before, nothing or all of each append is stored. If it repeats, the
//! script compares the ids.
//!
//! Invariant: whether an append is stored is decided inside the server, between two other commands; here is only said why not.

use std::sync::Arc;

use redis::Value;

use super::link::{Link, SERVER};
use super::scripts::Script;
use super::values::{beginning, id, incarnation, list, number, odd, text};
use crate::adapter::lanes::{Carrier, Job, Load};
use crate::adapter::refusal::{Place, check_incarnation, foreign, same_id, unknown_partition, unknown_topic};
use crate::{Append, Appended, Error, Kind, Record, Result};

/// The largest number that the server's scripts count exactly.
const NUMBER_MAX: u64 = 1 << 53;

/// Takes loads to the server.
pub(super) struct Appending {
    pub(super) link: Arc<Link>,
}

/// Refuses what no stream can hold.
pub(super) fn check(append: &Append) -> Result<()> {
    let last = append.records.last().map_or(0, |record| record.sequence);
    if last.max(append.epoch) > NUMBER_MAX {
        let message = format!("append to {} has a sequence or epoch over {NUMBER_MAX}", append.topic);
        return Err(Error::new(Kind::Hole, message));
    }
    Ok(())
}

impl Carrier for Appending {
    const LOADS_MAX: usize = 2;

    async fn carry(&self, load: Load) {
        let answers = match self.send(&load).await {
            Ok(answers) => answers,
            Err(error) => return load.fail(&error),
        };
        let jobs = load.runs.into_iter().flat_map(|(_, jobs)| jobs);
        for (job, answer) in jobs.zip(answers) {
            let answer = said(&job.append, answer);
            job.tell(answer);
        }
    }
}

impl Appending {
    async fn send(&self, load: &Load) -> Result<Vec<Value>> {
        let mut line = self.link.line_to_append().await?;
        let mut calls = redis::pipe();
        for job in load.runs.iter().flat_map(|(_, jobs)| jobs) {
            calls.add_command(self.call(&line.scripts, job));
        }
        line.ask_all(&calls).await
    }

    fn call(&self, scripts: &super::scripts::Scripts, job: &Job) -> redis::Cmd {
        let (append, keys) = (&job.append, &self.link.keys);
        let Append { topic, partition, .. } = append;
        let named = [keys.topic(topic), keys.ends(topic), keys.partition(topic, *partition)];
        let mut call = scripts.call(Script::Append, &named);
        let first = append.records.first().map_or(0, |record| record.sequence);
        let largest = append.records.iter().map(Record::size).max().unwrap_or(0);
        call.arg(keys.mark(topic)).arg(append.incarnation.to_string()).arg(append.epoch).arg(*partition);
        call.arg(first).arg(largest).arg(keys.appended(topic.as_str())).arg(topic.as_str());
        for record in &append.records {
            call.arg(record.id.to_string()).arg(&record.event_type[..]).arg(&record.bytes[..]);
        }
        call
    }
}

/// What the script's answer means for the append.
fn said(append: &Append, answer: Value) -> Result<Appended> {
    let words = list(answer);
    let word = |at: usize| words.get(at).and_then(text);
    let count = |at: usize| number(words.get(at));
    match word(0).as_deref() {
        Some("stored") => Ok(Appended { last: count(1).ok_or_else(|| odd("an acknowledgement"))? }),
        Some("absent") => Err(unknown_topic(&append.topic, SERVER)),
        Some("foreign") => Err(foreign(&append.topic, &word(1).unwrap_or_default())),
        Some("trimmed") => {
            let begins = word(1).ok_or_else(|| odd("a refusal"))?;
            let begins = beginning(append.incarnation, &begins)?;
            let at = count(2).ok_or_else(|| odd("a refusal"))?;
            Err(Error::trimmed(&append.topic, append.partition, at, Some(begins)))
        }
        Some("other") => {
            let at = count(1).and_then(|at| usize::try_from(at).ok()).ok_or_else(|| odd("a refusal"))?;
            let record = append.records.get(at).ok_or_else(|| odd("a refusal"))?;
            Err(same_id(append, record, word(2).as_deref().and_then(id))
                .err()
                .unwrap_or_else(|| odd("a refusal")))
        }
        _ => {
            let state = (|| {
                let incarnation = incarnation(&word(1)?)?;
                let place = Place { incarnation, epoch: count(2)?, sealed: count(4)? == 1, last: count(5)? };
                Some((place, u32::try_from(count(3)?).ok()?))
            })();
            let (place, partitions) = state.ok_or_else(|| odd("a refusal"))?;
            Err(refused(append, &place, partitions))
        }
    }
}

fn refused(append: &Append, place: &Place, partitions: u32) -> Error {
    if let Err(other) = check_incarnation(&append.topic, place.incarnation, append.incarnation) {
        return other;
    }
    if append.partition >= partitions {
        return unknown_partition(&append.topic, append.partition, partitions);
    }
    let refusal = place.stored_of(append).err().or_else(|| place.check_open(append).err());
    refusal.unwrap_or_else(|| odd("a refusal"))
}
