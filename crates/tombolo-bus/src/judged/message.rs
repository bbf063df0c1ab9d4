//! Messages of a topic's stream as bytes: who sent them, and what they say.
//!
//! ```text
//! "tmb1"  kind 1  sender 8  number 8  incarnation 16  epoch 8  …what it says…  crc32c 4        big-endian
//! ```
//!
//! Everything is in the body, because servers rewrite headers from one version to the next. One append is one message, so
//! that it is stored whole or not at all.
//!
//! Invariant: a message is read as it was written, or it is *foreign* (somebody else's), or it is named as damaged.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tombolo_event::{EventId, Generations, Incarnation};
use uuid::Uuid;

use super::rule::End;
use crate::{Error, Kind, Record, Result};

const MAGIC: &[u8; 4] = b"tmb1";
/// What a message holds at least.
const FRAME_BYTES: usize = 4 + 1 + 8 + 8 + 16 + 8 + 4;

/// Who sent a message, and which of its messages it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tag {
    pub(super) sender: u64,
    pub(super) number: u64,
}

/// A message of a topic's stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    pub(super) tag: Tag,
    /// The topic's, as its sender knows it; nil where it knows none.
    pub(super) incarnation: Incarnation,
    pub(super) epoch: u64,
    pub(super) says: Says,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Says {
    /// The topic begins; the first such message counts.
    Birth(Generations),
    /// From here on only this epoch.
    Raise,
    /// From here on only the last of these generations.
    Divide(Generations),
    /// Nothing: its sender wants to have read everything before it.
    Look,
    /// What everybody knows after the message at an offset.
    Mark(Mark),
    /// An append.
    Records(Records),
}

/// The state of a topic after one of its messages: where reading can begin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    /// The offset of the last message that is in it.
    pub(super) at: u64,
    pub(super) generations: Generations,
    pub(super) ends: Vec<End>,
}

/// The records of an append.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Records {
    pub(super) partition: u32,
    /// The id of the event that they follow.
    pub(super) after: Option<EventId>,
    pub(super) records: Vec<Record>,
}

/// What was found in a stream.
#[derive(Debug)]
pub(super) enum Found {
    Ours(Message),
    /// Not written by any Tombolo.
    Foreign,
}

impl Message {
    pub(super) fn encode(&self) -> Bytes {
        let room = match &self.says {
            Says::Records(says) => says.records.iter().map(Record::size).sum(),
            _ => 64,
        };
        let mut to = BytesMut::with_capacity(FRAME_BYTES + 64 + room);
        to.put_slice(MAGIC);
        to.put_u8(self.says.kind());
        to.put_u64(self.tag.sender);
        to.put_u64(self.tag.number);
        to.put_slice(self.incarnation.0.as_bytes());
        to.put_u64(self.epoch);
        self.says.encode(&mut to);
        to.put_u32(crc32c::crc32c(&to));
        to.freeze()
    }

    /// Reads the message at an offset.
    pub(super) fn decode(bytes: Bytes, at: u64) -> Result<Found> {
        if bytes.len() < FRAME_BYTES || !bytes.starts_with(MAGIC) {
            return Ok(Found::Foreign);
        }
        let damaged = || {
            let message = format!(
                "message {at} of the stream is damaged; expected what Tombolo wrote there: restore the stream"
            );
            Error::new(Kind::Corrupt, message)
        };
        let mut sum = bytes.slice(bytes.len() - 4..);
        let body = bytes.slice(..bytes.len() - 4);
        if sum.get_u32() != crc32c::crc32c(&body) {
            return Err(damaged());
        }
        read(&mut Input(body.slice(MAGIC.len()..))).map(Found::Ours).ok_or_else(damaged)
    }
}

impl Says {
    fn kind(&self) -> u8 {
        match self {
            Self::Birth(_) => 1,
            Self::Raise => 2,
            Self::Divide(_) => 3,
            Self::Look => 4,
            Self::Mark(_) => 5,
            Self::Records(_) => 6,
        }
    }

    fn encode(&self, to: &mut BytesMut) {
        match self {
            Self::Birth(generations) | Self::Divide(generations) => put_generations(to, generations),
            Self::Raise | Self::Look => {}
            Self::Mark(mark) => {
                to.put_u64(mark.at);
                put_generations(to, &mark.generations);
                for end in &mark.ends {
                    to.put_u64(end.sequence);
                    put_id(to, end.id);
                }
            }
            Self::Records(says) => {
                to.put_u32(says.partition);
                put_id(to, says.after);
                to.put_u64(says.records.first().map_or(0, |record| record.sequence));
                to.put_u32(says.records.len() as u32);
                for record in &says.records {
                    put_id(to, Some(record.id));
                    put_bytes(to, &record.event_type);
                    put_bytes(to, &record.bytes);
                }
            }
        }
    }
}

fn put_generations(to: &mut BytesMut, generations: &Generations) {
    to.put_u8(generations.each().len() as u8);
    for partitions in generations.each() {
        to.put_u32(*partitions);
    }
}

/// An id; nil stands for none.
fn put_id(to: &mut BytesMut, id: Option<EventId>) {
    to.put_slice(id.map_or(Uuid::nil(), |id| id.0).as_bytes());
}

