//! Removing what an archive has: a script that proves where the rest begins, and removes some entries at a time.
//!
//! Invariant: where a partition begins is written before the first entry goes, in the same step.

use tombolo_event::{Cursor, ServiceName};

use super::link::{Link, SERVER};
use super::scripts::Script;
use super::values::{End, id, incarnation, list, number, odd, text};
use crate::adapter::refusal::{check_cursor, check_incarnation, foreign, unknown_partition, unknown_topic};
use crate::{Read, Result};

/// How many entries are removed at once: the server does nothing else meanwhile.
const ENTRIES_AT_ONCE: u64 = 20_000;

/// Removes what lies before `first`.
pub(super) async fn trim(link: &Link, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
    let Some(event) = first.id else { return Ok(()) };
    let keys = &link.keys;
    let named = [keys.topic(topic), keys.ends(topic), keys.partition(topic, partition)];
    loop {
        let mut line = link.line_to_append().await?;
        let mut call = line.scripts.call(Script::Trim, &named);
        call.arg(keys.mark(topic)).arg(first.incarnation.to_string()).arg(partition);
        call.arg(first.sequence).arg(event.to_string()).arg(ENTRIES_AT_ONCE);
        let words = list(line.ask(&call).await?);
        let word = |at: usize| words.get(at).and_then(text);
        match word(0).as_deref() {
            Some("trimmed") => return Ok(()),
            Some("more") => {}
            Some("absent") => return Err(unknown_topic(topic, SERVER)),
            Some("foreign") => return Err(foreign(topic, &word(1).unwrap_or_default())),
            Some("refused") => {
                let found = word(1).as_deref().and_then(incarnation).ok_or_else(|| odd("a refusal"))?;
                check_incarnation(topic, found, first.incarnation)?;
                let partitions = number(words.get(2)).and_then(|count| u32::try_from(count).ok());
                return Err(unknown_partition(topic, partition, partitions.unwrap_or(0)));
            }
            _ => {
                let end = End::read(word(2).as_deref())?;
                let found = word(1).as_deref().and_then(id);
                check_cursor(&Read::to_tail(topic, partition, first), first, end.last, found)?;
                return Err(odd("a refusal"));
            }
        }
    }
}
