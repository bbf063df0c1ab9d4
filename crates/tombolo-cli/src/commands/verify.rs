//! `tombolo topics verify`: over a bus, reads every event and checks what can be checked from outside; over the
//! files of a log, checks every byte of them and changes none.
//!
//! Invariant: over a bus, success means that each partition was read from 1 to its tail without a hole, that each event is
//! a CloudEvent whose id is that of its record, and that no id stands twice in a partition.

use std::collections::HashSet;
use std::path::Path;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tombolo_bus::embedded::{self, Inspection};
use tombolo_bus::{Bus, Record, Tail, Topic};
use tombolo_event::{Cursor, Envelope, Generations};

use crate::arguments::{Found, Reached, Verify};
use crate::commands::{reach, say, show};
use crate::error::{Error, Result};
use crate::folder::DataFolder;
use crate::output::Format;

const HEADER: [&str; 4] = ["TOPIC", "PARTITION", "EVENTS", "FOUND"];
/// The most faults of a partition that are told.
const FAULTS_SHOWN_MAX: usize = 5;

/// What reading one partition found.
struct Finding {
    topic: String,
    partition: u32,
    /// The generation of the partition, and how many there are.
    generation: (usize, usize),
    events: u64,
    faults: Vec<String>,
}

fn generation(generations: &Generations, partition: u32) -> (usize, usize) {
    let all = generations.each().len();
    (generations.number_of(partition).unwrap_or(all), all)
}

/// Verifies what a bus serves, or the files of a log.
pub(crate) async fn verify(arguments: Verify) -> Result<()> {
    match &arguments.data {
        Some(data) => files(data, arguments.format),
        None => served(arguments).await,
    }
}

async fn served(arguments: Verify) -> Result<()> {
    let bus = reach(&Reached { bus: arguments.bus, archive: arguments.archive, found: Found { data: None } })
        .await?;
    let mut findings = Vec::new();
    for topic in bus.topics().await? {
        for tail in bus.tails(&topic.name).await? {
            findings.push(partition(&*bus, &topic, &tail).await);
        }
    }
    bus.close().await;
    let rows = findings.iter().map(row).collect();
    let list: Vec<_> = findings.iter().map(json).collect();
    show(arguments.format, HEADER, rows, &json!({ "partitions": list, "log": null }))?;
    match findings.iter().filter(|finding| !finding.faults.is_empty()).count() {
        0 => Ok(()),
        count => Err(Error::failed(format!("{count} of {} partitions have faults", findings.len()))),
    }
}

/// Inspects the files, whether a bus has them open or not.
fn files(data: &Path, format: Format) -> Result<()> {
    let folder = DataFolder::at(data)?;
    let inside = folder.bus();
    let path = if inside.is_dir() { &inside } else { folder.path() };
    if !path.is_dir() {
        return Err(Error::not_found(format!("there is no folder {}", path.display())));
    }
    let inspection = embedded::verify(path)?;
    let findings = readable(&inspection);
    let list: Vec<_> = findings.iter().map(json).collect();
    show(
        format,
        HEADER,
        findings.iter().map(row).collect(),
        &json!({ "partitions": list, "log": log(&inspection) }),
    )?;
    if format == Format::Table {
        notes(&inspection).iter().try_for_each(|note| say(note))?;
    }
    match inspection.damage.first() {
        None => Ok(()),
        Some(first) => Err(Error::failed(format!(
            "the log is damaged in {} places, first in {} at byte {}: {}",
            inspection.damage.len(),
            first.file,
            first.offset,
            first.found
        ))),
    }
}

/// What can be read of each partition.
fn readable(inspection: &Inspection) -> Vec<Finding> {
    let findings = inspection.topics.iter().flat_map(|topic| {
        topic.partitions.iter().zip(0..).map(|(found, partition)| Finding {
            topic: topic.name.to_string(),
            partition,
            generation: generation(&topic.generations, partition),
            events: found.events,
            faults: match found.last.saturating_sub(found.events) {
                0 => Vec::new(),
                lost => vec![format!("{lost} of {} events cannot be read", found.last)],
            },
        })
    });
    findings.collect()
}

/// What is no fault, and still worth knowing.
fn notes(inspection: &Inspection) -> Vec<String> {
    let mut notes = vec![format!("{} segments", inspection.segments)];
    if let Some(holder) = &inspection.in_use_by {
        notes.push(format!("process {holder} has the log open; its last write may look interrupted"));
    }
    if let Some(cut) = &inspection.cut {
        notes.push(format!(
            "an interrupted write of {} bytes after byte {} of {}, which the next start cuts off; no event is lost",
            cut.bytes, cut.offset, cut.file
        ));
    }
    if !inspection.stale_indexes.is_empty() {
        notes.push(format!("to be built again at the next start: {}", inspection.stale_indexes.join(", ")));
    }
    notes
}

