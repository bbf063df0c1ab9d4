//! Events that other programs publish: plain rows that any language inserts in its own transactions, judged and encoded here.
//!
//! takes: rows of the foreign outbox, in the order of their positions · writes: nothing · commits: with the leader's round,
//! which takes them into the ordinary outbox · if we crash here: the rows wait where they were · if it repeats: the same rows.
//!
//! ```text
//!  another program   INSERT INTO tombolo.events (event_type, event_key, data) …      the trigger locks the key, then gives the position
//!  leader's round    judge ── encode ── outbox (numbered as every row is) ── gone from the foreign outbox: one transaction
//!                      └─ what no bus will ever take is parked: it stays, with the reason, and its key's later rows behind it
//! ```
//!
//! Invariant: a row is taken in whole or stays whole; of a key nothing is taken in behind a row that is parked.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tombolo_event::envelope::{EVENT_BYTES_MAX, JSON};
use tombolo_event::{Envelope, EventId, KeyHash};

use crate::outgoing::Row;
use crate::{Depth, ForeignParked};

/// The most bytes of the reason for which a row is parked.
const REASON_BYTES_MAX: usize = 1_000;

/// A row as another program wrote it. What could not be read is missing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    pub(crate) position: i64,
    pub(crate) id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) key: String,
    pub(crate) content_type: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) trace: Option<String>,
    /// The text, or else the bytes; missing if they are too large to be read at all.
    pub(crate) data: Option<Vec<u8>>,
    /// How large the data is.
    pub(crate) size: u64,
}

/// What becomes of rows.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// For the outbox, in the order of their positions.
    pub(crate) rows: Vec<Row>,
    /// Their positions.
    pub(crate) taken: Vec<i64>,
    /// What is parked from now on.
    pub(crate) parked: Vec<ForeignParked>,
}

/// Judges rows that are in the order of their positions: what follows a bad row under its key stays where it is.
pub(crate) fn judge(service: &str, written: Vec<Written>) -> Judged {
    let mut judged = Judged::default();
    let mut held = BTreeSet::new();
    for one in written {
        if held.contains(&one.key) {
            continue;
        }
        match encode(service, &one) {
            Ok(row) => {
                judged.taken.push(one.position);
                judged.rows.push(row);
            }
            Err(reason) => {
                held.insert(one.key.clone());
                let Written { position, key, event_type, .. } = one;
                judged.parked.push(ForeignParked { position, key, event_type, reason: cut(reason) });
            }
        }
    }
    judged
}

/// What waits in the foreign outbox, as a database counts it.
pub(crate) struct Waiting {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) oldest: Option<Timestamp>,
    pub(crate) parked_rows: u64,
}

impl Waiting {
    /// That, and what waits in the ordinary outbox.
    pub(crate) fn beside(self, depth: Depth) -> Depth {
        Depth {
            rows: depth.rows + self.rows,
            bytes: depth.bytes + self.bytes,
            oldest: depth.oldest.into_iter().chain(self.oldest).min(),
            parked_rows: self.parked_rows,
            ..depth
        }
    }
}

/// Says by name what is parked.
pub(crate) fn tell(service: &str, parked: &[ForeignParked]) {
    for ForeignParked { position, key, event_type, reason } in parked {
        tracing::error!(
            service,
            position,
            key,
            event_type,
            "a row of the foreign outbox is parked, and its key's later rows wait behind it: {reason}"
        );
    }
}

fn encode(service: &str, one: &Written) -> Result<Row, String> {
    if one.size > EVENT_BYTES_MAX as u64 {
        return Err(format!("its data is {} bytes; expected at most {EVENT_BYTES_MAX}", one.size));
    }
    let envelope = Envelope {
        id: id(one)?,
        source: service.to_owned(),
        event_type: one.event_type.clone(),
        key: one.key.clone(),
        time: one.time.ok_or("its event_time is no time between the years -9999 and 9999")?,
        content_type: one.content_type.clone(),
        // What does not parse is dropped, as the recommendation says.
        trace: one.trace.as_deref().and_then(|trace| trace.parse().ok()),
        correlation: None,
        causation: None,
        extensions: tombolo_event::envelope::Extensions::new(),
        data: data(one)?,
    };
    let bytes = envelope.encode();
    envelope.check(&bytes).map_err(|error| error.to_string())?;
    let key_hash = KeyHash::of(&envelope.key);
    Ok(Row { id: envelope.id, key_hash, event_type: envelope.event_type, bytes, due: None })
}

