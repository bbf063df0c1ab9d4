//! What a topic of Kafka's is set to, and what that means for what it acknowledges. Pure.
//!
//! A topic that Tombolo makes keeps everything, has one partition, and syncs each message before it is acknowledged, unless the
//! bus URL accepts otherwise. One that is found is judged by the same list.
//!
//! Kafka describes nobody's topics, but it keeps their settings. So ours have one that nobody else gives, an odd size of
//! segments, by which they are known.
//!
//! Invariant: a topic that is not ours, or that would lose events by its settings, is refused by name.

use std::collections::BTreeMap;

use crate::accept::{Accepted, Weakness};
use crate::port::APPEND_BYTES_MAX;
use crate::{Error, Kind, Result};

/// The size of a segment, in bytes; its oddness is what marks a topic as ours.
const SEGMENT_BYTES: u32 = 500_000_107;
/// The largest message, in bytes: an append and what is written around it.
pub(super) const MESSAGE_BYTES_MAX: usize = APPEND_BYTES_MAX + (1 << 20);
/// On how many brokers a topic is kept if there are so many.
const REPLICAS: usize = 3;
/// How many of them must have a message before it is acknowledged.
const COPIES: usize = 2;
/// How long signals are kept, in milliseconds.
const SIGNALS_MS: u32 = 600_000;

/// What Kafka does unless it is told otherwise.
pub(super) const UNSYNCED: Weakness = Weakness {
    name: "unsynced",
    costs: "a power cut of the brokers that have them at once loses acknowledged events",
    remedy: "set `flush.messages=1` on the topic",
};

/// What is left of that with a single copy.
pub(super) const ONE_COPY: Weakness = Weakness {
    name: "one-copy",
    costs: "the power cut or the death of one machine loses acknowledged events",
    remedy: "keep it on three brokers with `min.insync.replicas=2`",
};

/// A topic as Kafka has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) partitions: usize,
    pub(super) replicas: usize,
    pub(super) values: BTreeMap<String, String>,
}

impl Settings {
    /// What a topic is made with, on a cluster of so many brokers.
    pub(super) fn wished(brokers: usize, accepted: &Accepted) -> Self {
        let replicas = REPLICAS.min(brokers).max(1);
        let mut settings = Self { partitions: 1, replicas, values: BTreeMap::new() };
        settings.set("segment.bytes", SEGMENT_BYTES);
        settings.set("cleanup.policy", "delete");
        settings.set("retention.ms", -1);
        settings.set("retention.bytes", -1);
        settings.set("max.message.bytes", MESSAGE_BYTES_MAX);
        settings.set("unclean.leader.election.enable", false);
        settings.set("min.insync.replicas", COPIES.min(replicas));
        if !accepted.names(&UNSYNCED) {
            settings.set("flush.messages", 1);
        }
        settings
    }

    /// What the topic of signals is made with: nobody needs them a moment later.
    pub(super) fn of_signals(brokers: usize) -> Self {
        let replicas = REPLICAS.min(brokers).max(1);
        let mut settings = Self { partitions: 1, replicas, values: BTreeMap::new() };
        settings.set("segment.bytes", SEGMENT_BYTES);
        settings.set("cleanup.policy", "delete");
        settings.set("retention.ms", SIGNALS_MS);
        settings.set("segment.ms", SIGNALS_MS);
        settings.set("message.timestamp.type", "LogAppendTime");
        settings.set("max.message.bytes", MESSAGE_BYTES_MAX);
        settings
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        self.values.insert(name.to_owned(), value.to_string());
    }