fn log(inspection: &Inspection) -> Value {
    let damage = inspection.damage.iter();
    let damage: Vec<_> =
        damage.map(|it| json!({ "file": it.file, "offset": it.offset, "found": it.found })).collect();
    let cut = inspection.cut.as_ref();
    json!({
        "segments": inspection.segments, "in_use_by": inspection.in_use_by, "damage": damage,
        "cut": cut.map(|cut| json!({ "file": cut.file, "offset": cut.offset, "bytes": cut.bytes })),
        "stale_indexes": inspection.stale_indexes,
    })
}

async fn partition(bus: &dyn Bus, topic: &Topic, tail: &Tail) -> Finding {
    let mut checked = Checked { next: 1, ids: HashSet::new(), faults: Vec::new() };
    let after = Cursor::start(topic.incarnation);
    match bus.read(tombolo_bus::Read::to_tail(&topic.name, tail.partition, after)).await {
        Err(error) => checked.faults.push(error.to_string()),
        Ok(mut batches) => {
            while let Some(batch) = batches.next().await {
                match batch {
                    Ok(batch) => batch.records.iter().for_each(|record| checked.record(record)),
                    Err(error) => checked.faults.push(error.to_string()),
                }
            }
        }
    }
    if checked.next <= tail.sequence {
        checked.faults.push(format!("ends before sequence {}; expected {}", checked.next, tail.sequence));
    }
    Finding {
        topic: topic.name.to_string(),
        partition: tail.partition,
        generation: generation(&topic.generations, tail.partition),
        events: checked.next - 1,
        faults: checked.faults,
    }
}

struct Checked {
    next: u64,
    ids: HashSet<tombolo_event::EventId>,
    faults: Vec<String>,
}

impl Checked {
    fn record(&mut self, record: &Record) {
        let sequence = record.sequence;
        if sequence != self.next {
            self.faults.push(format!("sequence {sequence}; expected {}", self.next));
        }
        self.next = sequence + 1;
        if !self.ids.insert(record.id) {
            self.faults.push(format!("id {} stands twice, again at sequence {sequence}", record.id));
        }
        match Envelope::decode(record.bytes.clone()) {
            Err(error) => self.faults.push(format!("sequence {sequence}: {error}")),
            Ok(envelope) if envelope.id != record.id => {
                let (found, expected) = (envelope.id, record.id);
                self.faults
                    .push(format!("sequence {sequence}: the event's id is {found}; expected {expected}"));
            }
            Ok(_) => {}
        }
    }
}

fn row(finding: &Finding) -> [String; 4] {
    let (number, all) = finding.generation;
    let found = match finding.faults.len() {
        0 if number < all => format!("whole, sealed (generation {number} of {all})"),
        0 => "whole".to_owned(),
        count => {
            let shown = &finding.faults[..count.min(FAULTS_SHOWN_MAX)];
            format!("{count} faults: {}", shown.join("; "))
        }
    };
    [finding.topic.clone(), finding.partition.to_string(), finding.events.to_string(), found]
}

fn json(finding: &Finding) -> Value {
    let Finding { topic, partition, generation: (number, all), events, faults } = finding;
    json!({
        "topic": topic, "partition": partition, "generation": number, "sealed": number < all,
        "events": events, "faults": faults,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_event::EventId;

    fn record(sequence: u64, id: EventId) -> Record {
        let envelope = Envelope {
            id,
            source: "a".into(),
            event_type: "a.b.v1".into(),
            key: "k".into(),
            time: "2026-11-20T12:00:00Z".parse().unwrap(),
            content_type: "application/json".into(),
            trace: None,
            correlation: None,
            causation: None,
            extensions: tombolo_event::envelope::Extensions::new(),
            data: "{}".into(),
        };
        Record { sequence, id, event_type: "a.b.v1".into(), bytes: envelope.encode() }
    }

    fn faults_of(records: &[Record]) -> Vec<String> {
        let mut checked = Checked { next: 1, ids: HashSet::new(), faults: Vec::new() };
        records.iter().for_each(|record| checked.record(record));
        checked.faults
    }

    #[test]
    fn a_hole_a_double_and_damage_are_each_found() {
        let (one, two) = (EventId::new(), EventId::new());
        assert!(faults_of(&[record(1, one), record(2, two)]).is_empty());
        assert_eq!(faults_of(&[record(1, one), record(3, two)]), ["sequence 3; expected 2"]);
        assert!(faults_of(&[record(1, one), record(2, one)])[0].contains("stands twice"));
        assert!(faults_of(&[Record { bytes: "x".into(), ..record(1, one) }])[0].contains("cannot be read"));
        assert!(faults_of(&[Record { id: two, ..record(1, one) }])[0].contains("the event's id is"));
    }
}
