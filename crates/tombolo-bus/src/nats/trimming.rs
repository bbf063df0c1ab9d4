//! Removing what an archive has: the messages of one partition before a place, in one request to the server.
//!
//! What was purged needs no record of its own: streams deny the deletion of single messages, so a partition that does not begin with
//! its first record was trimmed.
//!
//! Invariant: the control record and the last record of each partition stay, on which the chain of every writer rests.

use std::sync::Arc;

use tombolo_event::{Cursor, ServiceName};

use super::link::{Link, unavailable};
use super::log::Log;
use super::reader::prove;
use crate::{Error, Kind, Read, Result};

/// Removes what lies before `first`.
pub(super) async fn trim(link: &Arc<Link>, topic: &ServiceName, partition: u32, first: Cursor) -> Result<()> {
    let log = Log::open(link, topic).await?;
    let (_, at) = match prove(&log, &Read::to_tail(topic, partition, first)).await {
        // Less than was removed before.
        Err(error) if error.kind() == Kind::Trimmed => return Ok(()),
        proven => proven?,
    };
    if first.sequence < 2 {
        return Ok(());
    }
    let subject = link.names.partition(topic, partition);
    let purged = log.stream.purge().filter(subject).sequence(at).await;
    purged.map(drop).map_err(|error| unavailable("messages cannot be removed", error))
}

impl Log {
    /// The refusal of a place before the first record that is there; none if it is not that.
    pub(super) async fn trimmed(&self, partition: u32, place: Cursor) -> Result<Option<Error>> {
        let Some(first) = self.next_of(partition, 1).await? else { return Ok(None) };
        let begins = Cursor::at(place.incarnation, first.record.sequence, first.record.id);
        let is_before = begins.sequence > 1 && place.sequence < begins.sequence;
        Ok(is_before.then(|| Error::trimmed(&self.topic, partition, place.sequence, Some(begins))))
    }
}