fn id(one: &Written) -> Result<EventId, String> {
    let text = one.id.as_deref().unwrap_or_default();
    text.parse().map_err(|_| format!("its id {text:?} is no UUID"))
}

/// The data, which has to be JSON if the row says that it is.
fn data(one: &Written) -> Result<Bytes, String> {
    let data = one.data.as_ref().ok_or("it has neither data nor data_binary")?;
    if one.content_type == JSON {
        let checked: Result<&RawValue, _> = serde_json::from_slice(data);
        checked
            .map_err(|error| format!("its data is no JSON ({error}), but its content_type says {JSON}"))?;
    }
    Ok(Bytes::copy_from_slice(data))
}

fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(position: i64, key: &str) -> Written {
        Written {
            position,
            id: Some("01890a5d-ac96-774b-bcce-b302099a8057".into()),
            event_type: "orders.placed.v1".into(),
            key: key.into(),
            content_type: JSON.into(),
            time: Some("2026-11-20T12:00:00Z".parse().unwrap()),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            data: Some(br#"{"cents":1}"#.to_vec()),
            size: 11,
        }
    }

    fn reason(one: Written) -> String {
        let judged = judge("orders", vec![one]);
        assert!(judged.rows.is_empty() && judged.taken.is_empty());
        judged.parked[0].reason.clone()
    }

    #[test]
    fn a_good_row_becomes_the_event_that_it_says() {
        let judged = judge("orders", vec![written(1, "a")]);
        let envelope = Envelope::decode(judged.rows[0].bytes.clone()).unwrap();
        assert_eq!((envelope.source.as_str(), envelope.key.as_str()), ("orders", "a"));
        assert_eq!(envelope.data, &br#"{"cents":1}"#[..]);
        assert!(envelope.trace.is_some() && judged.parked.is_empty());
        assert_eq!(judged.rows[0].key_hash, KeyHash::of("a"));
    }

    #[test]
    fn what_no_bus_takes_is_parked_with_its_reason() {
        assert!(reason(Written { event_type: "Orders placed".into(), ..written(1, "a") }).contains("Orders"));
        assert!(reason(Written { id: Some("7".into()), ..written(1, "a") }).contains("\"7\" is no UUID"));
        assert!(reason(Written { id: None, ..written(1, "a") }).contains("no UUID"));
        assert!(reason(written(1, "")).contains("key is empty"));
        assert!(reason(written(1, &"k".repeat(513))).contains("513 bytes"));
        assert!(reason(Written { data: Some(b"{".to_vec()), ..written(1, "a") }).contains("no JSON"));
        assert!(reason(Written { data: None, ..written(1, "a") }).contains("neither data"));
        assert!(reason(Written { time: None, ..written(1, "a") }).contains("event_time"));
        let large = Written { data: None, size: 1 << 30, ..written(1, "a") };
        assert!(reason(large).contains("1073741824 bytes"));
        let filled = Written { data: Some(vec![b'1'; EVENT_BYTES_MAX]), size: 1 << 20, ..written(1, "a") };
        assert!(reason(filled).contains("as stored"));
    }

    #[test]
    fn other_keys_flow_past_a_parked_one_and_its_own_waits() {
        let bad = Written { id: None, ..written(2, "a") };
        let judged = judge("orders", vec![written(1, "a"), bad, written(3, "b"), written(4, "a")]);
        assert_eq!(judged.taken, [1, 3]);
        assert_eq!(judged.parked.iter().map(|parked| parked.position).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_reason_is_cut_between_letters() {
        assert_eq!(cut("ü".repeat(600)).len(), REASON_BYTES_MAX);
    }
}