    fn value(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Whether each message is synced before it is acknowledged.
    pub(super) fn is_synced(&self) -> bool {
        self.value("flush.messages") == "1"
    }

    /// How many brokers have a message, at least, when it is acknowledged.
    pub(super) fn copies(&self) -> usize {
        self.value("min.insync.replicas").parse().unwrap_or(1).min(self.replicas)
    }

    /// Refuses a topic that is not ours, or that would lose events.
    pub(super) fn check(&self, topic: &str, accepted: &Accepted) -> Result<()> {
        self.check_ours(topic)?;
        self.check_kept(topic)?;
        if self.is_synced() {
            return Ok(());
        }
        let found = format!("topic {topic} has flush.messages={}", self.value("flush.messages"));
        accepted.judge(&UNSYNCED, &found)?;
        if self.copies() >= COPIES {
            return Ok(());
        }
        let found = format!(
            "{found}, {} replicas and min.insync.replicas={}",
            self.replicas,
            self.value("min.insync.replicas")
        );
        accepted.judge(&ONE_COPY, &found)
    }

    pub(super) fn check_ours(&self, topic: &str) -> Result<()> {
        let (partitions, segments) = (self.partitions, self.value("segment.bytes"));
        if partitions == 1 && segments == SEGMENT_BYTES.to_string() {
            return Ok(());
        }
        let message = format!(
            "topic {topic} of Kafka is not one that Tombolo made: it has {partitions} partitions and segment.bytes={segments}; expected one partition and {SEGMENT_BYTES}, by which ours are known: choose another namespace, or remove it"
        );
        Err(Error::new(Kind::TopicDiffers, message))
    }

    fn check_kept(&self, topic: &str) -> Result<()> {
        let kept = [
            ("cleanup.policy", "delete", "would replace events"),
            ("retention.ms", "-1", "would remove events; only Tombolo trims a topic"),
            ("retention.bytes", "-1", "would remove events; only Tombolo trims a topic"),
            (
                "unclean.leader.election.enable",
                "false",
                "would let a broker lead that lacks acknowledged events",
            ),
        ];
        for (name, expected, costs) in kept {
            let found = self.value(name);
            if found != expected {
                let message = format!(
                    "topic {topic} has {name}={found}, which {costs}; expected {name}={expected}: put it back"
                );
                return Err(Error::new(Kind::Unsafe, message));
            }
        }
        let largest = self.value("max.message.bytes");
        if largest.parse::<usize>().is_ok_and(|largest| largest >= MESSAGE_BYTES_MAX) {
            return Ok(());
        }
        let message = format!(
            "topic {topic} takes messages of {largest} bytes (max.message.bytes); expected at least {MESSAGE_BYTES_MAX}: raise it"
        );
        Err(Error::new(Kind::Configuration, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(names: &str) -> Accepted {
        Accepted::split(&format!("kafka://h:1?accept={names}"), &[UNSYNCED, ONE_COPY]).unwrap().1
    }

    fn with(settings: &Settings, name: &str, value: &str) -> Settings {
        let mut changed = settings.clone();
        changed.set(name, value);
        changed
    }

    #[test]
    fn what_we_make_is_what_we_take() {
        for names in ["", "unsynced", "unsynced,one-copy"] {
            let accepted = accepted(names);
            Settings::wished(3, &accepted).check("t", &accepted).unwrap();
        }
        let alone = Settings::wished(1, &accepted(""));
        assert_eq!((alone.replicas, alone.copies(), alone.is_synced()), (1, 1, true));
        alone.check("t", &accepted("")).unwrap();
    }

    #[test]
    fn what_would_lose_events_is_refused_by_name() {
        let accepted = accepted("");
        let good = Settings::wished(3, &accepted);
        for (name, value, kind) in [
            ("cleanup.policy", "compact", Kind::Unsafe),
            ("cleanup.policy", "compact,delete", Kind::Unsafe),
            ("retention.ms", "604800000", Kind::Unsafe),
            ("retention.bytes", "1073741824", Kind::Unsafe),
            ("unclean.leader.election.enable", "true", Kind::Unsafe),
            ("flush.messages", "9223372036854775807", Kind::Unsafe),
            ("max.message.bytes", "1048588", Kind::Configuration),
            ("segment.bytes", "1073741824", Kind::TopicDiffers),
        ] {
            let refused = with(&good, name, value).check("t", &accepted).unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(refused.to_string().contains(name) && refused.to_string().contains(value), "{refused}");
        }
        let divided = Settings { partitions: 6, ..good };
        assert_eq!(divided.check("t", &accepted).unwrap_err().kind(), Kind::TopicDiffers);
    }

    #[test]
    fn one_copy_in_memory_has_to_be_accepted_beside_memory() {
        let unsynced = accepted("unsynced");
        let alone = Settings::wished(1, &unsynced);
        let refused = alone.check("t", &unsynced).unwrap_err();
        assert!(refused.to_string().contains("accept=one-copy"), "{refused}");
        alone.check("t", &accepted("unsynced,one-copy")).unwrap();
        let three = with(&Settings::wished(3, &unsynced), "min.insync.replicas", "1");
        assert_eq!(three.check("t", &unsynced).unwrap_err().kind(), Kind::Unsafe);
    }
}
