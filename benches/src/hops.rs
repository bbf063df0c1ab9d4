//! When an event passed each hop of its path from one commit to the other, by the clock that all processes share.
//!
//! Invariant: the order of [`Hop`] is that of the path, and every stamp is taken by a wrapper around the bus, by the benches'
//! own handler, or at a barrier that fault runs use as well: nothing inside Tombolo knows of them.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tombolo_event::EventId;

use crate::clock::now_ns;
use crate::error::{Error, Result};
use crate::quantiles::Latencies;

/// The places that an event passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Hop {
    CommitCalled,
    Committed,
    AppendSent,
    AppendArrived,
    AppendSynced,
    ReadAtServer,
    Delivered,
    Handler,
    CursorCalled,
    ApplyCalled,
    Visible,
    /// Beside the path: the producer's relay hears that the event is on disk.
    Acknowledged,
}

/// The path, and what happens between each place and the one before.
pub(crate) const PATH: [(Hop, &str); 11] = [
    (Hop::CommitCalled, "the producer calls commit"),
    (Hop::Committed, "commit: outbox rows, sync, back in the caller"),
    (Hop::AppendSent, "wake, round, and the append put together"),
    (Hop::AppendArrived, "append: to the server, over the socket"),
    (Hop::AppendSynced, "append: into the log, synced"),
    (Hop::ReadAtServer, "delivery: the server's reader woken and the batch taken from the log"),
    (Hop::Delivered, "delivery: to the consumer's worker, over the socket"),
    (Hop::Handler, "begin, until the handler runs"),
    (Hop::CursorCalled, "handler: one insert"),
    (Hop::ApplyCalled, "cursor"),
    (Hop::Visible, "commit: sync, back in the worker"),
];

const ALL: [Hop; 12] = [
    Hop::CommitCalled,
    Hop::Committed,
    Hop::AppendSent,
    Hop::AppendArrived,
    Hop::AppendSynced,
    Hop::ReadAtServer,
    Hop::Delivered,
    Hop::Handler,
    Hop::CursorCalled,
    Hop::ApplyCalled,
    Hop::Visible,
    Hop::Acknowledged,
];

/// The stamps that one process took.
#[derive(Debug, Default)]
pub(crate) struct Hops(Mutex<Vec<(EventId, Hop, u64)>>);

impl Hops {
    /// `id` passes `hop` now.
    pub(crate) fn now(&self, id: EventId, hop: Hop) {
        self.at(id, hop, now_ns());
    }

    /// `id` passed `hop` at `ns`.
    pub(crate) fn at(&self, id: EventId, hop: Hop, ns: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((id, hop, ns));
    }

    /// Writes the stamps to a file, one line each.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        for (id, hop, ns) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            writeln!(text, "{id} {} {ns}", *hop as usize)?;
        }
        Ok(std::fs::write(path, text)?)
    }
}

/// The way of each event, put together from the files of all processes.
#[derive(Debug, Default)]
pub(crate) struct Ways(HashMap<EventId, HashMap<Hop, u64>>);

impl Ways {
    /// Adds the stamps of one process. The first pass of a hop counts.
    pub(crate) fn add(&mut self, path: &Path) -> Result<()> {
        for line in std::fs::read_to_string(path)?.lines() {
            let wrong = || Error::new(format!("{}: {line:?} is no stamp", path.display()));
            let [id, hop, ns] = line.split(' ').collect::<Vec<_>>()[..] else { return Err(wrong()) };
            let hop = hop.parse().ok().and_then(|hop: usize| ALL.get(hop)).ok_or_else(wrong)?;
            let ns = ns.parse().map_err(|_| wrong())?;
            self.0.entry(id.parse()?).or_default().entry(*hop).or_insert(ns);
        }
        Ok(())
    }

    /// The latencies between two hops, of the events that passed the first one within `during`.
    pub(crate) fn between(&self, from: Hop, to: Hop, during: std::ops::Range<u64>) -> Latencies {
        let ways = self.0.values();
        let both = ways.filter_map(|way| Some((*way.get(&from)?, *way.get(&to)?)));
        both.filter(|(from, _)| during.contains(from)).map(|(from, to)| to.saturating_sub(from)).collect()
    }

    /// How many events passed `hop`.
    pub(crate) fn passed(&self, hop: Hop) -> usize {
        self.0.values().filter(|way| way.contains_key(&hop)).count()
    }

    /// The path as a Markdown table: what each step takes.
    pub(crate) fn markdown(&self) -> String {
        let all = self.between(Hop::CommitCalled, Hop::Visible, 0..u64::MAX);
        let mut text = format!("| hop, of {} events | p50 | p90 | p99 |\n|---|---|---|---|", all.len());
        let mut line = |what: &str, took: &Latencies| {
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|quantile| took.us(quantile));
            // Writing to a string cannot fail.
            write!(text, "\n| {what} | {p50:.0} µs | {p90:.0} µs | {p99:.0} µs |").ok();
        };
        for step in PATH.windows(2) {
            line(step[1].1, &self.between(step[0].0, step[1].0, 0..u64::MAX));
        }
        line("commit called to visible", &all);
        line("committed to visible", &self.between(Hop::Committed, Hop::Visible, 0..u64::MAX));
        line(
            "beside the path: synced to acknowledged at the relay",
            &self.between(Hop::AppendSynced, Hop::Acknowledged, 0..u64::MAX),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamps_of_two_processes_make_one_way() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Hops::default(), Hops::default());
        let id = EventId::new();
        one.at(id, Hop::Committed, 1_000);
        other.at(id, Hop::Visible, 501_000);
        let mut ways = Ways::default();
        for (hops, name) in [(one, "one"), (other, "other")] {
            hops.save(&folder.path().join(name)).unwrap();
            ways.add(&folder.path().join(name)).unwrap();
        }
        let took = ways.between(Hop::Committed, Hop::Visible, 0..2_000);
        assert_eq!((took.len(), took.p50_us().round()), (1, 500.0));
        assert_eq!(ways.between(Hop::Committed, Hop::Visible, 2_000..3_000).len(), 0);
    }

    #[test]
    fn a_hop_keeps_its_number_in_a_file() {
        for (number, hop) in ALL.into_iter().enumerate() {
            assert_eq!(hop as usize, number);
        }
        assert!(PATH.iter().zip(ALL).all(|((on_path, _), hop)| *on_path == hop));
    }
}