fn put_bytes(to: &mut BytesMut, bytes: &Bytes) {
    to.put_u32(bytes.len() as u32);
    to.put_slice(bytes);
}

fn read(from: &mut Input) -> Option<Message> {
    let kind = from.u8()?;
    let tag = Tag { sender: from.u64()?, number: from.u64()? };
    let incarnation = Incarnation(from.uuid()?);
    let epoch = from.u64()?;
    let says = match kind {
        1 => Says::Birth(from.generations()?),
        2 => Says::Raise,
        3 => Says::Divide(from.generations()?),
        4 => Says::Look,
        5 => Says::Mark(from.mark()?),
        6 => Says::Records(from.records()?),
        _ => return None,
    };
    from.0.is_empty().then_some(Message { tag, incarnation, epoch, says })
}

/// Bytes that may end too early.
struct Input(Bytes);

impl Input {
    fn take(&mut self, bytes: usize) -> Option<Bytes> {
        (self.0.len() >= bytes).then(|| self.0.split_to(bytes))
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?.get_u8())
    }

    fn u32(&mut self) -> Option<u32> {
        Some(self.take(4)?.get_u32())
    }

    fn u64(&mut self) -> Option<u64> {
        Some(self.take(8)?.get_u64())
    }

    fn uuid(&mut self) -> Option<Uuid> {
        Uuid::from_slice(&self.take(16)?).ok()
    }

    fn id(&mut self) -> Option<Option<EventId>> {
        let id = self.uuid()?;
        Some((!id.is_nil()).then_some(EventId(id)))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn generations(&mut self) -> Option<Generations> {
        let each = (0..self.u8()?).map(|_| self.u32()).collect::<Option<Vec<u32>>>()?;
        Generations::try_from(each).ok()
    }

    fn mark(&mut self) -> Option<Mark> {
        let (at, generations) = (self.u64()?, self.generations()?);
        let ends = (0..generations.partitions())
            .map(|_| Some(End { sequence: self.u64()?, id: self.id()? }))
            .collect::<Option<Vec<End>>>()?;
        Some(Mark { at, generations, ends })
    }

    fn records(&mut self) -> Option<Records> {
        let (partition, after) = (self.u32()?, self.id()?);
        let (first, count) = (self.u64()?, self.u32()?);
        let records = (first..first.checked_add(u64::from(count))?)
            .map(|sequence| {
                let id = EventId(self.uuid()?);
                Some(Record { sequence, id, event_type: self.bytes()?, bytes: self.bytes()? })
            })
            .collect::<Option<Vec<Record>>>()?;
        (!records.is_empty()).then_some(Records { partition, after, records })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> EventId {
        EventId(Uuid::from_u128(n))
    }

    fn message(says: Says) -> Message {
        let tag = Tag { sender: 7, number: 9 };
        Message { tag, incarnation: Incarnation(Uuid::from_u128(5)), epoch: 3, says }
    }

    fn each() -> Vec<Message> {
        let generations = Generations::first(2).unwrap().and(1).unwrap();
        let ends = vec![End { sequence: 4, id: Some(id(4)) }, End::default(), End::default()];
        let record = |sequence, bytes: &'static [u8]| Record {
            sequence,
            id: id(u128::from(sequence)),
            event_type: Bytes::from_static(b"a.b.v1"),
            bytes: Bytes::from_static(bytes),
        };
        let records = vec![record(5, b"one"), record(6, b"")];
        [
            Says::Birth(generations.clone()),
            Says::Raise,
            Says::Divide(generations.clone()),
            Says::Look,
            Says::Mark(Mark { at: 77, generations, ends }),
            Says::Records(Records { partition: 2, after: Some(id(4)), records }),
        ]
        .map(message)
        .into()
    }

    fn decoded(bytes: Bytes) -> Result<Found> {
        Message::decode(bytes, 1)
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        for message in each() {
            match decoded(message.encode()) {
                Ok(Found::Ours(read)) => assert_eq!(read, message),
                other => panic!("{message:?} was read as {other:?}"),
            }
        }
    }

    #[test]
    fn stored_bytes_stay_as_they_are() {
        let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: Vec<String> = each().into_iter().map(|message| hex(message.encode())).collect();
        let golden: Vec<&str> = include_str!("../../golden/judged-v1.hex").lines().collect();
        assert_eq!(found, golden);
    }

    #[test]
    fn damage_is_named_and_strangers_are_told_apart() {
        for message in each() {
            let whole = message.encode();
            for bit in 0..whole.len() * 8 {
                let mut broken = BytesMut::from(&whole[..]);
                broken[bit / 8] ^= 1 << (bit % 8);
                match decoded(broken.freeze()) {
                    Ok(Found::Foreign) => assert!(bit < MAGIC.len() * 8),
                    Err(error) => assert_eq!(error.kind(), Kind::Corrupt),
                    Ok(Found::Ours(read)) => panic!("bit {bit} of {message:?} was read as {read:?}"),
                }
            }
        }
        assert!(matches!(decoded(Bytes::from_static(b"hello")), Ok(Found::Foreign)));
    }
}
