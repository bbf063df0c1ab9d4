//! `tombolo topics verify`: reads every event of every topic and checks what can be checked from outside.
//!
//! Invariant: success means that each partition was read from 1 to its tail without a hole, that each event is
//! a CloudEvent whose id is that of its record, and that no id stands twice in a partition.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tombolo_bus::{Bus, Record, Tail, Topic};
use tombolo_event::{Cursor, Envelope};

use crate::arguments::{Found, Reached, Verify};
use crate::commands::{reach, show};
use crate::error::{Error, Result};
use crate::folder::DataFolder;

/// The most faults of a partition that are told.
const FAULTS_SHOWN_MAX: usize = 5;

/// What reading one partition found.
struct Finding {
    topic: String,
    partition: u32,
    events: u64,
    faults: Vec<String>,
}

/// Verifies the bus of a running system, or a log on which no bus runs.
pub(crate) async fn verify(arguments: Verify) -> Result<()> {
    let bus = open(&arguments).await?;
    let mut findings = Vec::new();
    for topic in bus.topics().await? {
        for tail in bus.tails(&topic.name).await? {
            findings.push(partition(&*bus, &topic, &tail).await);
        }
    }
    bus.close().await;
    let rows = findings.iter().map(row).collect();
    let list: Vec<_> = findings.iter().map(json).collect();
    show(arguments.format, ["TOPIC", "PARTITION", "EVENTS", "FOUND"], rows, &Value::Array(list))?;
    match findings.iter().filter(|finding| !finding.faults.is_empty()).count() {
        0 => Ok(()),
        count => Err(Error::failed(format!("{count} of {} partitions have faults", findings.len()))),
    }
}

async fn open(arguments: &Verify) -> Result<Arc<dyn Bus>> {
    let offline = arguments.data.as_deref().filter(|_| arguments.bus.is_none());
    if let Some(data) = offline {
        let folder = DataFolder::at(data)?;
        if folder.running().is_none() {
            return log(&folder);
        }
    }
    reach(&Reached { bus: arguments.bus.clone(), found: Found { data: arguments.data.clone() } }).await
}

fn log(folder: &DataFolder) -> Result<Arc<dyn Bus>> {
    let inside = folder.bus();
    let path: &Path = if inside.is_dir() { &inside } else { folder.path() };
    if !path.is_dir() {
        return Err(Error::not_found(format!("there is no folder {}", path.display())));
    }
    Ok(tombolo_bus::embedded::Log::open(path, tombolo_bus::embedded::Options::default())?.0)
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
    let found = match finding.faults.len() {
        0 => "whole".to_owned(),
        count => {
            let shown = &finding.faults[..count.min(FAULTS_SHOWN_MAX)];
            format!("{count} faults: {}", shown.join("; "))
        }
    };
    [finding.topic.clone(), finding.partition.to_string(), finding.events.to_string(), found]
}

fn json(finding: &Finding) -> Value {
    let Finding { topic, partition, events, faults } = finding;
    json!({ "topic": topic, "partition": partition, "events": events, "faults": faults })
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
